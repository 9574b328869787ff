// Initialisation, devices and contexts.
#include <cstdlib>
#include <cstring>

#include "driver.h"

namespace {

std::recursive_mutex& lock = *new std::recursive_mutex;

bool initialized = false;

// This thread's stack of contexts. Never freed, as the stream's map: see driver.h.
std::vector<Context*>& current() {
    thread_local auto* stack = new std::vector<Context*>;
    return *stack;
}

std::set<Context*>& contexts = *new std::set<Context*>;

std::vector<Context*>& primaries() {
    static auto* all = new std::vector<Context*>((size_t)settings().devices, nullptr);
    return *all;
}

Context* new_context(int device, bool primary) {
    static uint64_t id = 0;
    auto* context = new Context;
    context->device = device;
    context->primary = primary;
    context->id = ++id;
    context->legacy = new Stream;
    context->legacy->context = context;
    contexts.insert(context);
    return context;
}

// The object stays, so that a handle that is used too late is recognised.
void destroy(Context* context) {
    context->alive = false;
    for (Stream* stream : context->streams) {
        end_capture(stream);
        stream->context = nullptr;
    }
    release_all(context);
    contexts.erase(context);
}

long long from_environment(const char* name, long long value) {
    const char* text = getenv(name);
    return text && *text ? strtoll(text, nullptr, 0) : value;
}

}  // namespace

Settings& settings() {
    static Settings* s = [] {
        auto* s = new Settings;
        const char* cc = getenv("GFOCAL_EMULATOR_CC");
        if (cc && *cc) {
            s->compute_capability = 0;
            for (const char* p = cc; *p; ++p)  // "75" or "7.5"
                if (*p >= '0' && *p <= '9')
                    s->compute_capability = 10 * s->compute_capability + (*p - '0');
        }
        s->multiprocessors = (int)from_environment("GFOCAL_EMULATOR_SMS", s->multiprocessors);
        s->driver_version = (int)from_environment("GFOCAL_EMULATOR_DRIVER", s->driver_version);
        s->devices = (int)from_environment("GFOCAL_EMULATOR_DEVICES", s->devices);
        s->devices = s->devices < 0 ? 0 : s->devices > 8 ? 8 : s->devices;
        s->tight_fences = from_environment("GFOCAL_EMULATOR_FENCES", 0) != 0;
        s->ptx = from_environment("GFOCAL_EMULATOR_PTX", 0) != 0;
        s->seed = (uint64_t)from_environment("GFOCAL_EMULATOR_SEED", (long long)s->seed);
        s->memory = (uint64_t)from_environment("GFOCAL_EMULATOR_MEMORY", (long long)s->memory);
        return s;
    }();
    return *s;
}

Limits limits() {
    switch (settings().compute_capability) {
        case 75: return {1024, 16, 64 << 10, 64 << 10};
        case 80: return {2048, 32, 164 << 10, 163 << 10};
        case 87: return {1536, 16, 164 << 10, 163 << 10};
        case 86: return {1536, 16, 100 << 10, 99 << 10};
        case 89: return {1536, 24, 100 << 10, 99 << 10};
        case 120: case 121: return {1536, 24, 100 << 10, 99 << 10};
        default: return {2048, 32, 228 << 10, 227 << 10};
    }
}

bool is_context(const Context* context) { return contexts.count((Context*)context) != 0; }
bool is_device(int device) { return device >= 0 && device < settings().devices; }

Call::Call(Need need) : hold_(lock) {
    if (!initialized) {
        error = NOT_INITIALIZED;
        return;
    }
    context = current().empty() ? nullptr : current().back();
    if (need == INITIALIZED) return;
    if (!context) {
        error = INVALID_CONTEXT;
    } else if (!context->alive) {
        error = CONTEXT_IS_DESTROYED;
    } else if (need == HEALTHY && context->error) {
        error = (Result)context->error;
    }
}

CUDA Result cuInit(unsigned flags) {
    std::unique_lock<std::recursive_mutex> hold(lock);
    if (flags) return INVALID_VALUE;
    if (settings().devices == 0) return NO_DEVICE;
    initialized = true;
    return SUCCESS;
}

CUDA Result cuDriverGetVersion(int* version) {
    return give(version, settings().driver_version);
}

// NVRTC looks for it when it finds a libcuda in its process.
CUDA Result cuGetExportTable(const void**, const void*) { return NOT_SUPPORTED; }

// ---- Devices

// A call that tells something of a device.
#define DEVICE_CALL(out, device)     \
    CALL(INITIALIZED);               \
    if (!out) return INVALID_VALUE;  \
    if (!is_device(device)) return INVALID_DEVICE

CUDA Result cuDeviceGetCount(int* count) {
    CALL(INITIALIZED);
    return give(count, settings().devices);
}

CUDA Result cuDeviceGet(int* device, int ordinal) {
    DEVICE_CALL(device, ordinal);
    return give(device, ordinal);
}

CUDA Result cuDeviceGetName(char* name, int length, int device) {
    CALL(INITIALIZED);
    if (!name || length <= 0) return INVALID_VALUE;
    if (!is_device(device)) return INVALID_DEVICE;
    strncpy(name, "gfocal emulator (not a GPU)", (size_t)length);
    name[length - 1] = 0;
    return SUCCESS;
}

static Result device_uuid(unsigned char* uuid, int device) {
    DEVICE_CALL(uuid, device);
    memcpy(uuid, "gfocal emulator", 16);
    uuid[15] = (unsigned char)('0' + device);
    return SUCCESS;
}
CUDA Result cuDeviceGetUuid(unsigned char* uuid, int device) { return device_uuid(uuid, device); }
CUDA Result cuDeviceGetUuid_v2(unsigned char* uuid, int device) { return device_uuid(uuid, device); }

CUDA Result cuDeviceTotalMem_v2(size_t* bytes, int device) {
    DEVICE_CALL(bytes, device);
    return give(bytes, settings().memory);
}

CUDA Result cuDeviceGetAttribute(int* value, int attribute, int device) {
    DEVICE_CALL(value, device);
    if (attribute < 1 || attribute > 256) return INVALID_VALUE;
    const Limits l = limits();
    const int cc = settings().compute_capability;
    switch (attribute) {
        case 1: *value = 1024; break;                // MAX_THREADS_PER_BLOCK
        case 2: case 3: *value = 1024; break;        // MAX_BLOCK_DIM_X, _Y
        case 4: *value = 64; break;                  // MAX_BLOCK_DIM_Z
        case 5: *value = 0x7fffffff; break;          // MAX_GRID_DIM_X
        case 6: case 7: *value = 65535; break;       // MAX_GRID_DIM_Y, _Z
        case 8: *value = SHARED_PER_BLOCK; break;    // MAX_SHARED_MEMORY_PER_BLOCK
        case 9: *value = 65536; break;               // TOTAL_CONSTANT_MEMORY
        case 10: *value = 32; break;                 // WARP_SIZE
        case 11: *value = 0x7fffffff; break;         // MAX_PITCH
        case 12: *value = REGISTERS; break;          // MAX_REGISTERS_PER_BLOCK
        case 13: *value = 1000000; break;            // CLOCK_RATE, kHz
        case 14: *value = 512; break;                // TEXTURE_ALIGNMENT
        case 16: *value = settings().multiprocessors; break;
        case 19: *value = 1; break;                  // CAN_MAP_HOST_MEMORY
        case 31: *value = 1; break;                  // CONCURRENT_KERNELS
        case 33: *value = device + 1; break;         // PCI_BUS_ID
        case 36: *value = 1000000; break;            // MEMORY_CLOCK_RATE, kHz
        case 37: *value = 128; break;                // GLOBAL_MEMORY_BUS_WIDTH
        case 38: *value = 4 << 20; break;            // L2_CACHE_SIZE
        case 39: *value = l.threads_per_multiprocessor; break;
        case 40: *value = 1; break;                  // ASYNC_ENGINE_COUNT
        case 41: *value = 1; break;                  // UNIFIED_ADDRESSING
        case 75: *value = cc / 10; break;            // COMPUTE_CAPABILITY_MAJOR
        case 76: *value = cc % 10; break;            // COMPUTE_CAPABILITY_MINOR
        case 78: *value = 1; break;                  // STREAM_PRIORITIES_SUPPORTED
        case 79: case 80: *value = 1; break;         // L1 caches
        case 81: *value = l.shared_per_multiprocessor; break;
        case 82: *value = REGISTERS; break;          // MAX_REGISTERS_PER_MULTIPROCESSOR
        case 87: *value = 64; break;                 // SINGLE_TO_DOUBLE_PRECISION_PERF_RATIO
        case 97: *value = l.shared_per_block_optin; break;
        case 106: *value = l.blocks_per_multiprocessor; break;
        case 111: *value = 1024; break;              // RESERVED_SHARED_MEMORY_PER_BLOCK
        case 115: *value = 1; break;                 // MEMORY_POOLS_SUPPORTED
        default: *value = 0;                         // not supported, or of no account here
    }
    return SUCCESS;
}

// ---- Contexts

CUDA Result cuDevicePrimaryCtxRetain(Context** out, int device) {
    DEVICE_CALL(out, device);
    Context*& primary = primaries()[(size_t)device];
    if (!primary || !primary->alive) primary = new_context(device, true);
    ++primary->references;
    *out = primary;
    return SUCCESS;
}

CUDA Result cuDevicePrimaryCtxRelease_v2(int device) {
    CALL(INITIALIZED);
    if (!is_device(device)) return INVALID_DEVICE;
    Context* primary = primaries()[(size_t)device];
    if (!primary || primary->references == 0) return INVALID_CONTEXT;
    if (--primary->references == 0) destroy(primary);
    return SUCCESS;
}

static Result create_context(Context** out, int device) {
    DEVICE_CALL(out, device);
    *out = new_context(device, false);
    current().push_back(*out);
    return SUCCESS;
}
CUDA Result cuCtxCreate_v2(Context** out, unsigned, int device) { return create_context(out, device); }
CUDA Result cuCtxCreate_v3(Context** out, void*, int, unsigned, int device) {
    return create_context(out, device);
}
CUDA Result cuCtxCreate_v4(Context** out, void*, unsigned, int device) {
    return create_context(out, device);
}

CUDA Result cuCtxDestroy_v2(Context* context) {
    CALL(INITIALIZED);
    if (!is_context(context) || context->primary) return INVALID_CONTEXT;
    destroy(context);
    if (call.context == context) current().pop_back();
    return SUCCESS;
}

CUDA Result cuCtxGetCurrent(Context** out) {
    CALL(INITIALIZED);
    return give(out, call.context);
}

CUDA Result cuCtxSetCurrent(Context* context) {
    CALL(INITIALIZED);
    if (context && !is_context(context)) return INVALID_CONTEXT;
    if (!current().empty()) current().pop_back();
    if (context) current().push_back(context);
    return SUCCESS;
}

CUDA Result cuCtxGetLimit(size_t* value, int limit) {
    CALL(CURRENT);
    return give(value, limit == 0 ? 1024 : 0);  // CU_LIMIT_STACK_SIZE
}
CUDA Result cuCtxSetFlags(unsigned) { return Call(CURRENT).error; }
CUDA Result cuCtxSetLimit(int, size_t) { return Call(CURRENT).error; }
CUDA Result cuCtxGetCacheConfig(int* config) {
    if (config) *config = 0;
    return config ? Call(CURRENT).error : INVALID_VALUE;
}
CUDA Result cuCtxSetCacheConfig(int) { return Call(CURRENT).error; }
CUDA Result cuCtxGetStreamPriorityRange(int* least, int* greatest) {
    if (least) *least = 0;
    if (greatest) *greatest = -5;
    return Call(CURRENT).error;
}
CUDA Result cuProfilerStart() { return Call(CURRENT).error; }
CUDA Result cuProfilerStop() { return Call(CURRENT).error; }
