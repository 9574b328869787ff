// Copies and fills.
#include <cstring>

#include "driver.h"

namespace {

enum Side { HOST, DEVICE };

// A pointer on the side of the host may be to pinned memory, but not to a device's.
Result check_host(const char* function, uint64_t address, size_t bytes) {
    if (bytes == 0) return SUCCESS;
    const Allocation* a = find_allocation(address);
    if (address == 0 || (a && !a->host))
        return complain(INVALID_VALUE, std::string(function) + ": the host's side is " +
                                           describe_address(address));
    return a ? check_range(function, address, bytes) : SUCCESS;
}

Result copy(const char* function, uint64_t to, Side to_side, uint64_t from, Side from_side,
            size_t bytes, Stream* stream) {
    Result error = to_side == DEVICE ? check_range(function, to, bytes)
                                     : check_host(function, to, bytes);
    if (error) return error;
    error = from_side == DEVICE ? check_range(function, from, bytes)
                                : check_host(function, from, bytes);
    if (error) return error;
    if (to_side == HOST && from_side == DEVICE && !stream->capture) {
        ++counters().copies_to_host;
        const Allocation* a = find_allocation(to);
        if (!a || !a->host) {  // pageable memory: the call waits for the copy
            ++counters().waits;
            note_wait(stream);
        }
    }
    return enqueue(stream, function, [=]() -> Result {
        // A graph may be launched when what it was captured with has been freed.
        if (to_side == DEVICE)
            if (Result gone = check_range(function, to, bytes)) return gone;
        if (from_side == DEVICE)
            if (Result gone = check_range(function, from, bytes)) return gone;
        memmove((void*)to, (const void*)from, bytes);
        return SUCCESS;
    });
}

Result copy_async(const char* function, uint64_t to, Side to_side, uint64_t from, Side from_side,
                  size_t bytes, void* handle) {
    STREAM_CALL(HEALTHY, handle);
    return copy(function, to, to_side, from, from_side, bytes, stream);
}

// On the legacy stream, and the host waits for the end.
Result copy_sync(const char* function, uint64_t to, Side to_side, uint64_t from, Side from_side,
                 size_t bytes) {
    CALL(HEALTHY);
    if (Result refused = refuse_in_capture(function)) return refused;
    FIND_STREAM(nullptr);
    if (to_side == DEVICE) ++counters().waits;
    note_wait(stream);
    return copy(function, to, to_side, from, from_side, bytes, stream);
}

Result fill(const char* function, DevicePtr to, unsigned char value, size_t bytes, void* handle,
            bool wait) {
    CALL(HEALTHY);
    if (wait)
        if (Result refused = refuse_in_capture(function)) return refused;
    FIND_STREAM(handle);
    if (Result error = check_range(function, to, bytes)) return error;
    return enqueue(stream, function, [=]() -> Result {
        if (Result gone = check_range(function, to, bytes)) return gone;
        memset((void*)to, value, bytes);
        return SUCCESS;
    });
}

}  // namespace

CUDA Result cuMemcpyHtoDAsync_v2(DevicePtr to, const void* from, size_t bytes, void* stream) {
    return copy_async("cuMemcpyHtoDAsync", to, DEVICE, (uint64_t)from, HOST, bytes, stream);
}
CUDA Result cuMemcpyDtoHAsync_v2(void* to, DevicePtr from, size_t bytes, void* stream) {
    return copy_async("cuMemcpyDtoHAsync", (uint64_t)to, HOST, from, DEVICE, bytes, stream);
}
CUDA Result cuMemcpyDtoDAsync_v2(DevicePtr to, DevicePtr from, size_t bytes, void* stream) {
    return copy_async("cuMemcpyDtoDAsync", to, DEVICE, from, DEVICE, bytes, stream);
}
CUDA Result cuMemcpyPeerAsync(DevicePtr to, Context* to_context, DevicePtr from,
                              Context* from_context, size_t bytes, void* stream) {
    if (!is_context(to_context) || !is_context(from_context)) return INVALID_CONTEXT;
    return copy_async("cuMemcpyPeerAsync", to, DEVICE, from, DEVICE, bytes, stream);
}

CUDA Result cuMemcpyHtoD_v2(DevicePtr to, const void* from, size_t bytes) {
    return copy_sync("cuMemcpyHtoD", to, DEVICE, (uint64_t)from, HOST, bytes);
}
CUDA Result cuMemcpyDtoH_v2(void* to, DevicePtr from, size_t bytes) {
    return copy_sync("cuMemcpyDtoH", (uint64_t)to, HOST, from, DEVICE, bytes);
}
CUDA Result cuMemcpyDtoD_v2(DevicePtr to, DevicePtr from, size_t bytes) {
    return copy_sync("cuMemcpyDtoD", to, DEVICE, from, DEVICE, bytes);
}

CUDA Result cuMemsetD8Async(DevicePtr to, unsigned char value, size_t count, void* stream) {
    return fill("cuMemsetD8Async", to, value, count, stream, false);
}
CUDA Result cuMemsetD8_v2(DevicePtr to, unsigned char value, size_t count) {
    return fill("cuMemsetD8", to, value, count, nullptr, true);
}
