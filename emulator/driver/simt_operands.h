// The operands of an instruction: read from the text, and turned into registers and constants. A
// mistake is remembered with its line; what is returned then is never run.
#pragma once
#include "simt_names.h"

namespace emu {

class Operands {
   protected:
    Operands(const EntryText& entry, Program& program)
        : words_(entry.body, entry.line), names_(entry, program) {}

    Words words_;
    Names names_;
    std::string problem_;  // the first one
    int line_ = 0;         // of the statement

    void fail(const std::string& what);
    void expect(char c);
    // By the letters of a Row.
    static Class class_of(char letter);
    int32_t predicate();
    int32_t result(char letter);  // a register that is written
    int32_t operand(char letter);
    // "[register+offset]", "[variable]".
    void address(Space space, int32_t& unit, int32_t& offset, bool& wide);
    void address(Space space, Instruction& i) { address(space, i.r[5], i.offset, i.wide); }
};

}  // namespace emu
