// Unit length: y = x r over rows of D, r = 1 / sqrt(|x|^2 + 1e-6).
//
// Forward                         Backward: dx = r dy - x r^3 <x, dy>
//   y  [N, D]  f32 or bf16, =     dx     [N, D]  =
//   x  [N, D]                     x, dy  [N, D]
// Saves x. Grid: ceil(N / 32) blocks of 256 threads, 8 lanes a row, which stays in their registers; D <= 256; no shared memory.
// Must move 2 N D elements forward, 3 N D backward.
#include "common/row.cuh"

constexpr u32 THREADS = 256;
constexpr u32 LANES = 8;               // of 4 to 32 numbers each: heads are 64 or 128 wide
constexpr u32 V = 32;
constexpr float EPS = 1e-6f;

// The same bits for the eight lanes of a row.
__device__ __forceinline__ float lanes_sum(float x) {
#pragma unroll
    for (u32 mask = LANES / 2; mask > 0; mask /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, mask);
    }
    return x;
}

// Rows past the end have no columns: their lanes take part in sums and nothing else.
template <typename E, u32 W>
__device__ __forceinline__ void forward(E* gy, const E* gx, u32 n, u32 d) {
    const u64 row = blockIdx.x * static_cast<u64>(THREADS / LANES) + threadIdx.x / LANES;
    const u32 lane = threadIdx.x % LANES, c = row < n ? d : 0;
    RowPart<V, W> x;
    for_packs<LANES, V, W>(c, lane, [&](u32 p, u32 i) { load_vector<W>(x.r[p], gx + row * d + i); });
    const float squares = lanes_sum(sum_packs<LANES, V, W>(c, lane, [&](u32 p, u32 k) { return x.r[p][k] * x.r[p][k]; }));
    const float r = 1.0f / sqrtf(squares + EPS);
    for_packs<LANES, V, W>(c, lane, [&](u32 p, u32 i) {
        float y[W];
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            y[k] = x.r[p][k] * r;
        }
        store_vector<W>(gy + row * d + i, y);
    });
}

template <typename E, u32 W>
__device__ __forceinline__ void backward(E* gdx, const E* gx, const E* gdy, u32 n, u32 d) {
    const u64 row = blockIdx.x * static_cast<u64>(THREADS / LANES) + threadIdx.x / LANES;
    const u32 lane = threadIdx.x % LANES, c = row < n ? d : 0;
    RowPart<V, W> x, dy;
    for_packs<LANES, V, W>(c, lane, [&](u32 p, u32 i) {
        load_vector<W>(x.r[p], gx + row * d + i);
        load_vector<W>(dy.r[p], gdy + row * d + i);
    });
    const float squares = lanes_sum(sum_packs<LANES, V, W>(c, lane, [&](u32 p, u32 k) { return x.r[p][k] * x.r[p][k]; }));
    const float along = lanes_sum(sum_packs<LANES, V, W>(c, lane, [&](u32 p, u32 k) { return x.r[p][k] * dy.r[p][k]; }));
    const float r = 1.0f / sqrtf(squares + EPS), slope = along * r * r * r;
    for_packs<LANES, V, W>(c, lane, [&](u32 p, u32 i) {
        float dx[W];
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            dx[k] = dy.r[p][k] * r - x.r[p][k] * slope;
        }
        store_vector<W>(gdx + row * d + i, dx);
    });
}

extern "C" __global__ void __launch_bounds__(256, 4) unit_norm_fwd_lanes_per_row_f32(float* y, const float* x, u32 n, u32 d) {
    d % 4 == 0 && aligned(16, y, x) ? forward<float, 4>(y, x, n, d) : forward<float, 1>(y, x, n, d);
}

extern "C" __global__ void __launch_bounds__(256, 4) unit_norm_fwd_lanes_per_row_bf16(bf16* y, const bf16* x, u32 n, u32 d) {
    d % 8 == 0 && aligned(16, y, x) ? forward<bf16, 8>(y, x, n, d) : forward<bf16, 1>(y, x, n, d);
}

extern "C" __global__ void __launch_bounds__(256, 2) unit_norm_bwd_lanes_per_row_f32(float* dx, const float* x, const float* dy, u32 n, u32 d) {
    d % 4 == 0 && aligned(16, dx, x, dy) ? backward<float, 4>(dx, x, dy, n, d) : backward<float, 1>(dx, x, dy, n, d);
}

extern "C" __global__ void __launch_bounds__(256, 2) unit_norm_bwd_lanes_per_row_bf16(bf16* dx, const bf16* x, const bf16* dy, u32 n, u32 d) {
    d % 8 == 0 && aligned(16, dx, x, dy) ? backward<bf16, 8>(dx, x, dy, n, d) : backward<bf16, 1>(dx, x, dy, n, d);
}
