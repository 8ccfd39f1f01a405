// Sums of squares: partial_b = sum of x_i^2 over part b, in f64 (squares of large f32 overflow f32).
//
//   partial  [ceil(n / 16384)]  f64, =; the host adds them up in order
//   x        [n]                f32
// Grid: ceil(n / 16384) blocks of 256 threads, 128 bytes of shared memory; any n. Must move n elements.
#include "common/reduce.cuh"
#include "common/vector.cuh"

constexpr u32 THREADS = 256;
constexpr u32 PART = 16384;

extern "C" __global__ void __launch_bounds__(256, 4) grad_norm_fwd_part_per_block_f32(double* partial, const float* x, u64 n) {
    __shared__ double s[2][THREADS / WARP];
    const u64 first = static_cast<u64>(blockIdx.x) * PART;
    const u32 count = n - first < PART ? static_cast<u32>(n - first) : PART;
    double sum = 0.0;
    if (count == PART && aligned(16, x)) {
        for (u32 i = threadIdx.x * 4; i < PART; i += THREADS * 4) {
            float r[4];
            load_vector<4>(r, x + first + i);
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                sum += static_cast<double>(r[k]) * r[k];
            }
        }
    } else {
        for (u32 i = threadIdx.x; i < count; i += THREADS) {
            sum += static_cast<double>(x[first + i]) * x[first + i];
        }
    }
    sum = block_sum<THREADS>(sum, s, 0);
    if (threadIdx.x == 0) {
        partial[blockIdx.x] = sum;
    }
}
