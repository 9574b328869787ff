// Device memory. Every allocation has pages of its own in a large reserved range, with pages
// that cannot be touched on both sides, and addresses are not used again: an access beyond the
// end or after the free is a signal, at the instruction that makes it. An allocation ends as
// close to the upper fence as its alignment allows (256 bytes, as on a GPU; 16 with tight
// fences). What is left on its pages is filled with a pattern that is NaN in every format, and
// looked at after every launch.
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>

#include "driver.h"

namespace {

constexpr size_t RANGE = 1ull << 40;     // of addresses, per device
constexpr size_t NEAR = 256;             // bytes of a guard that every launch looks at
constexpr unsigned char GUARD[2] = {0xf9, 0xff};

struct Pool {
    char *begin = nullptr, *end = nullptr, *next = nullptr;
    uint64_t in_use = 0;
};

struct Memory {
    Pool pools[9];  // of the devices, and one of the host's pinned memory
    std::map<uint64_t, Allocation> live, freed;  // by first address
    uint64_t count = 0;
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
};

Memory& memory() {
    static auto* m = new Memory;
    return *m;
}

bool reserve(Pool& pool) {
    if (pool.begin) return true;
    for (size_t bytes = RANGE; bytes >= 1ull << 32; bytes /= 4) {  // a limit on addresses
        void* range = mmap(nullptr, bytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE,
                           -1, 0);
        if (range == MAP_FAILED) continue;
        pool.begin = pool.next = (char*)range;
        pool.end = pool.begin + bytes;
        return true;
    }
    return false;
}

void fill_guard(char* from, char* to) {
    for (; from < to; ++from) *from = (char)GUARD[(uintptr_t)from & 1];
}

// The first damaged byte, or null. This runs for every allocation after every launch.
const char* damage(const char* from, const char* to) {
    constexpr uint64_t WORD = 0xfff9fff9fff9fff9ull;
    while (from < to) {
        if ((uintptr_t)from % 8 == 0 && to - from >= 8 && *(const uint64_t*)from == WORD)
            from += 8;
        else if (*from == (char)GUARD[(uintptr_t)from & 1])
            ++from;
        else
            return from;
    }
    return nullptr;
}

const char* damage(const Allocation& a, size_t near) {
    const char *end = a.start + a.bytes, *pages_end = a.pages + a.length;
    const char* low = a.start - a.pages > (ptrdiff_t)near ? a.start - near : a.pages;
    const char* high = pages_end - end > (ptrdiff_t)near ? end + near : pages_end;
    const char* found = damage(end, high);
    return found ? found : damage(low, a.start);
}

std::string hex(uint64_t value) {
    char text[32];
    snprintf(text, sizeof text, "%#llx", (unsigned long long)value);
    return text;
}

std::string name_of(const Allocation& a) {
    return std::string(a.host ? "pinned host allocation " : "allocation ") +
           std::to_string(a.number) + " (" + std::to_string(a.bytes) + " bytes at " +
           hex((uint64_t)a.start) + ")";
}

std::string relation(const Allocation& a, uint64_t address) {
    uint64_t start = (uint64_t)a.start;
    if (address < start)
        return std::to_string(start - address) + " bytes before the start of " + name_of(a);
    if (address >= start + a.bytes)
        return std::to_string(address - start - a.bytes) + " bytes after the end of " + name_of(a);
    return "at byte " + std::to_string(address - start) + " of " + name_of(a);
}

const Allocation* containing(const std::map<uint64_t, Allocation>& all, uint64_t address) {
    auto after = all.upper_bound(address);
    if (after == all.begin()) return nullptr;
    const Allocation& a = std::prev(after)->second;
    return address - (uint64_t)a.start < (a.bytes ? a.bytes : 1) ? &a : nullptr;
}

void forget(std::map<uint64_t, Allocation>::iterator it) {
    Memory& m = memory();
    Allocation& a = it->second;
    // New, untouchable pages in the same place: the old ones go back to the system.
    mmap(a.pages, a.length, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    m.pools[a.host ? 8 : a.device].in_use -= a.bytes;
    if (m.freed.size() > 100000) m.freed.erase(m.freed.begin());
    m.freed[it->first] = a;
    m.live.erase(it);
}

}  // namespace

Result allocate(Context* context, size_t bytes, bool host, DevicePtr& out) {
    Memory& m = memory();
    Pool& pool = m.pools[host ? 8 : context->device];
    size_t alignment = settings().tight_fences ? 16 : 256;
    size_t length = (bytes + alignment + m.page - 1) / m.page * m.page;
    if (bytes > settings().memory - pool.in_use || !reserve(pool) ||
        length + 2 * m.page > (size_t)(pool.end - pool.next))
        return OUT_OF_MEMORY;
    char* pages = pool.next + m.page;
    if (mprotect(pages, length, PROT_READ | PROT_WRITE) != 0) return OUT_OF_MEMORY;
    pool.next = pages + length;
    pool.in_use += bytes;
    char* start = pages + length - (bytes + alignment - 1) / alignment * alignment;
    Allocation a = {start, bytes, pages, length, context->device, context, host, ++m.count};
    fill_guard(pages, start);
    memset(start, 0xff, bytes);
    fill_guard(start + bytes, pages + length);
    out = (DevicePtr)start;
    m.live[out] = a;
    ++counters().allocations;
    return SUCCESS;
}

Result release(DevicePtr address, bool host) {
    Memory& m = memory();
    auto it = m.live.find(address);
    if (it == m.live.end() || it->second.host != host) {
        const char* kind = m.freed.count(address) ? "double free: " : "free of no allocation: ";
        return fault(nullptr, INVALID_VALUE, kind + describe_address(address));
    }
    ++counters().frees;
    Context* context = it->second.context;
    std::string found;
    if (const char* byte = damage(it->second, ~0ull >> 1))
        found = "a guard was written to, found at the free: " +
                relation(it->second, (uint64_t)byte);
    forget(it);
    return found.empty() ? SUCCESS : fault(context, ILLEGAL_ADDRESS, found);
}

void release_all(Context* context) {
    Memory& m = memory();
    for (auto it = m.live.begin(); it != m.live.end();) {
        auto next = std::next(it);
        if (it->second.context == context) forget(it);
        it = next;
    }
}

const Allocation* find_allocation(DevicePtr address) { return containing(memory().live, address); }

std::string describe_address(DevicePtr address) {
    Memory& m = memory();
    if (address == 0) return "address 0";
    if (const Allocation* a = containing(m.live, address)) return relation(*a, address);
    if (const Allocation* a = containing(m.freed, address))
        return "use after free: " + relation(*a, address);
    if (address == ~0ull) return "an address that no memory can have";
    int device = device_of_address(address);
    if (device < 0) return "address " + hex(address) + ", which is not device memory";
    // The neighbours, living or not, the nearer one first.
    const Allocation *below = nullptr, *above = nullptr;
    for (const auto* all : {&m.live, &m.freed}) {
        auto after = all->upper_bound(address);
        if (after != all->end() && (!above || after->second.start < above->start))
            above = &after->second;
        if (after != all->begin() && (!below || std::prev(after)->second.start > below->start))
            below = &std::prev(after)->second;
    }
    if (below && device_of_address((uint64_t)below->start) != device) below = nullptr;
    if (above && device_of_address((uint64_t)above->start) != device) above = nullptr;
    if (!below && !above) return "address " + hex(address);
    if (!below || !above) return relation(below ? *below : *above, address);
    bool low = address - (uint64_t)below->start - below->bytes < (uint64_t)above->start - address;
    return relation(low ? *below : *above, address) + ", " + relation(low ? *above : *below, address);
}

Result check_range(const char* function, DevicePtr address, size_t bytes) {
    if (bytes == 0) return SUCCESS;
    const Allocation* a = find_allocation(address);
    if (a && bytes <= a->bytes - (address - (uint64_t)a->start)) return SUCCESS;
    std::string problem = a ? std::to_string(bytes) + " bytes, " : "";
    return complain(INVALID_VALUE, std::string(function) + ": " + problem + describe_address(address));
}

std::string check_guards() {
    std::string found;
    for (auto& entry : memory().live) {
        Allocation& a = entry.second;
        const char* byte = damage(a, NEAR);
        if (!byte) continue;
        if (found.empty()) found = relation(a, (uint64_t)byte);
        fill_guard(a.pages, a.start);  // so that it is reported once
        fill_guard(a.start + a.bytes, a.pages + a.length);
    }
    return found;
}

uint64_t bytes_in_use(int device) { return memory().pools[device].in_use; }
uint64_t allocations_in_use() { return memory().live.size(); }

int device_of_address(uint64_t value) {
    const Memory& m = memory();
    for (int i = 0; i < 9; ++i)
        if (value - (uint64_t)m.pools[i].begin < (uint64_t)(m.pools[i].end - m.pools[i].begin))
            return i;
    return -1;
}

// ---- The API

CUDA Result cuMemAlloc_v2(DevicePtr* out, size_t bytes) {
    CALL(HEALTHY);
    if (Result refused = refuse_in_capture("cuMemAlloc")) return refused;
    if (!out || bytes == 0) return INVALID_VALUE;
    return allocate(call.context, bytes, false, *out);
}

CUDA Result cuMemFree_v2(DevicePtr address) {
    CALL(HEALTHY);
    if (Result refused = refuse_in_capture("cuMemFree")) return refused;
    if (address == 0) return SUCCESS;
    return release(address, false);
}

CUDA Result cuMemAllocAsync(DevicePtr* out, size_t bytes, void* handle) {
    STREAM_CALL(HEALTHY, handle);
    if (!out) return INVALID_VALUE;
    if (stream->capture && stream->capture->invalid) return CAPTURE_INVALIDATED;
    if (bytes == 0) {
        *out = 0;
        return SUCCESS;
    }
    Result result = allocate(stream->context, bytes, false, *out);
    // An address that a graph hands out is the same at every launch.
    if (result == SUCCESS && stream->capture) stream->capture->graph->memory.push_back(*out);
    return result;
}

CUDA Result cuMemFreeAsync(DevicePtr address, void* handle) {
    STREAM_CALL(HEALTHY, handle);
    if (address == 0) return SUCCESS;
    if (!stream->capture) return release(address, false);
    // A captured free is a node of the graph, which can only free what the graph allocates.
    for (DevicePtr own : stream->capture->graph->memory)
        if (own == address) return enqueue(stream, "free", [] { return SUCCESS; });
    invalidate(stream);
    return complain(INVALID_VALUE, "cuMemFreeAsync in a capture: " + describe_address(address) +
                                       " was not allocated in it");
}

CUDA Result cuMemAllocManaged(DevicePtr* out, size_t bytes, unsigned) {
    return cuMemAlloc_v2(out, bytes);
}

CUDA Result cuMemHostAlloc(void** out, size_t bytes, unsigned) {
    CALL(HEALTHY);
    if (Result refused = refuse_in_capture("cuMemHostAlloc")) return refused;
    if (!out || bytes == 0) return INVALID_VALUE;
    return allocate(call.context, bytes, true, *(DevicePtr*)out);
}

CUDA Result cuMemFreeHost(void* address) {
    CALL(HEALTHY);
    if (Result refused = refuse_in_capture("cuMemFreeHost")) return refused;
    return release((DevicePtr)address, true);
}

CUDA Result cuMemGetInfo_v2(size_t* free, size_t* total) {
    CALL(CURRENT);
    if (!free || !total) return INVALID_VALUE;
    *total = settings().memory;
    *free = *total - bytes_in_use(call.context->device);
    return SUCCESS;
}
