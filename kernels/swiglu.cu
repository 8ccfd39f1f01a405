// SwiGLU: y = silu(g) u over rows that hold the gate and then the up half; silu(g) = g s, s = 1 / (1 + e^-g).
//
// Forward                                   Backward: du = dy g s, dg = dy u s (1 + g (1 - s))
//   y        [N, F]   f32 or bf16, =          dgate_up  [N, 2F]  =
//   gate_up  [N, 2F]                          gate_up   [N, 2F]  saved;  dy [N, F]
// Saves gate_up. Grid: ceil(N F / 1024) (f32) or ceil(N F / 2048) (bf16) blocks of 256 threads, no shared memory; any size.
// Must move 3 N F elements forward, 5 N F backward.
#include "common/row.cuh"
#include "common/swiglu.cuh"

constexpr u32 THREADS = 256;

template <typename E, u32 W>
__device__ __forceinline__ void forward(E* gy, const E* ggate_up, u32 n, u32 f) {
    for_flat_packs<THREADS, WIDTH<E> / W, W>(n, f, [&](u64 row, u32 column, u64 element) {
        const E* from = ggate_up + row * 2 * f + column;
        float g[W], u[W], y[W];
        load_vector<W>(g, from);
        load_vector<W>(u, from + f);
#pragma unroll
        for (u32 j = 0; j < W; j++) {
            y[j] = swiglu(g[j], u[j]);
        }
        store_vector<W>(gy + element, y);
    });
}

template <typename E, u32 W>
__device__ __forceinline__ void backward(E* gd, const E* ggate_up, const E* gdy, u32 n, u32 f) {
    for_flat_packs<THREADS, WIDTH<E> / W, W>(n, f, [&](u64 row, u32 column, u64 element) {
        const u64 at = row * 2 * f + column;
        float g[W], u[W], dy[W], dg[W], du[W];
        load_vector<W>(g, ggate_up + at);
        load_vector<W>(u, ggate_up + at + f);
        load_vector<W>(dy, gdy + element);
#pragma unroll
        for (u32 j = 0; j < W; j++) {
            swiglu_gradient(dg[j], du[j], g[j], u[j], dy[j]);
        }
        store_vector<W>(gd + at, dg);
        store_vector<W>(gd + at + f, du);
    });
}

// A block owns THREADS * WIDTH elements of y either way: in one access per thread where rows are aligned, else one by one.
extern "C" __global__ void __launch_bounds__(256, 4) swiglu_fwd_vector_f32(float* y, const float* gate_up, u32 n, u32 f) {
    f % 4 == 0 && aligned(16, y, gate_up) ? forward<float, 4>(y, gate_up, n, f) : forward<float, 1>(y, gate_up, n, f);
}

extern "C" __global__ void __launch_bounds__(256, 4) swiglu_fwd_vector_bf16(bf16* y, const bf16* gate_up, u32 n, u32 f) {
    f % 8 == 0 && aligned(16, y, gate_up) ? forward<bf16, 8>(y, gate_up, n, f) : forward<bf16, 1>(y, gate_up, n, f);
}

extern "C" __global__ void __launch_bounds__(256, 4) swiglu_bwd_vector_f32(float* dgate_up, const float* gate_up, const float* dy, u32 n, u32 f) {
    f % 4 == 0 && aligned(16, dgate_up, gate_up, dy) ? backward<float, 4>(dgate_up, gate_up, dy, n, f)
                                                     : backward<float, 1>(dgate_up, gate_up, dy, n, f);
}

extern "C" __global__ void __launch_bounds__(256, 4) swiglu_bwd_vector_bf16(bf16* dgate_up, const bf16* gate_up, const bf16* dy, u32 n, u32 f) {
    f % 8 == 0 && aligned(16, dgate_up, gate_up, dy) ? backward<bf16, 8>(dgate_up, gate_up, dy, n, f)
                                                     : backward<bf16, 1>(dgate_up, gate_up, dy, n, f);
}
