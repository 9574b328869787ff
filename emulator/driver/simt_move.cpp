// Moves, choices, and the changes of an address between the spaces.
#include "simt_loops.h"

namespace emu {
namespace {

OP1(mov_u32, u32, u32, a)
OP1(mov_u64, u64, u64, a)
OP1(to_window, u64, u64, a + WINDOW)
OP1(from_window, u64, u64, a - WINDOW)
OP2(pack_halves, u32, u16, u16, (u32)b << 16 | a)
OP2(pack_words, u64, u32, u32, (u64)b << 32 | a)

void move_predicate(SimtWarp& w, const Instruction& i, unsigned lanes) {
    write_predicate(w, i.r[0], lanes, w.predicate(i.r[1]));
}

template <class T>
void select(SimtWarp& w, const Instruction& i, unsigned lanes) {
    const T *a = w.at<const T>(i.r[1]), *b = w.at<const T>(i.r[2]);
    const unsigned chosen = w.predicate(i.r[3]);
    write_lanes<T>(w, i.r[0], lanes, [=](unsigned l) { return chosen >> l & 1 ? a[l] : b[l]; });
}

// mov.b64 {low, high}, whole. A result may be one of the operands: both halves are read first.
template <class Half, class Whole>
void unpack(SimtWarp& w, const Instruction& i, unsigned lanes) {
    Whole whole[LANES];
    memcpy(whole, w.at<const Whole>(i.r[2]), sizeof whole);
    write_lanes<Half>(w, i.r[0], lanes, [&](unsigned l) { return (Half)whole[l]; });
    write_lanes<Half>(w, i.r[1], lanes, [&](unsigned l) { return (Half)(whole[l] >> 8 * sizeof(Half)); });
}

#define MOVE(type, letters, T) {"mov." #type, letters, unary<mov_##T>}
#define CHOICE(type, letters, T) {"selp." #type, letters, select<T>}
const Row MOVE_ROWS[] = {
    MOVE(b16, "hh", u32), MOVE(u16, "hh", u32), MOVE(s16, "hh", u32),
    MOVE(b32, "ww", u32), MOVE(u32, "ww", u32), MOVE(s32, "ww", u32), MOVE(f32, "ff", u32),
    MOVE(b64, "dd", u64), MOVE(u64, "dd", u64), MOVE(s64, "dd", u64), MOVE(f64, "gg", u64),
    {"mov.pred", "pp", move_predicate},
    CHOICE(b16, "hhhp", u32), CHOICE(u16, "hhhp", u32), CHOICE(s16, "hhhp", u32),
    CHOICE(b32, "wwwp", u32), CHOICE(u32, "wwwp", u32), CHOICE(s32, "wwwp", u32),
    CHOICE(f32, "fffp", u32), CHOICE(b64, "dddp", u64), CHOICE(u64, "dddp", u64),
    CHOICE(s64, "dddp", u64), CHOICE(f64, "gggp", u64),
    // What the decoder makes of moves with braces.
    {"pack.b32", "whh", binary<pack_halves>},
    {"pack.b64", "dww", binary<pack_words>},
    {"unpack.b32", "hhw", unpack<u16, u32>},
    {"unpack.b64", "wwd", unpack<u32, u64>},
    {"cvta.to.global.u64", "dd", unary<mov_u64>},
    {"cvta.global.u64", "dd", unary<mov_u64>},
    {"cvta.to.const.u64", "dd", unary<mov_u64>},
    {"cvta.const.u64", "dd", unary<mov_u64>},
    {"cvta.to.shared.u64", "dd", unary<from_window>},
    {"cvta.shared.u64", "dd", unary<to_window>},
};

// ---- Special registers: offset is the axis

void thread_index(SimtWarp& w, const Instruction& i, unsigned lanes) {
    const Lane* lane = w.lanes;
    const int axis = i.offset;
    write_lanes<u32>(w, i.r[0], lanes, [=](unsigned l) {
        const Index& t = lane[l].thread;
        return axis == 0 ? t.x : axis == 1 ? t.y : t.z;
    });
}
u32 part(const Index& index, int axis) { return axis == 0 ? index.x : axis == 1 ? index.y : index.z; }
void same(SimtWarp& w, const Instruction& i, unsigned lanes, u32 value) {
    write_lanes<u32>(w, i.r[0], lanes, [=](unsigned) { return value; });
}
void block_index(SimtWarp& w, const Instruction& i, unsigned lanes) {
    same(w, i, lanes, part(w.lanes[0].block, i.offset));
}
void block_size(SimtWarp& w, const Instruction& i, unsigned lanes) {
    same(w, i, lanes, part(block_dim, i.offset));
}
void grid_size(SimtWarp& w, const Instruction& i, unsigned lanes) {
    same(w, i, lanes, part(grid_dim, i.offset));
}
void lane_index(SimtWarp& w, const Instruction& i, unsigned lanes) {
    write_lanes<u32>(w, i.r[0], lanes, [](unsigned l) { return l; });
}

void nothing(SimtWarp&, const Instruction&, unsigned) {}

}  // namespace

Rows move_rows() { return {MOVE_ROWS, sizeof MOVE_ROWS / sizeof *MOVE_ROWS}; }

Handler special_handler(std::string_view name) {
    if (name == "%tid") return thread_index;
    if (name == "%ctaid") return block_index;
    if (name == "%ntid") return block_size;
    if (name == "%nctaid") return grid_size;
    if (name == "%laneid") return lane_index;
    return nullptr;
}

Handler nothing_handler() { return nothing; }

}  // namespace emu
