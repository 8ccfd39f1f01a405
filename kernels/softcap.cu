// Soft-cap: y = cap tanh(x / cap); backward dx = dy (1 - (y / cap)^2).
//
//   y       [n]  f32 or bf16, =; may be x        dx     [n]  =; may be dy
//   x       [n]                                  y, dy  [n]
// Saves y. Grid: ceil(n / 1024) (f32) or ceil(n / 2048) (bf16) blocks of 256 threads, no shared memory; any n.
// Must move 2 n elements forward, 3 n backward.
#include "common/elementwise.cuh"

__device__ __forceinline__ float slope(float y, float cap) {
    const float ratio = y / cap;
    return 1.0f - ratio * ratio;
}

extern "C" __global__ void __launch_bounds__(256, 4) softcap_fwd_vector_f32(float* y, const float* x, float cap, u64 n) {
    elementwise([=](float x) { return cap * tanhf(x / cap); }, n, y, x);
}

extern "C" __global__ void __launch_bounds__(256, 4) softcap_fwd_vector_bf16(bf16* y, const bf16* x, float cap, u64 n) {
    elementwise([=](float x) { return cap * tanhf(x / cap); }, n, y, x);
}

extern "C" __global__ void __launch_bounds__(256, 8) softcap_bwd_vector_f32(float* dx, const float* y, const float* dy, float cap, u64 n) {
    elementwise([=](float y, float d) { return d * slope(y, cap); }, n, dx, y, dy);
}

extern "C" __global__ void __launch_bounds__(256, 8) softcap_bwd_vector_bf16(bf16* dx, const bf16* y, const bf16* dy, float cap, u64 n) {
    elementwise([=](float y, float d) { return d * slope(y, cap); }, n, dx, y, dy);
}
