// The end of a matrix product whose K was shared: C = alpha sum_p part_p + beta D, added in the order of p.
//
//   c      [n]     f32 or bf16, =
//   d      [n]     of the type of c, or c itself; where beta is 0 it is not read
//   part   [P, n]  f32
// Saves nothing. Grid: ceil(n / 1024) blocks of 256 threads, no shared memory; any size. Must move 4 P n bytes, C, and D where it
// counts.
#include "common/vector.cuh"

constexpr u32 THREADS = 256;

template <u32 W, typename O>
__device__ __forceinline__ void sum_parts(O* gc, const O* gd, const float* gpart, float alpha, float beta, u32 parts, u64 n) {
#pragma unroll
    for (u32 k = 0; k < 4 / W; k++) {
        const u64 i = blockIdx.x * (THREADS * 4ull) + (k * THREADS + threadIdx.x) * W;
        if (i >= n) {
            return;
        }
        float sum[W], x[W];
        load_vector<W>(sum, gpart + i);
        for (u32 part = 1; part < parts; part++) {
            load_vector<W>(x, gpart + part * n + i);
#pragma unroll
            for (u32 j = 0; j < W; j++) {
                sum[j] += x[j];
            }
        }
        if (beta != 0.0f) {
            load_vector<W>(x, gd + i);
        }
#pragma unroll
        for (u32 j = 0; j < W; j++) {
            sum[j] = alpha * sum[j] + (beta == 0.0f ? 0.0f : beta * x[j]);
        }
        store_vector<W>(gc + i, sum);
    }
}

// A block owns 1024 elements either way: four a thread in one access where all are aligned, else one by one.
template <typename O>
__device__ __forceinline__ void sum_all(O* gc, const O* gd, const float* gpart, float alpha, float beta, u32 parts, u64 n) {
    n % 4 == 0 && aligned(16, gc, gd, gpart) ? sum_parts<4>(gc, gd, gpart, alpha, beta, parts, n)
                                             : sum_parts<1>(gc, gd, gpart, alpha, beta, parts, n);
}

extern "C" __global__ void __launch_bounds__(256, 4) gemm_split_sum_f32(float* c, const float* d, const float* part, float alpha, float beta, u32 parts, u64 n) {
    sum_all(c, d, part, alpha, beta, parts, n);
}

extern "C" __global__ void __launch_bounds__(256, 4) gemm_split_sum_bf16(bf16* c, const bf16* d, const float* part, float alpha, float beta, u32 parts, u64 n) {
    sum_all(c, d, part, alpha, beta, parts, n);
}
