// Products in which no row of the result depends on how many rows there are: what `gemm_rows` and `gemm_packed` share.
//
// Each number is the sum of four parts, added in their order: warp i of a block takes the pieces of 32 along K whose number is i modulo 4, one
// after the other. W is the left operand of `mma`: 16 rows of it meet 8 rows of X. A lane holds eight elements of a piece of its rows of both:
// four are its share of one product and four of the next, in both operands alike, for a sum does not ask in which order K is counted.
#pragma once

#include "../ptx/mma.cuh"
#include "vector.cuh"

constexpr u32 THREADS = 128;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 ROWS_W = 16;                                                      // of W, a block
constexpr u32 ROWS_X = 8;                                                       // of X, a product
constexpr u32 PIECE = 32;                                                       // along K, two products

// `weights.read(first, second, start)` gives a lane its share of two products of the piece at `start`; `weights.read_x(row, start)` that of a
// row of X. Rows of `y` and `d` are `pitch` apart, of which `o` elements are written.
template <u32 TILES, typename Weights>
__device__ __forceinline__ void multiply_rows(bf16* gy, const bf16* gd, const bf16* gx, const Weights& weights, u32 n, u32 o, u32 k, u32 pitch) {
    constexpr u32 ROWS = ROWS_X * TILES;
    __shared__ float ssum[WARPS][ROWS][ROWS_W + 1];                             // the 17th spreads a column over the banks
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, quarter = lane % 4;
    const u32 o0 = blockIdx.x * ROWS_W, n0 = blockIdx.y * ROWS;
    float racc[TILES][4] = {};
    for (u32 start = warp * PIECE; start < k; start += WARPS * PIECE) {
        u32 first[4], second[4];
        weights.read(first, second, start);
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
            const u32 row = n0 + tile * ROWS_X + group;
            const uint4 x = row < n ? weights.read_x(gx + static_cast<u64>(row) * k, start) : make_uint4(0, 0, 0, 0);
            mma_m16n8k16(racc[tile], first, x.x, x.y);
            mma_m16n8k16(racc[tile], second, x.z, x.w);
        }
    }
#pragma unroll
    for (u32 tile = 0; tile < TILES; tile++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            ssum[warp][tile * ROWS_X + 2 * quarter + i % 2][group + i / 2 * 8] = racc[tile][i];
        }
    }
    __syncthreads();  // the parts of all warps are there
    for (u32 i = threadIdx.x; i < ROWS * ROWS_W; i += THREADS) {
        const u32 row = i / ROWS_W, column = i % ROWS_W;
        if (n0 + row < n && o0 + column < o) {
            float sum = ssum[0][row][column];
#pragma unroll
            for (u32 part = 1; part < WARPS; part++) {
                sum += ssum[part][row][column];
            }
            const u64 at = static_cast<u64>(n0 + row) * pitch + o0 + column;
            store(gy + at, gd == nullptr ? sum : sum + load(gd + at));
        }
    }
}
