// Loads, stores, atomics and copies that land later. Global memory is the host's, where fences and
// the signal handlers watch; shared memory and parameters are checked here.
#include <type_traits>

#include "simt_loops.h"

namespace emu {
namespace {

const Program& program() { return *simt->program; }

[[noreturn]] void outside_shared(const char* access, unsigned bytes, uint64_t at) {
    const SharedVariable* near = nullptr;
    for (const SharedVariable& v : program().shared)
        if (!near || v.start <= at) near = &v;
    if (!near) abandon(ILLEGAL_ADDRESS, "%s of shared memory, of which the kernel has none", access);
    abandon(ILLEGAL_ADDRESS, "%s of %u bytes outside of shared memory, at byte %ld of `%s`, which has %u",
            access, bytes, (long)(at - near->start), near->name.c_str(), near->bytes);
}

[[noreturn]] void misaligned(const char* access, unsigned bytes, uint64_t at) {
    abandon(716, "misaligned %s of %u bytes at %#lx", access, bytes, (unsigned long)at);
}

template <Space SPACE>
inline char* find(const SimtWarp& w, uint64_t at, unsigned bytes, const char* access) {
    if (__builtin_expect(at & (bytes - 1), 0)) misaligned(access, bytes, at);
    if (SPACE == GLOBAL_SPACE) return (char*)at;
    if (SPACE == PARAM_SPACE) {
        if (at >= program().parameter_bytes || at + bytes > program().parameter_bytes)
            abandon(ILLEGAL_ADDRESS, "%s of %u bytes at byte %lu of the parameters, which have %u", access,
                    bytes, (unsigned long)at, program().parameter_bytes);
        return simt->parameters + at;
    }
    if (SPACE == GENERIC_SPACE) {
        if (at - WINDOW >= SHARED_SPAN) return (char*)at;
        at -= WINDOW;
    }
    const auto& owners = program().owners;
    if (__builtin_expect(at >= owners.size() || at + bytes > owners.size() || !owners[at] ||
                             owners[at] != owners[at + bytes - 1], 0))
        outside_shared(access, bytes, at);
    return w.block->arena + at;
}

// Where a lane reads or writes, from the operand in r[5].
inline uint64_t address_of(const SimtWarp& w, const Instruction& i, unsigned lane) {
    uint64_t base = i.wide ? w.at<const uint64_t>(i.r[5])[lane] : w.at<const uint32_t>(i.r[5])[lane];
    return base + (uint64_t)(int64_t)i.offset;
}

// M: what is in memory. R: the register, of 4 or 8 bytes.
template <Space SPACE, class M, class R>
void load(SimtWarp& w, const Instruction& i, unsigned lanes) {
    const unsigned count = i.count;
    if (count > 4) __builtin_unreachable();
    R* to[4];
    for (unsigned k = 0; k < count; ++k) to[k] = w.at<R>(i.r[k]);
    for (unsigned left = lanes; left; left &= left - 1) {
        unsigned l = (unsigned)__builtin_ctz(left);
        now = &w.lanes[l];
        const char* from = find<SPACE>(w, address_of(w, i, l), (unsigned)sizeof(M) * count, "read");
        M values[4];
        for (unsigned k = 0; k < count; ++k) memcpy(&values[k], from + k * sizeof(M), sizeof(M));
        for (unsigned k = 0; k < count; ++k) to[k][l] = (R)values[k];
    }
}

// Of the lanes that write to one address any may be the last: the order is drawn by warp.
template <class F>
inline void in_drawn_order(const SimtWarp& w, unsigned lanes, F f) {
    while (lanes) {
        unsigned l = w.downwards ? 31 - (unsigned)__builtin_clz(lanes) : (unsigned)__builtin_ctz(lanes);
        lanes &= ~(1u << l);
        now = &w.lanes[l];
        f(l);
    }
}

template <Space SPACE, class M, class R>
void store(SimtWarp& w, const Instruction& i, unsigned lanes) {
    const unsigned count = i.count;
    if (count > 4) __builtin_unreachable();
    const R* from[4];
    for (unsigned k = 0; k < count; ++k) from[k] = w.at<const R>(i.r[k]);
    in_drawn_order(w, lanes, [&](unsigned l) {
        char* to = find<SPACE>(w, address_of(w, i, l), (unsigned)sizeof(M) * count, "write");
        for (unsigned k = 0; k < count; ++k) {
            M value = (M)from[k][l];
            memcpy(to + k * sizeof(M), &value, sizeof(M));
        }
    });
}

template <Space SPACE, class M>
Handler load_of(bool wide) { return wide ? load<SPACE, M, uint64_t> : load<SPACE, M, uint32_t>; }
template <Space SPACE, class M>
Handler store_of(bool wide) { return wide ? store<SPACE, M, uint64_t> : store<SPACE, M, uint32_t>; }

// Signed types extend their sign into a wider register.
template <Space SPACE>
Handler load_in(std::string_view type, bool wide) {
    if (type == "b8" || type == "u8") return load_of<SPACE, uint8_t>(wide);
    if (type == "s8") return load_of<SPACE, int8_t>(wide);
    if (type == "b16" || type == "u16") return load_of<SPACE, uint16_t>(wide);
    if (type == "s16") return load_of<SPACE, int16_t>(wide);
    if (type == "b32" || type == "u32" || type == "f32") return load_of<SPACE, uint32_t>(wide);
    if (type == "s32") return load_of<SPACE, int32_t>(wide);
    if ((type == "b64" || type == "u64" || type == "s64" || type == "f64") && wide)
        return load<SPACE, uint64_t, uint64_t>;
    return nullptr;
}
template <Space SPACE>
Handler store_in(std::string_view type, bool wide) {
    if (type.size() == 2 && type[1] == '8') return store_of<SPACE, uint8_t>(wide);
    if (type.size() != 3) return nullptr;
    if (type.substr(1) == "16") return store_of<SPACE, uint16_t>(wide);
    if (type.substr(1) == "32") return store_of<SPACE, uint32_t>(wide);
    if (type.substr(1) == "64" && wide) return store<SPACE, uint64_t, uint64_t>;
    return nullptr;
}

// ---- Atomics

struct Add { template <class T> static T f(T old, T x) { return (T)(old + x); } };
struct Exchange { template <class T> static T f(T, T x) { return x; } };
struct Least { template <class T> static T f(T old, T x) { return old < x ? old : x; } };
struct Most { template <class T> static T f(T old, T x) { return old > x ? old : x; } };
struct And { template <class T> static T f(T old, T x) { return (T)(old & x); } };
struct Or { template <class T> static T f(T old, T x) { return (T)(old | x); } };
struct Xor { template <class T> static T f(T old, T x) { return (T)(old ^ x); } };
struct Increment { template <class T> static T f(T old, T x) { return old >= x ? 0 : (T)(old + 1); } };

template <Space SPACE, class T, class Op, bool RESULT>
void atomic(SimtWarp& w, const Instruction& i, unsigned lanes) {
    T* result = RESULT ? w.at<T>(i.r[0]) : nullptr;
    const T* x = w.at<const T>(i.r[1]);
    in_drawn_order(w, lanes, [&](unsigned l) {
        char* at = find<SPACE>(w, address_of(w, i, l), sizeof(T), "write");
        T old, value = x[l];
        memcpy(&old, at, sizeof old);
        value = Op::f(old, value);
        memcpy(at, &value, sizeof value);
        if (RESULT) result[l] = old;
    });
}

// "b" types have the operations on bits, the others those on numbers.
template <Space SPACE, class T>
Handler atomic_of(std::string_view operation, bool bitwise, bool result) {
#define ATOMIC(name, Op)        \
    if (operation == name) return result ? atomic<SPACE, T, Op, true> : atomic<SPACE, T, Op, false>;
    if (bitwise) {
        ATOMIC("exch", Exchange)
        ATOMIC("and", And)
        ATOMIC("or", Or)
        ATOMIC("xor", Xor)
        return nullptr;
    }
    ATOMIC("add", Add)
    ATOMIC("min", Least)
    ATOMIC("max", Most)
    if (std::is_same<T, uint32_t>::value) {
        ATOMIC("inc", Increment)
    }
#undef ATOMIC
    return nullptr;
}
template <Space SPACE>
Handler atomic_in(std::string_view operation, std::string_view type, bool result) {
    if (type == "b32") return atomic_of<SPACE, uint32_t>(operation, true, result);
    if (type == "b64") return atomic_of<SPACE, uint64_t>(operation, true, result);
    if (type == "u32") return atomic_of<SPACE, uint32_t>(operation, false, result);
    if (type == "s32") return atomic_of<SPACE, int32_t>(operation, false, result);
    if (type == "u64") return atomic_of<SPACE, uint64_t>(operation, false, result);
    if (type == "s64") return atomic_of<SPACE, int64_t>(operation, false, result);
    if (operation != "add") return nullptr;
    if (type == "f32") return result ? atomic<SPACE, float, Add, true> : atomic<SPACE, float, Add, false>;
    if (type == "f64") return result ? atomic<SPACE, double, Add, true> : atomic<SPACE, double, Add, false>;
    return nullptr;
}

// ---- cp.async. A copy lands when its lane waits for it, or at any moment before; what is read is
// what stands at the source then.

void land(const AsyncCopy& copy, SimtWarp& w) {
    now = &w.lanes[copy.lane];
    memcpy(copy.to, copy.from, copy.from_bytes);
    memset(copy.to + copy.from_bytes, 0, copy.bytes - copy.from_bytes);
}

// r[0]: the source's address; r[1]: how many of its bytes there are, if `count` says so.
void copy_async(SimtWarp& w, const Instruction& i, unsigned lanes) {
    const uint64_t* from = w.at<const uint64_t>(i.r[0]);
    for (unsigned left = lanes; left; left &= left - 1) {
        unsigned l = (unsigned)__builtin_ctz(left);
        now = &w.lanes[l];
        uint32_t from_bytes = i.count ? w.at<const uint32_t>(i.r[1])[l] : i.bytes;
        uint64_t source = from[l] + (uint64_t)(int64_t)(int32_t)i.target;
        if (from_bytes > i.bytes) abandon(LAUNCH_FAILED, "cp.async of %u bytes from %u", i.bytes, from_bytes);
        if (source & (i.bytes - 1u)) misaligned("read", i.bytes, source);
        char* to = find<SHARED_SPACE>(w, address_of(w, i, l), i.bytes, "write");
        AsyncCopy copy = {l, w.batches[l], to, (const char*)source, i.bytes, from_bytes};
        if (executor->random() % 8) w.copies.push_back(copy);
        else land(copy, w);
    }
}
void commit(SimtWarp& w, const Instruction&, unsigned lanes) {
    for (unsigned l = 0; l < LANES; ++l) w.batches[l] += lanes >> l & 1;
}
// Waits for all batches but the last `offset`; -1: also for what has not been committed.
void wait_for_copies(SimtWarp& w, const Instruction& i, unsigned lanes) {
    if (i.offset >= 0) return land_copies(w, lanes, (uint32_t)i.offset);
    for (const AsyncCopy& copy : w.copies)
        if (lanes >> copy.lane & 1) land(copy, w);
    size_t kept = 0;
    for (const AsyncCopy& copy : w.copies)
        if (!(lanes >> copy.lane & 1)) w.copies[kept++] = copy;
    w.copies.resize(kept);
}

}  // namespace

void land_copies(SimtWarp& w, unsigned lanes, uint32_t but) {
    size_t kept = 0;
    for (size_t k = 0; k < w.copies.size(); ++k) {
        const AsyncCopy copy = w.copies[k];
        if (lanes >> copy.lane & 1 && copy.batch + but < w.batches[copy.lane]) land(copy, w);
        else w.copies[kept++] = copy;
    }
    w.copies.resize(kept);
}

void land_some_copies(SimtWarp& w) {
    if (w.copies.empty() || executor->random() % 16) return;
    size_t count = 1 + executor->random() % w.copies.size();
    for (size_t k = 0; k < count; ++k) land(w.copies[k], w);
    w.copies.erase(w.copies.begin(), w.copies.begin() + (long)count);
}

Handler load_handler(Space space, std::string_view type, bool wide) {
    switch (space) {
        case GLOBAL_SPACE: return load_in<GLOBAL_SPACE>(type, wide);
        case SHARED_SPACE: return load_in<SHARED_SPACE>(type, wide);
        case PARAM_SPACE: return load_in<PARAM_SPACE>(type, wide);
        default: return load_in<GENERIC_SPACE>(type, wide);
    }
}
Handler store_handler(Space space, std::string_view type, bool wide) {
    switch (space) {
        case GLOBAL_SPACE: return store_in<GLOBAL_SPACE>(type, wide);
        case SHARED_SPACE: return store_in<SHARED_SPACE>(type, wide);
        case GENERIC_SPACE: return store_in<GENERIC_SPACE>(type, wide);
        default: return nullptr;
    }
}
Handler atomic_handler(Space space, std::string_view operation, std::string_view type, bool result) {
    switch (space) {
        case GLOBAL_SPACE: return atomic_in<GLOBAL_SPACE>(operation, type, result);
        case SHARED_SPACE: return atomic_in<SHARED_SPACE>(operation, type, result);
        case GENERIC_SPACE: return atomic_in<GENERIC_SPACE>(operation, type, result);
        default: return nullptr;
    }
}
Handler async_copy_handler() { return copy_async; }
Handler commit_handler() { return commit; }
Handler wait_handler() { return wait_for_copies; }

}  // namespace emu
