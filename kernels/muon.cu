// Muon's elementwise parts; its Newton-Schulz rounds are matrix products.
//
// `momentum`: m = mu m + rest f g, u = mu m + rest f g (Nesterov)      u [n] =, m [n] read and overwritten, g [n]
// `normalise`: u = u / (sqrt(sum of `partial`) + 1e-7)                 u [n] read and overwritten, partial [parts] f64
// `apply`: w = w - rate o - (decay w where w o > 0, else 0)            w [n] read and overwritten, o [n]
// verdict [2]: the factor f that clips gradients, and 0 when neither m nor w is to be updated; rates [2]: rate, decay: in
// memory, so that recorded launches can be done again.
// All f32. Grid: ceil(n / 1024) blocks of 256 threads, no shared memory; any n.
// `partial` comes from grad_norm; every thread adds it up in order, which costs a few reads of one line.
// Must move 4 n, 2 n and 3 n elements.
#include "common/elementwise.cuh"

extern "C" __global__ void __launch_bounds__(256, 4) muon_fwd_momentum_f32(float* u, float* m, const float* g, const float* verdict, float mu, float rest, u64 n) {
    const bool updates = verdict[1] != 0.0f;
    const float scale = rest * verdict[0];
    const u64 first = static_cast<u64>(blockIdx.x) * (4 * ELEMENTWISE_THREADS);
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        const u64 i = first + k * ELEMENTWISE_THREADS + threadIdx.x;
        if (i < n) {
            const float gradient = scale * g[i], momentum = mu * m[i] + gradient;
            if (updates) {
                m[i] = momentum;
            }
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

extern "C" __global__ void __launch_bounds__(256, 4) muon_fwd_apply_f32(float* w, const float* o, const float* verdict, const float* rates, u64 n) {
    if (verdict[1] == 0.0f) {
        return;
    }
    const float rate = rates[0], decay = rates[1];
    elementwise([=](float w, float o) { return w - rate * o - (w * o > 0.0f ? decay * w : 0.0f); }, n, w, w, o);
}
