// The emulator's second mode: the PTX that a module is loaded from, decoded and executed. See
// simt_run.cpp for how a launch runs.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "emu.h"

namespace emu {

struct Launch;
struct Program;

// What a text has beside its entry points: where the declaration of a variable begins.
struct Declaration {
    const char* at;
    int line;
};

// An entry point in its module's text.
struct EntryText {
    std::string name;
    int target;                    // 75 is sm_75
    uint64_t hash;                 // of the whole text
    const char* body;              // its brace
    int line;                      // of that brace
    std::vector<Parameter> parameters;
    std::vector<std::string> parameter_names;
    std::vector<Declaration> variables;  // of the module
};

uint64_t hash_of_text(const char* text, size_t length);
// The decoded entry point: decoded once for each hash and name, and never freed. Null, with the
// reason, if it has anything that is not known.
const Program* decode(const EntryText& entry, std::string& problem);
const Kernel* kernel_of(const Program& program);
// Static shared memory of the entry point, that of the module which it uses included.
size_t shared_bytes(const Program& program);
// The launch to its end, or to what stopped it, on a fiber of its own.
void run_program(const Program& program, const Launch& launch);
// "line 123 of its PTX for sm_75": what the program that runs does now.
std::string place_in_ptx(const Program& program);

}  // namespace emu
