// Matrix product on tensor cores, any size: C = alpha A B + beta C, bf16 by bf16 with f32 sums.
//
//   c  [M, N]  f32 or bf16; beta 0: = (the old content is not read), else +=
//   a  element (m, k) at m lda + k (`ak`: rows along K) or at k lda + m (`am`)          bf16
//   b  element (k, n) at n ldb + k (`bk`: columns along K) or at k ldb + n (`bn`)       bf16
// a and b start at multiples of 16 bytes, and lda and ldb are multiples of 8. Saves nothing.
// Grid: ceil(M / 128) ceil(N / 128) blocks along x, of 256 threads and 48 KiB of shared memory, 128 x 128 of C each: eight warps
// of 64 x 32. Must move 2 (M K + K N) bytes and C, does 2 M N K operations. The order of every sum is fixed.
//
// Three tiles of A and B are under way or in use at a time (cp.async). 16-byte chunks of a row are swizzled so that the eight
// rows of an 8x8 matrix lie in different banks.
// Learnt from: CUTLASS's SM80 multistage mainloop and its swizzles; NVIDIA's Ampere tuning guide.
#include "common/vector.cuh"
#include "ptx/cp_async.cuh"
#include "ptx/ldmatrix.cuh"
#include "ptx/mma.cuh"

constexpr u32 TILE = 128;         // of M and of N
constexpr u32 DEPTH = 32;         // of K
constexpr u32 STAGES = 3;
constexpr u32 THREADS = 256;
constexpr u32 WARP_M = 64;        // two warps along M
constexpr u32 WARP_N = 32;        // four along N
constexpr u32 TILE_BYTES = TILE * DEPTH * 2;
constexpr u32 CHUNK = 8;          // elements of 16 bytes
constexpr u32 GROUP = 8;          // rows of tiles whose blocks run together, so that they find B in L2
// Row of a warp's staged 16 x 32 of C: 8 more than 32 put the rows of a half warp into different banks.
constexpr u32 STAGE_PITCH = WARP_N + 8;
static_assert(2 * STAGES * TILE_BYTES == 48 * 1024, "all of the static shared memory that a block may have");
static_assert(THREADS / WARP * 16 * STAGE_PITCH * 4 <= 2 * STAGES * TILE_BYTES, "C is staged where the tiles were");

// How a tile of an operand lies in shared memory: `ALONG_K` as [TILE][DEPTH], else as [DEPTH][TILE].
template <bool ALONG_K>
struct Tile {
    static constexpr u32 ROW = ALONG_K ? DEPTH : TILE;              // elements of a row
    static constexpr u32 CHUNKS = ROW / CHUNK;

    // Bytes from the tile's start to a chunk. Rows of 64 bytes: two of them fill all banks; rows of 256 bytes: half of one does.
    static __device__ __forceinline__ u32 offset(u32 row, u32 chunk) {
        return row * ROW * 2 + (chunk ^ (ALONG_K ? row / 2 % 4 : row % 8)) * 16;
    }

    // Starts the copy of the tile from (first of M or N, start of K); zeros beyond the matrix.
    static __device__ __forceinline__ void copy(u32 s, const bf16* g, u64 ld, u32 first, u32 extent, u32 start, u32 k) {
#pragma unroll
        for (u32 step = 0; step < TILE * DEPTH / CHUNK / THREADS; step++) {
            const u32 index = step * THREADS + threadIdx.x, row = index / CHUNKS, chunk = index % CHUNKS;
            const u32 y = row + (ALONG_K ? first : start), y_end = ALONG_K ? extent : k;
            const u32 x = chunk * CHUNK + (ALONG_K ? start : first), x_end = ALONG_K ? k : extent;
            const u32 left = y < y_end && x < x_end ? x_end - x : 0;
            const bf16* from = left == 0 ? g : g + y * ld + x;
            cp_async_16(s + offset(row, chunk), from, 2 * (left < CHUNK ? left : CHUNK));
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

// Writes a warp's 16 x 32 of C, staged as rows of STAGE_PITCH floats: whole sectors, 16 bytes a thread where C allows it.
template <typename O>
__device__ __forceinline__ void write_rows(O* gc, const float* s, float alpha, float beta, u32 row0, u32 col0, u32 m, u32 n, bool wide) {
    constexpr u32 W = WIDTH<O>, LANES = WARP_N / W;                  // numbers of a thread, threads of a row
    const u32 lane = threadIdx.x % WARP, col = lane % LANES * W;
#pragma unroll
    for (u32 row = lane / LANES; row < 16; row += WARP / LANES) {
        if (row0 + row >= m || col0 + col >= n) {
            continue;
        }
        O* to = gc + static_cast<u64>(row0 + row) * n + col0 + col;
        float r[W];
#pragma unroll
        for (u32 i = 0; i < W; i += 4) {
            const float4 v = *reinterpret_cast<const float4*>(s + row * STAGE_PITCH + col + i);
            r[i] = alpha * v.x, r[i + 1] = alpha * v.y, r[i + 2] = alpha * v.z, r[i + 3] = alpha * v.w;
        }
        if (wide) {
            if (beta != 0.0f) {
                float old[W];
                load_vector<W>(old, to);
#pragma unroll
                for (u32 i = 0; i < W; i++) {
                    r[i] += beta * old[i];
                }
            }
            store_vector<W>(to, r);
        } else {
#pragma unroll
            for (u32 i = 0; i < W; i++) {
                if (col0 + col + i < n) {
                    store(to + i, r[i] + (beta == 0.0f ? 0.0f : beta * load(to + i)));
                }
            }
        }
    }
}

template <bool A_ALONG_K, bool B_ALONG_K, typename O>
__device__ __forceinline__ void gemm(O* gc, const bf16* ga, const bf16* gb, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    using A = Tile<A_ALONG_K>;
    using B = Tile<B_ALONG_K>;
    __shared__ __align__(128) char sall[2 * STAGES * TILE_BYTES];
    const u32 sa = shared_address(sall), sb = sa + STAGES * TILE_BYTES;
    const u32 tiles_m = (m + TILE - 1) / TILE, tiles_n = (n + TILE - 1) / TILE, tiles_k = (k + DEPTH - 1) / DEPTH;
    const u32 group = blockIdx.x / (GROUP * tiles_n), inside = blockIdx.x % (GROUP * tiles_n);
    const u32 height = tiles_m - group * GROUP < GROUP ? tiles_m - group * GROUP : GROUP;
    const u32 m0 = (group * GROUP + inside % height) * TILE, n0 = inside / height * TILE;
    const u32 warp = threadIdx.x / WARP, warp_m = warp / 4 * WARP_M, warp_n = warp % 4 * WARP_N;

    auto copy = [&](u32 tile) {
        if (tile < tiles_k) {
            const u32 at = tile % STAGES * TILE_BYTES;
            A::copy(sa + at, ga, lda, m0, m, tile * DEPTH, k);
            B::copy(sb + at, gb, ldb, n0, n, tile * DEPTH, k);
        }
        cp_async_commit();  // empty past the end, so that the number of newer groups is always the same
    };
#pragma unroll
    for (u32 stage = 0; stage < STAGES - 1; stage++) {
        copy(stage);
    }
    float racc[WARP_M / 16][WARP_N / 8][4] = {};                                // 64 x 32 of C
    for (u32 tile = 0; tile < tiles_k; tile++) {
        cp_async_wait<STAGES - 2>();
        __syncthreads();  // the tile is there for all, and all have read the one that is overwritten next
        copy(tile + STAGES - 1);
        const u32 at = tile % STAGES * TILE_BYTES;
#pragma unroll
        for (u32 kk = 0; kk < DEPTH; kk += 16) {
            u32 ra[WARP_M / 16][4], rb[WARP_N / 16][4];                         // (64, 16) of A, (16, 32) of B
#pragma unroll
            for (u32 i = 0; i < WARP_M / 16; i++) {
                A::load_a(ra[i], sa + at, warp_m + 16 * i, kk);
            }
#pragma unroll
            for (u32 j = 0; j < WARP_N / 16; j++) {
                B::load_b(rb[j], sb + at, warp_n + 16 * j, kk);
            }
#pragma unroll
            for (u32 i = 0; i < WARP_M / 16; i++) {
#pragma unroll
                for (u32 j = 0; j < WARP_N / 8; j++) {
                    mma_m16n8k16(racc[i][j], ra[i], rb[j / 2][j % 2 * 2], rb[j / 2][j % 2 * 2 + 1]);
                }
            }
        }
    }
    __syncthreads();  // all have read the last tile, and only empty groups are under way: the tiles' place takes C
    float* sstage = reinterpret_cast<float*>(sall) + warp * 16 * STAGE_PITCH;   // (16, 32)
    const u32 lane = threadIdx.x % WARP;
    const bool wide = n % WIDTH<O> == 0 && aligned(16, gc);
#pragma unroll
    for (u32 i = 0; i < WARP_M / 16; i++) {
        if (i > 0) {
            __syncwarp();  // the rows before have been read
        }
#pragma unroll
        for (u32 j = 0; j < WARP_N / 8; j++) {
            float* to = sstage + lane / 4 * STAGE_PITCH + 8 * j + lane % 4 * 2;
            *reinterpret_cast<float2*>(to) = make_float2(racc[i][j][0], racc[i][j][1]);
            *reinterpret_cast<float2*>(to + 8 * STAGE_PITCH) = make_float2(racc[i][j][2], racc[i][j][3]);
        }
        __syncwarp();  // the warp's rows are there
        write_rows(gc, sstage, alpha, beta, m0 + warp_m + 16 * i, n0 + warp_n, m, n, wide);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_ak_bk_bf16(bf16* c, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, true>(c, a, b, alpha, beta, m, n, k, lda, ldb);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_ak_bk_bf16_to_f32(float* c, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, true>(c, a, b, alpha, beta, m, n, k, lda, ldb);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_ak_bn_bf16(bf16* c, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, false>(c, a, b, alpha, beta, m, n, k, lda, ldb);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_ak_bn_bf16_to_f32(float* c, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, false>(c, a, b, alpha, beta, m, n, k, lda, ldb);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_am_bk_bf16(bf16* c, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, true>(c, a, b, alpha, beta, m, n, k, lda, ldb);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_am_bk_bf16_to_f32(float* c, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, true>(c, a, b, alpha, beta, m, n, k, lda, ldb);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_am_bn_bf16(bf16* c, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, false>(c, a, b, alpha, beta, m, n, k, lda, ldb);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_am_bn_bf16_to_f32(float* c, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, false>(c, a, b, alpha, beta, m, n, k, lda, ldb);
}
