// What the attention kernels share: the mask, tiles of rows in shared memory, products of tiles on tensor cores, the online
// softmax.
//
// A warp owns 16 rows of a product, all its columns: lane l has rows l / 4 and l / 4 + 8, and of every 8 columns 2 (l % 4) and
// the next (ptx/mma.cuh). So sums along a row are exchanges within four lanes, and a product rounded to bf16 already lies as the
// A operand of the next one.
#pragma once

#include "../ptx/cp_async.cuh"
#include "../ptx/ex2.cuh"
#include "../ptx/ldmatrix.cuh"
#include "../ptx/mma.cuh"
#include "vector.cuh"

constexpr u32 FLASH_THREADS = 128;     // four warps of 16 rows
constexpr u32 FLASH_TILE = 64;         // queries or keys of a block, and keys of a tile
constexpr float LOG2_E = 1.44269504088896341f;

__device__ __forceinline__ float infinity() { return __uint_as_float(0x7f800000u); }

// First key that the query in row `row` of all tokens, at `position` of its sequence, may see. Never decreases along a sequence.
__device__ __forceinline__ u32 first_key(const u32* gdoc_start, u64 row, u32 position, u32 window) {
    const u32 by_window = window != 0 && position + 1 > window ? position + 1 - window : 0;
    const u32 by_document = gdoc_start != nullptr ? gdoc_start[row] : 0;
    return by_window > by_document ? by_window : by_document;
}

// Rows of D elements in shared memory.
template <u32 D>
struct Rows {
    static_assert(D % 32 == 0, "the swizzle spreads rows of 64, 128, 192 or 256 bytes");
    static constexpr u32 ROW_BYTES = 2 * D;
    static constexpr u32 CHUNKS = D / 8;                                        // of 16 bytes

    // Bytes from the first row to a chunk. Eight neighbouring rows of one chunk lie in different banks: rows of 128 or 256 bytes
    // all start in one bank, rows of 64 or 192 in turns in two.
    static __device__ __forceinline__ u32 offset(u32 row, u32 chunk) {
        return row * ROW_BYTES + (chunk ^ (D % 64 == 0 ? row % 8 : row / 2 % 4)) * 16;
    }

    // Starts the block's copy of COUNT rows that are `stride` elements apart; zeros from row `extent` on.
    template <u32 COUNT>
    static __device__ __forceinline__ void copy(u32 s, const bf16* g, u32 stride, u32 extent) {
#pragma unroll
        for (u32 step = 0; step < COUNT * CHUNKS / FLASH_THREADS; step++) {
            const u32 index = step * FLASH_THREADS + threadIdx.x, row = index / CHUNKS, chunk = index % CHUNKS;
            const bool inside = row < extent;
            cp_async<16>(s + offset(row, chunk), inside ? g + static_cast<u64>(row) * stride + chunk * 8 : g, inside ? 16 : 0);
        }
    }

    // The same of rows that lie anywhere: `row_at(row)`, or zeros where that is null. `any` can be read.
    template <u32 COUNT, typename F>
    static __device__ __forceinline__ void gather(u32 s, const bf16* any, F row_at) {
#pragma unroll
        for (u32 step = 0; step < COUNT * CHUNKS / FLASH_THREADS; step++) {
            const u32 index = step * FLASH_THREADS + threadIdx.x, row = index / CHUNKS, chunk = index % CHUNKS;
            const bf16* from = row_at(row);
            cp_async<16>(s + offset(row, chunk), from != nullptr ? from + chunk * 8 : any, from != nullptr ? 16 : 0);
        }
    }

    // A of one mma: rows m .. m + 16, columns k .. k + 16.
    static __device__ __forceinline__ void load_a(u32 (&r)[4], u32 s, u32 m, u32 k) {
        const u32 lane = threadIdx.x % WARP, row = lane % 8, matrix = lane / 8;
        ldmatrix_x4(r, s + offset(m + matrix % 2 * 8 + row, k / 8 + matrix / 2));
    }

    // B of two mma, transposed: rows n .. n + 16 are columns of B, columns k .. k + 16 its rows.
    static __device__ __forceinline__ void load_b_transposed(u32 (&r)[4], u32 s, u32 n, u32 k) {
        const u32 lane = threadIdx.x % WARP, row = lane % 8, matrix = lane / 8;
        ldmatrix_x4(r, s + offset(n + matrix / 2 * 8 + row, k / 8 + matrix % 2));
    }

    // B of two mma: rows k .. k + 16, columns n .. n + 16.
    static __device__ __forceinline__ void load_b(u32 (&r)[4], u32 s, u32 n, u32 k) {
        const u32 lane = threadIdx.x % WARP, row = lane % 8, matrix = lane / 8;
        ldmatrix_x4_trans(r, s + offset(k + matrix % 2 * 8 + row, n / 8 + matrix / 2));
    }

    // A warp's 16 rows, times `factor` of their half: to shared memory that is the warp's own, and from there in 16-byte pieces
    // to rows that are `stride` apart; none from row `extent` on.
    static __device__ __forceinline__ void store(bf16* g, u32 stride, u32 extent, char* s, const float (&racc)[D / 8][4], const float (&factor)[2]) {
        const u32 lane = threadIdx.x % WARP;
#pragma unroll
        for (u32 j = 0; j < D / 8; j++) {
#pragma unroll
            for (u32 half = 0; half < 2; half++) {
                u32* to = reinterpret_cast<u32*>(s + offset(lane / 4 + 8 * half, j) + lane % 4 * 4);
                *to = pack_bf16x2(racc[j][2 * half] * factor[half], racc[j][2 * half + 1] * factor[half]);
            }
        }
        __syncwarp();  // the warp's rows are there
#pragma unroll
        for (u32 step = 0; step < 16 * CHUNKS / WARP; step++) {
            const u32 index = step * WARP + lane, row = index / CHUNKS, chunk = index % CHUNKS;
            if (row < extent) {
                uint4* to = reinterpret_cast<uint4*>(g + static_cast<u64>(row) * stride + chunk * 8);
                *to = *reinterpret_cast<const uint4*>(s + offset(row, chunk));
            }
        }
    }
};

// The A operand of multiply_rows from registers.
template <u32 N>
__device__ __forceinline__ auto from_registers(const u32 (&r)[N][4]) {
    return [&r](u32 (&ra)[4], u32 k) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            ra[i] = r[k][i];
        }
    };
}

// racc [16, N] += A [16, D] (N rows of D at s)^T; `load_a(r, k)` gives columns 16 k and on of A.
template <u32 D, u32 N, typename A>
__device__ __forceinline__ void multiply_rows(float (&racc)[N / 8][4], A load_a, u32 s) {
#pragma unroll
    for (u32 k = 0; k < D / 16; k++) {
        u32 ra[4];
        load_a(ra, k);
#pragma unroll
        for (u32 n = 0; n < N / 16; n++) {
            u32 rb[4];
            Rows<D>::load_b_transposed(rb, s, 16 * n, 16 * k);
            mma_m16n8k16(racc[2 * n], ra, rb[0], rb[1]);
            mma_m16n8k16(racc[2 * n + 1], ra, rb[2], rb[3]);
        }
    }
}

// racc [16, D] += P [16, N] (N rows of D at s), P rounded to bf16.
template <u32 D, u32 N>
__device__ __forceinline__ void sum_rows(float (&racc)[D / 8][4], const float (&rp)[N / 8][4], u32 s) {
#pragma unroll
    for (u32 k = 0; k < N / 16; k++) {
        u32 ra[4];
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            ra[i] = pack_bf16x2(rp[2 * k + i / 2][i % 2 * 2], rp[2 * k + i / 2][i % 2 * 2 + 1]);
        }
#pragma unroll
        for (u32 n = 0; n < D / 16; n++) {
            u32 rb[4];
            Rows<D>::load_b(rb, s, 16 * n, 16 * k);
            mma_m16n8k16(racc[2 * n], ra, rb[0], rb[1]);
            mma_m16n8k16(racc[2 * n + 1], ra, rb[2], rb[3]);
        }
    }
}

// The queries of a block, and which tiles of keys they see. Rows past the end are taken as the last one.
struct QueryBlock {
    u32 t0, extent;                    // first query, and how many from there on
    u32 tile_first, tile_end;          // tiles that hold a key that a query of the block sees
    u32 inner_first, inner_end;        // tiles all of whose keys all its queries see
    u32 rfirst[2], rlast[2];           // keys that this lane's two queries see

    __device__ __forceinline__ QueryBlock(const u32* gdoc_start, u64 row0, u32 tile, u32 t_len, u32 window) {
        t0 = tile * FLASH_TILE, extent = t_len - t0;
        const u32 rows = extent < FLASH_TILE ? extent : FLASH_TILE, lane_row = threadIdx.x / WARP * 16 + threadIdx.x % WARP / 4;
        tile_first = first_key(gdoc_start, row0 + t0, t0, window) / FLASH_TILE;
        tile_end = (t0 + rows - 1) / FLASH_TILE + 1;
        const u32 latest = first_key(gdoc_start, row0 + t0 + rows - 1, t0 + rows - 1, window);
        inner_first = (latest + FLASH_TILE - 1) / FLASH_TILE;
        inner_end = (t0 + 1) / FLASH_TILE;
#pragma unroll
        for (u32 half = 0; half < 2; half++) {
            const u32 row = lane_row + 8 * half, t = t0 + (row < rows ? row : rows - 1);
            rlast[half] = t;
            rfirst[half] = first_key(gdoc_start, row0 + t, t, window);
        }
    }

    // Scores of keys that are not seen become -inf.
    __device__ __forceinline__ void mask(float (&rs)[FLASH_TILE / 8][4], u32 tile) const {
        if (tile >= inner_first && tile < inner_end) {
            return;
        }
#pragma unroll
        for (u32 j = 0; j < FLASH_TILE / 8; j++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 key = tile * FLASH_TILE + 8 * j + threadIdx.x % 4 * 2 + i % 2;
                rs[j][i] = key < rfirst[i / 2] || key > rlast[i / 2] ? -infinity() : rs[j][i];
            }
        }
    }
};

// The same for the four lanes of a row, each adding the same numbers in the same order.
__device__ __forceinline__ float row_max(float x) {
    x = fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 1));
    return fmaxf(x, __shfl_xor_sync(ALL_LANES, x, 2));
}

__device__ __forceinline__ float row_sum(float x) {
    x += __shfl_xor_sync(ALL_LANES, x, 1);
    return x + __shfl_xor_sync(ALL_LANES, x, 2);
}

// Turns a tile of scores into p = 2^(scale2 (score - peak)) and moves each row's peak, its sum (this lane's part of it) and what
// was summed before on to the new peak. A row that has seen no key yet has peak -inf: all its p are 0.
template <u32 D>
__device__ __forceinline__ void softmax_step(float (&rs)[FLASH_TILE / 8][4], float (&rpeak)[2], float (&rsum)[2], float (&rout)[D / 8][4], float scale2) {
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        float peak = rpeak[half];
#pragma unroll
        for (u32 j = 0; j < FLASH_TILE / 8; j++) {
            peak = fmaxf(peak, fmaxf(rs[j][2 * half], rs[j][2 * half + 1]));
        }
        peak = row_max(peak);
        const float shift = peak == -infinity() ? 0.0f : peak * scale2;
        const float shrink = ex2(rpeak[half] * scale2 - shift);
        float sum = 0.0f;
#pragma unroll
        for (u32 j = 0; j < FLASH_TILE / 8; j++) {
#pragma unroll
            for (u32 i = 2 * half; i < 2 * half + 2; i++) {
                rs[j][i] = ex2(rs[j][i] * scale2 - shift);
                sum += rs[j][i];
            }
        }
#pragma unroll
        for (u32 j = 0; j < D / 8; j++) {
            rout[j][2 * half] *= shrink;
            rout[j][2 * half + 1] *= shrink;
        }
        rsum[half] = rsum[half] * shrink + sum;
        rpeak[half] = peak;
    }
}
