// What the executor knows while a launch runs. For executor.cpp and report.cpp alone.
#pragma once
#include <vector>

#include "executor.h"
#include "fibers.h"

namespace emu {

constexpr unsigned SLOTS = 2, WARPS = 32, LANES = 32, THREADS = 1024, HELD = 2;
constexpr unsigned FULL = 0xffffffffu;
constexpr size_t ARENA = 256 << 10, GUARD = 64;
constexpr uint16_t GUARD_WORD = 0xfff9;  // a NaN in every floating point format
constexpr int ILLEGAL_ADDRESS = 700, ASSERT = 710, LAUNCH_FAILED = 719;

struct Place {
    Together what;
    int line;
    const char* file;
    bool operator!=(const Place& other) const { return what != other.what || line != other.line; }
};

struct Warp;

struct Lane : Thread {
    Fiber fiber;
    Warp* warp;
    unsigned bit, exchanges;
};

// Every existing lane of a warp is in exactly one of the masks.
struct Warp {
    unsigned all, ready, held, at_warp, at_block, done;
    Place place;  // of those at_warp
    unsigned first, downwards;  // the order of the lanes
    Word words[2][LANES];
};

struct SharedArray {
    const SharedSite* site;
    char* start;
    size_t bytes;
};

struct Block {
    unsigned slot, threads, warps;
    unsigned live, arrived, phase;
    unsigned votes[2], voters[2];
    Place place;  // of those at the barrier
    std::vector<SharedArray> arrays;
    std::vector<char*> by_id;
    char* arena;
    size_t used;
    bool running;
    Warp warp[WARPS];
    Lane lane[THREADS];
};

struct Held {
    Lane* lane;
    uint64_t until;  // a turn
};

struct Executor {
    const Launch* launch;
    Stacks stacks;
    Block* blocks[SLOTS];
    Fiber main;
    std::vector<unsigned> order;
    size_t next_block;
    uint64_t runnable;  // bit 32 * slot + warp
    uint64_t random_state;
    unsigned priority;  // 64: draw a warp; else the first one from here on
    Held held[HELD];
    unsigned held_count, hold_rate;
    uint64_t turn, next_release;
    int finished;  // a slot, or -1
    int fill;      // of the bytes of shared memory that nothing has been stored to
    Fault fault;
    char* arenas;
    unsigned shared_sites;

    uint64_t random() {
        uint64_t x = random_state;
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        random_state = x;
        return x * 0x2545f4914f6cdd1dull >> 32;
    }
};

extern Executor* executor;

// A bit of executor->runnable: mostly by the launch's order of warps, sometimes any.
unsigned draw_runnable();

// ---- report.cpp

const char* base_name(const char* path);
// "0-15, 31"
std::string lanes_of(unsigned mask);
// "kernel k, block 3, thread 17"
std::string where(const Lane& lane);
// "__shfl_sync (file.cu:12)"
std::string describe(const Place& place);
// What each lane of a warp does or waits for.
std::string waits_of(const Block& block, const Warp& warp);
// Called by a lane that has just stopped: if its warp can never go on, gives up the launch.
void check_divergence(Lane& lane);
void fill_shared_guard(char* from, char* to);
// Looks at what lies around the shared arrays of a block that has ended. False: a fault.
bool check_shared_guards(Block& block);

}  // namespace emu
