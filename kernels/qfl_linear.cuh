// QFL of rows of whole vectors: see qfl.cuh.
#pragma once
#include "qfl.cuh"

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
