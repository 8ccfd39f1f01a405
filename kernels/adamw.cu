// AdamW on a range of the flat buffers: m = b1 m + (1 - b1) g, v = b2 v + (1 - b2) g^2, w = w keep - rate m / (sqrt(v) root + eps).
//
//   w, m, v  [n]  f32, read and overwritten
//   g        [n]  f32, times the factor of the verdict (clipping)
//   verdict  [2]  f32: factor, and 0 when nothing is to be updated
//   rates    [3]  f32: keep = 1 - lr decay, rate = lr / (1 - b1^n), root = 1 / sqrt(1 - b2^n), formed by the host in f64
// What changes from step to step lies in memory, so that recorded launches can be done again.
// Grid: ceil(n / 1024) blocks of 256 threads, no shared memory; any n. Must move 7 n elements (28 bytes each parameter).
#include "common/elementwise.cuh"

struct AdamW {
    float factor, b1, b2, c1, c2, keep, rate, root, eps;

    __device__ __forceinline__ void update(float& w, float& m, float& v, float g) const {
        g *= factor;
        m = b1 * m + c1 * g;
        v = b2 * v + c2 * g * g;
        w = w * keep - rate * m / (sqrtf(v) * root + eps);
    }
};

extern "C" __global__ void __launch_bounds__(256, 4) adamw_fwd_vector_f32(float* w, float* m, float* v, const float* g, const float* verdict, const float* rates, float b1, float b2, float c1, float c2, float eps, u64 n) {
    if (verdict[1] == 0.0f) {
        return;
    }
    const AdamW adamw = {verdict[0], b1, b2, c1, c2, rates[0], rates[1], rates[2], eps};
    const u64 first = static_cast<u64>(blockIdx.x) * (4 * ELEMENTWISE_THREADS);
    if (first + 4 * ELEMENTWISE_THREADS <= n && aligned(16, w, m, v, g)) {
        const u64 i = first + threadIdx.x * 4;
        float rw[4], rm[4], rv[4], rg[4];
        load_vector<4>(rw, w + i);
        load_vector<4>(rm, m + i);
        load_vector<4>(rv, v + i);
        load_vector<4>(rg, g + i);
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            adamw.update(rw[k], rm[k], rv[k], rg[k]);
        }
        store_vector<4>(w + i, rw);
        store_vector<4>(m + i, rm);
        store_vector<4>(v + i, rv);
    } else {
#pragma unroll
        for (u32 k = 0; k < 4; k++) {
            const u64 i = first + k * ELEMENTWISE_THREADS + threadIdx.x;
            if (i < n) {
                float rw = w[i], rm = m[i], rv = v[i];
                adamw.update(rw, rm, rv, g[i]);
                w[i] = rw, m[i] = rm, v[i] = rv;
            }
        }
    }
}
