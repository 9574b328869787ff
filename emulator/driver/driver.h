// The state behind the driver API, and what its parts need of each other. Work is done when it
// is enqueued, on the calling thread: a stream is then only a handle, its capture, and what it
// has been made to wait for. One lock covers everything. The lists of what there is are never
// freed: destructors of the process may still call the driver when those of this library have run.
#pragma once
#include <cstddef>
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>
#include <vector>

#include "executor.h"

#define CUDA extern "C" __attribute__((visibility("default")))

typedef uint64_t DevicePtr;

// CUresult, as far as it is used here.
enum Result : int {
    SUCCESS = 0,
    INVALID_VALUE = 1,
    OUT_OF_MEMORY = 2,
    NOT_INITIALIZED = 3,
    NO_DEVICE = 100,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY_FOR_GPU = 209,
    INVALID_PTX = 218,
    UNSUPPORTED_PTX_VERSION = 222,
    INVALID_SOURCE = 300,
    FILE_NOT_FOUND = 301,
    INVALID_HANDLE = 400,
    ILLEGAL_STATE = 401,
    NOT_FOUND = 500,
    ILLEGAL_ADDRESS = 700,
    CONTEXT_IS_DESTROYED = 709,
    NOT_SUPPORTED = 801,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901,
    CAPTURE_MERGE = 902,
    CAPTURE_UNMATCHED = 903,
    CAPTURE_UNJOINED = 904,
    CAPTURE_ISOLATION = 905,
    CAPTURE_IMPLICIT = 906,
    CAPTURED_EVENT = 907,
    CAPTURE_WRONG_THREAD = 908,
};

struct Stream;
struct Context;
struct Capture;

// ---- Settings, from the environment at the first call (device.cpp)

struct Settings {
    int compute_capability = 90;  // GFOCAL_EMULATOR_CC
    int multiprocessors = 4;      // GFOCAL_EMULATOR_SMS
    int driver_version = 13000;   // GFOCAL_EMULATOR_DRIVER
    int devices = 2;              // GFOCAL_EMULATOR_DEVICES
    bool tight_fences = false;    // GFOCAL_EMULATOR_FENCES
    bool ptx = false;             // GFOCAL_EMULATOR_PTX: run the PTX, not the sources
    uint64_t seed = 1;            // GFOCAL_EMULATOR_SEED
    uint64_t memory = 4ull << 30; // bytes of each device: GFOCAL_EMULATOR_MEMORY
};
Settings& settings();

// What the compute capability decides.
struct Limits {
    int threads_per_multiprocessor, blocks_per_multiprocessor;
    int shared_per_multiprocessor, shared_per_block_optin;
};
Limits limits();
constexpr int SHARED_PER_BLOCK = 48 << 10, REGISTERS = 65536;

// ---- Counters and faults (control.cpp)

struct Counters {
    uint64_t allocations, frees, waits, launches, copies_to_host;
};
Counters& counters();  // of this host thread
// Prints, counts and remembers. `context` (may be null) answers with the error from then on.
Result fault(Context* context, int error, const std::string& message);
// Prints what was wrong with a call, in words, next to the error code that it returns.
Result complain(Result error, const std::string& message);
uint64_t next_seed();

// ---- Contexts

struct Context {
    int device = 0;
    bool primary = false, alive = true;
    int references = 0;
    int error = 0;  // of a kernel; sticky, as on a GPU
    Stream* legacy = nullptr;
    std::set<Stream*> streams;
    uint64_t id = 0;
};

// Takes the lock and checks what nearly every function of the API checks.
enum Need { INITIALIZED, CURRENT, HEALTHY };
class Call {
   public:
    explicit Call(Need need);
    Result error = SUCCESS;
    Context* context = nullptr;
    void unlock() { hold_.unlock(); }

   private:
    std::unique_lock<std::recursive_mutex> hold_;
};
// How a function of the API begins: with the lock, or at once with what is wrong.
#define CALL(need)   \
    Call call(need); \
    if (call.error) return call.error
#define FIND_STREAM(handle) \
    Stream* stream;         \
    if (Result wrong = find_stream(call.context, handle, stream)) return wrong
#define STREAM_CALL(need, handle) \
    CALL(need);                   \
    FIND_STREAM(handle)
// How one that tells a value ends.
template <class T, class Value>
Result give(T* out, Value value) {
    if (!out) return INVALID_VALUE;
    *out = (T)value;
    return SUCCESS;
}
bool is_context(const Context* context);
bool is_device(int device);

// ---- Memory (memory.cpp)

struct Allocation {
    char* start;
    size_t bytes;
    char* pages;  // start and length of what is mapped; fences are around it
    size_t length;
    int device;
    Context* context;
    bool host;
    uint64_t number;
};
Result allocate(Context* context, size_t bytes, bool host, DevicePtr& out);
Result release(DevicePtr address, bool host);
void release_all(Context* context);
const Allocation* find_allocation(DevicePtr address);
// "4 bytes after the end of allocation 3 (400 bytes at 0x...)"
std::string describe_address(DevicePtr address);
// Whether `bytes` from there on are all of one live allocation; if not, complains.
Result check_range(const char* function, DevicePtr address, size_t bytes);
// Looks at the guards of all allocations; what is damaged, or "".
std::string check_guards();
uint64_t bytes_in_use(int device), allocations_in_use();
// Which device a value would be an address of: -1 for none.
int device_of_address(uint64_t value);

// ---- Streams, events, capture (stream.cpp, capture.cpp)

typedef std::map<const Stream*, uint64_t> Clock;

struct Stream {
    Context* context = nullptr;
    unsigned flags = 0;  // 1: does not synchronise with the legacy stream
    std::shared_ptr<Capture> capture;
    uint64_t operations = 0;  // in this capture
    Clock seen;               // what of other streams is ordered before its next operation
    // Launches, by their number: up to which one the host has waited for those of this stream,
    // and what of other streams comes before whatever it is given next.
    uint64_t settled = 0;
    Clock after;
};

struct Node {
    std::string what;
    std::function<Result()> run;
};
struct Graph {
    std::vector<Node> nodes;
    std::vector<DevicePtr> memory;  // allocated while capturing; lives as long as the graph
    int references = 1;
};

struct Capture {
    Stream* origin;
    uint64_t thread;
    int mode;  // 0 global, 1 of this thread, 2 relaxed
    bool invalid = false;
    Graph* graph;
    std::set<Stream*> streams;
};

struct Event {
    Context* context;
    unsigned flags;
    bool recorded = false;
    double time = 0;  // milliseconds
    std::weak_ptr<Capture> capture;
    bool captured = false;
    Clock clock;
    Clock after;  // the launches before it, by stream
};

// A handle of the API: 0 and 1 are the legacy stream, 2 is this thread's own.
Result find_stream(Context* current, void* handle, Stream*& out);
// Does the work now, or records it if the stream captures.
Result enqueue(Stream* stream, const char* what, std::function<Result()> work);
// The stream whose work is being done.
const Stream* running_on();
// Functions that could wait for a capturing stream, or disturb it, begin with this.
Result refuse_in_capture(const char* function);
Result refuse_synchronize(const char* function, Context* context);
void invalidate(Stream* stream);
// The stream goes away; a capture that it has begun goes with it.
void end_capture(Stream* stream);
uint64_t thread_id();
double milliseconds();

// ---- Modules and launches (ptx.cpp, module.cpp, launch.cpp)

struct PtxEntry {
    std::string name;
    std::vector<emu::Parameter> parameters;
    std::vector<std::string> parameter_names;
    size_t body = 0;  // where its brace is in the text, and in which line
    int line = 0;
    unsigned max_threads = 1024, min_blocks = 0;
    size_t shared = 0;
};
struct Ptx {
    int version = 0;  // 80 is 8.0
    int target = 0;   // 75 is sm_75
    bool exact_target = false;  // sm_90a
    std::vector<PtxEntry> entries;
    struct Variable {
        size_t at;
        int line;
    };
    std::vector<Variable> variables;  // of the module: where their declarations begin
};
// "" or what is wrong with the text.
std::string parse_ptx(const char* text, Ptx& out);

struct Module;
struct Function {
    Module* module;
    PtxEntry entry;
    const emu::Kernel* kernel;
    int dynamic_shared = SHARED_PER_BLOCK;
};
struct Module {
    Context* context;
    Ptx ptx;
    std::string text;  // kept if it is what runs, and its hash
    uint64_t hash;
    uint64_t number;  // no other module has had it
    Clock launches;   // of its functions, the last one of each stream
    std::map<std::string, std::unique_ptr<Function>> functions;
};
bool is_function(const Function* function);
bool is_module(const Module* module, uint64_t number);

// ---- What the host cannot know to have ended (pending.cpp)

void note_launch(Module* module, const Stream* stream);
void note_wait(const Stream* stream);
void note_wait(const Context* context);
void note_wait(const Event* event);
void note_record(Event* event, const Stream* stream);
void note_order(Stream* stream, const Event* event);
bool may_still_run(const Module* module);

unsigned registers_of(const Function& function);
