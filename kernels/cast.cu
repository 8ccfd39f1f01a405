// Cast: y_i = x_i in another storage type, rounded to nearest even. What makes the rounded copy of the parameters, too.
//
//   y  [n]  bf16 or f32, =
//   x  [n]  f32 or bf16
// Saves nothing. Grid: ceil(n / 1024) blocks of 256 threads, no shared memory; any n. Must move 6 n bytes.
#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(256, 8) cast_fwd_vector_f32_to_bf16(bf16* y, const float* x, u64 n) {
    elementwise([](float x) { return x; }, n, y, x);
}

extern "C" __global__ void __launch_bounds__(256, 8) cast_fwd_vector_bf16_to_f32(float* y, const bf16* x, u64 n) {
    elementwise([](float x) { return x; }, n, y, x);
}
