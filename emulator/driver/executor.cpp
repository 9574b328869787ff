// How a launch runs. Every CUDA thread is a fiber; two blocks are resident at a time, and the
// next one of a shuffled order moves in where one has finished. A warp runs, one lane after the
// other, until all its lanes wait or have finished; then another warp is drawn, of either block.
// After atomics, fences and barriers the running lane may be held back, for some turns or until
// nothing else can run: that is what shows a block that relies on another one's store without
// ordering it. Everything random comes from the launch's seed.
#include <algorithm>
#include <cstring>

#include "executor_state.h"
#include "simt.h"

namespace emu {

Thread* now = nullptr;
Index block_dim, grid_dim;
Kernel* kernels = nullptr;
SpecialErrors special_errors = {0, 0, 0};
Executor* executor = nullptr;

namespace {

thread_local bool inside = false;

unsigned warp_bit(const Lane& lane) {
    return 32 * lane.resident->slot + (unsigned)(lane.warp - lane.resident->warp);
}

void make_ready(Block& block, unsigned warp, unsigned lanes) {
    if (!lanes) return;
    block.warp[warp].ready |= lanes;
    executor->runnable |= 1ull << (32 * block.slot + warp);
}

void not_ready(Lane& lane) {
    lane.warp->ready &= ~lane.bit;
    if (!lane.warp->ready) executor->runnable &= ~(1ull << warp_bit(lane));
}

void release_held(unsigned index) {
    Lane& lane = *executor->held[index].lane;
    executor->held[index] = executor->held[--executor->held_count];
    lane.warp->held &= ~lane.bit;
    make_ready(*lane.resident, (unsigned)(lane.warp - lane.resident->warp), lane.bit);
}

void hold(Lane& lane, uint64_t turns) {
    not_ready(lane);
    lane.warp->held |= lane.bit;
    executor->held[executor->held_count++] = {&lane, executor->turn + turns};
    executor->next_release = executor->turn;  // looked at in the next turn
}

void release_the_due() {
    executor->next_release = ~0ull;
    for (unsigned i = executor->held_count; i-- > 0;) {
        uint64_t until = executor->held[i].until;
        if (until <= executor->turn) release_held(i);
        else executor->next_release = std::min(executor->next_release, until);
    }
}

Warp* draw_warp() {
    unsigned index = draw_runnable();
    return &executor->blocks[index / 32]->warp[index % 32];
}

Lane* draw_lane(Warp& warp, unsigned slot) {
    unsigned first = warp.first, set = warp.ready;
    if (first) set = set >> first | set << (32 - first);
    unsigned index = warp.downwards ? 31 - (unsigned)__builtin_clz(set)
                                    : (unsigned)__builtin_ctz(set);
    Block& block = *executor->blocks[slot];
    return &block.lane[(size_t)(&warp - block.warp) * LANES + ((index + first) & 31)];
}

// The lane to run after the one that ran: of the same warp as long as it has any.
Lane* next_lane(Warp* warp, unsigned slot) {
    if (++executor->turn >= executor->next_release) release_the_due();
    if (!warp || !warp->ready) {
        if (!executor->runnable) {
            if (!executor->held_count) return nullptr;
            // The last one first, mostly: who has stayed behind for long is who shows something.
            uint64_t draw = executor->random();
            release_held(draw % 8 ? executor->held_count - 1 : (unsigned)(draw >> 3) % executor->held_count);
        }
        warp = draw_warp();
        slot = (size_t)((char*)warp - (char*)executor->blocks[0]) < sizeof(Block) ? 0 : 1;
    }
    return draw_lane(*warp, slot);
}

void leave(Lane& lane, Lane* to) {
    if (to == &lane) return;
    now = to;
    switch_fiber(lane.fiber, to ? to->fiber : executor->main);
}

void open_barrier(Block& block) {
    block.voters[block.phase & 1] = block.live;
    ++block.phase;
    block.arrived = 0;
    for (unsigned w = 0; w < block.warps; ++w) {
        unsigned lanes = block.warp[w].at_block;
        block.warp[w].at_block = 0;
        make_ready(block, w, lanes);
    }
}

void thread_main() {
    Lane& lane = *static_cast<Lane*>(now);
    executor->launch->kernel->call(executor->launch->arguments);
    Block& block = *lane.resident;
    Warp& warp = *lane.warp;
    not_ready(lane);
    warp.done |= lane.bit;
    check_divergence(lane);
    if (--block.live == 0) {
        executor->finished = (int)block.slot;
        leave(lane, nullptr);
    }
    if (block.arrived == block.live) open_barrier(block);  // the exited do not count
    leave(lane, next_lane(&warp, block.slot));
    __builtin_unreachable();
}

void start_block(unsigned slot) {
    Block& block = *executor->blocks[slot];
    const Launch& launch = *executor->launch;
    block.running = executor->next_block < executor->order.size();
    if (!block.running) return;
    unsigned index = executor->order[executor->next_block++];
    Index at = {index % launch.grid.x, index / launch.grid.x % launch.grid.y,
                index / launch.grid.x / launch.grid.y};
    block.slot = slot;
    block.threads = block.live = launch.block.x * launch.block.y * launch.block.z;
    block.warps = (block.threads + 31) / 32;
    block.arrived = block.phase = 0;
    block.votes[0] = block.votes[1] = 0;
    block.arrays.clear();
    std::fill(block.by_id.begin(), block.by_id.end(), nullptr);
    block.used = 0;
    uint64_t random = 0;
    for (unsigned w = 0; w < block.warps; ++w) {
        Warp& warp = block.warp[w];
        unsigned lanes = block.threads - 32 * w;
        warp.all = lanes >= 32 ? FULL : (1u << lanes) - 1;
        warp.ready = warp.held = warp.at_warp = warp.at_block = warp.done = 0;
        random = w % 5 == 0 ? executor->random() : random >> 6;
        warp.first = random & 31;
        warp.downwards = random >> 5 & 1;
        make_ready(block, w, warp.all);
    }
    for (unsigned t = 0; t < block.threads; ++t) {
        Lane& lane = block.lane[t];
        lane.thread = {t % launch.block.x, t / launch.block.x % launch.block.y,
                       t / launch.block.x / launch.block.y};
        lane.block = at;
        lane.lane = t & 31;
        lane.bit = 1u << (t & 31);
        lane.resident = &block;
        lane.warp = &block.warp[t / 32];
        lane.exchanges = 0;
        size_t stack = (size_t)t * SLOTS + slot;
        prepare_fiber(lane.fiber, executor->stacks.bottom(stack), executor->stacks.top(stack), thread_main);
    }
}

void set_up() {
    if (executor) return;
    executor = new Executor();
    // One allocation, so that a warp's slot follows from its address.
    Block* blocks = new Block[SLOTS]();
    executor->arenas = new char[SLOTS * ARENA];
    for (unsigned s = 0; s < SLOTS; ++s) {
        executor->blocks[s] = &blocks[s];
        blocks[s].arena = executor->arenas + s * ARENA;
    }
}

void run() {
    for (unsigned slot = 0; slot < SLOTS; ++slot) start_block(slot);
    for (;;) {
        Lane* lane = next_lane(nullptr, 0);
        if (!lane) {
            if (!executor->blocks[0]->running && !executor->blocks[1]->running) return;
            // Warps report their own divergence, and a barrier opens when all are there, so a
            // block that stands still would be the emulator's own mistake.
            executor->fault.error = LAUNCH_FAILED;
            executor->fault.what = "the block cannot go on";
            return;
        }
        executor->finished = -1;
        now = lane;
        switch_fiber(executor->main, lane->fiber);
        if (executor->fault.error) return;
        if (executor->finished >= 0) {
            if (!check_shared_guards(*executor->blocks[executor->finished])) return;
            start_block((unsigned)executor->finished);
        }
    }
}

}  // namespace

unsigned draw_runnable() {
    uint64_t set = executor->runnable;
    uint64_t draw = executor->random();
    if (executor->priority < 64 && draw % 16) {
        uint64_t from = set >> executor->priority << executor->priority;
        return (unsigned)__builtin_ctzll(from ? from : set);
    }
    unsigned skip = (unsigned)(draw >> 4) % (unsigned)__builtin_popcountll(set);
    while (skip--) set &= set - 1;
    return (unsigned)__builtin_ctzll(set);
}

const Word* exchange(Together what, unsigned mask, Word value, int line, const char* file) {
    Lane& lane = *static_cast<Lane*>(now);
    Warp& warp = *lane.warp;
    Place place = {what, line, file};
    if (__builtin_expect(mask != FULL, 0))
        abandon(LAUNCH_FAILED, "%s has the mask %#x: only full masks are emulated",
                describe(place).c_str(), mask);
    if (!warp.at_warp) {
        warp.place = place;
    } else if (__builtin_expect(warp.place != place, 0)) {
        abandon(LAUNCH_FAILED, "divergent warp: lane %u came to %s; %s", lane.lane,
                describe(place).c_str(), waits_of(*lane.resident, warp).c_str());
    }
    // Two sets of words in turn: a lane that is one exchange ahead must not overwrite what
    // others have still to read.
    Word* words = warp.words[lane.exchanges++ & 1];
    words[lane.lane] = value;
    warp.at_warp |= lane.bit;
    if (warp.at_warp == FULL) {
        warp.at_warp = 0;
        warp.ready = FULL;
        executor->runnable |= 1ull << warp_bit(lane);
        return words;
    }
    not_ready(lane);
    check_divergence(lane);
    leave(lane, next_lane(&warp, lane.resident->slot));
    return words;
}

unsigned barrier(Together what, bool vote, unsigned& threads, int line, const char* file) {
    Lane& lane = *static_cast<Lane*>(now);
    Block& block = *lane.resident;
    Place place = {what, line, file};
    if (block.arrived && block.place != place)
        abandon(LAUNCH_FAILED, "divergent barrier: this thread came to %s, others wait at %s",
                describe(place).c_str(), describe(block.place).c_str());
    block.place = place;
    unsigned phase = block.phase & 1;
    if (!block.arrived) block.votes[phase] = 0;
    block.votes[phase] += vote;
    not_ready(lane);
    lane.warp->at_block |= lane.bit;
    check_divergence(lane);
    if (++block.arrived == block.live) {
        open_barrier(block);
        leave(lane, next_lane(nullptr, 0));
    } else {
        leave(lane, next_lane(lane.warp, block.slot));
    }
    unsigned votes = block.votes[phase];
    threads = block.voters[phase];
    // A thread may stay behind here too, but not for long: that would keep its block from coming
    // to the places where staying behind shows more.
    uint64_t draw = executor->random();
    if (draw % 128 == 0 && executor->held_count < HELD) {
        hold(lane, 1u << (draw >> 8) % 8);
        leave(lane, next_lane(nullptr, 0));
    }
    return votes;
}

void preempt(bool may_hold) {
    uint64_t draw = executor->random();
    Lane& lane = *static_cast<Lane*>(now);
    if (may_hold && executor->held_count < HELD && draw % executor->hold_rate == 0) {
        // Half of them for good, the others for a power of two of turns: a few and very many.
        draw >>= 8;
        hold(lane, draw & 1 ? ~0ull >> 1 : 1ull << (draw >> 1) % 16);
    } else if (draw >> 31 & 1) {
        return;
    }
    leave(lane, next_lane(nullptr, 0));
}

unsigned active_lanes() {
    const Warp& warp = *static_cast<Lane*>(now)->warp;
    return warp.all & ~warp.done;
}

void trap(const char* what, int line, const char* file) {
    abandon(what[0] == 'a' ? ASSERT : LAUNCH_FAILED, "%s (%s:%d)", what, base_name(file), line);
}

void* shared(SharedSite& site, Word bytes) {
    Block& block = *now->resident;
    if (!site.id) site.id = ++executor->shared_sites;
    if (block.by_id.size() <= site.id) block.by_id.resize(site.id + 1, nullptr);
    char*& start = block.by_id[site.id];
    if (start) return start;
    size_t rounded = (bytes + 15) / 16 * 16, total = rounded + 2 * GUARD;
    size_t limit = executor->launch->shared_limit, taken = bytes;
    for (const SharedArray& array : block.arrays) taken += (array.bytes + 15) / 16 * 16;
    if (taken > limit || block.used + total > ARENA)
        abandon(LAUNCH_FAILED, "shared array `%s` (%s:%d): %zu bytes of static shared memory, %zu allowed",
                site.name, base_name(site.file), site.line, taken, limit);
    char* base = block.arena + block.used;
    base += (16 - (uintptr_t)base % 16) % 16;
    block.used = (size_t)(base - block.arena) + total;
    start = base + GUARD;
    fill_shared_guard(base, start);
    memset(start, executor->fill, bytes);
    fill_shared_guard(start + bytes, base + total);
    block.arrays.push_back({&site, start, (size_t)bytes});
    return start;
}

bool executing() { return inside && now; }

Fault execute(const Launch& launch) {
    set_up();
    unsigned threads = launch.block.x * launch.block.y * launch.block.z;
    executor->launch = &launch;
    executor->fault = Fault();
    const Program* program = launch.kernel->program;
    if (!executor->stacks.reserve(program ? 1 : SLOTS * (size_t)threads)) {
        executor->fault.error = LAUNCH_FAILED;
        executor->fault.what = "no memory for the stacks of the threads";
        return executor->fault;
    }
    executor->random_state = launch.seed * 0x9e3779b97f4a7c15ull | 1;
    for (int i = 0; i < 4; ++i) executor->random();
    uint64_t draw = executor->random();
    executor->priority = draw & 1 ? 64 : (unsigned)(draw >> 1) % 64;
    executor->runnable = 0;
    executor->held_count = 0;
    executor->hold_rate = 2u << (draw >> 8) % 3;
    // NaN shows what reads too early, unless the kernel has a way of its own for NaN; then a number
    // that could be one of its own does; and of a flag that is only looked at for 0, zeros do.
    constexpr int FILLS[] = {0xff, 0x3c, 0x00};
    executor->fill = FILLS[(draw >> 16) % 3];
    executor->turn = 0;
    executor->next_release = ~0ull;
    executor->next_block = 0;
    block_dim = launch.block;
    grid_dim = launch.grid;
    executor->order.resize((size_t)launch.grid.x * launch.grid.y * launch.grid.z);
    for (size_t i = 0; i < executor->order.size(); ++i) {
        size_t j = executor->random() % (i + 1);
        executor->order[i] = executor->order[j];
        executor->order[j] = (unsigned)i;
    }
    inside = true;
    if (program) run_program(*program, launch);
    else run();
    inside = false;
    Fault fault = executor->fault;
    if (fault.error && fault.what.empty() && !fault.access) fault.what = "stack overflow";
    if (fault.error && now && fault.where.empty()) fault.where = where(*static_cast<Lane*>(now));
    if (fault.error && program) fault.where += " (" + place_in_ptx(*program) + ")";
    now = nullptr;
    return fault;
}

}  // namespace emu
