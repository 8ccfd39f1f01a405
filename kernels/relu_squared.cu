// Squared ReLU: y = max(x, 0)^2; backward dx = 2 max(x, 0) dy.
//
//   y, dx     [n]  f32 or bf16, =
//   x, dy     [n]  the same type
// Saves x. Grid: ceil(n / 1024) (f32) or ceil(n / 2048) (bf16) blocks of 256 threads, no shared memory; any n. Must move 2 n
// elements forward, 3 n backward. NaN stays NaN.
#include "common/elementwise.cuh"

__device__ __forceinline__ float above_zero(float x) { return x < 0.0f ? 0.0f : x; }

template <typename E>
__device__ __forceinline__ void forward(E* gy, const E* gx, u64 n) {
    elementwise([](float x) { return above_zero(x) * above_zero(x); }, n, gy, gx);
}

template <typename E>
__device__ __forceinline__ void backward(E* gdx, const E* gx, const E* gdy, u64 n) {
    elementwise([](float x, float d) { return (above_zero(x) + above_zero(x)) * d; }, n, gdx, gx, gdy);
}

extern "C" __global__ void __launch_bounds__(256, 8) relu_squared_fwd_vector_f32(float* y, const float* x, u64 n) {
    forward(y, x, n);
}

extern "C" __global__ void __launch_bounds__(256, 8) relu_squared_fwd_vector_bf16(bf16* y, const bf16* x, u64 n) {
    forward(y, x, n);
}

extern "C" __global__ void __launch_bounds__(256, 8) relu_squared_bwd_vector_f32(float* dx, const float* x, const float* dy, u64 n) {
    backward(dx, x, dy, n);
}

extern "C" __global__ void __launch_bounds__(256, 8) relu_squared_bwd_vector_bf16(bf16* dx, const bf16* x, const bf16* dy, u64 n) {
    backward(dx, x, dy, n);
}
