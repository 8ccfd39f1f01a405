// Feed-forward layer: the two products around SwiGLU, on tensor cores, that apply it to what they have in registers.
//
// Forward: [g u] = x W^T, W the rows of the gate and then of up; hidden = silu(g) u
//   hidden   [N, F]   bf16, =
//   gate_up  [N, 2F]  bf16, =; null where backward will not need it
//   x        [N, C]   bf16
//   weight   [2F, C]  bf16
// Saves gate_up. Grid: ceil(N / 128) ceil(F / 64) blocks: 64 columns of g and the same 64 of u each. Must move
// 2 (N C + 2 F C + N F) bytes, 4 N F more where it saves; does 4 N C F operations.
//
// Backward: dhidden = dy W of the layer that follows; du = dhidden g s, dg = dhidden u s (1 + g (1 - s)), s = sigmoid(g)
//   dgate_up  [N, 2F]  bf16, =; may be gate_up itself
//   gate_up   [N, 2F]  bf16, saved
//   dy        [N, C]   bf16
//   weight    [C, F]   bf16
// Grid: ceil(N / 128) ceil(F / 128) blocks. Must move 2 (N C + C F + 4 N F) bytes; does 2 N C F operations.
//
// Both: blocks of 256 threads, 48 KiB of shared memory; C and F are multiples of 8, and all matrices start at multiples of 16
// bytes. g, u and dhidden are rounded to bf16 before they are used, so that results are those of the separate kernels.
// The order of every sum is fixed.
#include "common/gemm.cuh"
#include "common/swiglu.cuh"

constexpr u32 PAIRS = TILE / 2;            // gates of a block, and up values
constexpr u32 WARP_PAIRS = WARP_N / 2;     // of a warp: so that gate and up of a pair meet in it

// Row i of the weight's tile: a warp's 16 gates, then its 16 up values.
struct GateUpRows {
    u32 f0, f;
    __device__ __forceinline__ u32 operator()(u32 i) const {
        const u32 pair = f0 + i / WARP_N * WARP_PAIRS + i % WARP_PAIRS;
        return pair >= f ? 2 * f : pair + (i % WARP_N < WARP_PAIRS ? 0 : f);
    }
};

template <u32 W>
__device__ __forceinline__ void round_all(float (&x)[W], const bf16* type) {
#pragma unroll
    for (u32 i = 0; i < W; i++) {
        x[i] = rounded(x[i], type);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) mlp_fwd_gate_up_mma_bf16(bf16* hidden, bf16* gate_up, const bf16* x, const bf16* weight, u32 n, u32 c, u32 f) {
    __shared__ __align__(128) char stiles[TILES_BYTES];
    const Place place(n, (f + PAIRS - 1) / PAIRS);
    const u32 m0 = place.m * TILE, f0 = place.n * PAIRS;
    const Matrix a{x, c, n}, b{weight, c, 2 * f};
    Sums sums = {};
    sums.multiply<true, true>(
        stiles, 0, (c + DEPTH - 1) / DEPTH, [&](u32 s, u32 start) { Tile<true>::copy<8>(s, a, From{m0}, start, c); },
        [&](u32 s, u32 start) { Tile<true>::copy<8>(s, b, GateUpRows{f0, f}, start, c); });
    // A lane has 8 pairs of a row: two lanes write whole sectors of g, of u and of hidden.
    const u32 lane = threadIdx.x % WARP, row = lane / 2, col = lane % 2 * 8;
    sums.drain(stiles, [&](const float* s, u32 row0, u32 col0) {
        const u64 at = m0 + row0 + row;
        const u32 pair = f0 + col0 / 2 + col;
        if (at >= n || pair >= f) {
            return;
        }
        float g[8], u[8], y[8];
        Sums::load_staged<8>(g, s, row, col);
        Sums::load_staged<8>(u, s, row, WARP_PAIRS + col);
        if (gate_up != nullptr) {
            store_vector<8>(gate_up + at * 2 * f + pair, g);
            store_vector<8>(gate_up + at * 2 * f + f + pair, u);
        }
        round_all(g, hidden);
        round_all(u, hidden);
#pragma unroll
        for (u32 i = 0; i < 8; i++) {
            y[i] = swiglu(g[i], u[i]);
        }
        store_vector<8>(hidden + at * f + pair, y);
    });
}

extern "C" __global__ void __launch_bounds__(256, 2) mlp_bwd_down_mma_bf16(bf16* dgate_up, const bf16* gate_up, const bf16* dy, const bf16* weight, u32 n, u32 c, u32 f) {
    __shared__ __align__(128) char stiles[TILES_BYTES];
    const Place place(n, (f + TILE - 1) / TILE);
    const u32 m0 = place.m * TILE, f0 = place.n * TILE;
    const Matrix a{dy, c, n}, b{weight, f, f};
    Sums sums = {};
    sums.multiply<true, false>(
        stiles, 0, (c + DEPTH - 1) / DEPTH, [&](u32 s, u32 start) { Tile<true>::copy<8>(s, a, From{m0}, start, c); },
        [&](u32 s, u32 start) { Tile<false>::copy<8>(s, b, From{f0}, start, c); });
    const u32 lane = threadIdx.x % WARP, col = lane % 4 * 8;
    sums.drain(stiles, [&](const float* s, u32 row0, u32 col0) {
        const u32 pair = f0 + col0 + col;
#pragma unroll
        for (u32 row = lane / 4; row < 16; row += WARP / 4) {
            const u64 at = m0 + row0 + row;
            if (at >= n || pair >= f) {
                continue;
            }
            float g[8], u[8], d[8], dg[8], du[8];
            load_vector<8>(g, gate_up + at * 2 * f + pair);
            load_vector<8>(u, gate_up + at * 2 * f + f + pair);
            Sums::load_staged<8>(d, s, row, col);
            round_all(d, dy);
#pragma unroll
            for (u32 i = 0; i < 8; i++) {
                swiglu_gradient(dg[i], du[i], g[i], u[i], d[i]);
            }
            store_vector<8>(dgate_up + at * 2 * f + pair, dg);
            store_vector<8>(dgate_up + at * 2 * f + f + pair, du);
        }
    });
}
