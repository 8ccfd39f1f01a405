// Sums of squares: partial_b = sum of x_i^2 over part b, in f64 (squares of large f32 overflow f32).
//
//   partial  [B]        f64, =; who needs the whole adds them up in order
//   x        [n]        f32
//   parts    [B, 3]     u32: low and high word of the first element, and number (at most 16384) of each part; without it, part b
//                       begins at 16384 b
// Grid: B blocks of 256 threads (ceil(n / 16384) without `parts`), 128 bytes of shared memory; any n. Must move n elements.
#include "common/reduce.cuh"
#include "common/vector.cuh"

constexpr u32 THREADS = 256;
constexpr u32 PART = 16384;

__device__ __forceinline__ void sum_part(double* partial, const float* x, u32 count) {
    __shared__ double s[2][THREADS / WARP];
    double sum = 0.0;
    if (count == PART && aligned(16, x)) {
        for (u32 i = threadIdx.x * 4; i < PART; i += THREADS * 4) {
            float r[4];
            load_vector<4>(r, x + i);
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                sum += static_cast<double>(r[k]) * r[k];
            }
        }
    } else {
        for (u32 i = threadIdx.x; i < count; i += THREADS) {
            sum += static_cast<double>(x[i]) * x[i];
        }
    }
    sum = block_sum<THREADS>(sum, s, 0);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) grad_norm_fwd_part_per_block_f32(double* partial, const float* x, u64 n) {
    const u64 first = static_cast<u64>(blockIdx.x) * PART;
    sum_part(partial, x + first, n - first < PART ? static_cast<u32>(n - first) : PART);
}

extern "C" __global__ void __launch_bounds__(256, 4) grad_norm_fwd_listed_part_per_block_f32(double* partial, const float* x, const u32* parts) {
    const u32* part = parts + 3 * blockIdx.x;
    sum_part(partial, x + (static_cast<u64>(part[1]) << 32 | part[0]), part[2]);
}
