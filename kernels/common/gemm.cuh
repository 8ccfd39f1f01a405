// Matrix products by tiles on tensor cores, bf16 by bf16 with f32 sums: what gemm_mma, gemm_mma_narrow and mlp share; gemm_wgmma has
// the order of tiles and the output from here.
//
// A block of eight warps forms 128 x 128 of A B, a warp 64 x 32. Three tiles of A and B are under way or in use at a time
// (cp.async). 16-byte chunks of a row are swizzled so that the eight rows of an 8x8 matrix lie in different banks.
// Learnt from: CUTLASS's SM80 multistage mainloop and its swizzles; NVIDIA's Ampere tuning guide.
#pragma once

#include "../ptx/cp_async.cuh"
#include "../ptx/ldmatrix.cuh"
#include "../ptx/mma.cuh"
#include "../ptx/st_global.cuh"
#include "../ptx/st_shared.cuh"
#include "vector.cuh"

constexpr u32 TILE = 128;         // of M and of N
constexpr u32 DEPTH = 32;         // of K
constexpr u32 STAGES = 3;
constexpr u32 THREADS = 256;
constexpr u32 WARP_M = 64;        // two warps along M
constexpr u32 WARP_N = 32;        // four along N
constexpr u32 TILE_BYTES = TILE * DEPTH * 2;
constexpr u32 TILES_BYTES = 2 * STAGES * TILE_BYTES;
constexpr u32 CHUNK = 8;          // elements of 16 bytes
constexpr u32 GROUP = 8;          // rows of tiles whose blocks run together, so that they find B in L2
// Row of a warp's staged 16 x 32 of C: 8 more than 32 put the rows of a half warp into different banks.
constexpr u32 STAGE_PITCH = WARP_N + 8;
static_assert(TILES_BYTES == 48 * 1024, "all of the static shared memory that a block may have");
static_assert(THREADS / WARP * 16 * STAGE_PITCH * 4 <= TILES_BYTES, "C is staged where the tiles were");

// A matrix in memory: rows `ld` elements apart, `extent` of M or N.
struct Matrix {
    const bf16* g;
    u64 ld;
    u32 extent;
};

// Rows of A, or columns of B, that follow each other.
struct From {
    u32 first;
    __device__ __forceinline__ u32 operator()(u32 i) const { return first + i; }
};

// How a tile of an operand lies in shared memory: `ALONG_K` as [TILE][DEPTH], else as [DEPTH][TILE].
template <bool ALONG_K>
struct Tile {
    static constexpr u32 ROW = ALONG_K ? DEPTH : TILE;              // elements of a row

    // Bytes from the tile's start to a chunk. Rows of 64 bytes: two of them fill all banks; rows of 256 bytes: half of one does.
    static __device__ __forceinline__ u32 offset(u32 row, u32 chunk) {
        return row * ROW * 2 + (chunk ^ (ALONG_K ? row / 2 % 4 : row % 8)) * 16;
    }

    // Starts the copy of the tile that begins at `start` of K, in pieces of W elements; zeros beyond the matrix. `place(i)` is
    // where row i of A or column i of B of the tile lies. Single elements take the way through a register.
    template <u32 W, typename P>
    static __device__ __forceinline__ void copy(u32 s, const Matrix& x, P place, u32 start, u32 k) {
        constexpr u32 PIECES = ROW / W;
#pragma unroll 4  // narrow copies have up to 16 steps, whose addresses would not all fit into registers
        for (u32 step = 0; step < TILE * DEPTH / W / THREADS; step++) {
            const u32 index = step * THREADS + threadIdx.x, row = index / PIECES, first = index % PIECES * W;
            const u32 i = ALONG_K ? place(row) : place(first), kk = start + (ALONG_K ? first : row);
            const u32 row_end = ALONG_K ? k - kk : x.extent - i;   // elements left in the row where the piece lies inside
            const u32 left = i < x.extent && kk < k ? row_end : 0;
            const bf16* from = left == 0 ? x.g : x.g + (ALONG_K ? i * x.ld + kk : kk * x.ld + i);
            const u32 to = s + offset(row, first / CHUNK) + first % CHUNK * 2;
            if constexpr (W == 1) {
                *static_cast<u16*>(__cvta_shared_to_generic(to)) = left == 0 ? u16{0} : from->bits;
            } else {
                cp_async<2 * W>(to, from, 2 * (left < W ? left : W));
            }
        }
    }

    // The same in pieces as wide as the rows allow: 8, 4, 2 or 1 elements, the same for all threads.
    template <typename P>
    static __device__ __forceinline__ void copy_narrow(u32 width, u32 s, const Matrix& x, P place, u32 start, u32 k) {
        switch (width) {
            case 8: return copy<8>(s, x, place, start, k);
            case 4: return copy<4>(s, x, place, start, k);
            case 2: return copy<2>(s, x, place, start, k);
            default: return copy<1>(s, x, place, start, k);
        }
    }

    // A of one mma: rows m .. m + 16, columns k .. k + 16 of the tile.
    static __device__ __forceinline__ void load_a(u32 (&r)[4], u32 s, u32 m, u32 k) {
        const u32 lane = threadIdx.x % WARP, row = lane % 8, matrix = lane / 8;
        if constexpr (ALONG_K) {
            ldmatrix_x4(r, s + offset(m + matrix % 2 * 8 + row, k / CHUNK + matrix / 2));
        } else {
            ldmatrix_x4_trans(r, s + offset(k + matrix / 2 * 8 + row, m / CHUNK + matrix % 2));
        }
    }

    // B of two mma: rows k .. k + 16, columns n .. n + 16 of the tile; two registers each.
    static __device__ __forceinline__ void load_b(u32 (&r)[4], u32 s, u32 n, u32 k) {
        const u32 lane = threadIdx.x % WARP, row = lane % 8, matrix = lane / 8;
        if constexpr (ALONG_K) {
            ldmatrix_x4(r, s + offset(n + matrix / 2 * 8 + row, k / CHUNK + matrix % 2));
        } else {
            ldmatrix_x4_trans(r, s + offset(k + matrix % 2 * 8 + row, n / CHUNK + matrix / 2));
        }
    }
};

// Which tile of C comes at `index`, of m / TILE by `tiles_n`: GROUP rows of tiles at a time, column by column.
struct Place {
    u32 m, n;
    __device__ __forceinline__ Place(u32 m_extent, u32 tiles_n, u32 index = blockIdx.x) {
        const u32 tiles_m = (m_extent + TILE - 1) / TILE, group = index / (GROUP * tiles_n), inside = index % (GROUP * tiles_n);
        const u32 height = tiles_m - group * GROUP < GROUP ? tiles_m - group * GROUP : GROUP;
        m = group * GROUP + inside % height, n = inside / height;
    }
};

// What a warp holds of C.
struct Sums {
    float r[WARP_M / 16][WARP_N / 8][4];                                        // 64 x 32

    static __device__ __forceinline__ u32 warp_m() { return threadIdx.x / WARP / 4 * WARP_M; }
    static __device__ __forceinline__ u32 warp_n() { return threadIdx.x / WARP % 4 * WARP_N; }

    // Adds the products of steps begin .. end of DEPTH along K. `copy_a(s, start)` and `copy_b` start the copies of tiles.
    template <bool A_ALONG_K, bool B_ALONG_K, typename A, typename B>
    __device__ __forceinline__ void multiply(char* stiles, u32 begin, u32 end, A copy_a, B copy_b) {
        const u32 sa = shared_address(stiles), sb = sa + STAGES * TILE_BYTES;
        auto copy = [&](u32 step) {
            if (step < end) {
                const u32 at = step % STAGES * TILE_BYTES;
                copy_a(sa + at, step * DEPTH);
                copy_b(sb + at, step * DEPTH);
            }
            cp_async_commit();  // empty past the end, so that the number of newer groups is always the same
        };
#pragma unroll
        for (u32 stage = 0; stage < STAGES - 1; stage++) {
            copy(begin + stage);
        }
        for (u32 step = begin; step < end; step++) {
            cp_async_wait<STAGES - 2>();
            __syncthreads();  // the tile is there for all, and all have read the one that is overwritten next
            copy(step + STAGES - 1);
            const u32 at = step % STAGES * TILE_BYTES;
#pragma unroll
            for (u32 kk = 0; kk < DEPTH; kk += 16) {
                u32 ra[WARP_M / 16][4], rb[WARP_N / 16][4];                     // (64, 16) of A, (16, 32) of B
#pragma unroll
                for (u32 i = 0; i < WARP_M / 16; i++) {
                    Tile<A_ALONG_K>::load_a(ra[i], sa + at, warp_m() + 16 * i, kk);
                }
#pragma unroll
                for (u32 j = 0; j < WARP_N / 16; j++) {
                    Tile<B_ALONG_K>::load_b(rb[j], sb + at, warp_n() + 16 * j, kk);
                }
#pragma unroll
                for (u32 i = 0; i < WARP_M / 16; i++) {
#pragma unroll
                    for (u32 j = 0; j < WARP_N / 8; j++) {
                        mma_m16n8k16(r[i][j], ra[i], rb[j / 2][j % 2 * 2], rb[j / 2][j % 2 * 2 + 1]);
                    }
                }
            }
        }
    }

    // Where element (row, col) of a warp's 16 x 32 is staged. Odd rows swap the halves of every 8 columns, so that lanes that
    // read 8 columns each of two rows meet in no bank.
    static __device__ __forceinline__ u32 staged(u32 row, u32 col) { return row * STAGE_PITCH + (col ^ row % 2 * 4); }

    // W staged neighbours, from a multiple of 4 on.
    template <u32 W>
    static __device__ __forceinline__ void load_staged(float (&x)[W], const float* s, u32 row, u32 col) {
#pragma unroll
        for (u32 i = 0; i < W; i += 4) {
            const float4 v = *reinterpret_cast<const float4*>(s + staged(row, col + i));
            x[i] = v.x, x[i + 1] = v.y, x[i + 2] = v.z, x[i + 3] = v.w;
        }
    }

    // Stages 16 rows of the warp at a time in the tiles' place; then `write(s, row, col)` sends them on, `row` and `col` being
    // the first of them in the block's tile.
    template <typename F>
    __device__ __forceinline__ void drain(char* stiles, F write) {
        __syncthreads();  // all have read the last tile, and only empty groups are under way: the tiles' place takes C
        float* s = reinterpret_cast<float*>(stiles) + threadIdx.x / WARP * 16 * STAGE_PITCH;    // (16, 32)
        const u32 lane = threadIdx.x % WARP;
        const u32 to = shared_address(s + staged(lane / 4, lane % 4 * 2));  // the lane's first pair
#pragma unroll
        for (u32 i = 0; i < WARP_M / 16; i++) {
            if (i > 0) {
                __syncwarp();  // the rows before have been read
            }
#pragma unroll
            for (u32 j = 0; j < WARP_N / 8; j++) {
                st_shared_pair(to + 4 * (8 * j), r[i][j][0], r[i][j][1]);
                st_shared_pair(to + 4 * (8 * j + 8 * STAGE_PITCH), r[i][j][2], r[i][j][3]);
            }
            __syncwarp();  // the warp's rows are there
            write(s, warp_m() + 16 * i, warp_n());
        }
    }
};

// 16 bytes of C in one access.
__device__ __forceinline__ void store_whole(float* g, const float (&r)[4]) {
    st_global_words(g, __float_as_uint(r[0]), __float_as_uint(r[1]), __float_as_uint(r[2]), __float_as_uint(r[3]));
}

__device__ __forceinline__ void store_whole(bf16* g, const float (&r)[8]) {
    st_global_words(g, pack_bf16x2(r[0], r[1]), pack_bf16x2(r[2], r[3]), pack_bf16x2(r[4], r[5]), pack_bf16x2(r[6], r[7]));
}

// What becomes of A B: C = alpha A B + beta D, both [m, n], or part y of a sum over K, the next m n of C. D may be C; where beta is
// 0 it is not read.
template <typename O>
struct Output {
    O* gc;
    const O* gd;
    float alpha, beta;
    u32 m, n;

    // Writes a warp's staged 16 x 32 from (row0, col0) of C on: whole sectors, 16 bytes a thread where C and D allow it.
    __device__ __forceinline__ void write(const float* s, u32 row0, u32 col0) const {
        constexpr u32 W = WIDTH<O>, LANES = WARP_N / W;              // numbers of a thread, threads of a row
        const u32 lane = threadIdx.x % WARP, col = lane % LANES * W;
        const bool wide = n % W == 0 && aligned(16, gc, gd);
#pragma unroll
        for (u32 row = lane / LANES; row < 16; row += WARP / LANES) {
            if (row0 + row >= m || col0 + col >= n) {
                continue;
            }
            const u64 at = static_cast<u64>(row0 + row) * n + col0 + col;
            float r[W];
            Sums::load_staged<W>(r, s, row, col);
#pragma unroll
            for (u32 i = 0; i < W; i++) {
                r[i] *= alpha;
            }
            if (wide) {
                if (beta != 0.0f) {
                    float old[W];
                    load_vector<W>(old, gd + at);
#pragma unroll
                    for (u32 i = 0; i < W; i++) {
                        r[i] += beta * old[i];
                    }
                }
                store_whole(gc + at, r);
            } else {
#pragma unroll
                for (u32 i = 0; i < W; i++) {
                    if (col0 + col + i < n) {
                        store(gc + at + i, r[i] + (beta == 0.0f ? 0.0f : beta * load(gd + at + i)));
                    }
                }
            }
        }
    }
};

// The whole product of a block, copies by `A` and `B` as for `Sums::multiply`. Along y blocks share K: part y of gridDim.y.
template <bool A_ALONG_K, bool B_ALONG_K, typename O, typename A, typename B>
__device__ __forceinline__ void product(Output<O> out, u32 k, A copy_a, B copy_b) {
    __shared__ __align__(128) char stiles[TILES_BYTES];
    const Place place(out.m, (out.n + TILE - 1) / TILE);
    const u32 steps = (k + DEPTH - 1) / DEPTH, part = (steps + gridDim.y - 1) / gridDim.y, begin = blockIdx.y * part;
    const u32 m0 = place.m * TILE, n0 = place.n * TILE;
    Sums sums = {};
    sums.multiply<A_ALONG_K, B_ALONG_K>(
        stiles, begin, begin + part < steps ? begin + part : steps, [&](u32 s, u32 start) { copy_a(s, From{m0}, start); },
        [&](u32 s, u32 start) { copy_b(s, From{n0}, start); });
    out.gc += static_cast<u64>(blockIdx.y) * out.m * out.n;
    sums.drain(stiles, [&](const float* s, u32 row, u32 col) { out.write(s, m0 + row, n0 + col); });
}
