// The words of a PTX body, and what its names stand for. For simt_names.cpp and simt_decode.cpp.
#pragma once
#include <map>

#include "simt_state.h"

namespace emu {

// A place in a PTX text. Words run over dots and double colons, so that an opcode is one.
class Words {
   public:
    Words(const char* at, int line) : at_(at), line_(line) {}
    int line() const { return line_; }
    std::string_view rest_of_line() const;
    void skip_space();
    char peek() { skip_space(); return *at_; }
    bool take(char c);
    // Empty if there is none.
    std::string_view word();
    void skip_to(char c);
    void skip_line();

   private:
    const char* at_;
    int line_;
};

enum Class : uint8_t { PREDICATE, BITS16, BITS32, BITS64 };

struct NamedRegister {
    Class kind;
    int32_t unit;  // of a predicate: 2 * its index
};

// A literal: `bits` of an integer (extended to 64) or of floating point, by `size` in bytes (0:
// an integer, which takes any size; -1: none at all). A number with a point is of any size, too.
struct Literal {
    int size = -1;
    uint64_t bits = 0;
    bool decimal = false;
    double value = 0;
};
Literal literal_of(std::string_view word, bool negative);

// ".b32" without its dot: how many bytes; 0: no type. A predicate has 1 and is told apart by name.
unsigned bytes_of_type(std::string_view type);

class Names {
   public:
    Names(const EntryText& entry, Program& program) : entry_(entry), program_(program) {}

    void open_scope();
    bool close_scope();  // false: it was the outermost one
    // After ".reg": to the semicolon. "" or what is wrong.
    std::string registers(Words& words);
    bool find(std::string_view name, NamedRegister& out) const;
    NamedRegister sink(Class kind);  // a register that nobody reads

    // After ".shared", in the body.
    std::string shared_variable(Words& words);
    // The address of a variable or parameter, in its own space.
    bool address(std::string_view name, Space& space, uint64_t& out, std::string& problem);
    int32_t constant(uint64_t bits, unsigned bytes);

   private:
    struct Range {
        std::string_view prefix;
        int count;  // -1: the name itself
        Class kind;
        int32_t unit;
    };
    struct Scope {
        size_t ranges;
        unsigned registers, predicates;
    };
    struct Variable {
        std::string_view space, name, type;
        unsigned alignment, bytes, element;
        Words rest;  // of the declaration, from "=" or ";"
    };

    const EntryText& entry_;
    Program& program_;
    std::vector<Range> ranges_;
    std::vector<Scope> scopes_;
    unsigned next_register_ = 0, next_predicate_ = 1;
    std::map<std::pair<uint64_t, unsigned>, int32_t> constants_;
    std::map<std::string_view, uint64_t> addresses_;  // of shared variables, and of global ones

    NamedRegister allocate(Class kind);
    bool declaration(Words words, std::string_view space, Variable& out, std::string& problem) const;
    uint64_t place_shared(const Variable& variable);
    bool place_global(const Variable& variable, uint64_t& out, std::string& problem);
};

}  // namespace emu
