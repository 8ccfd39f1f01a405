// Fill: y_i = value.
//
//   y      [n]  f32 or bf16, =
//   value  f32, rounded to the type of y
// Saves nothing. Grid: ceil(n / 1024) (f32) or ceil(n / 2048) (bf16) blocks of 256 threads, no shared memory; any n.
// Must move n elements.
#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(256, 8) fill_fwd_vector_f32(float* y, float value, u64 n) {
    elementwise([=]() { return value; }, n, y);
}

extern "C" __global__ void __launch_bounds__(256, 8) fill_fwd_vector_bf16(bf16* y, float value, u64 n) {
    elementwise([=]() { return value; }, n, y);
}
