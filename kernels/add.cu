// Addition: y_i = a_i + b_i. Backward hands dy to both, so it has no kernel of its own.
//
//   y     [n]  f32 or bf16, =; may be a
//   a, b  [n]  the same type
// Saves nothing. Grid: ceil(n / 1024) (f32) or ceil(n / 2048) (bf16) blocks of 256 threads, no shared memory; any n.
// Must move 3 n elements, does n additions.
#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(256, 8) add_fwd_vector_f32(float* y, const float* a, const float* b, u64 n) {
    elementwise([](float a, float b) { return a + b; }, n, y, a, b);
}

extern "C" __global__ void __launch_bounds__(256, 8) add_fwd_vector_bf16(bf16* y, const bf16* a, const bf16* b, u64 n) {
    elementwise([](float a, float b) { return a + b; }, n, y, a, b);
}
