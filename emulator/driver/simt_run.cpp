// How a launch of a PTX program runs. Two blocks are resident, as in the source mode, and a warp
// of either is drawn whenever one has to wait. The lanes of a warp are in groups, by where they
// are. Mostly the group that is furthest behind runs, and groups that meet become one: lanes then
// go in step where a GPU's would. In a quarter of the launches they do not: after each
// synchronisation a warp falls into groups at random, which run in any order until the next one.
// That is what shows a missing bar.warp.sync. Everything random comes from the launch's seed.
#include <algorithm>

#include "simt_state.h"

namespace emu {

Simt* simt = nullptr;

namespace {

constexpr uint32_t NEVER = ~0u;

struct HeldGroup {
    SimtWarp* warp;
    unsigned lanes;
    uint64_t until;
};

Fiber fiber;
std::vector<HeldGroup> held;
std::vector<Unit> registers;
std::vector<unsigned> predicates;
std::vector<char> parameters;

uint64_t warp_bit(const SimtWarp& w) { return 1ull << (32 * w.block->slot + w.index); }

void refresh(const SimtWarp& w) {
    bool ready = false;
    for (unsigned g = 0; g < w.group_count; ++g) ready |= w.groups[g].state == READY;
    if (ready) executor->runnable |= warp_bit(w);
    else executor->runnable &= ~warp_bit(w);
}

void add_group(SimtWarp& w, uint32_t pc, unsigned lanes, GroupState state) {
    w.groups[w.group_count++] = {pc, lanes, state, false, 0};
}
void remove_group(SimtWarp& w, unsigned index) { w.groups[index] = w.groups[--w.group_count]; }

// The groups in this state at this instruction become one; its index.
unsigned gather(SimtWarp& w, uint32_t pc, GroupState state) {
    unsigned first = 32;
    for (unsigned g = 0; g < w.group_count;) {
        Group& group = w.groups[g];
        if (group.pc != pc || group.state != state) {
            ++g;
        } else if (first == 32) {
            first = g++;
        } else {
            w.groups[first].lanes |= group.lanes;
            w.groups[first].preempted |= group.preempted;
            remove_group(w, g);
        }
    }
    return first;
}

// "lanes 0-15 wait for others at line 12"
std::string waits_of(const SimtWarp& w) {
    std::string text;
    for (unsigned g = 0; g < w.group_count; ++g) {
        const Group& group = w.groups[g];
        const uint32_t at = simt->program->code[group.state == AT_BLOCK ? group.pc - 1 : group.pc].line;
        text += (text.empty() ? "lanes " : "; lanes ") + lanes_of(group.lanes) +
                (group.state == AT_WARP    ? " wait for others of their warp at"
                 : group.state == AT_BLOCK ? " wait at the barrier in"
                                           : " run at") +
                " line " + std::to_string(at);
    }
    if (w.exited) text += (text.empty() ? "lanes " : "; lanes ") + lanes_of(w.exited) + " have exited";
    if (~w.all) text += "; lanes " + lanes_of(~w.all) + " do not exist";
    return "warp " + std::to_string(w.index) + ": " + text;
}

[[noreturn]] void divergent(SimtWarp& w, unsigned lanes, const char* what) {
    now = &w.lanes[__builtin_ctz(lanes)];
    abandon(LAUNCH_FAILED, "divergent %s: %s", what, waits_of(w).c_str());
}

// Lanes that wait for others of their warp, none of which can come.
void check_divergence(SimtWarp& w) {
    unsigned waiting = 0;
    for (unsigned g = 0; g < w.group_count; ++g) {
        if (w.groups[g].state == READY || w.groups[g].state == HELD_BACK) return;
        if (w.groups[g].state == AT_WARP) waiting = w.groups[g].lanes;
    }
    if (waiting) divergent(w, waiting, "warp");
}

void hold(SimtWarp& w, Group& group, uint64_t turns) {
    group.state = HELD_BACK;
    held.push_back({&w, group.lanes, executor->turn + turns});
}

void release(size_t index) {
    HeldGroup h = held[index];
    held[index] = held.back();
    held.pop_back();
    for (unsigned g = 0; g < h.warp->group_count; ++g)
        if (h.warp->groups[g].lanes == h.lanes) h.warp->groups[g].state = READY;
    refresh(*h.warp);
}

// Takes the group apart at random, in launches that do so.
void fall_apart(SimtWarp& w, unsigned index) {
    if (!simt->split) return;
    for (unsigned tries = 0; tries < 3; ++tries) {
        uint64_t draw = executor->random();
        unsigned part = (unsigned)executor->random() & w.groups[index].lanes;
        if (draw % 2 || !part || part == w.groups[index].lanes) return;
        Group other = w.groups[index];
        other.lanes &= ~part;
        w.groups[index].lanes = part;
        w.groups[w.group_count++] = other;
    }
}

void open_barrier(SimtBlock& block) {
    block.arrived = 0;
    for (unsigned k = 0; k < block.warps; ++k) {
        SimtWarp& w = block.warp[k];
        unsigned g = gather(w, block.barrier + 1, AT_BLOCK);
        if (g == 32) continue;
        w.groups[g].state = READY;
        // A lane may stay behind here, but not for long: see executor.cpp.
        uint64_t draw = executor->random();
        unsigned lane = 1u << (draw >> 8 & 31);
        if (draw % 16 == 0 && held.size() < HELD && w.groups[g].lanes & lane && w.groups[g].lanes != lane) {
            w.groups[g].lanes &= ~lane;
            add_group(w, w.groups[g].pc, lane, READY);
            hold(w, w.groups[w.group_count - 1], 1ull << (draw >> 16) % 6);
        }
        fall_apart(w, g);
        refresh(w);
    }
}

// The group to run: its index. In step, the one that is furthest behind, with all that are there.
unsigned draw_group(SimtWarp& w) {
    unsigned best = 32, count = 0;
    for (unsigned g = 0; g < w.group_count; ++g) {
        if (w.groups[g].state != READY) continue;
        ++count;
        if (simt->split ? executor->random() % count == 0 : best == 32 || w.groups[g].pc < w.groups[best].pc)
            best = g;
    }
    return simt->split || count < 2 ? best : gather(w, w.groups[best].pc, READY);
}

// Where the group must stop because another one waits to join it, or would be left behind.
uint32_t next_stop(const SimtWarp& w, unsigned index) {
    uint32_t stop = NEVER;
    if (simt->split) return stop;
    for (unsigned g = 0; g < w.group_count; ++g)
        if (g != index && w.groups[g].state == READY) stop = std::min(stop, w.groups[g].pc);
    return stop;
}

enum Outcome { GO_ON, STOPPED };

// The group has come to a place where lanes wait for others of their warp.
Outcome meet(SimtWarp& w, unsigned& index, const Instruction& i) {
    const uint32_t pc = w.groups[index].pc;
    w.groups[index].state = AT_WARP;
    index = gather(w, pc, AT_WARP);
    Group& group = w.groups[index];
    const uint32_t* members = w.at<const uint32_t>(i.r[4]);
    const uint32_t mask = members[__builtin_ctz(group.lanes)];
    for (unsigned left = group.lanes; left; left &= left - 1) {
        unsigned l = (unsigned)__builtin_ctz(left);
        if (members[l] == mask && mask >> l & 1) continue;
        now = &w.lanes[l];
        abandon(LAUNCH_FAILED, "lane %u has the member mask %#x, others %#x", l, members[l], mask);
    }
    if (mask & ~group.lanes) {
        if (mask & (w.exited | ~w.all)) divergent(w, group.lanes, "warp");
        check_divergence(w);
        return STOPPED;
    }
    i.run(w, i, group.lanes);
    group.state = READY;
    ++group.pc;
    fall_apart(w, index);
    return GO_ON;
}

void wait_at_barrier(SimtWarp& w, unsigned index) {
    SimtBlock& block = *w.block;
    Group& group = w.groups[index];
    if (block.arrived && block.barrier != group.pc) {
        now = &w.lanes[__builtin_ctz(group.lanes)];
        abandon(LAUNCH_FAILED, "divergent barrier: this thread came to line %u, others wait at line %u",
                simt->program->code[group.pc].line, simt->program->code[block.barrier].line);
    }
    block.barrier = group.pc++;
    group.state = AT_BLOCK;
    block.arrived += (unsigned)__builtin_popcount(group.lanes);
    if (block.arrived == block.live) open_barrier(block);
    else check_divergence(w);
}

void leave(SimtWarp& w, unsigned index) {
    SimtBlock& block = *w.block;
    const unsigned lanes = w.groups[index].lanes;
    w.exited |= lanes;
    block.live -= (unsigned)__builtin_popcount(lanes);
    remove_group(w, index);
    if (block.live == 0) {
        executor->finished = (int)block.slot;
        return;
    }
    check_divergence(w);
    if (block.arrived && block.arrived == block.live) open_barrier(block);  // the exited do not count
}

// An atomic or a fence: others may come in before, and after it this group may stay behind.
Outcome preempt(SimtWarp& w, Group& group, const Instruction& i, unsigned lanes) {
    uint64_t draw = executor->random();
    if (!group.preempted && draw & 1) {
        group.preempted = true;
        return STOPPED;
    }
    group.preempted = false;
    i.run(w, i, lanes);
    ++group.pc;
    draw >>= 1;
    if (held.size() < HELD && draw % executor->hold_rate == 0) {
        draw >>= 8;
        hold(w, group, draw & 1 ? ~0ull >> 1 : 1ull << (draw >> 1) % 12);
        return STOPPED;
    }
    return draw >> 20 & 1 ? GO_ON : STOPPED;
}

// Runs a group of the warp until it has to wait for others, or they for it.
void run_warp(SimtWarp& w) {
    land_some_copies(w);
    const Program& program = *simt->program;
    const Instruction* const code = program.code.data();
    uint8_t* const covered = program.covered.data();
    unsigned index = draw_group(w);
    uint32_t pc = w.groups[index].pc, stop = next_stop(w, index);
    unsigned lanes = w.groups[index].lanes;
    // Lanes that are apart also take turns between synchronisations.
    uint64_t fuel = ~0ull;
    if (simt->split && executor->random() % 4 == 0) fuel = 1 + executor->random() % 64;
    for (;;) {
        if (__builtin_expect(pc >= stop || fuel-- == 0, 0)) break;
        const Instruction& i = code[pc];
        simt->current = &i;
        unsigned active = lanes;
        if (i.guard >= 0) {
            active &= w.predicate(i.guard);
            if (!active) {
                covered[pc] |= i.kind == BRANCH;
                ++pc;
                continue;
            }
        }
        covered[pc] = 1;
        if (__builtin_expect(i.kind == PLAIN, 1)) {
            i.run(w, i, active);
            ++pc;
            continue;
        }
        if (i.kind == BRANCH && active == lanes) {
            pc = i.target;
            continue;
        }
        // From here on groups change. Those that do not take part go on as a group of their own.
        Group& group = w.groups[index];
        group.pc = pc;
        if (active != lanes) {
            add_group(w, pc + 1, lanes & ~active, READY);
            group.lanes = active;
        }
        Outcome outcome = GO_ON;
        switch (i.kind) {
            case BRANCH: group.pc = i.target; break;
            case TOGETHER: outcome = meet(w, index, i); break;
            case ATOMIC:
            case FENCE: outcome = preempt(w, group, i, active); break;
            case BARRIER:
                wait_at_barrier(w, index);
                outcome = STOPPED;
                break;
            default:
                leave(w, index);
                outcome = STOPPED;
        }
        if (outcome == STOPPED || w.group_count > 1) {
            refresh(w);
            return;
        }
        pc = w.groups[index].pc;
        lanes = w.groups[index].lanes;
        stop = next_stop(w, index);
    }
    w.groups[index].pc = pc;
}

SimtWarp* draw_warp() {
    ++executor->turn;
    for (size_t k = held.size(); k-- > 0;)
        if (held[k].until <= executor->turn) release(k);
    if (!executor->runnable) {
        if (held.empty()) return nullptr;
        uint64_t draw = executor->random();
        release(draw % 8 ? held.size() - 1 : (size_t)(draw >> 3) % held.size());
    }
    unsigned bit = draw_runnable();
    return &simt->blocks[bit / 32]->warp[bit % 32];
}

void start_block(unsigned slot) {
    SimtBlock& block = *simt->blocks[slot];
    const Launch& launch = *executor->launch;
    const Program& program = *simt->program;
    block.running = executor->next_block < executor->order.size();
    if (!block.running) return;
    unsigned index = executor->order[executor->next_block++];
    Index at = {index % launch.grid.x, index / launch.grid.x % launch.grid.y,
                index / launch.grid.x / launch.grid.y};
    block.slot = slot;
    block.threads = block.live = launch.block.x * launch.block.y * launch.block.z;
    block.warps = (block.threads + 31) / 32;
    block.arrived = 0;
    block.arena = executor->arenas + slot * ARENA;
    memset(block.arena, executor->fill, program.owners.size());
    for (unsigned k = 0; k < block.warps; ++k) {
        SimtWarp& w = block.warp[k];
        const size_t number = slot * block.warps + k;
        w.registers = (char*)(registers.data() + number * program.registers);
        w.predicates = predicates.data() + number * program.predicates;
        w.predicates[0] = 0;
        w.constants = (const char*)program.constants.data();
        w.block = &block;
        w.lanes = &block.lane[(size_t)k * LANES];
        w.index = k;
        const unsigned lanes = block.threads - 32 * k;
        w.all = lanes >= 32 ? FULL : (1u << lanes) - 1;
        w.exited = 0;
        w.downwards = executor->random() & 1;
        w.group_count = 0;
        w.copies.clear();
        std::fill(w.batches, w.batches + LANES, 0);
        add_group(w, 0, w.all, READY);
        fall_apart(w, 0);
        refresh(w);
    }
    for (unsigned t = 0; t < block.warps * LANES; ++t) {
        Lane& lane = block.lane[t];
        lane.thread = {t % launch.block.x, t / launch.block.x % launch.block.y,
                       t / launch.block.x / launch.block.y};
        lane.block = at;
        lane.lane = t & 31;
    }
}

void main_of_fiber() {
    for (unsigned slot = 0; slot < SLOTS; ++slot) start_block(slot);
    while (SimtWarp* w = draw_warp()) {
        executor->finished = -1;
        run_warp(*w);
        if (executor->finished >= 0) start_block((unsigned)executor->finished);
    }
    if (simt->blocks[0]->running || simt->blocks[1]->running)
        abandon(LAUNCH_FAILED, "the block cannot go on");
    switch_fiber(fiber, executor->main);
}

}  // namespace

void run_program(const Program& program, const Launch& launch) {
    if (!simt) {
        simt = new Simt();
        for (SimtBlock*& block : simt->blocks) block = new SimtBlock();
    }
    simt->program = &program;
    simt->current = nullptr;
    simt->split = executor->random() % 4 == 0;
    held.clear();
    const size_t warps = SLOTS * ((launch.block.x * launch.block.y * launch.block.z + 31) / 32);
    if (registers.size() < warps * program.registers) registers.resize(warps * program.registers);
    if (predicates.size() < warps * program.predicates) predicates.resize(warps * program.predicates);
    parameters.resize(program.parameter_bytes + 16);
    for (size_t k = 0; k < program.parameter_offsets.size(); ++k)
        memcpy(&parameters[program.parameter_offsets[k]], launch.arguments[k], program.parameters[k].size);
    simt->parameters = parameters.data();
    now = &simt->blocks[0]->lane[0];
    prepare_fiber(fiber, executor->stacks.bottom(0), executor->stacks.top(0), main_of_fiber);
    switch_fiber(executor->main, fiber);
}

std::string place_in_ptx(const Program& program) {
    std::string place = "PTX for sm_" + std::to_string(program.target);
    return simt->current ? "line " + std::to_string(simt->current->line) + " of its " + place : place;
}

}  // namespace emu
