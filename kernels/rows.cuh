// A row of scalars at any address and of any length, shared by a group of lanes of one warp.
#pragma once
#include "storage.cuh"

// The scalars before the first 16-byte boundary, and how many whole vectors follow.
struct Span {
    u32 head, vectors;

    DEVICE Span(const Scalar* row, u32 length) {
        u32 past = (u32)((u64)row & 15) / sizeof(Scalar);
        head = min(past == 0 ? 0 : VECTOR - past, length);
        vectors = (length - head) / VECTOR;
    }
};

// Calls body(i, x) for each piece x of the row that falls to `lane` of `lanes`: x is an array
// of VECTOR scalars or of one, that begins at column i. STORES: what body leaves in x goes to the
// same columns of `out`. Returns whether all that went there is finite; true if nobody has `watched`.
template <bool STORES, class Body>
DEVICE bool for_row(const Scalar* row, Scalar* out, u32 length, u32 lane, u32 lanes, Body body,
                    bool watched = true) {
    Span span(row, length);
    bool finite = true, whole = aligned16(out + span.head);
    for (u32 v = lane; v < span.vectors; v += lanes) {
        u32 i = span.head + v * VECTOR;
        float x[VECTOR];
        unpack(load_words(row + i), x);
        body(i, x);
        if (!STORES) continue;
        Words words = pack(x);
        if (watched) finite &= is_finite(words);
        if (whole) {
            store_words(out + i, words);
        } else {
#pragma unroll
            for (int k = 0; k < VECTOR; ++k) store(out + i + k, x[k]);
        }
    }
    u32 inside = span.vectors * VECTOR;
#pragma unroll 1
    for (u32 k = lane; k < length - inside; k += lanes) {
        u32 i = k < span.head ? k : k + inside;
        float x[1] = {load(row + i)};
        body(i, x);
        if (!STORES) continue;
        store(out + i, x[0]);
        if (watched) finite &= is_finite(out + i);
    }
    return finite;
}

// Calls body(i) for each column i that for_row gives to this lane; without `vectors`, only for those that it gives one by
// one; or, `all_one_by_one`, for every `lanes`th.
template <class Body>
DEVICE void for_columns(const Scalar* row, u32 length, u32 lane, u32 lanes, bool vectors, bool all_one_by_one, Body body) {
    Span span(row, length);
    const u32 inside = all_one_by_one ? 0 : span.vectors * VECTOR;
    bool in_vector = vectors;
    u32 k = vectors ? lane * VECTOR : lane;
#pragma unroll 1
    for (;;) {
        if (in_vector && k >= inside) in_vector = false, k = lane;
        if (!in_vector && k >= length - inside) break;
        body(in_vector ? span.head + k : k < span.head ? k : k + inside);
        k += !in_vector ? lanes : k % VECTOR == VECTOR - 1 ? (lanes - 1) * VECTOR + 1 : 1;
    }
}

// Zeros in the columns that for_row gives to this lane, so that each is written by the thread
// that wrote it before.
DEVICE void zero_row(const Scalar* row, Scalar* out, u32 length, u32 lane, u32 lanes) {
    for_row<true>(row, out, length, lane, lanes, [](u32, auto& x) {
        for (float& value : x) value = 0.0f;
    }, false);
}

// N floats from an address of any alignment.
template <int N>
DEVICE void load_floats(const float* p, float (&x)[N]) {
    if (N % 4 == 0 && aligned16(p)) {
#pragma unroll
        for (int k = 0; k < N / 4; ++k) {
            Words words = load_words(p + 4 * k);
#pragma unroll
            for (int j = 0; j < 4; ++j) x[(4 * k + j) % N] = __uint_as_float(words.w[j]);
        }
    } else {
#pragma unroll
        for (int k = 0; k < N; ++k) x[k] = p[k];
    }
}
