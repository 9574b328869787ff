// What tests ask of the emulator itself, by functions that no real driver has; and where every
// fault ends up.
#include <cstdio>

#include "driver.h"

namespace {

uint64_t fault_count = 0, launches = 0;

std::string& last_fault = *new std::string;

// Also works before cuInit.
struct Hold {
    Call call{INITIALIZED};
};

}  // namespace

Counters& counters() {
    thread_local Counters c = {};
    return c;
}

Result complain(Result error, const std::string& message) {
    fprintf(stderr, "gfocal emulator: %s\n", message.c_str());
    return error;
}

Result fault(Context* context, int error, const std::string& message) {
    ++fault_count;
    last_fault = message;
    if (context && !context->error) context->error = error;
    return complain((Result)error, message);
}

uint64_t next_seed() { return settings().seed * 0x9e3779b97f4a7c15ull + launches++; }

CUDA unsigned gfocal_emulator_version() { return 2; }

CUDA void gfocal_emulator_counters(Counters* out) { *out = counters(); }

CUDA void gfocal_emulator_set_special_errors(int exp2, int log2, int reciprocal) {
    Hold hold;
    emu::special_errors = {exp2, log2, reciprocal};
}

CUDA void gfocal_emulator_set_seed(uint64_t seed) {
    Hold hold;
    settings().seed = seed;
    launches = 0;
}

// Whether modules that are loaded from here on run as PTX; otherwise the sources run.
CUDA void gfocal_emulator_set_ptx(int ptx) {
    Hold hold;
    settings().ptx = ptx != 0;
}

CUDA uint64_t gfocal_emulator_seed() {
    Hold hold;
    return settings().seed;
}

CUDA uint64_t gfocal_emulator_faults() {
    Hold hold;
    return fault_count;
}

// The length of the text; as much of it as fits, with a 0 at its end, goes to `text`.
CUDA size_t gfocal_emulator_last_fault(char* text, size_t capacity) {
    Hold hold;
    if (text && capacity) text[last_fault.copy(text, capacity - 1)] = 0;
    return last_fault.size();
}

CUDA void gfocal_emulator_set_fences(int tight) {
    Hold hold;
    settings().tight_fences = tight != 0;
}

CUDA uint64_t gfocal_emulator_live_allocations() {
    Hold hold;
    return allocations_in_use();
}
