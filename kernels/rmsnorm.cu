// RMSNorm: y = x r g with r = 1 / sqrt(mean(x^2) + eps); fused with an addition, x = residual + delta is made on the way.
//
// Forward
//   y         [N, C]  f32 or bf16, =
//   sum       [N, C]  =, residual + x rounded to the storage type; null without a residual; may be x
//   rstd      [N]     f32, =
//   x         [N, C]
//   residual  [N, C]  or null
//   gain      [C] or null: 1
// Saves x (the sum, where there is one) and rstd. Must move 2 N C elements, fused 4 N C.
//
// Backward, with d = dy g: dx = r d - x r^3 mean(d x) (+ dsum), dgain = sum over rows of dy x r
//   dx       [N, C]  =; may be dsum
//   partial  [P, C]  f32, =; row p is the sum over the rows of block p; `row_sum` adds them up; null without a gain
//   x, rstd  saved;  dy [N, C];  dsum [N, C] the residual's own gradient or null;  gain [C] or null
// Must move 3 N C elements, fused 4 N C.
//
// Geometry: `warp_per_row` for C <= 1024: blocks of 8 warps, forward ceil(N / 8) of them, backward P. `block_per_row` for
// C <= 8192: blocks of 512, forward N of them, backward P. Rows stay in registers; sums in a fixed order.
// Learnt from: llm.c (rmsnorm kernels), QuACK (rows in registers, one read and one write).
#include "common/row.cuh"

constexpr u32 BLOCK = 512;
// Numbers of a thread: 32 lanes of 32 are 1024, 512 threads of 16 are 8192. More would spill in backward.
constexpr u32 WARP_V = 32;
constexpr u32 BLOCK_V = 16;

template <u32 W, typename E>
__device__ __forceinline__ void load_gain(float (&r)[W], const E* ggain, u32 i) {
    if (ggain != nullptr) {
        load_vector<W>(r, ggain + i);
    } else {
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            r[k] = 1.0f;
        }
    }
}

template <typename E, u32 LANES, u32 V, u32 W, typename Sum>
__device__ __forceinline__ void forward_row(E* gy, E* gsum, float* grstd, const E* gx, const E* gresidual, const E* ggain, float eps,
                                            u64 row, u32 c, u32 lane, Sum sum_lanes) {
    RowPart<V, W> x;
    const u64 start = row * c;
    for_packs<LANES, V, W>(c, lane, [&](u32 p, u32 i) { load_vector<W>(x.r[p], gx + start + i); });
    if (gresidual != nullptr) {
        for_packs<LANES, V, W>(c, lane, [&](u32 p, u32 i) {
            float h[W];
            load_vector<W>(h, gresidual + start + i);
#pragma unroll
            for (u32 k = 0; k < W; k++) {
                x.r[p][k] = rounded(x.r[p][k] + h[k], gx);
            }
            store_vector<W>(gsum + start + i, x.r[p]);
        });
    }
    const float squares = sum_lanes(sum_packs<LANES, V, W>(c, lane, [&](u32 p, u32 k) { return x.r[p][k] * x.r[p][k]; }));
    const float r = 1.0f / sqrtf(squares / static_cast<float>(c) + eps);
    if (lane == 0) {
        grstd[row] = r;
    }
    for_packs<LANES, V, W>(c, lane, [&](u32 p, u32 i) {
        float g[W], y[W];
        load_gain<W>(g, ggain, i);
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            y[k] = x.r[p][k] * r * g[k];
        }
        store_vector<W>(gy + start + i, y);
    });
}

// Adds the row's share of dgain to `dgain` as it goes.
template <typename E, u32 LANES, u32 V, u32 W, typename Sum>
__device__ __forceinline__ void backward_row(E* gdx, RowPart<V, W>& dgain, const E* gx, const float* grstd, const E* gdy, const E* gdsum,
                                             const E* ggain, u64 row, u32 c, u32 lane, Sum sum_lanes) {
    RowPart<V, W> x, d;
    const u64 start = row * c;
    const float r = grstd[row];
    for_packs<LANES, V, W>(c, lane, [&](u32 p, u32 i) {
        float g[W];
        load_vector<W>(x.r[p], gx + start + i);
        load_vector<W>(d.r[p], gdy + start + i);
        load_gain<W>(g, ggain, i);
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            dgain.r[p][k] += d.r[p][k] * r * x.r[p][k];
            d.r[p][k] *= g[k];
        }
    });
    const float projected = sum_lanes(sum_packs<LANES, V, W>(c, lane, [&](u32 p, u32 k) { return d.r[p][k] * x.r[p][k]; }));
    const float slope = projected / static_cast<float>(c) * r * r * r;
    for_packs<LANES, V, W>(c, lane, [&](u32 p, u32 i) {
        float own[W] = {};
        if (gdsum != nullptr) {
            load_vector<W>(own, gdsum + start + i);
        }
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            own[k] += d.r[p][k] * r - x.r[p][k] * slope;
        }
        store_vector<W>(gdx + start + i, own);
    });
}

template <typename E, u32 W>
__device__ __forceinline__ void forward_warp(E* gy, E* gsum, float* grstd, const E* gx, const E* gresidual, const E* ggain, float eps,
                                             u32 n, u32 c) {
    const u64 row = blockIdx.x * 8ull + threadIdx.x / WARP;
    if (row < n) {
        forward_row<E, WARP, WARP_V, W>(gy, gsum, grstd, gx, gresidual, ggain, eps, row, c, threadIdx.x % WARP,
                                [](float x) { return warp_sum(x); });
    }
}

template <typename E, u32 W>
__device__ __forceinline__ void backward_warp(E* gdx, float* gpartial, const E* gx, const float* grstd, const E* gdy, const E* gdsum,
                                              const E* ggain, u32 n, u32 c, float (&spartial)[8][1024]) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    RowPart<WARP_V, W> dgain = {};
    for (u64 row = blockIdx.x * 8ull + warp; row < n; row += gridDim.x * 8ull) {
        backward_row<E, WARP, WARP_V, W>(gdx, dgain, gx, grstd, gdy, gdsum, ggain, row, c, lane, [](float x) { return warp_sum(x); });
    }
    if (gpartial == nullptr) {
        return;  // without a gain; the same for all threads
    }
    for_packs<WARP, WARP_V, W>(c, lane, [&](u32 p, u32 i) { store_vector<W>(&spartial[warp][i], dgain.r[p]); });
    __syncthreads();  // the shares of all eight warps are there
    for (u32 i = threadIdx.x; i < c; i += 8 * WARP) {
        float sum = spartial[0][i];
#pragma unroll
        for (u32 w = 1; w < 8; w++) {
            sum += spartial[w][i];
        }
        gpartial[static_cast<u64>(blockIdx.x) * c + i] = sum;
    }
}

template <typename E, u32 W>
__device__ __forceinline__ void forward_block(E* gy, E* gsum, float* grstd, const E* gx, const E* gresidual, const E* ggain, float eps,
                                              u32 c, float (&s)[2][BLOCK / WARP]) {
    forward_row<E, BLOCK, BLOCK_V, W>(gy, gsum, grstd, gx, gresidual, ggain, eps, blockIdx.x, c, threadIdx.x,
                             [&](float x) { return block_sum<BLOCK>(x, s, 0); });
}

template <typename E, u32 W>
__device__ __forceinline__ void backward_block(E* gdx, float* gpartial, const E* gx, const float* grstd, const E* gdy, const E* gdsum,
                                               const E* ggain, u32 n, u32 c, float (&s)[2][BLOCK / WARP]) {
    RowPart<BLOCK_V, W> dgain = {};
    u32 round = 0;
    for (u64 row = blockIdx.x; row < n; row += gridDim.x) {
        backward_row<E, BLOCK, BLOCK_V, W>(gdx, dgain, gx, grstd, gdy, gdsum, ggain, row, c, threadIdx.x,
                                  [&](float x) { return block_sum<BLOCK>(x, s, round++); });
    }
    if (gpartial == nullptr) {
        return;  // without a gain
    }
    for_packs<BLOCK, BLOCK_V, W>(c, threadIdx.x, [&](u32 p, u32 i) {
        store_vector<W>(gpartial + static_cast<u64>(blockIdx.x) * c + i, dgain.r[p]);
    });
}

extern "C" __global__ void __launch_bounds__(256, 3) rmsnorm_fwd_warp_per_row_f32(float* y, float* sum, float* rstd, const float* x, const float* residual, const float* gain, float eps, u32 n, u32 c) {
    if (c % 4 == 0 && aligned(16, y, sum, x, residual, gain)) {
        forward_warp<float, 4>(y, sum, rstd, x, residual, gain, eps, n, c);
    } else {
        forward_warp<float, 1>(y, sum, rstd, x, residual, gain, eps, n, c);
    }
}

extern "C" __global__ void __launch_bounds__(256, 3) rmsnorm_fwd_warp_per_row_bf16(bf16* y, bf16* sum, float* rstd, const bf16* x, const bf16* residual, const bf16* gain, float eps, u32 n, u32 c) {
    if (c % 8 == 0 && aligned(16, y, sum, x, residual, gain)) {
        forward_warp<bf16, 8>(y, sum, rstd, x, residual, gain, eps, n, c);
    } else {
        forward_warp<bf16, 1>(y, sum, rstd, x, residual, gain, eps, n, c);
    }
}

extern "C" __global__ void __launch_bounds__(512, 2) rmsnorm_fwd_block_per_row_f32(float* y, float* sum, float* rstd, const float* x, const float* residual, const float* gain, float eps, u32 c) {
    __shared__ float s[2][BLOCK / WARP];
    if (c % 4 == 0 && aligned(16, y, sum, x, residual, gain)) {
        forward_block<float, 4>(y, sum, rstd, x, residual, gain, eps, c, s);
    } else {
        forward_block<float, 1>(y, sum, rstd, x, residual, gain, eps, c, s);
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) rmsnorm_fwd_block_per_row_bf16(bf16* y, bf16* sum, float* rstd, const bf16* x, const bf16* residual, const bf16* gain, float eps, u32 c) {
    __shared__ float s[2][BLOCK / WARP];
    if (c % 8 == 0 && aligned(16, y, sum, x, residual, gain)) {
        forward_block<bf16, 8>(y, sum, rstd, x, residual, gain, eps, c, s);
    } else {
        forward_block<bf16, 1>(y, sum, rstd, x, residual, gain, eps, c, s);
    }
}

extern "C" __global__ void __launch_bounds__(256, 1) rmsnorm_bwd_warp_per_row_f32(float* dx, float* partial, const float* x, const float* rstd, const float* dy, const float* dsum, const float* gain, u32 n, u32 c) {
    __shared__ __align__(16) float spartial[8][1024];
    if (c % 4 == 0 && aligned(16, dx, x, dy, dsum, gain)) {
        backward_warp<float, 4>(dx, partial, x, rstd, dy, dsum, gain, n, c, spartial);
    } else {
        backward_warp<float, 1>(dx, partial, x, rstd, dy, dsum, gain, n, c, spartial);
    }
}

extern "C" __global__ void __launch_bounds__(256, 1) rmsnorm_bwd_warp_per_row_bf16(bf16* dx, float* partial, const bf16* x, const float* rstd, const bf16* dy, const bf16* dsum, const bf16* gain, u32 n, u32 c) {
    __shared__ __align__(16) float spartial[8][1024];
    if (c % 8 == 0 && aligned(16, dx, x, dy, dsum, gain)) {
        backward_warp<bf16, 8>(dx, partial, x, rstd, dy, dsum, gain, n, c, spartial);
    } else {
        backward_warp<bf16, 1>(dx, partial, x, rstd, dy, dsum, gain, n, c, spartial);
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) rmsnorm_bwd_block_per_row_f32(float* dx, float* partial, const float* x, const float* rstd, const float* dy, const float* dsum, const float* gain, u32 n, u32 c) {
    __shared__ float s[2][BLOCK / WARP];
    if (c % 4 == 0 && aligned(16, dx, x, dy, dsum, gain)) {
        backward_block<float, 4>(dx, partial, x, rstd, dy, dsum, gain, n, c, s);
    } else {
        backward_block<float, 1>(dx, partial, x, rstd, dy, dsum, gain, n, c, s);
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) rmsnorm_bwd_block_per_row_bf16(bf16* dx, float* partial, const bf16* x, const float* rstd, const bf16* dy, const bf16* dsum, const bf16* gain, u32 n, u32 c) {
    __shared__ float s[2][BLOCK / WARP];
    if (c % 8 == 0 && aligned(16, dx, x, dy, dsum, gain)) {
        backward_block<bf16, 8>(dx, partial, x, rstd, dy, dsum, gain, n, c, s);
    } else {
        backward_block<bf16, 1>(dx, partial, x, rstd, dy, dsum, gain, n, c, s);
    }
}
