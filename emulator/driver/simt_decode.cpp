// From the text of an entry point to a program. What is not known is an error here, with its
// line: nothing is guessed, and nothing is left to be found while a kernel runs.
#include <mutex>
#include <unordered_map>

#include "simt_operands.h"

namespace emu {
namespace {

const std::unordered_map<std::string_view, const Row*>& rows() {
    static const auto* all = [] {
        auto* map = new std::unordered_map<std::string_view, const Row*>;
        for (Rows rows : {integer_rows(), float_rows(), compare_rows(), convert_rows(), move_rows()})
            for (size_t k = 0; k < rows.count; ++k) map->emplace(rows.first[k].name, &rows.first[k]);
        return map;
    }();
    return *all;
}

// The parts of an opcode between its dots.
class Parts {
   public:
    explicit Parts(std::string_view opcode) : rest_(opcode) { next(); }
    std::string_view now() const { return part_; }
    void next() {
        size_t dot = rest_.find('.');
        part_ = rest_.substr(0, dot);
        rest_ = dot == std::string_view::npos ? std::string_view() : rest_.substr(dot + 1);
    }
    bool take(std::string_view expected) {
        if (part_ != expected) return false;
        next();
        return true;
    }
    bool take_any(std::initializer_list<std::string_view> expected) {
        for (std::string_view e : expected)
            if (take(e)) return true;
        return false;
    }
    bool done() const { return part_.empty(); }

   private:
    std::string_view rest_, part_;
};

class Decoder : Operands {
   public:
    Decoder(const EntryText& entry, Program& out) : Operands(entry, out), out_(out) {}

    std::string decode() {
        if (!words_.take('{')) fail("expected a body");
        names_.open_scope();
        bool inside = true;
        while (inside && problem_.empty()) {
            if (words_.take('{')) {
                names_.open_scope();
            } else if (words_.take('}')) {
                inside = names_.close_scope();
            } else {
                statement();
            }
        }
        for (const Fixup& f : fixups_) {
            auto label = labels_.find(f.label);
            if (label == labels_.end()) {
                line_ = (int)out_.code[f.pc].line;
                fail("no label `" + std::string(f.label) + "`");
                break;
            }
            out_.code[f.pc].target = label->second;
        }
        // The end of the body is a return.
        line_ = words_.line();
        Instruction& end = add(EXIT);
        end.run = nothing_handler();
        if (out_.owners.size() > SHARED_SPAN) fail("too much shared memory");
        return problem_;
    }

   private:
    struct Fixup {
        size_t pc;
        std::string_view label;
    };

    Program& out_;
    int32_t guard_ = -1;
    std::unordered_map<std::string_view, uint32_t> labels_;
    std::vector<Fixup> fixups_;

    Instruction& add(Kind kind) {
        Instruction i = {};
        i.r[5] = -1;
        i.line = (uint32_t)line_;
        i.guard = guard_;
        i.kind = kind;
        out_.code.push_back(i);
        return out_.code.back();
    }

    void statement() {
        words_.skip_space();
        line_ = words_.line();
        guard_ = -1;
        if (words_.take('@')) guard_ = predicate();
        std::string_view word = words_.word();
        if (word.empty()) return fail("`" + std::string(words_.rest_of_line()) + "` is not understood");
        if (word[0] == '.') return directive(word);
        if (guard_ < 0 && words_.take(':')) {
            if (!labels_.emplace(word, (uint32_t)out_.code.size()).second)
                fail("label `" + std::string(word) + "` again");
            return;
        }
        instruction(word);
        if (problem_.empty()) expect(';');
    }

    void directive(std::string_view word) {
        std::string wrong;
        if (word == ".reg") wrong = names_.registers(words_);
        else if (word == ".shared") wrong = names_.shared_variable(words_);
        else if (word == ".pragma") words_.skip_to(';');
        else if (word == ".loc") words_.skip_line();
        else wrong = "`" + std::string(word) + "` is not emulated";
        if (!wrong.empty()) fail(wrong);
    }

    // ---- Instructions

    void unknown(std::string_view opcode) {
        fail("`" + std::string(opcode) + "` is not emulated");
    }

    void instruction(std::string_view opcode) {
        if (opcode.substr(0, 4) == "mov.") return move(opcode);
        auto row = rows().find(opcode);
        if (row != rows().end()) return simple(*row->second);
        Parts parts(opcode);
        std::string_view name = parts.now();
        parts.next();
        if (name == "bra") return branch(opcode, parts);
        if (name == "ld" || name == "st") return access(opcode, parts, name == "ld");
        if (name == "shfl" || name == "vote") return together(opcode, parts, name == "shfl");
        if (name == "bar") return barrier(opcode);
        if (name == "atom" || name == "red") return atomic(opcode, parts, name == "atom");
        if (name == "cp") return copy(opcode, parts);
        if (opcode == "ret" || opcode == "exit") {
            add(EXIT).run = nothing_handler();
        } else if (name == "membar" || name == "fence") {
            if (!parts.take_any({"gl", "cta", "sys", "acq_rel", "sc"})) return unknown(opcode);
            parts.take_any({"gpu", "cta", "sys"});
            if (!parts.done()) return unknown(opcode);
            add(FENCE).run = nothing_handler();
        } else if (opcode == "pmevent") {
            literal_of(words_.word(), false);
            add(PLAIN).run = nothing_handler();
        } else if (opcode == "griddepcontrol.wait" || opcode == "griddepcontrol.launch_dependents") {
            add(PLAIN).run = nothing_handler();  // launches run one after the other
        } else if (opcode == "prefetch.global.L1" || opcode == "prefetch.global.L2") {
            Instruction& i = add(PLAIN);
            i.run = nothing_handler();
            address(GLOBAL_SPACE, i);
        } else {
            unknown(opcode);
        }
    }

    void simple(const Row& row) {
        Instruction& i = add(PLAIN);
        i.run = row.run;
        for (unsigned k = 0; row.operands[k]; ++k) {
            if (k) expect(',');
            i.r[k] = k ? operand(row.operands[k]) : result(row.operands[k]);
        }
    }

    void move(std::string_view opcode) {
        bool wide = opcode == "mov.b64";
        if (wide || opcode == "mov.b32") {
            if (words_.take('{')) {
                const Row& row = *rows().at(wide ? "unpack.b64" : "unpack.b32");
                Instruction& i = add(PLAIN);
                i.run = row.run;
                i.r[0] = result(row.operands[0]);
                expect(',');
                i.r[1] = result(row.operands[1]);
                expect('}');
                expect(',');
                i.r[2] = operand(row.operands[2]);
                return;
            }
            Words before = words_;
            words_.word();
            if (words_.take(',') && words_.take('{')) {
                words_ = before;
                const Row& row = *rows().at(wide ? "pack.b64" : "pack.b32");
                Instruction& i = add(PLAIN);
                i.run = row.run;
                i.r[0] = result(row.operands[0]);
                expect(',');
                expect('{');
                i.r[1] = operand(row.operands[1]);
                expect(',');
                i.r[2] = operand(row.operands[2]);
                return expect('}');
            }
            words_ = before;
        }
        if (opcode == "mov.u32" || opcode == "mov.b32") {
            Words before = words_;
            words_.word();
            words_.take(',');
            std::string_view name = words_.word();
            words_ = before;
            size_t dot = name.find('.');
            int axis = name.substr(0, dot) == "%laneid" ? 0
                       : dot == std::string_view::npos  ? -1
                                                        : (int)std::string_view("xyz").find(name.substr(dot + 1));
            Handler special = special_handler(name.substr(0, dot));
            if (special) {
                if (axis < 0) fail("`" + std::string(name) + "` is not understood");
                Instruction& i = add(PLAIN);
                i.run = special;
                i.offset = axis;
                i.r[0] = result('w');
                expect(',');
                words_.word();
                return;
            }
        }
        auto row = rows().find(opcode);
        if (row == rows().end()) return unknown(opcode);
        simple(*row->second);
    }

    void branch(std::string_view opcode, Parts parts) {
        parts.take("uni");
        if (!parts.done()) return unknown(opcode);
        add(BRANCH).run = nothing_handler();
        fixups_.push_back({out_.code.size() - 1, words_.word()});
    }

    static bool take_space(Parts& parts, Space& space) {
        if (parts.take_any({"global", "const"})) space = GLOBAL_SPACE;
        else if (parts.take_any({"shared", "shared::cta"})) space = SHARED_SPACE;
        else if (parts.take("param")) space = PARAM_SPACE;
        else return false;
        return true;
    }

    void access(std::string_view opcode, Parts parts, bool is_load) {
        Space space = GENERIC_SPACE;
        if (!parts.take("volatile") && !parts.take("weak") &&
            parts.take_any({"relaxed", is_load ? "acquire" : "release"}))
            parts.take_any({"cta", "gpu", "sys"});
        take_space(parts, space);
        if (is_load) parts.take_any({"ca", "cg", "cs", "lu", "cv"});
        else parts.take_any({"wb", "cg", "cs", "wt"});
        if (is_load) parts.take("nc");
        parts.take_any({"L1::no_allocate", "L1::evict_first", "L1::evict_last", "L1::evict_normal",
                        "L1::evict_unchanged"});
        if (is_load) parts.take_any({"L2::64B", "L2::128B", "L2::256B"});
        unsigned count = parts.take("v2") ? 2 : parts.take("v4") ? 4 : 1;
        std::string_view type = parts.now();
        parts.next();
        const unsigned bytes = bytes_of_type(type);
        if (!parts.done() || !bytes || bytes * count > 16) return unknown(opcode);
        Instruction& i = add(PLAIN);
        i.count = (uint8_t)count;
        i.bytes = (uint8_t)bytes;
        if (!is_load) {
            address(space, i);
            expect(',');
        }
        // A register may be wider than what is in memory.
        Class kind = PREDICATE;
        if (count > 1) expect('{');
        for (unsigned k = 0; k < count; ++k) {
            if (k) expect(',');
            Words before = words_;
            std::string_view name = words_.word();
            NamedRegister r;
            if (names_.find(name, r)) {
                if (k && r.kind != kind && (r.kind == BITS64 || kind == BITS64)) fail("registers of two sizes");
                kind = r.kind;
                i.r[k] = r.unit;
            } else if (is_load && name == "_") {
                if (k == 0) kind = bytes == 8 ? BITS64 : BITS32;
                i.r[k] = names_.sink(kind).unit;
            } else {
                words_ = before;
                if (is_load) fail("`" + std::string(name) + "` is no register");
                kind = bytes == 8 ? BITS64 : BITS32;
                char letter = type[0] == 'f' ? (bytes == 8 ? 'g' : 'f') : bytes == 8 ? 'd' : 'w';
                i.r[k] = operand(letter);
            }
            if (kind == PREDICATE || (kind == BITS16 ? 2u : kind == BITS32 ? 4u : 8u) < bytes)
                fail("`" + std::string(name) + "` is too small for the instruction's type");
        }
        if (count > 1) expect('}');
        if (is_load) {
            expect(',');
            address(space, i);
        }
        i.run = is_load ? load_handler(space, type, kind == BITS64) : store_handler(space, type, kind == BITS64);
        if (!i.run) unknown(opcode);
    }

    void together(std::string_view opcode, Parts parts, bool is_shuffle) {
        if (!parts.take("sync")) return unknown(opcode);
        std::string_view mode = parts.now();
        parts.next();
        std::string_view type = parts.now();
        parts.next();
        bool ballot = mode == "ballot";
        Instruction& i = add(TOGETHER);
        i.run = is_shuffle ? shuffle_handler(mode) : vote_handler(mode);
        if (!i.run || !parts.done() || type != (is_shuffle || ballot ? "b32" : "pred")) return unknown(opcode);
        if (!is_shuffle) {
            i.r[0] = ballot ? result('w') : result('p');
            expect(',');
            i.r[1] = predicate();
        } else {
            i.r[0] = result('w');
            if (words_.take('|')) i.r[5] = result('p');
            for (int k = 1; k < 4; ++k) {
                expect(',');
                i.r[k] = operand('w');
            }
        }
        expect(',');
        i.r[4] = operand('w');
    }

    void barrier(std::string_view opcode) {
        if (opcode == "bar.warp.sync") {
            Instruction& i = add(TOGETHER);
            i.run = nothing_handler();
            i.r[4] = operand('w');
        } else if (opcode == "bar.sync") {
            add(BARRIER).run = nothing_handler();
            std::string_view number = words_.word();
            if (number != "0" || words_.peek() != ';')
                fail("of barriers only `bar.sync 0` is emulated");
        } else {
            unknown(opcode);
        }
    }

    void atomic(std::string_view opcode, Parts parts, bool result_wanted) {
        Space space = GENERIC_SPACE;
        parts.take_any({"relaxed", "acquire", "release", "acq_rel"});
        parts.take_any({"cta", "gpu", "sys"});
        take_space(parts, space);
        std::string_view operation = parts.now();
        parts.next();
        std::string_view type = parts.now();
        parts.next();
        const unsigned bytes = bytes_of_type(type);
        Handler run = parts.done() && bytes >= 4 ? atomic_handler(space, operation, type, result_wanted) : nullptr;
        if (!run) return unknown(opcode);
        const char letter = type[0] == 'f' ? (bytes == 8 ? 'g' : 'f') : bytes == 8 ? 'd' : 'w';
        Instruction& i = add(ATOMIC);
        i.run = run;
        i.bytes = (uint8_t)bytes;
        if (result_wanted) {
            i.r[0] = result(letter);
            expect(',');
        }
        address(space, i);
        expect(',');
        i.r[1] = operand(letter);
    }

    void copy(std::string_view opcode, Parts parts) {
        if (!parts.take("async")) return unknown(opcode);
        if (opcode == "cp.async.commit_group") {
            add(PLAIN).run = commit_handler();
            return;
        }
        if (opcode == "cp.async.wait_all" || opcode == "cp.async.wait_group") {
            Instruction& i = add(PLAIN);
            i.run = wait_handler();
            i.offset = -1;
            if (opcode == "cp.async.wait_all") return;
            Literal but = literal_of(words_.word(), false);
            if (but.size != 0 || but.decimal || but.bits > 1000) fail("how many groups may be under way?");
            i.offset = (int32_t)but.bits;
            return;
        }
        bool sixteen = parts.take("cg");
        if (!sixteen && !parts.take("ca")) return unknown(opcode);
        if (!parts.take_any({"shared", "shared::cta"}) || !parts.take("global")) return unknown(opcode);
        parts.take_any({"L2::64B", "L2::128B", "L2::256B"});
        if (!parts.done()) return unknown(opcode);
        Instruction& i = add(PLAIN);
        i.run = async_copy_handler();
        address(SHARED_SPACE, i);
        expect(',');
        int32_t offset;
        bool wide;
        address(GLOBAL_SPACE, i.r[0], offset, wide);
        i.target = (uint32_t)offset;
        expect(',');
        Literal bytes = literal_of(words_.word(), false);
        if (bytes.size != 0 || (bytes.bits != 16 && (sixteen || (bytes.bits != 4 && bytes.bits != 8))))
            fail("cp.async of a size that there is not");
        i.bytes = (uint8_t)bytes.bits;
        if (words_.take(',')) {
            i.count = 1;
            i.r[1] = operand('w');
        }
    }
};

std::mutex& lock = *new std::mutex;
typedef std::map<std::pair<uint64_t, std::string>, std::unique_ptr<Program>> Cache;
Cache& cache = *new Cache;

}  // namespace

uint64_t hash_of_text(const char* text, size_t length) {
    uint64_t hash = 0xcbf29ce484222325ull;  // FNV-1a
    for (size_t k = 0; k < length; ++k) hash = (hash ^ (unsigned char)text[k]) * 0x100000001b3ull;
    return hash;
}

const Program* decode(const EntryText& entry, std::string& problem) {
    std::lock_guard<std::mutex> hold(lock);
    std::unique_ptr<Program>& program = cache[{entry.hash, entry.name}];
    if (program) return program.get();
    std::unique_ptr<Program> made(new Program);
    made->name = entry.name;
    made->target = entry.target;
    made->hash = entry.hash;
    made->parameters = entry.parameters;
    for (const Parameter& p : entry.parameters) {
        made->parameter_bytes = (made->parameter_bytes + p.alignment - 1) / p.alignment * p.alignment;
        made->parameter_offsets.push_back(made->parameter_bytes);
        made->parameter_bytes += p.size;
    }
    problem = Decoder(entry, *made).decode();
    if (!problem.empty()) return nullptr;
    made->parameters.push_back({0, 0});
    made->kernel = {made->name.c_str(), nullptr, made->parameters.data(), nullptr, made.get()};
    made->covered.assign(made->code.size(), 0);
    program = std::move(made);
    return program.get();
}

const Kernel* kernel_of(const Program& program) { return &program.kernel; }

size_t shared_bytes(const Program& program) {
    size_t bytes = 0;
    for (const SharedVariable& v : program.shared) bytes = (bytes + 15) / 16 * 16 + v.bytes;
    return bytes;
}

std::vector<const Program*> decoded_programs() {
    std::lock_guard<std::mutex> hold(lock);
    std::vector<const Program*> all;
    for (const auto& entry : cache)
        if (entry.second) all.push_back(entry.second.get());
    return all;
}

}  // namespace emu
