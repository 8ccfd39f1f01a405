// RoPE, rotate-half, of packed q, k, v rows, after an optional RMSNorm of every query and key head (QK-norm).
//
//   low' = low c - high s, high' = high c + low s    with low = x_i, high = x_{i+D/2}, i < D/2, and c, s of the row's position
//
// Forward
//   y     [N, (H+2G)D]  f32 or bf16, =; without a norm it may be x
//   rstd  [N, H+G]      f32, =, with a norm
//   x     [N, (H+2G)D]
//   cos, sin [S, D/2]   f32
//   q_gain, k_gain [D]  or null: no norm
// Saves x and rstd with a norm, nothing without. Row n is at position start + n % t.
// Heads `0 .. heads` of a row are processed: H+G where y is x, H+2G where the values must be copied, too.
//
// Backward rotates back; with a norm it goes on through it:
//   dx       [N, (H+2G)D]  heads 0 .. H+G, =; may be dy; the values' gradient is dy's, so dx should be dy
//   partial  [P, 2D]       f32, =, with a norm: sums over the rows of a block for the gains of q, then of k; `row_sum` adds up
//   x, rstd  saved or null; cos, sin, dy, gains
//
// Geometry: blocks of 8 warps. Forward: a warp per row and head, ceil(N heads / 8) blocks. Backward: a warp per row, P blocks.
// D even, at most 512; backward has kernels for heads up to 128, which hold few registers, and wide ones. Must move 2 N (H+G) D elements forward, 2 (3 with a norm) backward; the table comes from L2.
#include "common/reduce.cuh"
#include "common/vector.cuh"

// Pairs that a lane holds: 32 lanes of 2 are the 64 pairs of a head of 128, of 8 the 256 of a head of 512.
constexpr u32 FEW = 2, MANY = 8;

template <u32 PAIRS>
struct Head {
    float low[PAIRS], high[PAIRS];
};

// f(pair of this lane, pair of the head)
template <u32 PAIRS, typename F>
__device__ __forceinline__ void for_pairs(u32 half, F f) {
#pragma unroll
    for (u32 p = 0; p < PAIRS; p++) {
        const u32 i = p * WARP + threadIdx.x % WARP;
        if (i < half) {
            f(p, i);
        }
    }
}

template <u32 PAIRS, typename E>
__device__ __forceinline__ void load_head(Head<PAIRS>& head, const E* g, u32 half) {
    for_pairs<PAIRS>(half, [&](u32 p, u32 i) {
        head.low[p] = load(g + i);
        head.high[p] = load(g + half + i);
    });
}

template <u32 PAIRS, typename E>
__device__ __forceinline__ void store_head(E* g, const Head<PAIRS>& head, u32 half) {
    for_pairs<PAIRS>(half, [&](u32 p, u32 i) {
        store(g + i, head.low[p]);
        store(g + half + i, head.high[p]);
    });
}

// The cosines, in `low`, and the sines, in `high`, of a position; `sign` 1 rotates, -1 rotates back.
template <u32 PAIRS>
__device__ __forceinline__ void load_angles(Head<PAIRS>& angles, const float* gcos, const float* gsin, u32 position, u32 half, float sign) {
    const u64 at = static_cast<u64>(position) * half;
    for_pairs<PAIRS>(half, [&](u32 p, u32 i) {
        angles.low[p] = gcos[at + i];
        angles.high[p] = sign * gsin[at + i];
    });
}

template <u32 PAIRS>
__device__ __forceinline__ void rotate(Head<PAIRS>& head, const Head<PAIRS>& angles, u32 half) {
    for_pairs<PAIRS>(half, [&](u32 p, u32) {
        const float c = angles.low[p], s = angles.high[p], a = head.low[p], b = head.high[p];
        head.low[p] = a * c - b * s;
        head.high[p] = b * c + a * s;
    });
}

template <u32 PAIRS, typename E>
__device__ __forceinline__ void forward(E* gy, float* grstd, const E* gx, const float* gcos, const float* gsin, const E* gq_gain,
                                        const E* gk_gain, float eps, u32 n, u32 heads, u32 h, u32 g, u32 d, u32 t, u32 start) {
    const u64 item = blockIdx.x * 8ull + threadIdx.x / WARP;
    const u64 row = item / heads;
    const u32 index = static_cast<u32>(item % heads), half = d / 2;
    if (row >= n) {
        return;
    }
    const u64 at = (row * (h + 2 * g) + index) * d;
    Head<PAIRS> head;
    load_head(head, gx + at, half);
    if (index < h + g) {
        if (gq_gain != nullptr) {
            float squares = 0.0f;
            for_pairs<PAIRS>(half, [&](u32 p, u32) { squares += head.low[p] * head.low[p] + head.high[p] * head.high[p]; });
            const float r = 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(d) + eps);
            if (threadIdx.x % WARP == 0) {
                grstd[row * (h + g) + index] = r;
            }
            const E* ggain = index < h ? gq_gain : gk_gain;
            for_pairs<PAIRS>(half, [&](u32 p, u32 i) {
                head.low[p] *= r * load(ggain + i);
                head.high[p] *= r * load(ggain + half + i);
            });
        }
        Head<PAIRS> angles;
        load_angles(angles, gcos, gsin, start + static_cast<u32>(row % t), half, 1.0f);
        rotate(head, angles, half);
    }
    store_head(gy + at, head, half);
}

template <u32 PAIRS, typename E>
__device__ __forceinline__ void backward(E* gdx, float* gpartial, const E* gx, const float* grstd, const float* gcos, const float* gsin,
                                         const E* gdy, const E* gq_gain, const E* gk_gain, u32 n, u32 h, u32 g, u32 d, u32 t) {
    extern __shared__ float sgain[];  // [8][2][D], with a norm
    const u32 warp = threadIdx.x / WARP, half = d / 2;
    Head<PAIRS> dgains[2] = {};
    for (u64 row = blockIdx.x * 8ull + warp; row < n; row += gridDim.x * 8ull) {
        Head<PAIRS> angles;
        load_angles(angles, gcos, gsin, static_cast<u32>(row % t), half, -1.0f);
        for (u32 kind = 0; kind < 2; kind++) {  // the query heads, then the key heads
            Head<PAIRS> sum = {};
            for (u32 index = kind == 0 ? 0 : h; index < (kind == 0 ? h : h + g); index++) {
                const u64 at = (row * (h + 2 * g) + index) * d;
                Head<PAIRS> dy;
                load_head(dy, gdy + at, half);
                rotate(dy, angles, half);
                if (gx != nullptr) {
                    Head<PAIRS> x;
                    load_head(x, gx + at, half);
                    const float r = grstd[row * (h + g) + index];
                    const E* ggain = kind == 0 ? gq_gain : gk_gain;
                    float projected = 0.0f;
                    for_pairs<PAIRS>(half, [&](u32 p, u32 i) {
                        sum.low[p] += dy.low[p] * r * x.low[p];
                        sum.high[p] += dy.high[p] * r * x.high[p];
                        dy.low[p] *= load(ggain + i);
                        dy.high[p] *= load(ggain + half + i);
                        projected += dy.low[p] * x.low[p] + dy.high[p] * x.high[p];
                    });
                    const float slope = warp_sum(projected) / static_cast<float>(d) * r * r * r;
                    for_pairs<PAIRS>(half, [&](u32 p, u32) {
                        dy.low[p] = dy.low[p] * r - x.low[p] * slope;
                        dy.high[p] = dy.high[p] * r - x.high[p] * slope;
                    });
                }
                store_head(gdx + at, dy, half);
            }
#pragma unroll
            for (u32 k = 0; k < 2; k++) {  // a constant index keeps dgains in registers
                for_pairs<PAIRS>(half, [&](u32 p, u32) {
                    dgains[k].low[p] += kind == k ? sum.low[p] : 0.0f;
                    dgains[k].high[p] += kind == k ? sum.high[p] : 0.0f;
                });
            }
        }
    }
    if (gx == nullptr) {
        return;
    }
#pragma unroll
    for (u32 k = 0; k < 2; k++) {
        store_head(sgain + (warp * 2 + k) * d, dgains[k], half);
    }
    __syncthreads();  // the shares of all eight warps are there
    for (u32 i = threadIdx.x; i < 2 * d; i += 8 * WARP) {
        float sum = sgain[i];
#pragma unroll
        for (u32 w = 1; w < 8; w++) {
            sum += sgain[w * 2 * d + i];
        }
        gpartial[static_cast<u64>(blockIdx.x) * 2 * d + i] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) rope_fwd_warp_per_head_f32(float* y, float* rstd, const float* x, const float* cos, const float* sin, const float* q_gain, const float* k_gain, float eps, u32 n, u32 heads, u32 h, u32 g, u32 d, u32 t, u32 start) {
    if (d / 2 <= FEW * WARP) {
        forward<FEW>(y, rstd, x, cos, sin, q_gain, k_gain, eps, n, heads, h, g, d, t, start);
    } else {
        forward<MANY>(y, rstd, x, cos, sin, q_gain, k_gain, eps, n, heads, h, g, d, t, start);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) rope_fwd_warp_per_head_bf16(bf16* y, float* rstd, const bf16* x, const float* cos, const float* sin, const bf16* q_gain, const bf16* k_gain, float eps, u32 n, u32 heads, u32 h, u32 g, u32 d, u32 t, u32 start) {
    if (d / 2 <= FEW * WARP) {
        forward<FEW>(y, rstd, x, cos, sin, q_gain, k_gain, eps, n, heads, h, g, d, t, start);
    } else {
        forward<MANY>(y, rstd, x, cos, sin, q_gain, k_gain, eps, n, heads, h, g, d, t, start);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) rope_bwd_warp_per_row_f32(float* dx, float* partial, const float* x, const float* rstd, const float* cos, const float* sin, const float* dy, const float* q_gain, const float* k_gain, u32 n, u32 h, u32 g, u32 d, u32 t) {
    backward<FEW>(dx, partial, x, rstd, cos, sin, dy, q_gain, k_gain, n, h, g, d, t);
}

extern "C" __global__ void __launch_bounds__(256, 1) rope_bwd_wide_warp_per_row_f32(float* dx, float* partial, const float* x, const float* rstd, const float* cos, const float* sin, const float* dy, const float* q_gain, const float* k_gain, u32 n, u32 h, u32 g, u32 d, u32 t) {
    backward<MANY>(dx, partial, x, rstd, cos, sin, dy, q_gain, k_gain, n, h, g, d, t);
}

extern "C" __global__ void __launch_bounds__(256, 4) rope_bwd_warp_per_row_bf16(bf16* dx, float* partial, const bf16* x, const float* rstd, const float* cos, const float* sin, const bf16* dy, const bf16* q_gain, const bf16* k_gain, u32 n, u32 h, u32 g, u32 d, u32 t) {
    backward<FEW>(dx, partial, x, rstd, cos, sin, dy, q_gain, k_gain, n, h, g, d, t);
}

extern "C" __global__ void __launch_bounds__(256, 1) rope_bwd_wide_warp_per_row_bf16(bf16* dx, float* partial, const bf16* x, const float* rstd, const float* cos, const float* sin, const bf16* dy, const bf16* q_gain, const bf16* k_gain, u32 n, u32 h, u32 g, u32 d, u32 t) {
    backward<MANY>(dx, partial, x, rstd, cos, sin, dy, q_gain, k_gain, n, h, g, d, t);
}
