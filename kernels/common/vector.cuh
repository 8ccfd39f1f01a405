// Loads and stores of one element, or of several at once in accesses of 8 or 16 bytes; all arithmetic is in f32.
#pragma once

#include "../ptx/convert.cuh"
#include "types.cuh"

__device__ __forceinline__ float load(const float* g) { return *g; }
__device__ __forceinline__ float load(const bf16* g) { return from_bf16(*g); }
__device__ __forceinline__ void store(float* g, float x) { *g = x; }
__device__ __forceinline__ void store(bf16* g, float x) { *g = to_bf16(x); }

// Elements of a 16-byte access.
template <typename E>
constexpr u32 WIDTH = 16 / sizeof(E);

// The value that `store` and `load` would give back.
__device__ __forceinline__ float rounded(float x, const float*) { return x; }
__device__ __forceinline__ float rounded(float x, const bf16*) { return from_bf16(to_bf16(x)); }

// Whether `bytes`-wide accesses to all of these are aligned; the same for every thread.
template <typename... P>
__device__ __forceinline__ bool aligned(u32 bytes, P... g) {
    return ((reinterpret_cast<u64>(g) | ...) & (bytes - 1)) == 0;
}

template <u32 W>
__device__ __forceinline__ void load_vector(float (&r)[W], const float* g) {
    static_assert(W == 1 || W % 4 == 0, "f32 comes alone, or in fours: 16 bytes");
    if constexpr (W == 1) {
        r[0] = *g;
    } else {
#pragma unroll
        for (u32 i = 0; i < W; i += 4) {
            const float4 v = *reinterpret_cast<const float4*>(g + i);
            r[i] = v.x, r[i + 1] = v.y, r[i + 2] = v.z, r[i + 3] = v.w;
        }
    }
}

template <u32 W>
__device__ __forceinline__ void load_vector(float (&r)[W], const bf16* g) {
    static_assert(W == 1 || W == 4 || W == 8, "bf16 comes alone, or in fours or eights: 8 or 16 bytes");
    if constexpr (W == 1) {
        r[0] = from_bf16(*g);
    } else {
        u32 words[W / 2];
        if constexpr (W == 8) {
            const uint4 v = *reinterpret_cast<const uint4*>(g);
            words[0] = v.x, words[1] = v.y, words[2] = v.z, words[3] = v.w;
        } else {
            const uint2 v = *reinterpret_cast<const uint2*>(g);
            words[0] = v.x, words[1] = v.y;
        }
#pragma unroll
        for (u32 i = 0; i < W / 2; i++) {
            r[2 * i] = from_bf16_low(words[i]);
            r[2 * i + 1] = from_bf16_high(words[i]);
        }
    }
}

template <u32 W>
__device__ __forceinline__ void store_vector(float* g, const float (&r)[W]) {
    if constexpr (W == 1) {
        *g = r[0];
    } else {
#pragma unroll
        for (u32 i = 0; i < W; i += 4) {
            *reinterpret_cast<float4*>(g + i) = make_float4(r[i], r[i + 1], r[i + 2], r[i + 3]);
        }
    }
}

template <u32 W>
__device__ __forceinline__ void store_vector(bf16* g, const float (&r)[W]) {
    if constexpr (W == 1) {
        *g = to_bf16(r[0]);
    } else {
        u32 words[W / 2];
#pragma unroll
        for (u32 i = 0; i < W / 2; i++) {
            words[i] = pack_bf16x2(r[2 * i], r[2 * i + 1]);
        }
        if constexpr (W == 8) {
            *reinterpret_cast<uint4*>(g) = make_uint4(words[0], words[1], words[2], words[3]);
        } else {
            *reinterpret_cast<uint2*>(g) = make_uint2(words[0], words[1]);
        }
    }
}
