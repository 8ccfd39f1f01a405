// f32 <-> bf16, and f16 -> f32 (PTX ISA 9.7.9.22, cvt; packed form from sm_80 on). Rounds to nearest, ties to even; NaN stays NaN.
#pragma once

#include "../common/types.cuh"

// Two f32 to one word: `low` in the lower half.
__device__ __forceinline__ u32 pack_bf16x2(float low, float high) {
    u32 word;
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
    return word;
}

__device__ __forceinline__ bf16 to_bf16(float x) {
    return bf16{static_cast<u16>(pack_bf16x2(x, 0.0f))};
}

// Widening is exact: a bf16 is the upper half of its f32.
__device__ __forceinline__ float from_bf16_low(u32 word) {
    return __uint_as_float(word << 16);
}

__device__ __forceinline__ float from_bf16_high(u32 word) {
    return __uint_as_float(word & 0xffff0000u);
}

__device__ __forceinline__ float from_bf16(bf16 x) {
    return from_bf16_low(x.bits);
}

// The f16 whose bits these are; exact.
__device__ __forceinline__ float from_f16(u16 bits) {
    float x;
    asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
    return x;
}
