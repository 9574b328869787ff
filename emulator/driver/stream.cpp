// Streams and events. Work is done when it is enqueued, so waiting is only counted; what is real
// here is the lifetime of handles, and the part that streams and events play in a capture.
#include <atomic>
#include <chrono>

#include "driver.h"

namespace {

std::set<Event*>& events = *new std::set<Event*>;

// This thread's own stream of each context.
Stream* per_thread(Context* context) {
    thread_local auto* streams = new std::map<uint64_t, Stream*>;  // never freed: see current()
    Stream*& stream = (*streams)[context->id];
    if (!stream) {
        stream = new Stream;
        stream->context = context;
        context->streams.insert(stream);
    }
    return stream;
}

Result create_stream(Stream** out, unsigned flags) {
    CALL(HEALTHY);
    if (!out || flags > 1) return INVALID_VALUE;
    auto* stream = new Stream;
    stream->context = call.context;
    stream->flags = flags;
    call.context->streams.insert(stream);
    *out = stream;
    return SUCCESS;
}

Result find_event(Event* event) { return events.count(event) ? SUCCESS : INVALID_HANDLE; }

// Asking for a captured event, or waiting for it, ends the capture that it is in.
Result captured(Event* event) {
    if (!event->captured) return SUCCESS;
    if (auto capture = event->capture.lock()) capture->invalid = true;
    return CAPTURED_EVENT;
}

}  // namespace

uint64_t thread_id() {
    static std::atomic<uint64_t> count{0};
    thread_local uint64_t id = ++count;
    return id;
}

double milliseconds() {
    auto now = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(now).count();
}

Result find_stream(Context* current, void* handle, Stream*& out) {
    uintptr_t value = (uintptr_t)handle;
    if (value <= 2) {
        if (!current) return INVALID_CONTEXT;
        out = value == 2 ? per_thread(current) : current->legacy;
        if (value == 2) return SUCCESS;
        // The legacy stream waits for all streams that do not say otherwise.
        for (Stream* other : current->streams) {
            if (!other->capture || other->flags & 1) continue;
            other->capture->invalid = true;
            return complain(CAPTURE_IMPLICIT, "the default stream would wait for a capturing one");
        }
        return SUCCESS;
    }
    if (!current || !current->streams.count((Stream*)handle)) return INVALID_HANDLE;
    out = (Stream*)handle;
    return SUCCESS;
}

CUDA Result cuStreamCreate(Stream** out, unsigned flags) { return create_stream(out, flags); }
CUDA Result cuStreamCreateWithPriority(Stream** out, unsigned flags, int) {
    return create_stream(out, flags);
}

CUDA Result cuStreamDestroy_v2(Stream* handle) {
    CALL(CURRENT);
    if ((uintptr_t)handle <= 2 || !call.context->streams.count(handle)) return INVALID_HANDLE;
    end_capture(handle);
    call.context->streams.erase(handle);
    handle->context = nullptr;  // the object stays: a capture or an event may still name it
    return (Result)call.context->error;
}

CUDA Result cuStreamSynchronize(void* handle) {
    STREAM_CALL(HEALTHY, handle);
    if (stream->capture) {
        invalidate(stream);
        return complain(CAPTURE_UNSUPPORTED, "cuStreamSynchronize of a capturing stream");
    }
    ++counters().waits;
    note_wait(stream);
    return SUCCESS;
}

CUDA Result cuCtxSynchronize() {
    CALL(HEALTHY);
    if (Result refused = refuse_synchronize("cuCtxSynchronize", call.context)) return refused;
    ++counters().waits;
    note_wait(call.context);
    return SUCCESS;
}

CUDA Result cuStreamAttachMemAsync(void*, DevicePtr, size_t, unsigned) { return NOT_SUPPORTED; }

// ---- Events

CUDA Result cuEventCreate(Event** out, unsigned flags) {
    CALL(HEALTHY);
    if (!out || flags > 7) return INVALID_VALUE;
    *out = new Event;
    (*out)->context = call.context;
    (*out)->flags = flags;
    events.insert(*out);
    return SUCCESS;
}

CUDA Result cuEventDestroy_v2(Event* event) {
    CALL(INITIALIZED);
    if (find_event(event)) return INVALID_HANDLE;
    events.erase(event);
    delete event;
    return SUCCESS;
}

CUDA Result cuEventRecord(Event* event, void* handle) {
    CALL(HEALTHY);
    if (find_event(event)) return INVALID_HANDLE;
    FIND_STREAM(handle);
    if (stream->context != event->context) return INVALID_HANDLE;
    if (stream->capture && stream->capture->invalid) return CAPTURE_INVALIDATED;
    event->recorded = true;
    event->time = milliseconds();
    event->capture = stream->capture;
    event->captured = stream->capture != nullptr;
    event->clock = stream->seen;
    event->clock[stream] = stream->operations;
    if (!stream->capture) note_record(event, stream);
    return SUCCESS;
}

CUDA Result cuEventQuery(Event* event) {
    CALL(HEALTHY);
    if (find_event(event)) return INVALID_HANDLE;
    if (Result error = captured(event)) return error;
    note_wait(event);
    return SUCCESS;
}

CUDA Result cuEventSynchronize(Event* event) {
    CALL(HEALTHY);
    if (find_event(event)) return INVALID_HANDLE;
    if (Result error = captured(event)) return error;
    if (event->recorded) ++counters().waits;
    note_wait(event);
    return SUCCESS;
}

CUDA Result cuEventElapsedTime_v2(float* out, Event* start, Event* end) {
    CALL(HEALTHY);
    if (!out) return INVALID_VALUE;
    for (Event* event : {start, end}) {
        if (find_event(event) || event->flags & 2 || !event->recorded) return INVALID_HANDLE;
        if (Result error = captured(event)) return error;
    }
    if (start->context != end->context) return INVALID_CONTEXT;
    *out = (float)(end->time - start->time);
    return SUCCESS;
}
CUDA Result cuEventElapsedTime(float* out, Event* start, Event* end) {
    return cuEventElapsedTime_v2(out, start, end);
}

CUDA Result cuStreamWaitEvent(void* handle, Event* event, unsigned) {
    CALL(HEALTHY);
    if (find_event(event)) return INVALID_HANDLE;
    FIND_STREAM(handle);
    if (!event->recorded) return SUCCESS;
    if (!event->captured) {
        if (!stream->capture) {
            note_order(stream, event);
            return SUCCESS;
        }
        invalidate(stream);
        return complain(CAPTURE_ISOLATION,
                        "cuStreamWaitEvent: a capturing stream waits for work outside the capture");
    }
    std::shared_ptr<Capture> capture = event->capture.lock();
    if (!capture) return CAPTURED_EVENT;  // its capture has ended
    if (stream->capture && stream->capture != capture) {
        stream->capture->invalid = capture->invalid = true;
        return CAPTURE_MERGE;
    }
    if (capture->invalid) return CAPTURE_INVALIDATED;
    if (!stream->capture) {  // it joins the capture
        if (stream == stream->context->legacy) {
            capture->invalid = true;
            return CAPTURE_IMPLICIT;
        }
        stream->capture = capture;
        stream->operations = 0;
        stream->seen.clear();
        capture->streams.insert(stream);
    }
    for (const auto& entry : event->clock) {
        uint64_t& seen = stream->seen[entry.first];
        if (seen < entry.second) seen = entry.second;
    }
    ++stream->operations;
    return SUCCESS;
}
