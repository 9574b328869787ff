// What the host cannot know to have ended. Work is done here when it is enqueued; on a GPU it is
// still to be done, and a module that is unloaded then takes the code of a running kernel away.
// So every launch is noted with its stream, and every wait for that stream, directly or through
// events, strikes it out.
#include "driver.h"

namespace {

uint64_t sequence = 0;  // of launches

void settle(const Stream* stream, uint64_t until) {
    uint64_t& done = const_cast<Stream*>(stream)->settled;
    if (done < until) done = until;
}

}  // namespace

void note_launch(Module* module, const Stream* stream) { module->launches[stream] = ++sequence; }

void note_wait(const Stream* stream) {
    settle(stream, sequence);
    for (const auto& before : stream->after) settle(before.first, before.second);
    // The legacy stream's work comes after that of all streams that do not say otherwise.
    if (stream != stream->context->legacy) return;
    for (const Stream* other : stream->context->streams)
        if (!(other->flags & 1)) settle(other, sequence);
}

void note_wait(const Context* context) {
    settle(context->legacy, sequence);
    for (const Stream* stream : context->streams) settle(stream, sequence);
}

void note_record(Event* event, const Stream* stream) {
    event->after = stream->after;
    event->after[stream] = sequence;
}

void note_wait(const Event* event) {
    for (const auto& before : event->after) settle(before.first, before.second);
}

void note_order(Stream* stream, const Event* event) {
    for (const auto& before : event->after) {
        uint64_t& known = stream->after[before.first];
        if (known < before.second) known = before.second;
    }
}

bool may_still_run(const Module* module) {
    for (const auto& launch : module->launches)
        if (launch.first->settled < launch.second) return true;
    return false;
}
