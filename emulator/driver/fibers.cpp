#include "fibers.h"

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstring>

#if !defined(__x86_64__) && !defined(__aarch64__)
#include <ucontext.h>
#endif

namespace emu {

#if defined(__x86_64__)

asm(R"(
    .text
    .p2align 4
    .type gfocal_switch_stack, @function
    .local gfocal_switch_stack
gfocal_switch_stack:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size gfocal_switch_stack, . - gfocal_switch_stack
)");
// A function finds its return address 8 below a multiple of 16, which `start` has not; below it stand the
// six saved registers.
constexpr size_t FRAME = 8, RETURN = 6;

#elif defined(__aarch64__)

asm(R"(
    .text
    .p2align 4
    .type gfocal_switch_stack, %function
    .local gfocal_switch_stack
gfocal_switch_stack:
    sub sp, sp, #160
    stp x19, x20, [sp, #0]
    stp x21, x22, [sp, #16]
    stp x23, x24, [sp, #32]
    stp x25, x26, [sp, #48]
    stp x27, x28, [sp, #64]
    stp x29, x30, [sp, #80]
    stp d8, d9, [sp, #96]
    stp d10, d11, [sp, #112]
    stp d12, d13, [sp, #128]
    stp d14, d15, [sp, #144]
    mov x9, sp
    str x9, [x0]
    mov sp, x1
    ldp x19, x20, [sp, #0]
    ldp x21, x22, [sp, #16]
    ldp x23, x24, [sp, #32]
    ldp x25, x26, [sp, #48]
    ldp x27, x28, [sp, #64]
    ldp x29, x30, [sp, #80]
    ldp d8, d9, [sp, #96]
    ldp d10, d11, [sp, #112]
    ldp d12, d13, [sp, #128]
    ldp d14, d15, [sp, #144]
    add sp, sp, #160
    ret
    .size gfocal_switch_stack, . - gfocal_switch_stack
)");
constexpr size_t FRAME = 20, RETURN = 11;  // of x30

#endif

#if defined(__x86_64__) || defined(__aarch64__)

extern "C" void gfocal_switch_stack(void** save, void* load);

// In words below `top`.
void prepare_fiber(Fiber& fiber, void*, void* top, void (*start)()) {
    void** frame = (void**)top - FRAME;
    memset(frame, 0, FRAME * sizeof *frame);
    memcpy(&frame[RETURN], &start, sizeof start);
    fiber.stack_pointer = frame;
}

void switch_fiber(Fiber& from, Fiber& to) {
    gfocal_switch_stack(&from.stack_pointer, to.stack_pointer);
}

#else

static ucontext_t& context(Fiber& fiber) {
    if (!fiber.context) fiber.context = new ucontext_t;
    return *(ucontext_t*)fiber.context;
}

void prepare_fiber(Fiber& fiber, void* bottom, void* top, void (*start)()) {
    ucontext_t& c = context(fiber);
    getcontext(&c);
    c.uc_stack.ss_sp = bottom;
    c.uc_stack.ss_size = (char*)top - (char*)bottom;
    c.uc_link = nullptr;
    makecontext(&c, start, 0);
}

void switch_fiber(Fiber& from, Fiber& to) { swapcontext(&context(from), &context(to)); }

#endif

bool Stacks::reserve(size_t count) {
    if (count <= count_) return true;
    if (!fence_) fence_ = (size_t)sysconf(_SC_PAGESIZE);
    size_t bytes = count * (BYTES + fence_);
    void* base = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return false;
    if (base_) munmap(base_, count_ * (BYTES + fence_));
    base_ = (char*)base;
    count_ = count;
    for (size_t i = 0; i < count; ++i)
        mprotect(base_ + i * (BYTES + fence_), fence_, PROT_NONE);
    return true;
}

void* Stacks::top(size_t index) const {
    // Stacks a whole number of pages apart would have their tops in the same few sets of the
    // cache; so the tops are moved down by different multiples of a cache line.
    return (char*)bottom(index) + BYTES - index * 9 % 61 * 64;
}

bool Stacks::is_fence(const void* address) const {
    uintptr_t offset = (uintptr_t)address - (uintptr_t)base_;
    return base_ && offset < count_ * (BYTES + fence_) && offset % (BYTES + fence_) < fence_;
}

}  // namespace emu
