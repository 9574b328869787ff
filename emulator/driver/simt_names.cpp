#include "simt_names.h"

#include <cctype>
#include <cstdlib>

namespace emu {

// ---- Words

namespace {
bool in_word(char c) { return isalnum((unsigned char)c) || c == '_' || c == '.' || c == '$' || c == '%'; }
}  // namespace

void Words::skip_space() {
    for (;; ++at_) {
        if (*at_ == '\n') {
            ++line_;
        } else if (at_[0] == '/' && at_[1] == '/') {
            while (*at_ && *at_ != '\n') ++at_;
            --at_;
        } else if (at_[0] == '/' && at_[1] == '*') {
            for (at_ += 2; *at_ && !(at_[0] == '*' && at_[1] == '/'); ++at_) line_ += *at_ == '\n';
            if (!*at_) return;
            ++at_;
        } else if (*at_ != ' ' && *at_ != '\t' && *at_ != '\r') {
            return;
        }
    }
}

bool Words::take(char c) {
    if (peek() != c) return false;
    ++at_;
    return true;
}

std::string_view Words::word() {
    skip_space();
    const char* start = at_;
    while (in_word(*at_) || (at_ > start && at_[0] == ':' && at_[1] == ':')) at_ += *at_ == ':' ? 2 : 1;
    return {start, (size_t)(at_ - start)};
}

std::string_view Words::rest_of_line() const {
    const char* end = at_;
    while (*end && *end != '\n' && *end != ';') ++end;
    return {at_, (size_t)(end - at_)};
}

void Words::skip_to(char c) {
    for (; *at_ && *at_ != c; ++at_) line_ += *at_ == '\n';
    if (*at_) ++at_;
}

void Words::skip_line() {
    while (*at_ && *at_ != '\n') ++at_;
}

Literal literal_of(std::string_view word, bool negative) {
    Literal out;
    if (word.empty() || !isdigit((unsigned char)word[0])) return out;
    char text[64], *end;
    if (word.size() >= sizeof text) return out;
    memcpy(text, word.data(), word.size());
    text[word.size()] = 0;
    bool hex = text[0] == '0' && (text[1] == 'f' || text[1] == 'F' || text[1] == 'd' || text[1] == 'D');
    if (hex) {
        bool wide = text[1] == 'd' || text[1] == 'D';
        uint64_t bits = strtoull(text + 2, &end, 16);
        if (*end || negative || word.size() != (wide ? 18 : 10)) return out;
        out.size = wide ? 8 : 4;
        out.bits = bits;
    } else if (text[1] != 'x' && strpbrk(text, ".eE")) {
        out.value = strtod(text, &end);
        if (*end) return out;
        if (negative) out.value = -out.value;
        out.decimal = true;
        out.size = 0;
    } else {
        uint64_t bits = strtoull(text, &end, 0);
        if (*end == 'U') ++end;
        if (*end) return out;
        out.bits = negative ? 0 - bits : bits;
        out.size = 0;
    }
    return out;
}

unsigned bytes_of_type(std::string_view type) {
    static const struct { const char* name; unsigned bytes; } TYPES[] = {
        {"b8", 1}, {"u8", 1}, {"s8", 1}, {"b16", 2}, {"u16", 2}, {"s16", 2}, {"f16", 2},
        {"b32", 4}, {"u32", 4}, {"s32", 4}, {"f32", 4}, {"b64", 8}, {"u64", 8}, {"s64", 8},
        {"f64", 8}, {"pred", 1}};
    for (const auto& t : TYPES)
        if (type == t.name) return t.bytes;
    return 0;
}

// ---- Registers

void Names::open_scope() { scopes_.push_back({ranges_.size(), next_register_, next_predicate_}); }

bool Names::close_scope() {
    // What was declared inside is dead: its place can be taken again.
    ranges_.resize(scopes_.back().ranges);
    next_register_ = scopes_.back().registers;
    next_predicate_ = scopes_.back().predicates;
    scopes_.pop_back();
    return !scopes_.empty();
}

NamedRegister Names::allocate(Class kind) {
    if (kind == PREDICATE) {
        int32_t index = (int32_t)next_predicate_++;
        if (program_.predicates < next_predicate_) program_.predicates = next_predicate_;
        return {kind, 2 * index};
    }
    int32_t unit = (int32_t)next_register_;
    next_register_ += kind == BITS64 ? 2 : 1;
    if (program_.registers < next_register_) program_.registers = next_register_;
    return {kind, unit};
}

NamedRegister Names::sink(Class kind) { return allocate(kind); }

std::string Names::registers(Words& words) {
    std::string_view type = words.word();
    unsigned bytes = type.empty() ? 0 : bytes_of_type(type.substr(1));
    bool predicate = type == ".pred";
    if (!predicate && bytes < 2) return "registers of type `" + std::string(type) + "`";
    Class kind = predicate ? PREDICATE : bytes == 2 ? BITS16 : bytes == 4 ? BITS32 : BITS64;
    do {
        std::string_view name = words.word();
        if (name.empty()) return "expected the name of a register";
        int count = -1;
        if (words.take('<')) {
            count = (int)literal_of(words.word(), false).bits;
            if (count <= 0 || count > 1 << 20 || !words.take('>')) return "a bad number of registers";
        }
        NamedRegister first = allocate(kind);
        for (int k = 1; k < count; ++k) allocate(kind);
        ranges_.push_back({name, count, kind, first.unit});
    } while (words.take(','));
    return words.take(';') ? "" : "expected `;` after registers";
}

bool Names::find(std::string_view name, NamedRegister& out) const {
    for (size_t k = ranges_.size(); k-- > 0;) {
        const Range& range = ranges_[k];
        const size_t length = range.prefix.size();
        if (name.substr(0, length) != range.prefix) continue;
        if (range.count < 0) {
            if (name.size() != length) continue;
            out = {range.kind, range.unit};
            return true;
        }
        if (name.size() == length || (name[length] == '0' && name.size() > length + 1)) continue;
        int number = 0;
        for (size_t d = length; d < name.size() && number >= 0; ++d)
            number = isdigit((unsigned char)name[d]) && number < range.count ? 10 * number + name[d] - '0' : -1;
        if (number < 0 || number >= range.count) continue;
        out = {range.kind, range.unit + number * (range.kind == PREDICATE || range.kind == BITS64 ? 2 : 1)};
        return true;
    }
    return false;
}

int32_t Names::constant(uint64_t bits, unsigned bytes) {
    if (bytes < 8) bits &= (1ull << 8 * bytes) - 1;
    auto found = constants_.find({bits, bytes == 8});
    if (found != constants_.end()) return found->second;
    int32_t unit = (int32_t)program_.constants.size();
    program_.constants.resize(program_.constants.size() + (bytes == 8 ? 2 : 1));
    char* to = program_.constants[(size_t)unit].bytes;
    for (unsigned l = 0; l < LANES; ++l) {
        if (bytes == 8) memcpy(to + 8 * l, &bits, 8);
        else memcpy(to + 4 * l, &bits, 4);
    }
    return constants_[{bits, bytes == 8}] = ~unit;
}

// ---- Variables

bool Names::declaration(Words words, std::string_view space, Variable& out, std::string& problem) const {
    out.space = space;
    out.alignment = 0;
    std::string_view word = words.word();
    if (word == ".align") {
        out.alignment = (unsigned)literal_of(words.word(), false).bits;
        word = words.word();
    }
    out.type = word.empty() ? word : word.substr(1);
    out.element = bytes_of_type(out.type);
    if (!out.element || out.type == "pred") {
        problem = "a variable of type `" + std::string(word) + "`";
        return false;
    }
    if (!out.alignment) out.alignment = out.element;
    out.name = words.word();
    uint64_t count = 1;
    while (words.take('[')) {
        count *= literal_of(words.word(), false).bits;  // nothing between the brackets: 0
        if (!words.take(']')) count = 0;
    }
    out.bytes = (unsigned)(count * out.element);
    if (out.name.empty() || count == 0 || count > 1 << 20 || out.alignment & (out.alignment - 1)) {
        problem = "variable `" + std::string(out.name) + "`: its size or alignment is not known";
        return false;
    }
    out.rest = words;
    return true;
}

uint64_t Names::place_shared(const Variable& v) {
    // Some room between them, so that an index beyond the end of one is not in the next.
    uint64_t at = program_.owners.empty() ? SHARED_START : program_.owners.size() + GUARD;
    const uint64_t alignment = v.alignment < 16 ? 16 : v.alignment;
    at = (at + alignment - 1) / alignment * alignment;
    program_.shared.push_back({std::string(v.name), (uint32_t)at, v.bytes});
    program_.owners.resize(at + v.bytes, 0);
    memset(&program_.owners[at], (int)program_.shared.size(), v.bytes);
    return addresses_[v.name] = at;
}

std::string Names::shared_variable(Words& words) {
    Variable v{{}, {}, {}, 0, 0, 0, words};
    std::string problem;
    if (!declaration(words, ".shared", v, problem)) return problem;
    words = v.rest;
    if (!words.take(';')) return "expected `;` after a shared variable";
    if (program_.shared.size() == 255) return "more than 255 shared variables";
    place_shared(v);
    return "";
}

bool Names::place_global(const Variable& v, uint64_t& out, std::string& problem) {
    const size_t room = GUARD + v.alignment;
    GlobalVariable global{std::string(v.name), std::unique_ptr<char[]>(new char[v.bytes + 2 * room]), nullptr};
    memset(global.memory.get(), 0xff, v.bytes + 2 * room);  // NaN on both sides
    uintptr_t start = (uintptr_t)global.memory.get() + GUARD;
    global.start = (char*)((start + v.alignment - 1) / v.alignment * v.alignment);
    memset(global.start, 0, v.bytes);
    Words words = v.rest;
    if (words.take('=')) {
        bool list = words.take('{');
        unsigned at = 0;
        do {
            bool negative = words.take('-');
            Literal literal = literal_of(words.word(), negative);
            if (literal.size < 0 || literal.decimal || (literal.size && literal.size != (int)v.element) ||
                at + v.element > v.bytes) {
                problem = "variable `" + std::string(v.name) + "`: its value is not understood";
                return false;
            }
            memcpy(global.start + at, &literal.bits, v.element);
            at += v.element;
        } while (list && words.take(','));
    }
    out = addresses_[v.name] = (uint64_t)global.start;
    program_.globals.push_back(std::move(global));
    return true;
}

bool Names::address(std::string_view name, Space& space, uint64_t& out, std::string& problem) {
    for (size_t k = 0; k < entry_.parameter_names.size(); ++k) {
        if (name != entry_.parameter_names[k]) continue;
        space = PARAM_SPACE;
        out = program_.parameter_offsets[k];
        return true;
    }
    auto known = addresses_.find(name);
    if (known != addresses_.end()) {
        out = known->second;
        space = out < SHARED_SPAN ? SHARED_SPACE : GLOBAL_SPACE;
        return true;
    }
    for (const Declaration& d : entry_.variables) {
        Words words(d.at, d.line);
        std::string_view kind = words.word();
        Variable v{{}, {}, {}, 0, 0, 0, words};
        std::string unused;
        if (!declaration(words, kind, v, unused) || v.name != name) continue;
        if (kind == ".shared") {
            space = SHARED_SPACE;
            out = place_shared(v);
            return true;
        }
        space = GLOBAL_SPACE;
        return place_global(v, out, problem);
    }
    problem = "`" + std::string(name) + "` is not declared";
    return false;
}

}  // namespace emu
