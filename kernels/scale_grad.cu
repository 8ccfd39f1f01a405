// Trunk-gradient scale, backward: dx_i = rho dy_i. Forward is the identity and has no kernel.
//
//   dx  [n]  f32 or bf16, =; may be dy
//   dy  [n]  the same type
//   rho [1]  f32, read here so that a recorded step can be done again with another one
// Grid: ceil(n / 1024) (f32) or ceil(n / 2048) (bf16) blocks of 256 threads, no shared memory; any n. Must move 2 n elements.
#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(256, 8) scale_grad_bwd_vector_f32(float* dx, const float* dy, const float* rho, u64 n) {
    const float factor = *rho;
    elementwise([=](float d) { return d * factor; }, n, dx, dy);
}

extern "C" __global__ void __launch_bounds__(256, 8) scale_grad_bwd_vector_bf16(bf16* dx, const bf16* dy, const float* rho, u64 n) {
    const float factor = *rho;
    elementwise([=](float d) { return d * factor; }, n, dx, dy);
}
