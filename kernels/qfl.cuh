// Quality Focal Loss, forward and forward with backward, in one pass over the logits.
//
// Naively, for each element: y = quality[row] if column == label[row] else 0, and
// QFL(x, y) = |y - sigma(x)|^beta * (softplus(x) - x * y). What the kernels do differently:
//  1. The label stays out of the loop. A vector that holds the labelled column is rare (one row
//     in a hundred is positive, and one of its columns): there the element is masked out of the
//     vector and computed on its own. So the sum never has to take back what it has added.
//  2. The gradient is scaled in float before it is rounded to the storage type.
//  3. `linear` gives each thread one column for good, so that its loop has no division; it
//     needs whole 16-byte vectors in a row. `rows` takes any shape and any address, and gives
//     row sums. `dense` is `rows` with a target for every element.
//  4. A warp whose logits are all at most -2 takes series that need one special function for an
//     element, not two, and fewer instructions. A detector's negatives begin at -4.6.
#pragma once
#include "background.cuh"
#include "call.cuh"
#include "rows.cuh"

constexpr int QFL_BLOCK = 320;         // 16 rows of 80 f32 or 32 of 80 f16; twin in src/cuda/raw.rs
constexpr int QFL_ROWS_BLOCK = 256;    // of `rows` and `dense`; twin in src/cuda/raw.rs
constexpr int QFL_UNROLL = 4;          // rows a thread of `linear` has in flight; twin in src/cuda/raw.rs
constexpr int QFL_UNROLL_ANY_BETA = 2; // the same where beta is not 2

// Field by field the same as `QflArgs` in src/cuda/raw.rs.
struct QflArgs {
    Scaling scaling;
    const Scalar* logits;    // [rows, classes]
    const void* labels;      // [rows], i64 or i32; null for dense targets
    const float* quality;    // [rows]
    const float* target;     // [rows, classes] for dense targets
    Scalar* grad;            // [rows, classes]
    u64 rows;
    long long ignore_label;
    u32 classes;
    float beta;
    u32 labels_are_i64;
    u32 background_first;    // 0 is background and 1..=classes are the classes
    u32 has_ignore_label;
    u32 whole_tiles;         // of `linear`: how many tiles have all their rows
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

// Sum or mean, sparse targets, no upstream gradients; logits and gradient on 16-byte boundaries,
// classes a multiple of VECTOR and at most QFL_BLOCK * VECTOR. A tile of rows at a time: each thread
// asks for its vectors, then the targets are read, once for each row, and shared. What is rare stands
// apart: rows with a label or without a weight, and the last tile. What decides is a vote or the same for the
// block, so that no warp divides. Bytes in flight on a multiprocessor, at 64 registers a thread: 3 blocks *
// 320 threads * 4 vectors * 16 bytes = 60 KiB.
template <bool GRADIENT, bool BETA_2>
DEVICE void qfl_linear(const QflArgs& a) {
    constexpr u32 UNROLL = BETA_2 ? QFL_UNROLL : QFL_UNROLL_ANY_BETA;
    // Losses come doubled. They might overflow, and the gradients with them: what a thread has of a tile in
    // which that happens is done again.
    constexpr bool MAY_OVERFLOW = BETA_2 && !ALWAYS_TWICE;
    constexpr float SHARE = BETA_2 ? 0.5f : 1.0f, LARGEST = 3.40282347e38f;
    SHARED(QflRecord, records, 2 * QFL_BLOCK);
    // n / vectors is n * share >> 20, for n up to the block's size
    const u32 vectors = a.classes / VECTOR, share = (1u << 20) / vectors + 1;
    const u32 step = QFL_BLOCK * share >> 20, tile = UNROLL * step;
    const QflPlace here(threadIdx.x, vectors, share);
    const bool idle = here.idle;
    const float grad_factor = factors(a.scaling).grad;
    const u32 start = kept(here.first * a.classes + here.column);
    const u32 row_bytes = kept(step * a.classes * (u32)sizeof(Scalar)), tile_bytes = UNROLL * row_bytes;
    const SharedAddress home = shared_address(records + here.first);
    const bool reader = __any_sync(ALL_LANES, threadIdx.x < tile);  // of targets; the whole warp
    double sum = 0.0;
    bool finite = true;
    u32 half = 0;  // of the records: one barrier a tile is enough for two halves in turn
    for (u32 index = blockIdx.x;; index += gridDim.x) {
        const bool whole = index < a.whole_tiles;
        const u64 offset = (u64)index * tile_bytes;
        const char* from = (const char*)(a.logits + start) + offset;
        char* to = GRADIENT ? (char*)(a.grad + start) + offset : nullptr;
        Words words[UNROLL];
        if (__builtin_expect(whole, 1)) {
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) words[u] = load_words(from + (u64)row_bytes * u);
        } else {
            rare();
            const u64 base = (u64)index * tile;
            if (base >= a.rows) break;
            const u32 first = QflPlace(thread_anew(), vectors, share).first;
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) {
                words[u] = masked_words();
                if (base + first + u * step < a.rows) words[u] = load_words(from + (u64)row_bytes * u);
            }
        }
        if (reader) {
            rare();
            u32 r = threadIdx.x;
#pragma unroll 1
            do {
                if (r < tile) {
                    const u64 row = (u64)index * tile + r % UNROLL * step + r / UNROLL;
                    QflTarget target = {NO_COLUMN, 0.0f, 0.0f};
                    if (row < a.rows) target = read_qfl_target(a, row, true);
                    QflRecord& record = records[half + r / UNROLL];
                    record.weight[r % UNROLL] = target.weight;
                    record.code[r % UNROLL] = (u16)(target.weight == 0.0f ? MASKED_ROW : target.column + 1);
                    r += QFL_BLOCK;
                }
            } while (__any_sync(ALL_LANES, r < tile));
        }
        __syncthreads();
        float weight[QFL_UNROLL], scale[UNROLL], loss = 0.0f;
        u32 codes[QFL_UNROLL / 2];
        load_shared(home + half * (u32)sizeof(QflRecord), weight, codes);
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) scale[u] = grad_factor * weight[u];
        const bool not_plain = (codes[0] | (UNROLL > 2 ? codes[1] : 0)) != 0;
        const bool special = __any_sync(ALL_LANES, not_plain);
        if (__builtin_expect(special, 0)) {
            rare();
            const u32 column = QflPlace(thread_anew(), vectors, share).column;
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) {
                const u32 code = codes[u / 2] >> u % 2 * 16 & 0xffff;
                if (code == MASKED_ROW) {
                    words[u] = masked_words();
                    scale[u] = 0.0f;  // the factor may be inf
                }
                mask_out(words[u], code - 1 - column);
            }
        }
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
            const float vector = background_vector<GRADIENT, BETA_2, BETA_2>(words[u], a.beta, scale[u]);
            loss = fmaf(weight[u], vector, loss);
        }
        if (GRADIENT) {
            if (__builtin_expect(whole, 1)) {
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u)
                    if (!idle) store_words(to + (u64)row_bytes * u, words[u]);
            } else {
                rare();
                const u32 first = QflPlace(thread_anew(), vectors, share).first;
#pragma unroll
                for (u32 u = 0; u < UNROLL; ++u)
                    if (!idle && (u64)index * tile + first + u * step < a.rows)
                        store_words(to + (u64)row_bytes * u, words[u]);
            }
        }
        const bool overflows = MAY_OVERFLOW && !(loss <= LARGEST);
        if (GRADIENT && a.scaling.found_inf && !overflows) {
            rare();
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) finite &= is_finite(words[u]);
        }
        const bool again = MAY_OVERFLOW ? __any_sync(ALL_LANES, not_plain || overflows) : special;
        if (__builtin_expect(again, 0)) {
            rare();
            if (overflows) loss = 0.0f;
            const QflPlace place(thread_anew(), vectors, share);
            const QflRecord& record = records[half + place.first];
#pragma unroll 1
            for (u32 u = 0; u < UNROLL; ++u) {
                const u32 code = record.code[u], labelled = code - 1 - place.column;
                if (idle || code == MASKED_ROW || !(overflows || labelled < VECTOR)) continue;
                const u64 row = (u64)index * tile + place.first + u * step;
                const float w = record.weight[u];
                const u32 last = overflows ? VECTOR - 1 : labelled;
#pragma unroll 1
                for (u32 k = overflows ? 0 : labelled; k <= last; ++k) {
                    const u64 offset = row * a.classes + place.column + k;
                    float element;
                    if (k == labelled)
                        element = labelled_loss<GRADIENT, BETA_2>(a, offset, __saturatef(a.quality[row]),
                                                                  grad_factor * w, finite);
                    else
                        element = background_loss<GRADIENT, BETA_2>(a, offset, grad_factor * w, finite);
                    sum = fma((double)w, (double)element, sum);
                }
            }
        }
        sum = fma((double)loss, (double)SHARE, sum);
        half ^= QFL_BLOCK;
    }
    WholeGrid().finish<QFL_BLOCK>(a.scaling, a.rows, idle ? 0.0 : sum, finite);
}

// Any reduction, shape and address. `scaling.lanes` lanes share a row.
template <bool GRADIENT, bool DENSE, bool BETA_2, class Blocks = WholeGrid>
DEVICE void qfl_rows(const QflArgs& a, const Blocks& blocks = Blocks()) {
    const u32 lanes = a.scaling.lanes, lane = threadIdx.x % lanes, rows_per_block = QFL_ROWS_BLOCK / lanes;
    const Factors factor = factors(a.scaling);
    const bool watched = a.scaling.found_inf != nullptr;
    double sum = 0.0;
    bool finite = true;
    for (u64 base = (u64)blocks.index() * rows_per_block; base < a.rows; base += (u64)blocks.count() * rows_per_block) {
        const u64 row = base + threadIdx.x / lanes, start = row * a.classes;
        const bool inside = row < a.rows;
        Scalar* grad = GRADIENT ? a.grad + start : nullptr;
        QflTarget target = {NO_COLUMN, 0.0f, 0.0f};
        if (inside && DENSE) target.weight = weight_of(a.scaling, row);
        if (inside && !DENSE) target = read_qfl_target(a, row, lane == 0);
        double loss = 0.0;
        bool row_finite = true, bad_target = false, masked = false;
        if (target.weight != 0.0f) {
            const float scale = factor.grad * target.weight * upstream_of(a.scaling, row);
            row_finite = for_row(a.logits + start, grad, a.classes, lane, lanes, [&](u32 i, auto& x) {
                constexpr int COUNT = sizeof(x) / sizeof(float);
                float y[COUNT], piece = 0.0f;
                if (DENSE) load_floats(a.target + start + i, y);
                if (!DENSE && __builtin_expect(target.column - i < COUNT, 0)) {
#pragma unroll
                    for (int k = 0; k < COUNT; ++k) x[k] = i + k == target.column ? MASKED_LOGIT : x[k];
                    masked = true;
                }
#pragma unroll
                for (int k = 0; k < COUNT; ++k) {
                    LossGrad element;
                    if (DENSE) bad_target |= y[k] != y[k];
                    if (DENSE && BETA_2) {
                        element = qfl_soft(x[k], __saturatef(y[k]), scale);
                    } else {
                        if (DENSE && y[k] > 0.0f) {
                            x[k] = MASKED_LOGIT;
                            masked = true;
                        }
                        element = background<GRADIENT, BETA_2, ALWAYS_TWICE>(x[k], a.beta, scale);
                    }
                    piece += element.loss;
                    x[k] = element.grad;
                }
                loss += (double)piece;
            }, watched);
            if (!DENSE && BETA_2 && ALWAYS_TWICE) loss *= 0.5;
            if (masked && !DENSE)
                loss += (double)labelled_loss<GRADIENT, BETA_2>(a, start + target.column, target.quality,
                                                                scale, row_finite);
            if (masked && DENSE)
                for_columns(a.logits + start, a.classes, lane, lanes, [&](u32 i) {
                    float y = a.target[start + i];
                    if (y > 0.0f)
                        loss += (double)labelled_loss<GRADIENT, BETA_2>(a, start + i, __saturatef(y), scale,
                                                                        row_finite);
                });
        } else if (GRADIENT && inside) {
            zero_row(a.logits + start, grad, a.classes, lane, lanes);
        }
        if (DENSE && lanes_max((u32)bad_target, lanes)) {  // one NaN makes the row invalid
            if (GRADIENT) zero_row(a.logits + start, grad, a.classes, lane, lanes);
            if (lane == 0 && a.scaling.status)
                report(&a.scaling.status->bad_qualities, a.scaling.status, row);
            row_finite = true;
            target.weight = 0.0f;
        }
        finite &= row_finite;
        double row_loss = lanes_sum(loss, (int)lanes);
        row_loss = target.weight == 0.0f ? 0.0 : row_loss * (double)target.weight;
        if (lane == 0 && inside) {
            sum += row_loss;
            if (a.scaling.per_row && a.scaling.loss)
                a.scaling.loss[row] = (float)(row_loss * (double)factor.loss);
        }
    }
    blocks.template finish<QFL_ROWS_BLOCK>(a.scaling, a.rows, sum, finite);
}
