// Stream capture and graphs. A graph is the list of what was enqueued, in the order in which it
// was: one of the orders that its dependencies allow. What a capture forbids is as in the
// driver's documentation; where that leaves room, the stricter reading is taken, so that code
// that passes here is not refused by a GPU's driver.
#include "driver.h"

namespace {

// Captures that have not ended.
std::set<Capture*>& captures = *new std::set<Capture*>;

std::set<Graph*>& graphs = *new std::set<Graph*>;

struct Executable {
    std::vector<Node> nodes;
    Graph* graph;  // keeps its memory
    Context* context;
};

std::set<Executable*>& executables = *new std::set<Executable*>;

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
    captures.erase(capture.get());
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
    for (Capture* capture : captures) {
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
    for (Capture* capture : captures) {
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
    CALL(HEALTHY);
    if (mode < 0 || mode > 2) return INVALID_VALUE;
    FIND_STREAM(handle);
    if (stream == call.context->legacy)
        return complain(CAPTURE_UNSUPPORTED, "the default stream cannot capture");
    if (stream->capture) return ILLEGAL_STATE;
    auto capture = std::make_shared<Capture>();
    capture->origin = stream;
    capture->thread = thread_id();
    capture->mode = mode;
    capture->graph = new Graph;
    capture->streams.insert(stream);
    stream->capture = capture;
    stream->operations = 0;
    stream->seen.clear();
    captures.insert(capture.get());
    return SUCCESS;
}

CUDA Result cuStreamEndCapture(void* handle, Graph** out) {
    STREAM_CALL(CURRENT, handle);
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
    captures.erase(capture.get());
    if (result == SUCCESS) {
        graphs.insert(capture->graph);
        *out = capture->graph;
    } else {
        drop(capture->graph);
    }
    return result;
}

// 0: no capture, 1: a capture, 2: one that an error has ended.
CUDA Result cuStreamIsCapturing(void* handle, int* status) {
    STREAM_CALL(CURRENT, handle);
    return give(status, !stream->capture ? 0 : stream->capture->invalid ? 2 : 1);
}

// ---- Graphs

CUDA Result cuGraphInstantiateWithFlags(Executable** out, Graph* graph, unsigned long long flags) {
    CALL(HEALTHY);
    constexpr unsigned long long AUTO_FREE = 1, UPLOAD = 2, DEVICE_LAUNCH = 4, PRIORITY = 8;
    if (!out || !graphs.count(graph) ||
        flags & ~(AUTO_FREE | UPLOAD | DEVICE_LAUNCH | PRIORITY) ||
        (flags & DEVICE_LAUNCH && flags & AUTO_FREE))
        return INVALID_VALUE;
    if (flags & (UPLOAD | DEVICE_LAUNCH)) return NOT_SUPPORTED;
    ++graph->references;
    *out = new Executable{graph->nodes, graph, call.context};
    executables.insert(*out);
    return SUCCESS;
}

CUDA Result cuGraphUpload(Executable* executable, void* handle) {
    STREAM_CALL(HEALTHY, handle);
    if (!executables.count(executable)) return INVALID_VALUE;
    if (stream->capture) {
        invalidate(stream);
        return CAPTURE_UNSUPPORTED;
    }
    return SUCCESS;
}

CUDA Result cuGraphLaunch(Executable* executable, void* handle) {
    STREAM_CALL(HEALTHY, handle);
    if (!executables.count(executable)) return INVALID_VALUE;
    ++counters().launches;
    for (const Node& node : executable->nodes)
        if (Result error = enqueue(stream, node.what.c_str(), node.run)) return error;
    return SUCCESS;
}

CUDA Result cuGraphExecDestroy(Executable* executable) {
    CALL(INITIALIZED);
    if (!executables.erase(executable)) return INVALID_VALUE;
    drop(executable->graph);
    delete executable;
    return SUCCESS;
}

CUDA Result cuGraphDestroy(Graph* graph) {
    CALL(INITIALIZED);
    if (!graphs.erase(graph)) return INVALID_VALUE;
    drop(graph);
    return SUCCESS;
}

// A callback on the host. It must not call the driver, so the lock is not held.
CUDA Result cuLaunchHostFunc(void* handle, void (*callback)(void*), void* data) {
    STREAM_CALL(HEALTHY, handle);
    if (!callback) return INVALID_VALUE;
    if (stream->capture)
        return enqueue(stream, "host function", [=] { callback(data); return SUCCESS; });
    call.unlock();
    callback(data);
    return SUCCESS;
}
