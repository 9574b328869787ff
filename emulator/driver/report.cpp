// What went wrong in a launch, in words: where threads are, what they wait for, and which shared
// array was written outside of.
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "executor_state.h"

namespace emu {

const char* const NAMES[] = {
    "__shfl_sync", "__shfl_xor_sync", "__shfl_up_sync", "__shfl_down_sync", "__any_sync",
    "__all_sync", "__ballot_sync", "__syncwarp", "__syncthreads", "__syncthreads_or",
    "__syncthreads_and", "__syncthreads_count"};

std::string where(const Lane& lane) {
    char text[256];
    const Index &b = lane.block, &t = lane.thread;
    bool flat_grid = grid_dim.y == 1 && grid_dim.z == 1;
    bool flat_block = block_dim.y == 1 && block_dim.z == 1;
    int n = snprintf(text, sizeof text, flat_grid ? "block %u" : "block (%u, %u, %u)", b.x, b.y, b.z);
    snprintf(text + n, sizeof text - (size_t)n, flat_block ? ", thread %u" : ", thread (%u, %u, %u)",
             t.x, t.y, t.z);
    return std::string("kernel ") + executor->launch->kernel->name + ", " + text;
}

const char* base_name(const char* path) {
    const char* slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

std::string describe(const Place& place) {
    return std::string(NAMES[place.what]) + " (" + base_name(place.file) + ":" +
           std::to_string(place.line) + ")";
}

std::string lanes_of(unsigned mask) {
    std::string text;
    for (unsigned i = 0; i < 32; ++i) {
        if (!(mask >> i & 1)) continue;
        unsigned last = i;
        while (last < 31 && mask >> (last + 1) & 1) ++last;
        text += (text.empty() ? "" : ", ") + std::to_string(i);
        if (last > i) text += "-" + std::to_string(last);
        i = last;
    }
    return text;
}

std::string waits_of(const Block& block, const Warp& warp) {
    std::string text;
    auto add = [&](unsigned mask, const std::string& what) {
        if (mask) text += (text.empty() ? "lanes " : "; lanes ") + lanes_of(mask) + what;
    };
    add(warp.at_warp, " wait at " + (warp.at_warp ? describe(warp.place) : ""));
    add(warp.at_block, " wait at " + (warp.at_block ? describe(block.place) : ""));
    add(warp.ready | warp.held, " run");
    add(warp.done, " have exited");
    add(~warp.all, " do not exist");
    return "warp " + std::to_string(&warp - block.warp) + ": " + text;
}

void check_divergence(Lane& lane) {
    Warp& warp = *lane.warp;
    if (!warp.at_warp || warp.ready || warp.held) return;
    abandon(LAUNCH_FAILED, "divergent warp: %s", waits_of(*lane.resident, warp).c_str());
}

static char guard_byte(const char* at) {
    return (char)((uintptr_t)at & 1 ? GUARD_WORD >> 8 : GUARD_WORD);
}

void fill_shared_guard(char* from, char* to) {
    for (; from < to; ++from) *from = guard_byte(from);
}

bool check_shared_guards(Block& block) {
    for (const SharedArray& array : block.arrays) {
        for (int side = 0; side < 2; ++side) {
            const char* guard = side ? array.start + array.bytes : array.start - GUARD;
            for (size_t i = 0; i < GUARD; ++i) {
                if (guard[i] == guard_byte(guard + i)) continue;
                const Index& b = block.lane[0].block;
                long offset = side ? (long)(array.bytes + i) : (long)i - (long)GUARD;
                executor->fault.error = ILLEGAL_ADDRESS;
                executor->fault.where = std::string("kernel ") + executor->launch->kernel->name + ", block " +
                                 std::to_string(b.x);
                executor->fault.what = std::string("write outside the shared array `") +
                                array.site->name + "` (" + base_name(array.site->file) + ":" +
                                std::to_string(array.site->line) + "), at byte " +
                                std::to_string(offset) + " of " + std::to_string(array.bytes);
                return false;
            }
        }
    }
    return true;
}

void abandon(int error, const char* format, ...) {
    char text[1024];
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(text, sizeof text, format, arguments);
    va_end(arguments);
    executor->fault.error = error;
    executor->fault.what = text;
    switch_fiber(static_cast<Lane*>(now)->fiber, executor->main);
    __builtin_unreachable();
}

void abandon_at(const void* address, const char* access) {
    // Called by a signal handler, on a small stack: nothing is formatted or allocated here.
    executor->fault.error = ILLEGAL_ADDRESS;
    executor->fault.address = address;
    executor->fault.access = executor->stacks.is_fence(address) ? nullptr : access;
    switch_fiber(static_cast<Lane*>(now)->fiber, executor->main);
    __builtin_unreachable();
}

}  // namespace emu
