// What decoding and running a PTX program have in common. For the files simt*.cpp alone.
#pragma once
#include <cstring>
#include <memory>
#include <string_view>

#include "executor_state.h"
#include "simt.h"

namespace emu {

// A register is 32 lanes side by side, in units of this many bytes: one unit for a register of up
// to 32 bits, two for one of 64. Predicates are masks and stand apart.
constexpr unsigned UNIT = 128;
// Shared memory is a window of small offsets, which begins behind what a GPU keeps for itself.
// As a generic address it is one that no host pointer can have.
constexpr uint64_t SHARED_START = 1024, SHARED_SPAN = 1 << 18, WINDOW = 1ull << 56;

struct SimtWarp;
struct Instruction;
typedef void (*Handler)(SimtWarp& warp, const Instruction& i, unsigned lanes);

// What the scheduler must know of an instruction.
enum Kind : uint8_t {
    PLAIN,       // of each lane by itself
    BRANCH,
    EXIT,
    TOGETHER,    // the member mask's lanes wait for each other: shuffles, votes, bar.warp.sync
    BARRIER,     // bar.sync
    ATOMIC,      // others may run before and after
    FENCE,
};

struct Instruction {
    Handler run;
    // Registers (units from the start of the warp's), and constants (units of the program's, as
    // ~unit). Of predicates: 2 * index, and 1 more if it is negated.
    int32_t r[6];
    int32_t offset;    // of an address; or an immediate
    uint32_t target;   // of a branch
    uint32_t line;
    int32_t guard;     // a predicate like above; -1 for none
    Kind kind;
    uint8_t bytes, count;  // of an access: of an element, and how many
    bool wide;             // its address is in a 64-bit register
};

struct SharedVariable {
    std::string name;
    uint32_t start, bytes;  // in the window
};

// A constant or a variable in global memory, with room around it.
struct GlobalVariable {
    std::string name;
    std::unique_ptr<char[]> memory;
    char* start;
};

struct alignas(64) Unit {
    char bytes[UNIT];
};

struct Program {
    std::string name;
    int target;
    uint64_t hash;
    std::vector<Instruction> code;
    std::vector<Unit> constants;
    unsigned registers = 0, predicates = 1;  // units; predicate 0 is false
    std::vector<SharedVariable> shared;
    std::vector<uint8_t> owners;  // of each byte of the window: index in `shared` + 1
    std::vector<GlobalVariable> globals;
    Kernel kernel;
    std::vector<Parameter> parameters;  // and {0, 0}
    std::vector<uint32_t> parameter_offsets;
    uint32_t parameter_bytes = 0;
    mutable std::vector<uint8_t> covered;
};

enum GroupState : uint8_t { READY, HELD_BACK, AT_WARP, AT_BLOCK };

// Lanes of a warp that are at the same instruction.
struct Group {
    uint32_t pc;
    unsigned lanes;
    GroupState state;
    bool preempted;  // at an atomic that it has still to do
    uint64_t until;  // a turn, of those held back
};

// A copy into shared memory that has begun (cp.async).
struct AsyncCopy {
    unsigned lane;
    uint32_t batch;  // of this lane
    char* to;
    const char* from;
    uint32_t bytes, from_bytes;
};

struct SimtBlock;

struct SimtWarp {
    char* registers;
    unsigned* predicates;
    const char* constants;
    SimtBlock* block;
    Lane* lanes;  // the 32 of this warp
    unsigned index, all, exited;
    bool downwards;
    unsigned group_count;
    Group groups[32];
    std::vector<AsyncCopy> copies;
    uint32_t batches[32];

    template <class T>
    T* at(int32_t unit) const {
        const char* base = unit >= 0 ? registers : constants;
        return (T*)(base + (size_t)(unit >= 0 ? unit : ~unit) * UNIT);
    }
    unsigned predicate(int32_t p) const { return predicates[p >> 1] ^ (p & 1 ? ~0u : 0u); }
};

struct SimtBlock {
    unsigned slot, threads, warps, live, arrived;
    uint32_t barrier;  // the pc of those that wait
    bool running;
    char* arena;  // the window's first byte
    SimtWarp warp[WARPS];
    Lane lane[THREADS];
};

struct Simt {
    const Program* program;
    const Instruction* current;  // for reports
    char* parameters;
    bool split;  // whether lanes go apart at random in this launch
    SimtBlock* blocks[SLOTS];
};
extern Simt* simt;

// The instructions that only need their operands: a row each. The operands' letters: p predicate;
// h, w, d integers or bits of 16, 32 and 64; f, g floating point of 32 and 64 bits.
struct Row {
    const char* name;
    const char* operands;
    Handler run;
};
struct Rows {
    const Row* first;
    size_t count;
};
Rows integer_rows(), float_rows(), compare_rows(), convert_rows(), move_rows();

// Handlers of the instructions that decode.cpp takes apart; null: no such instruction.
enum Space : uint8_t { GLOBAL_SPACE, SHARED_SPACE, PARAM_SPACE, GENERIC_SPACE };
Handler load_handler(Space space, std::string_view type, bool wide_register);
Handler store_handler(Space space, std::string_view type, bool wide_register);
Handler atomic_handler(Space space, std::string_view operation, std::string_view type, bool result);
Handler shuffle_handler(std::string_view mode);
Handler vote_handler(std::string_view mode);
Handler special_handler(std::string_view name);
Handler async_copy_handler();
Handler nothing_handler();
Handler commit_handler();
Handler wait_handler();
// Lets all copies of these lanes land that belong to batches before the last `but`.
void land_copies(SimtWarp& warp, unsigned lanes, uint32_t but);
void land_some_copies(SimtWarp& warp);

}  // namespace emu
