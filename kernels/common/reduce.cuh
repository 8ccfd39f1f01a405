// Sums and maxima over a warp or a block, in an order that depends on nothing but the number of threads.
#pragma once

#include "types.cuh"

// Butterfly: both sides of an exchange add the same two numbers, so all lanes end with the same bits.
template <typename T>
__device__ __forceinline__ T warp_sum(T x) {
#pragma unroll
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, mask);
    }
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
#pragma unroll
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, mask));
    }
    return x;
}

// Sum over a block of THREADS, for every thread; `round` counts the calls that share `s`. Two halves take turns, so one barrier
// a call is enough: whoever writes a half again has passed the barrier of the call between, which all readers had reached.
template <u32 THREADS, typename T>
__device__ __forceinline__ T block_sum(T x, T (&s)[2][THREADS / WARP], u32 round) {
    static_assert(THREADS % WARP == 0, "whole warps");
    T* half = s[round & 1];
    x = warp_sum(x);
    if (threadIdx.x % WARP == 0) {
        half[threadIdx.x / WARP] = x;
    }
    __syncthreads();  // every warp's sum is there
    T sum = half[0];
#pragma unroll
    for (u32 warp = 1; warp < THREADS / WARP; warp++) {
        sum += half[warp];
    }
    return sum;
}
