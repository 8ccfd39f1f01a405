// Row sum: out_c += sum over p of partial_pc, in the order of p. The second stage of gradients that sum over rows (gains).
//
//   out      [C]            f32, +=
//   partial  [P, stride]    f32, its first C columns
// Saves nothing. Grid: ceil(C / 128) blocks of 128 threads; no shared memory; any size. Must move (P + 2) C elements.
#include "common/types.cuh"

extern "C" __global__ void __launch_bounds__(128, 8) row_sum_bwd_column_per_thread_f32(float* out, const float* partial, u32 p, u32 c, u32 stride) {
    const u32 column = blockIdx.x * 128 + threadIdx.x;
    if (column >= c) {
        return;
    }
    float sum = 0.0f;
    for (u32 row = 0; row < p; row++) {
        sum += partial[static_cast<u64>(row) * stride + column];
    }
    out[column] += sum;
}
