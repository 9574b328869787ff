// Stream capture and graphs. A graph is the list of what was enqueued, in the order in which it
// was: one of the orders that its dependencies allow. What a capture forbids is as in the
// driver's documentation; where that leaves room, the stricter reading is taken, so that code
// that passes here is not refused by a GPU's driver.
#include "driver.h"

namespace {

// Captures that have not ended.
std::set<Capture*>& captures() {
    static auto* all = new std::set<Capture*>;
    return *all;
}

std::set<Graph*>& graphs() {
    static auto* all = new std::set<Graph*>;
    return *all;
}

struct Executable {
    std::vector<Node> nodes;
    Graph* graph;  // keeps its memory
    Context* context;
};

std::set<Executable*>& executables() {
    static auto* all = new std::set<Executable*>;
    return *all;
}

const Stream* running = nullptr;

// What this thread has asked for with cuThreadExchangeStreamCaptureMode.
thread_local int thread_mode = 0;

void drop(Graph* graph) {
    if (--graph->references) return;
    for (DevicePtr address : graph->memory)
        if (find_allocation(address)) release(address, false);
    delete graph;
}

}  // namespace

void invalidate(Stream* stream) {
    if (stream->capture) stream->capture->invalid = true;
}

void end_capture(Stream* stream) {
    std::shared_ptr<Capture> capture = stream->capture;
    if (!capture) return;
    capture->invalid = true;
    if (capture->origin != stream) return;
    for (Stream* other : capture->streams) other->capture = nullptr;
    captures().erase(capture.get());
    drop(capture->graph);
}

Result enqueue(Stream* stream, const char* what, std::function<Result()> work) {
    if (!stream->capture) {
        running = stream;
        return work();
    }
    if (stream->capture->invalid) return CAPTURE_INVALIDATED;
    ++stream->operations;
    stream->capture->graph->nodes.push_back({what, std::move(work)});
    return SUCCESS;
}

const Stream* running_on() { return running; }

Result refuse_in_capture(const char* function) {
    if (thread_mode == 2) return SUCCESS;
    bool refused = false;
    for (Capture* capture : captures()) {
        bool own = capture->thread == thread_id() && capture->mode != 2;
        bool global = thread_mode == 0 && capture->mode == 0;
        if (!own && !global) continue;
        capture->invalid = true;
        refused = true;
    }
    if (!refused) return SUCCESS;
    return complain(CAPTURE_UNSUPPORTED, std::string(function) + " while a stream is capturing");
}

Result refuse_synchronize(const char* function, Context* context) {
    bool refused = false;
    for (Capture* capture : captures()) {
        if (capture->origin->context != context) continue;
        capture->invalid = true;
        refused = true;
    }
    if (!refused) return SUCCESS;
    return complain(CAPTURE_UNSUPPORTED, std::string(function) + " while a stream is capturing");
}

CUDA Result cuThreadExchangeStreamCaptureMode(int* mode) {
    if (!mode || *mode < 0 || *mode > 2) return INVALID_VALUE;
    std::swap(*mode, thread_mode);
    return SUCCESS;
}

CUDA Result cuStreamBeginCapture_v2(void* handle, int mode) {
    Call call(HEALTHY);
    if (call.error) return call.error;
    if (mode < 0 || mode > 2) return INVALID_VALUE;
    Stream* stream;
    if (Result error = find_stream(call.context, handle, stream)) return error;
    if (stream == call.context->legacy)
        return complain(CAPTURE_UNSUPPORTED, "the default stream cannot capture");
    if (stream->capture) return ILLEGAL_STATE;
    static uint64_t id = 0;
    auto capture = std::make_shared<Capture>();
    capture->id = ++id;
    capture->origin = stream;
    capture->thread = thread_id();
    capture->mode = mode;
    capture->graph = new Graph;
    capture->streams.insert(stream);
    stream->capture = capture;
    stream->operations = 0;
    stream->seen.clear();
    captures().insert(capture.get());
    return SUCCESS;
}

CUDA Result cuStreamEndCapture(void* handle, Graph** out) {
    Call call(CURRENT);
    if (call.error) return call.error;
    Stream* stream;
    if (Result error = find_stream(call.context, handle, stream)) return error;
    if (!out) return INVALID_VALUE;
    *out = nullptr;
    std::shared_ptr<Capture> capture = stream->capture;
    if (!capture) return ILLEGAL_STATE;
    if (capture->origin != stream) {
        capture->invalid = true;
        return CAPTURE_UNMATCHED;
    }
    if (capture->mode != 2 && capture->thread != thread_id()) {
        capture->invalid = true;
        return CAPTURE_WRONG_THREAD;
    }
    Result result = capture->invalid ? CAPTURE_INVALIDATED : SUCCESS;
    for (Stream* other : capture->streams) {
        if (other != stream && stream->seen[other] < other->operations && result == SUCCESS)
            result = CAPTURE_UNJOINED;
        other->capture = nullptr;
        other->operations = 0;
    }
    stream->seen.clear();
    captures().erase(capture.get());
    if (result == SUCCESS) {
        graphs().insert(capture->graph);
        *out = capture->graph;
    } else {
        drop(capture->graph);
    }
    return result;
}

// 0: no capture, 1: a capture, 2: one that an error has ended.
CUDA Result cuStreamIsCapturing(void* handle, int* status) {
    Call call(CURRENT);
    if (call.error) return call.error;
    Stream* stream;
    if (Result error = find_stream(call.context, handle, stream)) return error;
    if (!status) return INVALID_VALUE;
    *status = !stream->capture ? 0 : stream->capture->invalid ? 2 : 1;
    return SUCCESS;
}

static Result capture_info(void* handle, int* status, uint64_t* id, Graph** graph) {
    if (Result error = cuStreamIsCapturing(handle, status)) return error;
    Call call(CURRENT);
    Stream* stream;
    if (Result error = find_stream(call.context, handle, stream)) return error;
    if (stream->capture) {
        if (id) *id = stream->capture->id;
        if (graph) *graph = stream->capture->graph;
    }
    return SUCCESS;
}
CUDA Result cuStreamGetCaptureInfo_v2(void* handle, int* status, uint64_t* id, Graph** graph,
                                      const void*** dependencies, size_t* count) {
    if (dependencies) return NOT_SUPPORTED;
    if (count) *count = 0;
    return capture_info(handle, status, id, graph);
}
CUDA Result cuStreamGetCaptureInfo_v3(void* handle, int* status, uint64_t* id, Graph** graph,
                                      const void*** dependencies, const void**, size_t* count) {
    return cuStreamGetCaptureInfo_v2(handle, status, id, graph, dependencies, count);
}

// ---- Graphs

CUDA Result cuGraphInstantiateWithFlags(Executable** out, Graph* graph, unsigned long long flags) {
    Call call(HEALTHY);
    if (call.error) return call.error;
    constexpr unsigned long long AUTO_FREE = 1, UPLOAD = 2, DEVICE_LAUNCH = 4, PRIORITY = 8;
    if (!out || !graphs().count(graph) ||
        flags & ~(AUTO_FREE | UPLOAD | DEVICE_LAUNCH | PRIORITY) ||
        (flags & DEVICE_LAUNCH && flags & AUTO_FREE))
        return INVALID_VALUE;
    if (flags & (UPLOAD | DEVICE_LAUNCH)) return NOT_SUPPORTED;
    ++graph->references;
    *out = new Executable{graph->nodes, graph, call.context};
    executables().insert(*out);
    return SUCCESS;
}

CUDA Result cuGraphUpload(Executable* executable, void* handle) {
    Call call(HEALTHY);
    if (call.error) return call.error;
    Stream* stream;
    if (Result error = find_stream(call.context, handle, stream)) return error;
    if (!executables().count(executable)) return INVALID_VALUE;
    if (stream->capture) {
        invalidate(stream);
        return CAPTURE_UNSUPPORTED;
    }
    return SUCCESS;
}

CUDA Result cuGraphLaunch(Executable* executable, void* handle) {
    Call call(HEALTHY);
    if (call.error) return call.error;
    Stream* stream;
    if (Result error = find_stream(call.context, handle, stream)) return error;
    if (!executables().count(executable)) return INVALID_VALUE;
    ++counters().launches;
    for (const Node& node : executable->nodes)
        if (Result error = enqueue(stream, node.what.c_str(), node.run)) return error;
    return SUCCESS;
}

CUDA Result cuGraphExecDestroy(Executable* executable) {
    Call call(INITIALIZED);
    if (call.error) return call.error;
    if (!executables().erase(executable)) return INVALID_VALUE;
    drop(executable->graph);
    delete executable;
    return SUCCESS;
}

CUDA Result cuGraphDestroy(Graph* graph) {
    Call call(INITIALIZED);
    if (call.error) return call.error;
    if (!graphs().erase(graph)) return INVALID_VALUE;
    drop(graph);
    return SUCCESS;
}

// The number of nodes; the nodes themselves have no handles here.
CUDA Result cuGraphGetNodes(Graph* graph, void** nodes, size_t* count) {
    Call call(INITIALIZED);
    if (call.error) return call.error;
    if (!graphs().count(graph) || !count) return INVALID_VALUE;
    if (nodes) return NOT_SUPPORTED;
    *count = graph->nodes.size();
    return SUCCESS;
}

// A callback on the host. It must not call the driver, so the lock is not held.
CUDA Result cuLaunchHostFunc(void* handle, void (*callback)(void*), void* data) {
    Call call(HEALTHY);
    if (call.error) return call.error;
    Stream* stream;
    if (Result error = find_stream(call.context, handle, stream)) return error;
    if (!callback) return INVALID_VALUE;
    if (stream->capture)
        return enqueue(stream, "host function", [=] { callback(data); return SUCCESS; });
    call.unlock();
    callback(data);
    return SUCCESS;
}
