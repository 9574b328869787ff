// What kernels and the executor say to each other. Kernels see it through prelude.h, which is
// force-included, so it needs no header of the C++ library: a kernel that leans on one would
// compile here and not with NVRTC.
#pragma once

namespace emu {

typedef unsigned long long Word;

struct Index {
    unsigned x, y, z;
};

struct Block;

// One CUDA thread, as far as kernels look into it. The executor extends it.
struct Thread {
    Index thread, block;
    unsigned lane;
    Block* resident;
};

// The running thread. One kernel runs at a time, so this needs no thread-local storage.
extern Thread* now;
extern Index block_dim, grid_dim;

// How far off the special functions are: -1, 0 or 1 times what NVIDIA's manual allows.
struct SpecialErrors {
    int exp2, log2, reciprocal;
};
extern SpecialErrors special_errors;

// What the lanes of a warp, or the threads of a block, do together.
enum Together : unsigned {
    SHUFFLE, SHUFFLE_XOR, SHUFFLE_UP, SHUFFLE_DOWN, VOTE_ANY, VOTE_ALL, BALLOT, SYNC_WARP,
    SYNC_THREADS, SYNC_THREADS_OR, SYNC_THREADS_AND, SYNC_THREADS_COUNT,
};

// Waits until all 32 lanes have called it; what each of them passed, by lane.
const Word* exchange(Together what, unsigned mask, Word value, int line, const char* file);
// Waits until all threads of the block that still run have called it; how many passed true.
unsigned barrier(Together what, bool vote, unsigned& threads, int line, const char* file);
// A place where another block or warp may run first. It often does; and where this thread has
// just done something that others see, it may stay behind for long.
void preempt(bool may_hold);
unsigned active_lanes();
[[noreturn]] void trap(const char* what, int line, const char* file);

// A shared array in the source. `id` is given at its first use.
struct SharedSite {
    const char* name;
    const char* file;
    int line;
    unsigned id;
};
void* shared(SharedSite& site, Word bytes);

// An entry point, listed by the object file that holds it.
struct Parameter {
    unsigned size, alignment;
};
struct Program;
struct Kernel {
    const char* name;
    void (*call)(void** arguments);
    const Parameter* parameters;  // ends with {0, 0}
    Kernel* next;
    const Program* program;  // what runs instead of `call`, in the mode that runs PTX
};
extern Kernel* kernels;

struct Register {
    explicit Register(Kernel& kernel) {
        kernel.next = kernels;
        kernels = &kernel;
    }
};

template <int...>
struct Indices {};
template <int N, int... I>
struct Count : Count<N - 1, N - 1, I...> {};
template <int... I>
struct Count<0, I...> {
    typedef Indices<I...> type;
};

// The parameter types of an entry point, and a call of it with pointers to its arguments.
template <auto>
struct Entry;
template <class... P, void (*function)(P...)>
struct Entry<function> {
    static constexpr Parameter parameters[] = {{sizeof(P), alignof(P)}..., {0, 0}};
    static void call(void** arguments) {
        with(arguments, typename Count<sizeof...(P)>::type());
    }

   private:
    template <int... I>
    static void with(void** arguments, Indices<I...>) {
        (void)arguments;
        function(*(P*)arguments[I]...);
    }
};

}  // namespace emu
