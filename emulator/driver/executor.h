// Runs one kernel launch to its end.
#pragma once
#include <cstdint>
#include <string>

#include "emu.h"

namespace emu {

struct Launch {
    const Kernel* kernel;
    void** arguments;
    Index grid, block;
    uint64_t seed;
    size_t shared_limit;
};

// What stopped a launch.
struct Fault {
    int error = 0;        // a CUresult; 0 if the launch came to its end
    std::string where;    // "kernel k, block 3, thread 17"
    std::string what;
    const char* access = nullptr;   // "read", "write": what was done at `address`, where the
    const void* address = nullptr;  // caller knows what lies there
};

Fault execute(const Launch& launch);

// Whether this host thread is inside `execute`, in a kernel.
bool executing();
// For signal handlers and checks that the compiler has put into kernels: give up the launch.
[[noreturn]] void abandon(int error, const char* format, ...)
    __attribute__((format(printf, 2, 3)));
[[noreturn]] void abandon_at(const void* address, const char* access);
void catch_signals();

}  // namespace emu
