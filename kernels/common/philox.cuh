// Counter-based random numbers: Philox 4x32-10 (Salmon et al., SC 2011), the same words as src/tensor/random.rs.
#pragma once

#include "types.cuh"

struct Words {
    u32 r[4];
};

__device__ __forceinline__ Words philox(Words counter, u32 key0, u32 key1) {
#pragma unroll
    for (u32 round = 0; round < 10; round++) {
        const u64 a = 0xd2511f53ull * counter.r[0], b = 0xcd9e8d57ull * counter.r[2];
        counter = {{static_cast<u32>(b >> 32) ^ counter.r[1] ^ key0, static_cast<u32>(b),
                    static_cast<u32>(a >> 32) ^ counter.r[3] ^ key1, static_cast<u32>(a)}};
        key0 += 0x9e3779b9u;
        key1 += 0xbb67ae85u;
    }
    return counter;
}

// Number `index` of a stream of noise under a seed, which is a whole number below 2^24 held in an f32.
__device__ __forceinline__ Words noise_words(float seed, u32 stream, u32 index) {
    return philox({{index, 0, stream, 0}}, static_cast<u32>(seed), 0);
}

// Uniform in (-1, 1): an odd multiple of 2^-23, which an f32 holds exactly.
__device__ __forceinline__ float centred(u32 word) { return (static_cast<float>(word >> 9) + 0.5f) * 2.384185791015625e-7f - 1.0f; }

// Standard normal by the inverse of its distribution function, within 1e-6: sqrt(2) erfinv(x), x uniform in (-1, 1)
// (M. Giles, "Approximating the erfinv function", 2010).
__device__ __forceinline__ float normal(u32 word) {
    const float x = centred(word);
    float w = -logf((1.0f - x) * (1.0f + x)), p;
    if (w < 5.0f) {
        w -= 2.5f;
        p = 2.81022636e-08f;
        p = 3.43273939e-07f + p * w;
        p = -3.5233877e-06f + p * w;
        p = -4.39150654e-06f + p * w;
        p = 0.00021858087f + p * w;
        p = -0.00125372503f + p * w;
        p = -0.00417768164f + p * w;
        p = 0.246640727f + p * w;
        p = 1.50140941f + p * w;
    } else {
        w = sqrtf(w) - 3.0f;
        p = -0.000200214257f;
        p = 0.000100950558f + p * w;
        p = 0.00134934322f + p * w;
        p = -0.00367342844f + p * w;
        p = 0.00573950773f + p * w;
        p = -0.0076224613f + p * w;
        p = 0.00943887047f + p * w;
        p = 1.00167406f + p * w;
        p = 2.83297682f + p * w;
    }
    return 1.41421356237f * p * x;
}
