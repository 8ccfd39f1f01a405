// A sigmoid gate: y = x s(g), s(g) = 1 / (1 + e^-g); without x the sigmoid alone.
//
// Forward                                 Backward: dx = dy s, dg = dy x s (1 - s)
//   y     [n]  f32 or bf16, =             dx, dgate    [n]  =; dx null without x
//   x     [n]  or null                    x, gate, dy  [n]  x null where forward had none
//   gate  [n]
// Saves x and gate. Grid: ceil(n / 1024) (f32) or ceil(n / 2048) (bf16) blocks of 256 threads, no shared memory; any n.
// Must move 3 n elements forward (2 without x), 5 n backward (3 without x).
#include "common/elementwise.cuh"
#include "common/row.cuh"

constexpr u32 THREADS = 256;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename E>
__device__ __forceinline__ void forward(E* gy, const E* gx, const E* ggate, u64 n) {
    if (gx == nullptr) {
        elementwise([](float g) { return sigmoid(g); }, n, gy, ggate);
    } else {
        elementwise([](float x, float g) { return x * sigmoid(g); }, n, gy, gx, ggate);
    }
}

template <typename E, u32 W>
__device__ __forceinline__ void backward(E* gdx, E* gdgate, const E* gx, const E* ggate, const E* gdy, u32 n) {
    for_flat_packs<THREADS, WIDTH<E> / W, W>(1, n, [&](u64, u32, u64 i) {
        float x[W], g[W], dy[W], dx[W], dg[W];
        load_vector<W>(g, ggate + i);
        load_vector<W>(dy, gdy + i);
        if (gx != nullptr) {
            load_vector<W>(x, gx + i);
        }
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            const float s = sigmoid(g[k]);
            dx[k] = dy[k] * s;
            dg[k] = dy[k] * (gx == nullptr ? 1.0f : x[k]) * s * (1.0f - s);
        }
        if (gx != nullptr) {
            store_vector<W>(gdx + i, dx);
        }
        store_vector<W>(gdgate + i, dg);
    });
}

extern "C" __global__ void __launch_bounds__(256, 4) sigmoid_gate_fwd_vector_f32(float* y, const float* x, const float* gate, u64 n) {
    forward(y, x, gate, n);
}

extern "C" __global__ void __launch_bounds__(256, 4) sigmoid_gate_fwd_vector_bf16(bf16* y, const bf16* x, const bf16* gate, u64 n) {
    forward(y, x, gate, n);
}

// A block owns THREADS * WIDTH elements either way: in one access per thread where all are aligned, else one by one.
extern "C" __global__ void __launch_bounds__(256, 4) sigmoid_gate_bwd_vector_f32(float* dx, float* dgate, const float* x, const float* gate, const float* dy, u32 n) {
    n % 4 == 0 && aligned(16, dx, dgate, x, gate, dy) ? backward<float, 4>(dx, dgate, x, gate, dy, n)
                                                      : backward<float, 1>(dx, dgate, x, gate, dy, n);
}

extern "C" __global__ void __launch_bounds__(256, 4) sigmoid_gate_bwd_vector_bf16(bf16* dx, bf16* dgate, const bf16* x, const bf16* gate, const bf16* dy, u32 n) {
    n % 8 == 0 && aligned(16, dx, dgate, x, gate, dy) ? backward<bf16, 8>(dx, dgate, x, gate, dy, n)
                                                      : backward<bf16, 1>(dx, dgate, x, gate, dy, n);
}
