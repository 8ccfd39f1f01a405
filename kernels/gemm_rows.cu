// Matrix product for inference: Y = X W^T (+ D), in which no row of Y depends on how many rows there are.
//
//   y  [N, O]  bf16, =; rows `pitch` elements apart
//   d  [N, O]  bf16, added, or null; may be y; rows as those of y
//   x  [N, K]  bf16;  w  [O, K]  bf16
// K is a multiple of 8; x and w start at multiples of 16 bytes. `few` takes 8 rows of X at a time and is bound by reading W, which it does once
// for each 8 rows; `many` takes 64, and gives the same bits (common/rows_product.cuh).
// Saves nothing. Grid: ceil(O / 16) x ceil(N / 8 or 64) blocks of 128 threads. Does 2 N O K operations; must move O K elements of W.
#include "common/rows_product.cuh"

// A lane reads 16 bytes, eight elements along K, of its rows of both operands.
struct Dense {
    const bf16 *low, *high;
    bool has_low, has_high;
    u32 offset, k;

    __device__ __forceinline__ Dense(const bf16* gw, u32 o, u32 k) : k(k) {
        const u32 lane = threadIdx.x % WARP, row = blockIdx.x * ROWS_W + lane / 4;
        offset = 8 * (lane % 4);
        has_low = row < o, has_high = row + 8 < o;
        low = gw + static_cast<u64>(has_low ? row : 0) * k;
        high = gw + static_cast<u64>(has_high ? row + 8 : 0) * k;
    }

    __device__ __forceinline__ uint4 piece(const bf16* g, u32 start, bool has) const {
        return has && start + offset < k ? *reinterpret_cast<const uint4*>(g + start + offset) : make_uint4(0, 0, 0, 0);
    }

    __device__ __forceinline__ uint4 read_x(const bf16* row, u32 start) const { return piece(row, start, true); }

    __device__ __forceinline__ void read(u32 (&first)[4], u32 (&second)[4], u32 start) const {
        const uint4 a = piece(low, start, has_low), b = piece(high, start, has_high);
        first[0] = a.x, first[1] = b.x, first[2] = a.y, first[3] = b.y;
        second[0] = a.z, second[1] = b.z, second[2] = a.w, second[3] = b.w;
    }
};

extern "C" __global__ void __launch_bounds__(128, 8) gemm_rows_few_bf16(bf16* y, const bf16* d, const bf16* x, const bf16* w, u32 n, u32 o, u32 k, u32 pitch) {
    multiply_rows<1>(y, d, x, Dense(w, o, k), n, o, k, pitch);
}

extern "C" __global__ void __launch_bounds__(128, 4) gemm_rows_many_bf16(bf16* y, const bf16* d, const bf16* x, const bf16* w, u32 n, u32 o, u32 k, u32 pitch) {
    multiply_rows<8>(y, d, x, Dense(w, o, k), n, o, k, pitch);
}
