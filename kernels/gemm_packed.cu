// Matrix product for inference with weights that stay in their quantised blocks: Y = X W^T (+ D), in which no row of Y depends on how many rows
// there are.
//
//   y  [N, O]  bf16, =; rows `pitch` elements apart
//   d  [N, O]  bf16, added, or null; may be y; rows as those of y
//   x  [N, K]  bf16
//   w  [O, K]  in panels of eight rows of blocks (common/blocks.cuh), as words; rows that fill up the last panel are there
// K is a multiple of 32; x starts at a multiple of 8 bytes. A weight is `d q (+ m)` in f32, rounded to bf16; after that all is as in `gemm_rows`,
// so products with the same weights in bf16 give the same bits but for the order of K. `few` takes 8 rows of X at a time, `many` 64.
// Saves nothing. Grid: ceil(O / 16) x ceil(N / 8 or 64) blocks of 128 threads. Does 2 N O K operations; must move the bytes of W.
#include "common/blocks.cuh"
#include "common/rows_product.cuh"

template <typename Kind>
struct Packed {
    const u32 *low, *high;
    bool has_high;
    u32 row, place;

    __device__ __forceinline__ Packed(const u32* gw, u32 o, u32 k) {
        const u32 lane = threadIdx.x % WARP, panel = blockIdx.x * (ROWS_W / PANEL);
        const u64 words = static_cast<u64>(k / BLOCK) * Kind::WORDS;
        row = lane / 4, place = lane % 4;
        has_high = (panel + 1) * PANEL < o;
        low = gw + panel * words;
        high = low + (has_high ? words : 0);
    }

    __device__ __forceinline__ uint4 read_x(const bf16* x, u32 start) const {
        const uint2 first = *reinterpret_cast<const uint2*>(x + start + 4 * place);
        const uint2 second = *reinterpret_cast<const uint2*>(x + start + BLOCK / 2 + 4 * place);
        return make_uint4(first.x, first.y, second.x, second.y);
    }

    __device__ __forceinline__ void read(u32 (&first)[4], u32 (&second)[4], u32 start) const {
        const u32 at = start / BLOCK * Kind::WORDS;
        const Eight a = Kind::read(low + at, row, place), b = Kind::read(high + at, row, place);
        first[0] = a.first[0], first[1] = b.first[0], first[2] = a.first[1], first[3] = b.first[1];
        second[0] = a.second[0], second[1] = b.second[0], second[2] = a.second[1], second[3] = b.second[1];
    }
};

extern "C" __global__ void __launch_bounds__(128, 8) gemm_packed_few_q4_0_bf16(bf16* y, const bf16* d, const bf16* x, const u32* w, u32 n, u32 o, u32 k, u32 pitch) {
    multiply_rows<1>(y, d, x, Packed<Q4_0>(w, o, k), n, o, k, pitch);
}

extern "C" __global__ void __launch_bounds__(128, 4) gemm_packed_many_q4_0_bf16(bf16* y, const bf16* d, const bf16* x, const u32* w, u32 n, u32 o, u32 k, u32 pitch) {
    multiply_rows<8>(y, d, x, Packed<Q4_0>(w, o, k), n, o, k, pitch);
}

extern "C" __global__ void __launch_bounds__(128, 8) gemm_packed_few_q4_1_bf16(bf16* y, const bf16* d, const bf16* x, const u32* w, u32 n, u32 o, u32 k, u32 pitch) {
    multiply_rows<1>(y, d, x, Packed<Q4_1>(w, o, k), n, o, k, pitch);
}

extern "C" __global__ void __launch_bounds__(128, 4) gemm_packed_many_q4_1_bf16(bf16* y, const bf16* d, const bf16* x, const u32* w, u32 n, u32 o, u32 k, u32 pitch) {
    multiply_rows<8>(y, d, x, Packed<Q4_1>(w, o, k), n, o, k, pitch);
}

extern "C" __global__ void __launch_bounds__(128, 8) gemm_packed_few_q8_0_bf16(bf16* y, const bf16* d, const bf16* x, const u32* w, u32 n, u32 o, u32 k, u32 pitch) {
    multiply_rows<1>(y, d, x, Packed<Q8_0>(w, o, k), n, o, k, pitch);
}

extern "C" __global__ void __launch_bounds__(128, 4) gemm_packed_many_q8_0_bf16(bf16* y, const bf16* d, const bf16* x, const u32* w, u32 n, u32 o, u32 k, u32 pitch) {
    multiply_rows<8>(y, d, x, Packed<Q8_0>(w, o, k), n, o, k, pitch);
}
