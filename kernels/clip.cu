// Clipping and the verdict on a step, without the host: sum of the losses, norm of the gradient, the factor that clips it, and
// whether the step may be applied.
//
// `losses`: total += sum of x_i in f64                                    total [1] f64, +=;  x [n] f32
// `verdict`, from partial sums of squares (grad_norm) and knobs (weight, mean, clip, largest loss, largest norm):
//   report   [3 + R]  f64, =: total, norm, 1 if the step may be applied, then the sum of squares of each of R ranges
//   verdict  [2]      f32, =: min(clip / norm, 1), and 1 if it may be applied, else 0
//   total    [1], partial [firsts[R]], knobs [5]  f64;  firsts [R + 1] u32: the first partial sum of each range, then their end
// It may be applied when weight (total mean) and every sum of squares are finite and loss and norm are not above the largest.
// One block of 256 threads, 128 bytes of shared memory; a warp a range. The order of every sum is fixed; some microseconds.
#include "common/reduce.cuh"

constexpr u32 THREADS = 256;
constexpr double TINY = 1e-30;  // a norm of zero clips nothing

__device__ __forceinline__ bool is_finite(double x) { return x - x == 0.0; }

extern "C" __global__ void __launch_bounds__(256, 1) clip_fwd_losses_f32(double* total, const float* x, u32 n) {
    __shared__ double s[2][THREADS / WARP];
    double sum = 0.0;
    for (u32 i = threadIdx.x; i < n; i += THREADS) {
        sum += x[i];
    }
    sum = block_sum<THREADS>(sum, s, 0);
    if (threadIdx.x == 0) {
        *total += sum;
    }
}

extern "C" __global__ void __launch_bounds__(256, 1) clip_fwd_verdict_f64(double* report, float* verdict, const double* total, const double* partial, const double* knobs, const u32* firsts, u32 ranges) {
    __shared__ double s[2][THREADS / WARP];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    double all = 0.0;
    for (u32 range = warp; range < ranges; range += THREADS / WARP) {
        double squares = 0.0;
        for (u32 i = firsts[range] + lane; i < firsts[range + 1]; i += WARP) {
            squares += partial[i];
        }
        squares = warp_sum(squares);
        if (lane == 0) {
            report[3 + range] = squares;
            all += squares;
        }
    }
    all = block_sum<THREADS>(all, s, 0);
    if (threadIdx.x == 0) {
        const double norm = sqrt(all), loss = knobs[0] * (*total * knobs[1]);
        const double factor = knobs[2] / (norm > TINY ? norm : TINY);
        const bool applies = is_finite(loss) && is_finite(all) && loss <= knobs[3] && norm <= knobs[4];
        report[0] = *total;
        report[1] = norm;
        verdict[0] = static_cast<float>(factor < 1.0 ? factor : 1.0);
        report[2] = applies ? 1.0 : 0.0;
        verdict[1] = applies ? 1.0f : 0.0f;
    }
}
