// Muon's elementwise parts; its Newton-Schulz rounds are matrix products.
//
// `momentum`: m = mu m + rest g, u = mu m + rest g (Nesterov)          u [n] =, m [n] read and overwritten, g [n]
// `normalise`: u = u / (sqrt(sum of `partial`) + 1e-7)                 u [n] read and overwritten, partial [parts] f64
// `apply`: w = w - rate o - (decay w where w o > 0, else 0)            w [n] read and overwritten, o [n]
// All f32. Grid: ceil(n / 1024) blocks of 256 threads, no shared memory; any n.
// `partial` comes from grad_norm; every thread adds it up in order, which costs a few reads of one line.
// Must move 4 n, 2 n and 3 n elements.
#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(256, 4) muon_fwd_momentum_f32(float* u, float* m, const float* g, float mu, float rest, u64 n) {
    const u64 first = static_cast<u64>(blockIdx.x) * (4 * ELEMENTWISE_THREADS);
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        const u64 i = first + k * ELEMENTWISE_THREADS + threadIdx.x;
        if (i < n) {
            const float gradient = rest * g[i], momentum = mu * m[i] + gradient;
            m[i] = momentum;
            u[i] = mu * momentum + gradient;
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) muon_fwd_normalise_f32(float* u, const double* partial, u32 parts, u64 n) {
    double sum = 0.0;
    for (u32 i = 0; i < parts; i++) {
        sum += partial[i];
    }
    const float scale = 1.0f / (sqrtf(static_cast<float>(sum)) + 1e-7f);
    elementwise([=](float x) { return x * scale; }, n, u, u);
}

extern "C" __global__ void __launch_bounds__(256, 4) muon_fwd_apply_f32(float* w, const float* o, float rate, float decay, u64 n) {
    elementwise([=](float w, float o) { return w - rate * o - (w * o > 0.0f ? decay * w : 0.0f); }, n, w, w, o);
}
