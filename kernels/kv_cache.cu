// Key/value cache: takes packed rows apart, q to a tensor of its own, k and v to the end of a cache that stores f32.
//
//   q     [T, H D]   f32, =
//   k, v  [T, G D]   f32, =: the rows of the cache from its end on
//   qkv   [T, (H+2G)D]  f32 or bf16
// Saves nothing. Grid: ceil(T (H+2G) D / 256) blocks of 256 threads, no shared memory; any size. Must move 2 T (H+2G) D elements.
#include "common/row.cuh"

template <typename E>
__device__ __forceinline__ void split(float* gq, float* gk, float* gv, const E* gqkv, u32 t, u32 q_cols, u32 kv_cols) {
    const u32 c = q_cols + 2 * kv_cols;
    for_flat_packs<256, 1, 1>(t, c, [&](u64 row, u32 column, u64 element) {
        const float x = load(gqkv + element);
        if (column < q_cols) {
            gq[row * q_cols + column] = x;
        } else if (column < q_cols + kv_cols) {
            gk[row * kv_cols + column - q_cols] = x;
        } else {
            gv[row * kv_cols + column - q_cols - kv_cols] = x;
        }
    });
}

extern "C" __global__ void __launch_bounds__(256, 8) kv_cache_fwd_split_rows_f32(float* q, float* k, float* v, const float* qkv, u32 t, u32 q_cols, u32 kv_cols) {
    split(q, k, v, qkv, t, q_cols, kv_cols);
}

extern "C" __global__ void __launch_bounds__(256, 8) kv_cache_fwd_split_rows_bf16(float* q, float* k, float* v, const bf16* qkv, u32 t, u32 q_cols, u32 kv_cols) {
    split(q, k, v, qkv, t, q_cols, kv_cols);
}
