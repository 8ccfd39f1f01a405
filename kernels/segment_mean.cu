// Mean of the rows of a segment; one that comes in pieces is summed up on the way.
//
//   means  [B, C]     f32 or bf16, = (sums before + sum over t of x_t) factor
//   sums   [B, C]     f32, read and overwritten, or null: nothing was there before
//   x      [B, T, C]
//   factor            1 / tokens of a whole segment
// Grid: (ceil(C / 128), B) blocks of 128 threads, a column a thread; no shared memory. Must move B T C elements.
// Four sums a column, added up in a fixed order.
#include "common/vector.cuh"

constexpr u32 COLUMNS = 128;
constexpr u32 SUMS = 4;

template <typename E>
__device__ __forceinline__ void segment_mean(E* gmeans, float* gsums, const E* gx, float factor, u32 t, u32 c) {
    const u32 column = blockIdx.x * COLUMNS + threadIdx.x;
    if (column >= c) {
        return;
    }
    const u64 at = static_cast<u64>(blockIdx.y) * c + column;
    const E* x = gx + static_cast<u64>(blockIdx.y) * t * c + column;
    float sums[SUMS] = {gsums == nullptr ? 0.0f : gsums[at]};
    u32 i = 0;
    for (; i + SUMS <= t; i += SUMS) {
#pragma unroll
        for (u32 k = 0; k < SUMS; k++) {
            sums[k] += load(x + static_cast<u64>(i + k) * c);
        }
    }
    for (; i < t; i++) {
        sums[0] += load(x + static_cast<u64>(i) * c);
    }
    const float sum = (sums[0] + sums[1]) + (sums[2] + sums[3]);
    if (gsums != nullptr) {
        gsums[at] = sum;
    }
    store(gmeans + at, sum * factor);
}

extern "C" __global__ void __launch_bounds__(128, 8) segment_mean_fwd_column_per_thread_f32(float* means, float* sums, const float* x, float factor, u32 t, u32 c) {
    segment_mean(means, sums, x, factor, t, c);
}

extern "C" __global__ void __launch_bounds__(128, 8) segment_mean_fwd_column_per_thread_bf16(bf16* means, float* sums, const bf16* x, float factor, u32 t, u32 c) {
    segment_mean(means, sums, x, factor, t, c);
}
