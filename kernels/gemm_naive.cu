// Matrix product by shared-memory tiles on the plain cores, any size, all transposes: C = alpha A B + beta D.
//
//   c  [M, N]  f32 or bf16, =
//   d  [M, N]  of the type of c, or c itself; where beta is 0 it is not read
//   a  element (m, k) at m a_m + k a_k;  b  element (k, n) at k b_k + n b_n    f32 or bf16
// One stride of each pair is 1. Saves nothing. Grid: ceil(N / 64) x ceil(M / 64) blocks of 256 threads, 64 x 64 of C each, four
// by four a thread; 8.3 KiB of shared memory; any size. Does 2 M N K operations.
// Serves f32; in bf16 it is the twin of the tensor-core kernels: what they are held against.
// Learnt from: "How to optimize a CUDA matmul kernel" (S. Boehm), two-dimensional block tiling.
#include "common/vector.cuh"

constexpr u32 TILE = 64;
constexpr u32 DEPTH = 16;
constexpr u32 THREADS = 256;
// 4 more pad the row: rows stay aligned to 16 bytes, and a column's writes spread over the banks.
constexpr u32 PITCH = TILE + 4;

// Stores a DEPTH x TILE tile as s[k][i], element (i, k) at i stride_i + k stride_k; zero outside i < extent, k < depth.
// Neighbouring threads take the direction whose stride is 1.
template <typename E>
__device__ __forceinline__ void load_tile(float (&s)[DEPTH][PITCH], const E* g, u64 stride_i, u64 stride_k, u32 first, u32 extent, u32 start,
                                          u32 depth) {
#pragma unroll
    for (u32 step = 0; step < TILE * DEPTH / THREADS; step++) {
        const u32 index = step * THREADS + threadIdx.x;
        const u32 i = stride_i == 1 ? index % TILE : index / DEPTH, k = stride_i == 1 ? index / TILE : index % DEPTH;
        const bool inside = first + i < extent && start + k < depth;
        s[k][i] = inside ? load(g + (first + i) * stride_i + (start + k) * stride_k) : 0.0f;
    }
}

template <typename E, typename O>
__device__ __forceinline__ void gemm(O* gc, const O* gd, const E* ga, const E* gb, float alpha, float beta, u32 m, u32 n, u32 k,
                                     u64 a_m, u64 a_k, u64 b_k, u64 b_n) {
    __shared__ __align__(16) float sa[DEPTH][PITCH], sb[DEPTH][PITCH];
    const u32 m0 = blockIdx.y * TILE, n0 = blockIdx.x * TILE;
    const u32 tm = threadIdx.x / 16 * 4, tn = threadIdx.x % 16 * 4;
    float racc[4][4] = {};                                                       // (4, 4) of C
    for (u32 start = 0; start < k; start += DEPTH) {
        load_tile(sa, ga, a_m, a_k, m0, m, start, k);
        load_tile(sb, gb, b_n, b_k, n0, n, start, k);
        __syncthreads();  // both tiles are there
#pragma unroll
        for (u32 kk = 0; kk < DEPTH; kk++) {
            const float4 a = *reinterpret_cast<const float4*>(&sa[kk][tm]);      // (4)
            const float4 b = *reinterpret_cast<const float4*>(&sb[kk][tn]);      // (4)
            const float ra[4] = {a.x, a.y, a.z, a.w}, rb[4] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
#pragma unroll
                for (u32 j = 0; j < 4; j++) {
                    racc[i][j] += ra[i] * rb[j];
                }
            }
        }
        __syncthreads();  // all have read the tiles, before the next ones overwrite them
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            if (m0 + tm + i < m && n0 + tn + j < n) {
                const u64 at = static_cast<u64>(m0 + tm + i) * n + n0 + tn + j;
                const float old = beta == 0.0f ? 0.0f : beta * load(gd + at);
                store(gc + at, alpha * racc[i][j] + old);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_naive_tiled_f32(float* c, const float* d, const float* a, const float* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 a_m, u64 a_k, u64 b_k, u64 b_n) {
    gemm(c, d, a, b, alpha, beta, m, n, k, a_m, a_k, b_k, b_n);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_naive_tiled_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 a_m, u64 a_k, u64 b_k, u64 b_n) {
    gemm(c, d, a, b, alpha, beta, m, n, k, a_m, a_k, b_k, b_n);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_naive_tiled_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 a_m, u64 a_k, u64 b_k, u64 b_n) {
    gemm(c, d, a, b, alpha, beta, m, n, k, a_m, a_k, b_k, b_n);
}
