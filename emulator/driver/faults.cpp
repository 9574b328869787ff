// What turns a kernel's mistake into a report. Two sources: signals, for accesses that reach a
// page fence or no page at all, and the checks that the compiler puts into kernels with
// -fsanitize=alignment,bounds. Those call the handlers of its runtime library, which is not
// linked; they are defined here instead and give up the launch.
#include <signal.h>
#include <ucontext.h>

#include <cstdint>
#include <cstdlib>
#include <cstring>

#include "executor.h"

namespace emu {
namespace {

const int SIGNALS[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL};
struct sigaction previous[4];

const char* access_of(const void* context) {
#if defined(__x86_64__)
    // Bit 1 of a page fault's error code: it was a write.
    return ((const ucontext_t*)context)->uc_mcontext.gregs[REG_ERR] & 2 ? "write" : "read";
#else
    (void)context;
    return "access";
#endif
}

void handle(int signal, siginfo_t* info, void* context) {
    if (executing()) {
        // The handler's frame is left behind, like a longjmp would.
        if (signal == SIGFPE) abandon(719, "integer division by zero");
        if (signal == SIGILL) abandon(715, "illegal instruction");
        // An address that no page can have is not told to the handler.
        bool known = signal != SIGSEGV || info->si_code > 0;
#ifdef SI_KERNEL
        known = known && info->si_code != SI_KERNEL;
#endif
        abandon_at(known ? info->si_addr : (void*)~0ull, access_of(context));
    }
    for (int i = 0; i < 4; ++i) {
        if (SIGNALS[i] != signal) continue;
        const struct sigaction& old = previous[i];
        if (old.sa_flags & SA_SIGINFO) {
            old.sa_sigaction(signal, info, context);
        } else if (old.sa_handler != SIG_DFL && old.sa_handler != SIG_IGN) {
            old.sa_handler(signal);
        } else {
            sigaction(signal, &old, nullptr);  // the instruction runs again and ends the process
        }
    }
}

}  // namespace

void catch_signals() {
    static bool installed = false;
    if (!installed) {
        installed = true;
        struct sigaction action;
        memset(&action, 0, sizeof action);
        action.sa_sigaction = handle;
        // NODEFER: the signal must not stay blocked when the handler's frame is abandoned.
        action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
        sigemptyset(&action.sa_mask);
        for (int i = 0; i < 4; ++i) sigaction(SIGNALS[i], &action, &previous[i]);
    }
    // A fiber that has overflowed its stack cannot run a handler. Rust gives its threads a stack
    // for signals; others get one here.
    stack_t stack;
    if (sigaltstack(nullptr, &stack) == 0 && stack.ss_flags & SS_DISABLE) {
        memset(&stack, 0, sizeof stack);
        stack.ss_size = 64 << 10;
        stack.ss_sp = malloc(stack.ss_size);
        if (stack.ss_sp) sigaltstack(&stack, nullptr);
    }
}

}  // namespace emu

// ---- The compiler's checks: the layouts are those of the sanitizers' runtime library

struct CheckPlace {
    const char* file;
    uint32_t line, column;
};
struct CheckType {
    uint16_t kind, info;
    char name[1];
};
struct TypeMismatch {
    CheckPlace place;
    const CheckType* type;
    unsigned char log_alignment, kind;
};
struct OutOfBounds {
    CheckPlace place;
    const CheckType *array, *index;
};

static const char* file_of(const CheckPlace& place) {
    const char* slash = place.file ? strrchr(place.file, '/') : nullptr;
    return slash ? slash + 1 : place.file ? place.file : "?";
}

extern "C" void __ubsan_handle_type_mismatch_v1(TypeMismatch* check, uintptr_t pointer) {
    static const char* const KINDS[] = {"read", "write", "reference", "member access"};
    const char* kind = check->kind < 4 ? KINDS[check->kind] : "access";
    unsigned alignment = 1u << check->log_alignment;
    // The null page is for the signal handler, which knows that it is no allocation.
    if (pointer == 0) return;
    emu::abandon(716, "misaligned %s of %s at %#lx, which is not a multiple of %u (%s:%u)", kind,
                 check->type->name, (unsigned long)pointer, alignment, file_of(check->place),
                 check->place.line);
}

extern "C" void __ubsan_handle_out_of_bounds(OutOfBounds* check, uintptr_t index) {
    emu::abandon(700, "index %ld is out of bounds for %s (%s:%u)", (long)index,
                 check->array->name, file_of(check->place), check->place.line);
}
