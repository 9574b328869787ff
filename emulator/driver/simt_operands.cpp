#include "simt_operands.h"

#include <cctype>

namespace emu {

void Operands::fail(const std::string& what) {
    if (problem_.empty()) problem_ = "line " + std::to_string(line_) + ": " + what;
}

void Operands::expect(char c) {
    if (!words_.take(c))
        fail(std::string("expected `") + c + "`, found `" + std::string(words_.rest_of_line()) + "`");
}

Class Operands::class_of(char letter) {
    switch (letter) {
        case 'p': return PREDICATE;
        case 'h': case 'H': return BITS16;
        case 'd': case 'g': return BITS64;
        default: return BITS32;
    }
}

int32_t Operands::predicate() {
    bool negated = words_.take('!');
    if (isdigit((unsigned char)words_.peek()) || words_.peek() == '-') {
        bool negative = words_.take('-');
        Literal literal = literal_of(words_.word(), negative);
        if (literal.size != 0 || literal.decimal) fail("not a predicate");
        return (literal.bits != 0) != negated;  // predicate 0 is false
    }
    std::string_view name = words_.word();
    NamedRegister r;
    if (!names_.find(name, r) || r.kind != PREDICATE) {
        fail("`" + std::string(name) + "` is not a predicate");
        return 0;
    }
    return r.unit + negated;
}

int32_t Operands::result(char letter) {
    std::string_view name = words_.word();
    if (name == "_") return names_.sink(class_of(letter)).unit;
    NamedRegister r;
    if (!names_.find(name, r)) {
        fail("`" + std::string(name) + "` is no register");
        return 0;
    }
    if (r.kind != class_of(letter) && !(letter == 'H' && r.kind == BITS32))
        fail("`" + std::string(name) + "` is not of the instruction's type");
    return r.unit;
}

int32_t Operands::operand(char letter) {
    if (letter == 'p') return predicate();
    bool negative = words_.take('-');
    std::string_view name = words_.word();
    const Class kind = class_of(letter);
    const unsigned bytes = kind == BITS16 ? 2 : kind == BITS32 ? 4 : 8;
    Literal literal = literal_of(name, negative);
    if (literal.size >= 0) {
        bool floating = letter == 'f' || letter == 'g';
        if (literal.decimal) {
            if (!floating) fail("a number with a point is no integer");
            float f = (float)literal.value;
            if (letter == 'f') memcpy(&literal.bits, &f, sizeof f);
            else memcpy(&literal.bits, &literal.value, sizeof literal.value);
        } else if (literal.size ? literal.size != (int)bytes : floating) {
            fail("`" + std::string(name) + "` is not of the instruction's type");
        }
        return names_.constant(literal.bits, bytes);
    }
    NamedRegister r;
    if (!negative && names_.find(name, r)) {
        if (r.kind != kind && !(letter == 'H' && r.kind == BITS32))
            fail("`" + std::string(name) + "` is not of the instruction's type");
        return r.unit;
    }
    Space space;
    uint64_t address = 0;
    std::string why;
    if (negative || name.empty() || name[0] == '%' || letter == 'i' || kind == BITS16 ||
        letter == 'f' || letter == 'g') {
        fail("operand `" + std::string(name) + "` is not understood");
    } else if (!names_.address(name, space, address, why)) {
        fail(why);
    } else if (kind == BITS32 && space == GLOBAL_SPACE) {
        fail("an address of 64 bits for 32");
    }
    return names_.constant(address, bytes);
}

void Operands::address(Space space, int32_t& unit, int32_t& offset, bool& wide) {
    expect('[');
    std::string_view name = words_.word();
    NamedRegister r;
    if (names_.find(name, r)) {
        if (r.kind != BITS64 && !(r.kind == BITS32 && (space == SHARED_SPACE || space == PARAM_SPACE)))
            fail("`" + std::string(name) + "` cannot hold an address");
        unit = r.unit;
        wide = r.kind == BITS64;
    } else {
        Space found;
        uint64_t at = 0;
        std::string why;
        if (!names_.address(name, found, at, why)) fail(why);
        else if (found != space) fail("`" + std::string(name) + "` is in another space");
        unit = names_.constant(at, 8);
        wide = true;
    }
    offset = 0;
    bool minus = false;
    if (words_.take('+') || (minus = words_.take('-'))) {
        minus ^= words_.take('-');
        Literal literal = literal_of(words_.word(), minus);
        if (literal.size != 0 || literal.decimal || (int64_t)(int32_t)literal.bits != (int64_t)literal.bits)
            fail("the offset of an address is not understood");
        offset = (int32_t)literal.bits;
    }
    expect(']');
}

}  // namespace emu
