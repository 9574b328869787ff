// Stacks, and the switch from one to another. A switch is a call: only what a callee must
// preserve is saved, on the stack that is left, and the rest of a stack's state is its pointer.
// That is a few nanoseconds, where ucontext makes two system calls.
#pragma once
#include <cstddef>

namespace emu {

struct Fiber {
    void* stack_pointer = nullptr;
    void* context = nullptr;  // ucontext_t, where there is no switch of our own
};

// Leaves `from` and continues `to`, which must have been left or prepared.
void switch_fiber(Fiber& from, Fiber& to);
// After this, a switch to `fiber` calls `start` on the stack that ends at `top`.
void prepare_fiber(Fiber& fiber, void* bottom, void* top, void (*start)());

// `count` stacks in one mapping, each above a page that must not be touched.
class Stacks {
   public:
    static constexpr size_t BYTES = 64 << 10;
    bool reserve(size_t count);
    void* bottom(size_t index) const { return base_ + index * (BYTES + fence_) + fence_; }
    void* top(size_t index) const;
    // Whether the address lies in the page below a stack: it has overflowed.
    bool is_fence(const void* address) const;

   private:
    char* base_ = nullptr;
    size_t fence_ = 0, count_ = 0;
};

}  // namespace emu
