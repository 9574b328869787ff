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
#include "call.cuh"
#include "math.cuh"
#include "rows.cuh"

constexpr int BLOCK = 320;         // 16 rows of 80 f32 or 32 of 80 f16; twin in src/cuda/raw.rs
constexpr int ROWS_BLOCK = 256;    // of `rows` and `dense`; twin in src/cuda/raw.rs

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
};

constexpr u32 NO_COLUMN = 0xffffffffu;

// What the inputs say of a row.
struct Target {
    u32 column;     // the labelled one, or NO_COLUMN
    float quality;  // of that column, in [0, 1]
    float weight;   // 0: no loss and no gradient, whatever the logits hold
};

// `reports`: this thread is the one of its row that writes to the status.
DEVICE Target read_target(const QflArgs& a, u64 row, bool reports) {
    Target target = {NO_COLUMN, 0.0f, weight_of(a.scaling, row)};
    if (target.weight == 0.0f) return target;
    long long label = a.labels_are_i64 ? ((const long long*)a.labels)[row]
                                       : (long long)((const int*)a.labels)[row];
    if (a.has_ignore_label && label == a.ignore_label) {
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

template <bool BETA_2>
DEVICE LossGrad background(const QflArgs& a, float x, float scale) {
    return BETA_2 ? qfl_background(x, scale) : qfl_background_any_beta(x, a.beta, scale);
}

template <bool BETA_2>
DEVICE LossGrad soft(const QflArgs& a, float x, float y, float scale) {
    if (BETA_2) return qfl_soft(x, y, scale);
    return y > 0.0f ? qfl_soft_any_beta(x, y, a.beta, scale)
                    : qfl_background_any_beta(x, a.beta, scale);
}

// A logit so low that its loss and its gradient are 0: it stands for the labelled one while the
// rest of its vector is computed, and for those of rows that give nothing.
constexpr float MASKED_LOGIT = -100.0f;
#if defined(STORAGE_F16)
constexpr u32 MASKED = 0xd640d640;
#elif defined(STORAGE_BF16)
constexpr u32 MASKED = 0xc2c8c2c8;
#else
constexpr u32 MASKED = 0xc2c80000;
#endif

// No branch and no index that is not constant, which would put the words into local memory.
DEVICE void mask_out(Words& words, u32 index) {
#pragma unroll
    for (u32 k = 0; k < 4; ++k) {
#ifdef STORAGE_F32
        words.w[k] = k == index ? MASKED : words.w[k];
#else
        u32 half = k == index / 2 ? 0xffffu << index % 2 * 16 : 0;
        words.w[k] = (words.w[k] & ~half) | (MASKED & half);
#endif
    }
}

// Whether all logits of a vector are at most -2, and none is so low as to be -inf: the sign and
// the highest bit of the exponent are set, the next one is not.
DEVICE bool confident(const Words& words) {
#ifdef STORAGE_F32
    constexpr u32 SET = 0xe0000000, NOT_SET = 0x20000000;
#else
    constexpr u32 SET = 0xe000e000, NOT_SET = 0x20002000;
#endif
    u32 all = (words.w[0] ^ NOT_SET) & (words.w[1] ^ NOT_SET) & (words.w[2] ^ NOT_SET) & (words.w[3] ^ NOT_SET);
    return (all & SET) == SET;
}

// The labelled element of a row, at `offset` from the first logit: its loss. Its gradient takes
// the place of the one that was stored for a masked logit.
template <bool GRADIENT, bool BETA_2>
DEVICE float labelled_loss(const QflArgs& a, u64 offset, float y, float scale, bool& finite) {
    LossGrad element = soft<BETA_2>(a, load(a.logits + offset), y, scale);
    if (GRADIENT) {
        store(a.grad + offset, element.grad);
        finite &= is_finite(a.grad + offset);
    }
    return element.loss;
}

// The loss of a vector of background logits, which their gradients replace. All lanes of a warp
// call it together: most negatives of a detector are confident, and then all take the short way.
template <bool GRADIENT, bool BETA_2>
DEVICE float background_vector(const QflArgs& a, Words& words, float scale) {
    float x[VECTOR], loss = 0.0f;
    unpack(words, x);
    if (BETA_2 && __all_sync(ALL_LANES, confident(words))) {
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
            LossGrad element = qfl_confident<sizeof(Scalar) == 2>(x[k], scale);
            loss += element.loss;
            x[k] = element.grad;
        }
    } else {
#pragma unroll
        for (int k = 0; k < VECTOR; ++k) {
            LossGrad element = background<BETA_2>(a, x[k], scale);
            loss += element.loss;
            x[k] = element.grad;
        }
    }
    if (GRADIENT) words = pack(x);
    return loss;
}

// What the threads of a row share of its target.
struct Record {
    u32 column;
    float weight;
};

// Sum or mean, sparse targets, no upstream gradients; logits and gradient on 16-byte boundaries,
// classes a multiple of VECTOR and at most BLOCK * VECTOR. A tile of rows at a time: each thread
// asks for its vectors, then the targets are read, once for each row, and shared.
template <bool GRADIENT, bool BETA_2>
DEVICE void qfl_linear(const QflArgs& a) {
    constexpr u32 UNROLL = BETA_2 ? 4 : 2;  // rows that a thread has in flight
    SHARED(Record, records, 2 * UNROLL * BLOCK);
    const u32 vectors = a.classes / VECTOR, step = BLOCK / vectors, tile = UNROLL * step;
    const u32 column = threadIdx.x % vectors * VECTOR;
    const bool idle = threadIdx.x / vectors >= step;
    const u32 first = idle ? 0 : threadIdx.x / vectors;
    const float grad_factor = factors(a.scaling).grad;
    const u64 stride = (u64)step * a.classes;
    Accumulator sum;
    bool finite = true;
    u32 half = 0;  // of the records: one barrier a tile is enough for two halves in turn
    for (u64 base = (u64)blockIdx.x * tile; base < a.rows; base += (u64)gridDim.x * tile) {
        const u32 rows = (u32)min((u64)tile, a.rows - base), end = idle ? 0 : rows;
        const u64 start = (base + first) * a.classes + column;
        Words words[UNROLL];
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
            words[u] = Words{{MASKED, MASKED, MASKED, MASKED}};
            if (first + u * step < end) words[u] = load_words(a.logits + start + u * stride);
        }
        Record* shared = records + half;
        half ^= UNROLL * BLOCK;
#pragma unroll 1
        for (u32 r = threadIdx.x; r < tile; r += BLOCK) {
            Target target = {NO_COLUMN, 0.0f, 0.0f};
            if (r < rows) target = read_target(a, base + r, true);
            shared[r] = {target.column, target.weight};
        }
        __syncthreads();
        float loss = 0.0f;
        bool labelled = false;
#pragma unroll
        for (u32 u = 0; u < UNROLL; ++u) {
            const Record row = shared[first + u * step];
            const u32 inside = row.column - column;  // below VECTOR if the label is in this vector
            float scale = grad_factor * row.weight;
            if (row.weight == 0.0f || inside < VECTOR) {
                if (row.weight == 0.0f) {
                    words[u] = Words{{MASKED, MASKED, MASKED, MASKED}};
                    scale = 0.0f;  // the factor may be inf
                }
                mask_out(words[u], inside);
                labelled = true;
            }
            loss = fmaf(row.weight, background_vector<GRADIENT, BETA_2>(a, words[u], scale), loss);
            if (GRADIENT && first + u * step < end) store_words(a.grad + start + u * stride, words[u]);
        }
        if (GRADIENT && a.scaling.found_inf) {  // the words of idle lanes are finite
#pragma unroll
            for (u32 u = 0; u < UNROLL; ++u) finite &= is_finite(words[u]);
        }
        if (labelled) {
#pragma unroll 1
            for (u32 r = first; r < end; r += step) {
                Record row = shared[r];
                if (row.column - column >= VECTOR) continue;
                const u64 offset = (base + r) * a.classes + row.column;
                const float quality = __saturatef(a.quality[base + r]);
                float element = labelled_loss<GRADIENT, BETA_2>(a, offset, quality, grad_factor * row.weight, finite);
                loss = fmaf(row.weight, element, loss);
            }
        }
        sum.add(loss);
    }
    finish<BLOCK>(a.scaling, a.rows, sum.total(), finite);
}

// Any reduction, shape and address. `scaling.lanes` lanes share a row.
template <bool GRADIENT, bool DENSE, bool BETA_2>
DEVICE void qfl_rows(const QflArgs& a) {
    const u32 lanes = a.scaling.lanes, lane = threadIdx.x % lanes, rows_per_block = ROWS_BLOCK / lanes;
    const Factors factor = factors(a.scaling);
    double sum = 0.0;
    bool finite = true;
    for (u64 base = (u64)blockIdx.x * rows_per_block; base < a.rows; base += (u64)gridDim.x * rows_per_block) {
        const u64 row = base + threadIdx.x / lanes, start = row * a.classes;
        const bool inside = row < a.rows;
        Scalar* grad = GRADIENT ? a.grad + start : nullptr;
        Target target = {NO_COLUMN, 0.0f, 0.0f};
        if (inside && DENSE) target.weight = weight_of(a.scaling, row);
        if (inside && !DENSE) target = read_target(a, row, lane == 0);
        Accumulator loss;
        bool row_finite = true, bad_target = false, masked = false;
        if (target.weight != 0.0f) {
            const float scale = factor.grad * target.weight * upstream_of(a.scaling, row);
            row_finite = for_row(a.logits + start, grad, a.classes, lane, lanes, [&](u32 i, auto& x) {
                constexpr int COUNT = sizeof(x) / sizeof(float);
                float y[COUNT], piece = 0.0f;
                if (DENSE) load_floats(a.target + start + i, y);
#pragma unroll
                for (int k = 0; k < COUNT; ++k) {
                    LossGrad element;
                    if (DENSE) bad_target |= y[k] != y[k];
                    if (DENSE && BETA_2) {
                        element = qfl_soft(x[k], __saturatef(y[k]), scale);
                    } else {
                        if (DENSE ? y[k] > 0.0f : i + k == target.column) {
                            x[k] = MASKED_LOGIT;
                            masked = true;
                        }
                        element = background<BETA_2>(a, x[k], scale);
                    }
                    piece += element.loss;
                    x[k] = element.grad;
                }
                loss.add(piece);
            });
            if (masked && !DENSE)
                loss.add(labelled_loss<GRADIENT, BETA_2>(a, start + target.column, target.quality, scale,
                                                         row_finite));
            if (masked && DENSE)
                for_columns(a.logits + start, a.classes, lane, lanes, [&](u32 i) {
                    float y = a.target[start + i];
                    if (y > 0.0f)
                        loss.add(labelled_loss<GRADIENT, BETA_2>(a, start + i, __saturatef(y), scale,
                                                                 row_finite));
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
        double row_loss = lanes_sum(loss.total(), (int)lanes);
        row_loss = target.weight == 0.0f ? 0.0 : row_loss * (double)target.weight;
        if (lane == 0 && inside) {
            sum += row_loss;
            if (a.scaling.per_row && a.scaling.loss)
                a.scaling.loss[row] = (float)(row_loss * (double)factor.loss);
        }
    }
    finish<ROWS_BLOCK>(a.scaling, a.rows, sum, finite);
}

KERNEL(qfl_linear_forward, BLOCK, 3)(const QflArgs a) { qfl_linear<false, true>(a); }
KERNEL(qfl_linear_forward_backward, BLOCK, 3)(const QflArgs a) { qfl_linear<true, true>(a); }
KERNEL(qfl_linear_forward_any_beta, BLOCK, 2)(const QflArgs a) { qfl_linear<false, false>(a); }
KERNEL(qfl_linear_forward_backward_any_beta, BLOCK, 2)(const QflArgs a) { qfl_linear<true, false>(a); }
KERNEL(qfl_rows_forward, ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<false, false, true>(a); }
KERNEL(qfl_rows_forward_backward, ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, false, true>(a); }
KERNEL(qfl_rows_forward_any_beta, ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<false, false, false>(a); }
KERNEL(qfl_rows_forward_backward_any_beta, ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, false, false>(a); }
KERNEL(qfl_dense_forward, ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<false, true, true>(a); }
KERNEL(qfl_dense_forward_backward, ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, true, true>(a); }
KERNEL(qfl_dense_forward_any_beta, ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<false, true, false>(a); }
KERNEL(qfl_dense_forward_backward_any_beta, ROWS_BLOCK, 2)(const QflArgs a) { qfl_rows<true, true, false>(a); }
