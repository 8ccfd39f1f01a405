// Matrix product for inference: Y = X W^T (+ D), in which no row of Y depends on how many rows there are.
//
//   y  [N, O]  bf16, =
//   d  [N, O]  bf16, added, or null; may be y
//   x  [N, K]  bf16;  w  [O, K]  bf16
// K is a multiple of 8 and both start at multiples of 16 bytes. Each number of Y is the sum of four parts, added in their order: warp i of a
// block takes the pieces of 32 along K whose number is i modulo 4, one after the other. `few` takes 8 rows of X at a time and is bound by
// reading W, which it does once for each 8 rows; `many` takes 64, and gives the same bits.
// Saves nothing. Grid: ceil(O / 16) x ceil(N / 8 or 64) blocks of 128 threads. Does 2 N O K operations; must move O K elements of W.
//
// W is the left operand of `mma`: 16 rows of it meet 8 rows of X. A lane reads 16 bytes, 8 elements along K, of its rows of both: four are its share
// of one product and four of the next, in both operands alike, for a sum does not ask in which order K is counted.
#include "common/vector.cuh"
#include "ptx/mma.cuh"

constexpr u32 THREADS = 128;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 ROWS_W = 16;                                                      // of W, a block
constexpr u32 ROWS_X = 8;                                                       // of X, a product
constexpr u32 PIECE = 32;                                                       // along K, two products

__device__ __forceinline__ uint4 load_piece(const bf16* g, bool inside) {
    return inside ? *reinterpret_cast<const uint4*>(g) : make_uint4(0, 0, 0, 0);
}

template <u32 TILES>
__device__ __forceinline__ void multiply(bf16* gy, const bf16* gd, const bf16* gx, const bf16* gw, u32 n, u32 o, u32 k) {
    constexpr u32 ROWS = ROWS_X * TILES;
    __shared__ float ssum[WARPS][ROWS][ROWS_W + 1];                             // the 17th spreads a column over the banks
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, group = lane / 4, quarter = lane % 4;
    const u32 o0 = blockIdx.x * ROWS_W, n0 = blockIdx.y * ROWS;
    const bool has_low = o0 + group < o, has_high = o0 + group + 8 < o;
    const bf16* low = gw + static_cast<u64>(has_low ? o0 + group : 0) * k + 8 * quarter;
    const bf16* high = gw + static_cast<u64>(has_high ? o0 + group + 8 : 0) * k + 8 * quarter;
    float racc[TILES][4] = {};
    for (u32 start = warp * PIECE; start < k; start += WARPS * PIECE) {
        const bool inside = start + 8 * quarter < k;
        const uint4 a = load_piece(low + start, inside && has_low), b = load_piece(high + start, inside && has_high);
        const u32 first[4] = {a.x, b.x, a.y, b.y}, second[4] = {a.z, b.z, a.w, b.w};
#pragma unroll
        for (u32 tile = 0; tile < TILES; tile++) {
            const u32 row = n0 + tile * ROWS_X + group;
            const uint4 x = load_piece(gx + static_cast<u64>(row < n ? row : 0) * k + start + 8 * quarter, inside && row < n);
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
            const u64 at = static_cast<u64>(n0 + row) * o + o0 + column;
            store(gy + at, gd == nullptr ? sum : sum + load(gd + at));
        }
    }
}

extern "C" __global__ void __launch_bounds__(128, 8) gemm_rows_few_bf16(bf16* y, const bf16* d, const bf16* x, const bf16* w, u32 n, u32 o, u32 k) {
    multiply<1>(y, d, x, w, n, o, k);
}

extern "C" __global__ void __launch_bounds__(128, 4) gemm_rows_many_bf16(bf16* y, const bf16* d, const bf16* x, const bf16* w, u32 n, u32 o, u32 k) {
    multiply<8>(y, d, x, w, n, o, k);
}
