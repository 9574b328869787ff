// What the lanes of a warp do together, once all that the member mask names have come: shuffles
// and votes.
#include "simt_loops.h"

namespace emu {
namespace {

enum Mode { BUTTERFLY, UP_BY, DOWN_BY, INDEX };

// r: result, value, b, c, member mask, and the predicate that says whether the source was in range
// (-1: none). c holds the last lane of a segment and, from bit 8 on, which bits of a lane's number
// choose the segment.
template <Mode MODE>
void shuffle(SimtWarp& w, const Instruction& i, unsigned lanes) {
    const uint32_t *value = w.at<const uint32_t>(i.r[1]), *b = w.at<const uint32_t>(i.r[2]),
                   *c = w.at<const uint32_t>(i.r[3]);
    uint32_t out[LANES];
    unsigned in_range = 0;
    for (unsigned l = 0; l < LANES; ++l) {
        unsigned segment = c[l] >> 8 & 31, clamp = c[l] & 31, by = b[l] & 31;
        unsigned last = (l & segment) | (clamp & ~segment);
        unsigned source = MODE == BUTTERFLY ? l ^ by
                          : MODE == UP_BY   ? l - by
                          : MODE == DOWN_BY ? l + by
                                            : (l & segment) | (by & ~segment);
        bool valid = MODE == UP_BY ? (int)source >= (int)last : source <= last;
        if (!valid) source = l;
        in_range |= (unsigned)valid << l;
        // A lane that does not take part has nothing to give.
        if (lanes >> l & 1 && !(lanes >> source & 1)) {
            now = &w.lanes[l];
            abandon(LAUNCH_FAILED, "shfl.sync reads lane %u, which does not take part", source);
        }
        out[l] = value[source & 31];
    }
    if (i.r[5] >= 0) write_predicate(w, i.r[5], lanes, in_range);
    merge(w.at<uint32_t>(i.r[0]), out, lanes);
}

void vote_any(SimtWarp& w, const Instruction& i, unsigned lanes) {
    write_predicate(w, i.r[0], lanes, w.predicate(i.r[1]) & lanes ? FULL : 0);
}
void vote_all(SimtWarp& w, const Instruction& i, unsigned lanes) {
    write_predicate(w, i.r[0], lanes, ~w.predicate(i.r[1]) & lanes ? 0 : FULL);
}
void vote_uniform(SimtWarp& w, const Instruction& i, unsigned lanes) {
    unsigned votes = w.predicate(i.r[1]) & lanes;
    write_predicate(w, i.r[0], lanes, votes == 0 || votes == lanes ? FULL : 0);
}
void vote_ballot(SimtWarp& w, const Instruction& i, unsigned lanes) {
    unsigned votes = w.predicate(i.r[1]) & lanes;
    write_lanes<uint32_t>(w, i.r[0], lanes, [=](unsigned) { return votes; });
}

}  // namespace

Handler shuffle_handler(std::string_view mode) {
    if (mode == "bfly") return shuffle<BUTTERFLY>;
    if (mode == "up") return shuffle<UP_BY>;
    if (mode == "down") return shuffle<DOWN_BY>;
    if (mode == "idx") return shuffle<INDEX>;
    return nullptr;
}

Handler vote_handler(std::string_view mode) {
    if (mode == "any") return vote_any;
    if (mode == "all") return vote_all;
    if (mode == "uni") return vote_uniform;
    if (mode == "ballot") return vote_ballot;
    return nullptr;
}

}  // namespace emu
