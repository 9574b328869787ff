// Reads of a PTX text what the driver must know: version, target, and of every entry point its
// parameters and launch bounds. Bodies are only skipped, by their braces.
#include <cctype>
#include <cstdlib>

#include "driver.h"

namespace {

class Reader {
   public:
    Reader(const char* text, Ptx& out) : begin_(text), text_(text), out_(out) { next(); }

    std::string read() {
        if (!header()) return problem_;
        while (problem_.empty() && !token_.empty()) directive();
        return problem_;
    }

   private:
    const char *begin_, *text_;
    Ptx& out_;
    std::string token_, problem_;
    int line_ = 1;

    size_t start_of_token() const { return (size_t)(text_ - begin_) - token_.size(); }

    void fail(const std::string& what) {
        if (problem_.empty()) problem_ = "line " + std::to_string(line_) + ": " + what;
    }

    void skip_space() {
        for (;;) {
            if (*text_ == '\n') ++line_;
            if (isspace((unsigned char)*text_)) {
                ++text_;
            } else if (text_[0] == '/' && text_[1] == '/') {
                while (*text_ && *text_ != '\n') ++text_;
            } else if (text_[0] == '/' && text_[1] == '*') {
                for (text_ += 2; *text_ && !(text_[0] == '*' && text_[1] == '/'); ++text_)
                    if (*text_ == '\n') ++line_;
                if (*text_) text_ += 2;
                else fail("a comment does not end");
            } else {
                return;
            }
        }
    }

    static bool in_word(char c) {
        return isalnum((unsigned char)c) || c == '_' || c == '.' || c == '$' || c == '%';
    }

    // The next word, string or sign; empty at the end.
    void next() {
        skip_space();
        const char* start = text_;
        if (in_word(*text_)) {
            while (in_word(*text_)) ++text_;
        } else if (*text_ == '"') {
            for (++text_; *text_ && *text_ != '"'; ++text_) {}
            if (*text_) ++text_;
            else fail("a string does not end");
        } else if (*text_) {
            if (!isprint((unsigned char)*text_)) fail("a character that is not text");
            ++text_;
        }
        token_.assign(start, text_);
    }

    bool take(const char* expected) {
        if (token_ != expected) return false;
        next();
        return true;
    }

    void expect(const char* expected) {
        if (!take(expected)) fail("expected `" + std::string(expected) + "`, found `" + token_ + "`");
    }

    unsigned number() {
        char* end;
        unsigned long value = strtoul(token_.c_str(), &end, 0);
        if (token_.empty() || *end) fail("expected a number, found `" + token_ + "`");
        next();
        return (unsigned)value;
    }

    // ".version 8.0", ".target sm_75", ".address_size 64", in this order.
    bool header() {
        expect(".version");
        int major = 0, minor = 0;
        if (sscanf(token_.c_str(), "%d.%d", &major, &minor) != 2) fail("expected a PTX version");
        out_.version = 10 * major + minor;
        next();
        expect(".target");
        if (token_.compare(0, 3, "sm_") != 0) fail("expected a target, found `" + token_ + "`");
        char* end = nullptr;
        if (problem_.empty()) out_.target = (int)strtol(token_.c_str() + 3, &end, 10);
        if (end && *end) out_.exact_target = true;
        next();
        while (problem_.empty() && take(",")) next();
        if (take(".address_size") && number() != 64) fail("only 64-bit addresses are supported");
        return problem_.empty();
    }

    void directive() {
        if (!take(".visible") && !take(".weak")) take(".extern");
        if (take(".entry")) {
            entry();
        } else if (token_ == ".func" || token_ == ".global" || token_ == ".const" ||
                   token_ == ".shared" || token_ == ".section" || token_ == ".pragma" ||
                   token_ == ".file" || token_ == ".loc" || token_ == ".alias" ||
                   token_ == ".common") {
            if (token_ == ".global" || token_ == ".const" || token_ == ".shared")
                out_.variables.push_back({start_of_token(), line_});
            skip_statement();
        } else {
            fail("unexpected `" + token_ + "`");
        }
    }

    // To a semicolon or the end of a body, whichever comes first; a .file has neither.
    void skip_statement() {
        int line = line_;
        bool one_line = token_ == ".file" || token_ == ".loc";
        for (next(); problem_.empty() && !token_.empty(); next()) {
            if (one_line && line_ != line) return;
            if (token_ == "{") {
                body(nullptr);
                if (token_ == ";") next();
                return;
            }
            if (token_ == ";") {
                next();
                return;
            }
        }
        if (!one_line) fail("the text ends within a declaration");
    }

    void entry() {
        PtxEntry entry;
        entry.name = token_;
        if (entry.name.empty() || !in_word(entry.name[0]) || entry.name[0] == '.')
            fail("expected the name of an entry point, found `" + token_ + "`");
        next();
        if (take("(")) {
            while (problem_.empty() && token_ != ")") {
                entry.parameters.push_back(parameter(entry));
                if (!take(",")) break;
            }
            expect(")");
        }
        while (problem_.empty() && token_ != "{") {
            if (take(".maxntid") || take(".reqntid")) {
                entry.max_threads = number();
                while (take(",")) entry.max_threads *= number();
            } else if (take(".minnctapersm")) {
                entry.min_blocks = number();
            } else if (take(".maxnreg") || take(".maxnctapersm")) {
                number();
            } else if (take(".pragma")) {
                next();
                expect(";");
            } else {
                fail("unexpected `" + token_ + "` before the body of " + entry.name);
            }
        }
        entry.body = start_of_token();
        entry.line = line_;
        if (problem_.empty()) body(&entry);
        out_.entries.push_back(entry);
    }

    // ".u64", ".f32", ".b8": bytes.
    unsigned size_of_type() {
        size_t digits = token_.find_first_of("0123456789");
        unsigned bits = digits == std::string::npos ? 0
                                                    : (unsigned)strtoul(&token_[digits], nullptr, 10);
        if (token_[0] != '.' || bits % 8 || bits == 0 || bits > 128)
            fail("expected a type, found `" + token_ + "`");
        next();
        return bits / 8;
    }

    // The [n] after a name: n, or 1.
    unsigned count() {
        if (!take("[")) return 1;
        unsigned n = token_ == "]" ? 0 : number();
        expect("]");
        return n;
    }

    emu::Parameter parameter(PtxEntry& entry) {
        expect(".param");
        unsigned alignment = take(".align") ? number() : 0;
        unsigned size = problem_.empty() ? size_of_type() : 1;
        if (!alignment) alignment = size;
        if (take(".ptr")) {
            if (token_ == ".global" || token_ == ".shared" || token_ == ".const") next();
            if (take(".align")) number();
        }
        entry.parameter_names.push_back(token_);
        next();
        return {size * count(), alignment};
    }

    // From a brace to its partner. Counts the static shared memory.
    void body(PtxEntry* entry) {
        int depth = 0;
        do {
            if (token_.empty()) return fail("the text ends within a body");
            if (token_ == "{") ++depth;
            if (token_ == "}") --depth;
            bool shared = token_ == ".shared";
            next();
            if (shared && entry && (token_ == ".align" || token_[0] == '.')) {
                unsigned alignment = take(".align") ? number() : 1;
                unsigned size = size_of_type();
                next();
                size *= count();
                entry->shared = (entry->shared + alignment - 1) / alignment * alignment + size;
            }
        } while (depth > 0 && problem_.empty());
    }
};

}  // namespace

std::string parse_ptx(const char* text, Ptx& out) { return Reader(text, out).read(); }
