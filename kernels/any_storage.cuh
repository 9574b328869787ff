// Scalars of a storage type that is told at run time, for what is rare.
#pragma once
#include "storage.cuh"

// Twin of `Storage`.
enum StorageType : u32 { F32, F16, BF16 };

DEVICE u32 size_of(u32 type) { return type == F32 ? 4 : 2; }

DEVICE float load_any(const void* p, u64 index, u32 type) {
    if (type == F32) return ((const float*)p)[index];
    const u16 bits = ((const u16*)p)[index];
    return type == F16 ? f16_to_f32(bits) : __uint_as_float((u32)bits << 16);
}

// Returns whether what is stored is finite.
DEVICE bool store_any(void* p, u64 index, u32 type, float x) {
    if (type == F32) {
        ((float*)p)[index] = x;
        return (__float_as_uint(x) & 0x7f800000) != 0x7f800000;
    }
    const u16 bits = type == F16 ? f32_to_f16(x) : (u16)(rounded(x) >> 16);
    const u32 exponent = type == F16 ? 0x7c00 : 0x7f80;
    ((u16*)p)[index] = bits;
    return (bits & exponent) != exponent;
}

// Zeros from an address of any alignment on: 16 bytes at a time between the first and the last multiple of 16.
DEVICE void zero_scalars(char* p, u32 count, u32 type, u32 lane, u32 lanes) {
    const u32 bytes = count * size_of(type), past = (u32)(u64)p & 15;
    const u32 head = min(past == 0 ? 0 : 16 - past, bytes), inside = (bytes - head) / 16 * 16;
#pragma unroll 1
    for (u32 at = head + lane * 16; at < head + inside; at += lanes * 16) store_words(p + at, {{0, 0, 0, 0}});
    const u32 halves = (bytes - inside) / 2;
#pragma unroll 1
    for (u32 k = lane; k < halves; k += lanes) *(u16*)(p + 2 * k + (2 * k < head ? 0 : inside)) = 0;
}
