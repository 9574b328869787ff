// Quality Focal Loss, forward and forward with backward, in one pass over the logits.
//
// Naively it is `naive_qfl` in naive/naive.cu. What the kernels do differently:
//  1. The label stays out of the loop. A vector that holds the labelled column is rare (one row
//     in a hundred is positive, and one of its columns): there the element is masked out of the
//     vector and computed on its own. So the sum never has to take back what it has added.
//  2. The gradient is scaled in float before it is rounded to the storage type.
//  3. `linear` gives each thread one column for good, so that its loop has no division; it
//     needs whole 16-byte vectors in a row. `rows` takes any shape and any address, and gives
//     row sums; it is also for a target for every element.
//  4. A warp whose logits are all at most -2 takes series that need one special function for an
//     element, not two, and fewer instructions. A detector's negatives begin at -4.6.
//  5. Binary cross entropy, which is beta 0, has a way of its own in the loops for any beta: no power, and fewer
//     instructions than beta 2.
//  6. Weights of classes and of elements, alpha and probabilities are for `rows` at any beta, one element after the
//     other: whatever is asked for, is asked of each.
#pragma once
#include "background.cuh"
#include "call.cuh"
#include "rows.cuh"

constexpr int QFL_BLOCK = 320;         // 16 rows of 80 f32 or 32 of 80 f16; twin in src/qfl/launch.rs
constexpr int QFL_ROWS_BLOCK = 256;    // of `rows` and `dense`; twin in src/qfl/launch.rs
constexpr int QFL_UNROLL = 4;          // rows a thread of `linear` has in flight
constexpr int QFL_UNROLL_ANY_BETA = 2; // the same where beta is not 2

// Field by field the same as `QflArgs` in src/qfl/launch.rs.
struct QflArgs {
    Scaling scaling;
    const Scalar* logits;    // [rows, classes]
    const void* labels;      // [rows], i64 or i32; null for dense targets
    const float* quality;    // [rows]
    const float* target;     // [rows, classes] for dense targets
    const float* class_weights;    // [classes], or null
    const float* element_weights;  // [rows, classes], or null
    Scalar* grad;            // [rows, classes]
    u64 rows;
    long long ignore_label;
    u32 classes;
    float beta;
    u32 labels_are_i64;
    u32 background_first;    // 0 is background and 1..=classes are the classes
    u32 has_ignore_label;
    u32 activated;           // the logits are probabilities
    u32 has_alpha;           // elements are multiplied by y * alpha + (1 - y) * (1 - alpha)
    float alpha;
    // Of `linear`, whose blocks have so many rows at once (a step), how many steps a block has, and how many blocks,
    // the first ones, have one more.
    u32 block_steps, longer_blocks;
    u32 whole_steps;         // how many steps have all their rows
    u32 general;             // elements have weights, or alpha, or are probabilities
};

constexpr u32 NO_COLUMN = 0xffffffffu;

// What the inputs say of a row.
struct QflTarget {
    u32 column;     // the labelled one, or NO_COLUMN
    float quality;  // of that column, in [0, 1]
    float weight;   // 0: no loss and no gradient, whatever the logits hold
};

// `reports`: this thread is the one of its row that writes to the status. Weight and label are asked for
// together: whoever waits for a target waits for memory once.
DEVICE QflTarget read_qfl_target(const QflArgs& a, u64 row, bool reports) {
    const float weight = weight_of(a.scaling, row);
    const long long label = a.labels_are_i64 ? ((const long long*)a.labels)[row]
                                             : (long long)((const int*)a.labels)[row];
    QflTarget target = {NO_COLUMN, 0.0f, weight};
    const bool ignored = a.has_ignore_label && label == a.ignore_label;
    if (weight == 0.0f || ignored) {
        target.weight = 0.0f;
        return target;
    }
    u64 column = (u64)label - a.background_first;  // wraps for labels below 0
    Status* status = reports ? a.scaling.status : nullptr;
    if (column < a.classes) {
        float quality = a.quality[row];
        if (quality != quality) {
            target.weight = 0.0f;
            if (status) report(&status->bad_qualities, status, row);
        } else {
            target.column = (u32)column;
            target.quality = __saturatef(quality);
        }
    } else if (a.background_first ? label != 0 : label > (long long)a.classes) {
        target.weight = 0.0f;
        if (status) report(&status->bad_labels, status, row);
    }
    return target;
}

// The labelled element of a row, at `offset` from the first logit: its loss. Its gradient takes
// the place of the one that was stored for a masked logit.
template <bool GRADIENT, bool BETA_2>
DEVICE float labelled_loss(const QflArgs& a, u64 offset, float y, float scale, bool& finite) {
    LossGrad element = soft<BETA_2>(load(a.logits + offset), y, a.beta, scale);
    if (GRADIENT) {
        store(a.grad + offset, element.grad);
        finite &= is_finite(a.grad + offset);
    }
    return element.loss;
}

// An element at any target and any beta, with all that a call may ask for: its loss; its gradient is stored. ALL: where
// nothing goes through vectors, background at a beta that is neither 2 nor 0 is worth the text of float, too.
template <bool GRADIENT, bool ALL>
DEVICE float general_loss(const QflArgs& a, u64 row_start, u32 column, float y, float scale, bool& finite) {
    const u64 offset = row_start + column;
    float factor = 1.0f;
    if (a.class_weights) factor = a.class_weights[column];
    if (a.element_weights) factor *= a.element_weights[offset];
    if (a.has_alpha) factor *= fmaf(y, a.alpha, (1.0f - y) * (1.0f - a.alpha));
    LossGrad element = {0.0f, 0.0f};
    if (factor != 0.0f) {
        const float x = load(a.logits + offset);
        scale *= factor;
        if (!a.activated && (a.beta == 0.0f || a.beta == 2.0f))
            element = bce_or_qfl_soft(x, y, a.beta == 0.0f, scale);
        else if (ALL && !a.activated && y == 0.0f)
            element = qfl_background_any_beta(x, a.beta, scale);
        else
            element = qfl_soft_any_beta(x, y, a.beta, scale, a.activated);
    }
    if (GRADIENT) {
        store(a.grad + offset, element.grad);
        finite &= is_finite(a.grad + offset);
    }
    return element.loss * factor;
}

// The same for a background element.
template <bool GRADIENT, bool BETA_2>
DEVICE float background_loss(const QflArgs& a, u64 offset, float scale, bool& finite) {
    LossGrad element = background<GRADIENT, BETA_2, false>(load(a.logits + offset), a.beta, scale);
    if (GRADIENT) {
        store(a.grad + offset, element.grad);
        finite &= is_finite(a.grad + offset);
    }
    return element.loss;
}

// What is shared of the targets of the rows that a thread has in flight: their weights, and codes that say
// whether there is more to know.
struct __align__(16) QflRecord {
    float weight[QFL_UNROLL];
    u16 code[QFL_UNROLL];
    u32 unused[2];
};
constexpr u32 PLAIN_ROW = 0, MASKED_ROW = 0xffff;  // else the labelled column, plus 1

// What a thread has of each tile: its column, and the first of its rows. Idle threads have what a thread of
// the first row has, and neither write nor count.
struct QflPlace {
    bool idle;
    u32 first, column;

    DEVICE QflPlace(u32 thread, u32 vectors, u32 share) {
        first = thread * share >> 20;
        column = (thread - first * vectors) * VECTOR;
        idle = first >= QFL_BLOCK * share >> 20;
        if (idle) first = 0;
    }
};

// Which steps a block has: from `begin` on, before `end`.
struct QflSteps {
    u32 begin, end;

    DEVICE QflSteps(const QflArgs& a) {
        begin = blockIdx.x * a.block_steps + min(blockIdx.x, a.longer_blocks);
        end = begin + a.block_steps + (blockIdx.x < a.longer_blocks ? 1 : 0);
    }
};

// Sum or mean, sparse targets, no upstream gradients; logits and gradient on 16-byte boundaries,
// classes a multiple of VECTOR and at most QFL_BLOCK * VECTOR. Blocks share the rows evenly, to one step. A block
// goes through its steps by tiles of UNROLL: each thread asks for its vectors, then the targets are read, once for each
// row, and shared. What is rare stands apart: rows with a label or without a weight, and the last tile. What decides is
// a vote or the same for the block, so that no warp divides. Bytes in flight on a multiprocessor, at 64 registers a
// thread: 3 blocks * 320 threads * 4 vectors * 16 bytes = 60 KiB.
template <bool GRADIENT, bool BETA_2>
struct QflLinear {
    static constexpr u32 UNROLL = BETA_2 ? QFL_UNROLL : QFL_UNROLL_ANY_BETA;
    // Losses come doubled. They might overflow, and the gradients with them: what a thread has of a tile in
    // which that happens is done again.
    static constexpr bool MAY_OVERFLOW = BETA_2 && !ALWAYS_TWICE;

    const QflArgs& a;
    QflRecord* records;   // two halves, used in turn: one barrier a tile is enough
    SharedAddress home;   // of the first half, this thread's record
    u32 vectors, share;   // n / vectors is n * share >> 20, for n up to the block's size
    u32 step, row_bytes;  // rows of a step, and their bytes
    u32 start;            // this thread's first logit of a step
    u32 whole_before;     // tiles that begin before this step have all their rows
    bool idle, reader;
    float grad_factor;
#ifdef VARIANT_PREFETCH
    SharedAddress stage;  // where this thread's vectors of the next tile go
#endif

    // What a thread has of a tile.
    struct Tile {
        u32 at;    // its first step
        u32 half;  // of the records
        bool whole;
        Words words[UNROLL];
        float weight[QFL_UNROLL], scale[UNROLL];
        u32 codes[QFL_UNROLL / 2];
        bool not_plain;  // there is more to know of a row than its weight
        float loss;
    };

    DEVICE QflLinear(const QflArgs& args, QflRecord* shared) : a(args), records(shared) {
        vectors = a.classes / VECTOR;
        share = (1u << 20) / vectors + 1;
        step = QFL_BLOCK * share >> 20;
        const QflPlace here(threadIdx.x, vectors, share);
        idle = here.idle;
        grad_factor = grad_factor_of(a.scaling);
        start = kept(here.first * a.classes + here.column);
        row_bytes = kept(step * a.classes * (u32)sizeof(Scalar));
        home = shared_address(records + here.first);
        reader = __any_sync(ALL_LANES, threadIdx.x < UNROLL * step);  // of targets; the whole warp
        const u32 whole = min(QflSteps(a).end, a.whole_steps);
        whole_before = kept(whole < UNROLL ? 0 : whole - UNROLL + 1);
    }

    DEVICE QflPlace place() const { return QflPlace(thread_anew(), vectors, share); }

    // How many rows there are from a step on, for this block.
    DEVICE u64 rows_from(u32 at) const {
        const u64 end = (u64)QflSteps(a).end * step, rows = end < a.rows ? end : a.rows;
        return rows - (u64)at * step;
    }

    // The first of this thread's vectors of a tile.
    DEVICE const char* logits_of(u32 at) const { return (const char*)(a.logits + start) + (u64)at * row_bytes; }

#ifdef VARIANT_PREFETCH
    // Asks for the vectors of a whole tile; each thread has a place for its own.
    DEVICE void prefetch(u32 at) const {
        if (at >= whole_before) return;
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) prefetch_16_bytes(stage + u * QFL_BLOCK * 16, logits_of(at) + (u64)row_bytes * u);
    }
#endif

    // 1. The vectors of a tile; of rows that there are not, masked ones. False: there are no rows.
    DEVICE bool read(Tile& tile) const {
        const char* from = logits_of(tile.at);
        tile.whole = tile.at < whole_before;
        if (__builtin_expect(tile.whole, 1)) {
#ifdef VARIANT_PREFETCH
            prefetched();
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) {
                const uint4 v = load_shared_vector(stage + u * QFL_BLOCK * 16);
                tile.words[u] = {{v.x, v.y, v.z, v.w}};
            }
#else
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) tile.words[u] = load_words(from + (u64)row_bytes * u);
#endif
            return true;
        }
        rare();
        if (tile.at >= QflSteps(a).end) return false;
        const u32 first = place().first;
        const u64 rows = rows_from(tile.at);
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
            tile.words[u] = masked_words();
            if (first + u * step < rows) tile.words[u] = load_words(from + (u64)row_bytes * u);
        }
        return true;
    }

    // 2. The targets of the tile's rows, shared by the warps that read them.
    DEVICE void share_targets(const Tile& tile) const {
        if (!reader) return;
        rare();
        const u32 rows = UNROLL * step;
        u32 r = threadIdx.x;
#pragma unroll 1
        do {
            if (r < rows) {
                const u32 further = r % UNROLL * step + r / UNROLL;
                QflTarget target = {NO_COLUMN, 0.0f, 0.0f};
                if (further < rows_from(tile.at)) target = read_qfl_target(a, (u64)tile.at * step + further, true);
                QflRecord& record = records[tile.half + r / UNROLL];
                record.weight[r % UNROLL] = target.weight;
                record.code[r % UNROLL] = (u16)(target.weight == 0.0f ? MASKED_ROW : target.column + 1);
                r += QFL_BLOCK;
            }
        } while (__any_sync(ALL_LANES, r < rows));
    }

    // 3. What they say of this thread's rows: rows without a weight and labelled elements are masked out.
    DEVICE bool mask_special(Tile& tile) const {
        load_shared(home + tile.half * (u32)sizeof(QflRecord), tile.weight, tile.codes);
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) tile.scale[u] = grad_factor * tile.weight[u];
        tile.not_plain = (tile.codes[0] | (UNROLL > 2 ? tile.codes[1] : 0)) != 0;
        const bool special = __any_sync(ALL_LANES, tile.not_plain);
        if (__builtin_expect(special, 0)) {
            rare();
            const u32 column = place().column;
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) {
                const u32 code = tile.codes[u / 2] >> u % 2 * 16 & 0xffff;
                if (code == MASKED_ROW) {
                    tile.words[u] = masked_words();
                    tile.scale[u] = 0.0f;  // the factor may be inf
                }
                mask_out(tile.words[u], code - 1 - column);
            }
        }
        return special;
    }

    // 4. All elements, as background: their loss, and their gradients in place of the logits.
    DEVICE void compute(Tile& tile) const {
        tile.loss = 0.0f;
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
            const float vector = background_vector<GRADIENT, BETA_2, BETA_2>(tile.words[u], a.beta, tile.scale[u]);
            tile.loss = fmaf(tile.weight[u], vector, tile.loss);
        }
    }

    // 5. The gradients.
    DEVICE void store(const Tile& tile) const {
        char* to = (char*)(a.grad + start) + (u64)tile.at * row_bytes;
        if (__builtin_expect(tile.whole, 1)) {
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u)
                if (!idle) store_words(to + (u64)row_bytes * u, tile.words[u]);
        } else {
            rare();
            const u32 first = place().first;
            const u64 rows = rows_from(tile.at);
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u)
                if (!idle && first + u * step < rows) store_words(to + (u64)row_bytes * u, tile.words[u]);
        }
    }

    // 6. The labelled elements, which were masked out; and with `overflows` all others of the thread too, one by one:
    // their weighted losses.
    DEVICE double again(const Tile& tile, bool overflows, bool& finite) const {
        const QflPlace here = place();
        const QflRecord& record = records[tile.half + here.first];
        double sum = 0.0;
#pragma unroll 1
        for (u32 u = 0; u < UNROLL; ++u) {
            const u32 code = record.code[u], labelled = code - 1 - here.column;
            if (idle || code == MASKED_ROW || !(overflows || labelled < VECTOR)) continue;
            const u64 row = (u64)tile.at * step + here.first + u * step;
            const float weight = record.weight[u];
            const u32 last = overflows ? VECTOR - 1 : labelled;
#pragma unroll 1
            for (u32 k = overflows ? 0 : labelled; k <= last; ++k) {
                const u64 offset = row * a.classes + here.column + k;
                float element;
                if (!MAY_OVERFLOW || k == labelled)  // without overflow there is no other
                    element = labelled_loss<GRADIENT, BETA_2>(a, offset, __saturatef(a.quality[row]),
                                                              grad_factor * weight, finite);
                else
                    element = background_loss<GRADIENT, BETA_2>(a, offset, grad_factor * weight, finite);
                sum = fma((double)weight, (double)element, sum);
            }
        }
        return sum;
    }
};

template <bool GRADIENT, bool BETA_2>
DEVICE void qfl_linear(const QflArgs& a) {
    typedef QflLinear<GRADIENT, BETA_2> Linear;
    constexpr float SHARE = BETA_2 ? 0.5f : 1.0f, LARGEST = 3.40282347e38f;
    SHARED(QflRecord, records, 2 * QFL_BLOCK);
#ifdef VARIANT_PREFETCH
    SHARED(uint4, stage, Linear::UNROLL * QFL_BLOCK);
    Linear linear(a, records);
    linear.stage = shared_address(stage + threadIdx.x);
    linear.prefetch(QflSteps(a).begin);
#else
    const Linear linear(a, records);
#endif
    double sum = 0.0;
    bool finite = true;
    typename Linear::Tile tile;
    tile.half = 0;
    for (tile.at = QflSteps(a).begin; linear.read(tile); tile.at += Linear::UNROLL) {
        linear.share_targets(tile);
        __syncthreads();
#ifdef VARIANT_PREFETCH
        linear.prefetch(tile.at + Linear::UNROLL);
#endif
        const bool special = linear.mask_special(tile);
        linear.compute(tile);
        if (GRADIENT) linear.store(tile);
        const bool overflows = Linear::MAY_OVERFLOW && !(tile.loss <= LARGEST);
        if (GRADIENT && a.scaling.found_inf && !overflows) {
            rare();
#pragma unroll
            for (u32 u = 0; u < Linear::UNROLL; ++u) finite &= is_finite(tile.words[u]);
        }
        const bool again = Linear::MAY_OVERFLOW ? __any_sync(ALL_LANES, tile.not_plain || overflows) : special;
        if (__builtin_expect(again, 0)) {
            rare();
            if (overflows) tile.loss = 0.0f;
            sum += linear.again(tile, overflows, finite);
        }
        sum = fma((double)tile.loss, (double)SHARE, sum);
        tile.half ^= QFL_BLOCK;
    }
    WholeGrid().finish<QFL_BLOCK>(a.scaling, a.rows, linear.idle ? 0.0 : sum, finite);
}

// Any reduction, shape and address, with labels or (`dense`) a target for every element. `scaling.lanes` lanes share a
// row. What `a.general` says of elements, none of which goes through vectors then, is for any beta alone.
template <bool GRADIENT, bool BETA_2, class Blocks = WholeGrid>
DEVICE void qfl_rows(const QflArgs& a, const bool dense, const Blocks& blocks = Blocks()) {
    constexpr bool TWICE = BETA_2 && ALWAYS_TWICE;
    const u32 lanes = a.scaling.lanes, lane = threadIdx.x % lanes, rows_per_block = QFL_ROWS_BLOCK / lanes;
    const float grad_factor = grad_factor_of(a.scaling);
    const bool watched = a.scaling.found_inf != nullptr, general = !BETA_2 && a.general, bce = !BETA_2 && a.beta == 0.0f;
    double sum = 0.0;
    bool finite = true;
    for (u64 base = (u64)blocks.index() * rows_per_block; base < a.rows; base += (u64)blocks.count() * rows_per_block) {
        const u64 row = base + threadIdx.x / lanes, start = row * a.classes;
        const bool inside = row < a.rows;
        Scalar* grad = GRADIENT ? a.grad + start : nullptr;
        QflTarget target = {NO_COLUMN, 0.0f, 0.0f};
        if (inside && dense) target.weight = weight_of(a.scaling, row);
        if (inside && !dense) target = read_qfl_target(a, row, lane == 0);
        double loss = 0.0;
        bool row_finite = true, bad_target = false, masked = false;
        if (target.weight != 0.0f) {
            const float scale = grad_factor * target.weight * upstream_of(a.scaling, row);
            if (!general) {
                row_finite = for_row(a.logits + start, grad, a.classes, lane, lanes, [&](u32 i, auto& x) {
                    constexpr int COUNT = sizeof(x) / sizeof(float);
                    float y[COUNT], piece = 0.0f;
                    if (dense) load_floats(a.target + start + i, y);
                    if (!dense && __builtin_expect(target.column - i < COUNT, 0)) {
#pragma unroll
                        for (int k = 0; k < COUNT; ++k) x[k] = i + k == target.column ? MASKED_LOGIT : x[k];
                        masked = true;
                    }
                    if (COUNT > 1 && bce) {  // what comes one by one goes the way of any beta, for want of text
#pragma unroll
                        for (int k = 0; k < COUNT; ++k) {
                            if (dense) bad_target |= y[k] != y[k];
                            const LossGrad element = bce_soft(x[k], dense ? __saturatef(y[k]) : 0.0f, scale);
                            piece += element.loss;
                            x[k] = element.grad;
                        }
                        loss += (double)piece;
                        return;
                    }
#pragma unroll
                    for (int k = 0; k < COUNT; ++k) {
                        LossGrad element;
                        if (dense) bad_target |= y[k] != y[k];
                        if (dense && BETA_2) {
                            element = qfl_soft(x[k], __saturatef(y[k]), scale);
                        } else {
                            if (dense && y[k] > 0.0f) {
                                x[k] = MASKED_LOGIT;
                                masked = true;
                            }
                            element = background<GRADIENT, BETA_2, TWICE>(x[k], a.beta, scale);
                        }
                        piece += element.loss;
                        x[k] = element.grad;
                    }
                    loss += (double)piece;
                }, watched);
                if (!dense && TWICE) loss *= 0.5;
            }
            if (BETA_2 && masked) {
                loss += (double)labelled_loss<GRADIENT, BETA_2>(a, start + target.column, target.quality, scale, row_finite);
            } else if (general || masked) {
                for_columns(a.logits + start, a.classes, lane, lanes, !(dense && bce), general, [&](u32 i) {
                    const float y = dense ? a.target[start + i] : i == target.column ? target.quality : 0.0f;
                    bad_target |= y != y;
                    if (general || y > 0.0f || i == target.column)
                        loss += (double)general_loss<GRADIENT, false>(a, start, i, __saturatef(y), scale, row_finite);
                });
            }
        } else if (GRADIENT && inside) {
            zero_row(a.logits + start, grad, a.classes, lane, lanes);
        }
        if (general) __syncwarp();  // what is zeroed here other lanes have written
        if (dense && lanes_max((u32)bad_target, lanes)) {  // one NaN makes the row invalid
            if (GRADIENT) zero_row(a.logits + start, grad, a.classes, lane, lanes);
            if (lane == 0 && a.scaling.status)
                report(&a.scaling.status->bad_qualities, a.scaling.status, row);
            row_finite = true;
            target.weight = 0.0f;
        }
        finite &= row_finite;
        double row_loss = lanes_sum(loss, lanes);
        row_loss = target.weight == 0.0f ? 0.0 : row_loss * (double)target.weight;
        if (lane == 0 && inside) {
            sum += row_loss;
            if (Blocks::MAY_BE_PER_ROW && a.scaling.per_row && a.scaling.loss)
                a.scaling.loss[row] = (float)(row_loss * (double)loss_factor_of(a.scaling));
        }
    }
    blocks.template finish<QFL_ROWS_BLOCK>(a.scaling, a.rows, sum, finite);
}
