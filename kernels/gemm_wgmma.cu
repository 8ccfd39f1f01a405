// Matrix product on the tensor cores of compute capability 9.0: C = alpha A B + beta D, bf16 by bf16 with f32 sums.
//
// Only for sm_90a.
//
//   c  [M, N]  f32 or bf16, =; with P parts the f32 sums of part p alone, at p M N: [P, M, N]
//   d  [M, N]  of the type of c, or c itself; where beta is 0 it is not read. With parts beta is 0
//   a  element (m, k) at m lda + k (`ak`: rows along K) or at k lda + m (`am`)          bf16
//   b  element (k, n) at n ldb + k (`bk`: columns along K) or at k ldb + n (`bn`)       bf16
// a and b start at multiples of 16 bytes, and lda and ldb are multiples of 8. Saves nothing.
// Grid: at most ceil(M / 128) ceil(N / 256) blocks along x, which take tiles of C in turn, P along y that take ceil(ceil(K / 64) / P)
// steps of 64 each; 384 threads and 217,152 bytes of dynamic shared memory. Must move 2 (M K + K N) bytes, C, and D where it
// counts; does 2 M N K operations. The order of every sum is fixed, whatever the grid.
//
// A warpgroup brings steps of A and B into a ring of four, ahead of the two that multiply, also past the end of a tile: while
// these write one, the next is under way. Each multiplies 64 x 256 of the tile and holds the sums, 128 registers a thread.
// Learnt from: CUTLASS's SM90 warp-specialised mainloops and the layouts of its GMMA descriptors; the public ladder of kernels
// fast.cu.
#include "common/gemm.cuh"
#include "ptx/fence_proxy.cuh"
#include "ptx/mbarrier.cuh"
#include "ptx/setmaxnreg.cuh"
#include "ptx/wgmma.cuh"

constexpr u32 WIDE = 256;                                   // of N; of M a block takes TILE
constexpr u32 DEEP = SWIZZLE_BYTES / 2;                     // of K: what a row in shared memory holds
constexpr u32 RING = 4;                                     // steps in shared memory
constexpr u32 BEHIND = 2;                                   // newest of them still under way when an older is handed over
constexpr u32 WARPGROUP = 128;
constexpr u32 MULTIPLYING_WARPS = 8;
constexpr u32 A_BYTES = TILE * SWIZZLE_BYTES;
constexpr u32 STEP_BYTES = A_BYTES + WIDE * SWIZZLE_BYTES;
constexpr u32 PART_BYTES = 64 * SWIZZLE_BYTES;              // 64 of M or N in a step
constexpr u32 STAGED_BYTES = MULTIPLYING_WARPS * 16 * STAGE_PITCH * 4;
constexpr u32 STAGED_AT = RING * STEP_BYTES;
constexpr u32 FULL_AT = STAGED_AT + STAGED_BYTES;           // barriers: a step is there, for each place of the ring
constexpr u32 EMPTY_AT = FULL_AT + RING * MBARRIER_BYTES;   // it has been read
constexpr u32 COPYING_REGISTERS = 56;
constexpr u32 MULTIPLYING_REGISTERS = 224;
static_assert(EMPTY_AT + RING * MBARRIER_BYTES == 217152, "what launches ask for");
static_assert(BEHIND <= RING - 2, "the oldest step but one is handed over before a place must be free: else both sides wait");
static_assert(WARPGROUP * (COPYING_REGISTERS + 2 * MULTIPLYING_REGISTERS) <= 65536, "the registers of a multiprocessor");

// Starts the copy of the threads' share of an operand's step from `start` of K on, of ROWS of M or N from `first` on; zeros beyond the
// matrix. Rows of 128 bytes as wgmma reads them: along K one of M or N each, else one of K with 64 of M or N, 64 of those and
// then the next 64 of M or N. Eight threads copy a row: its chunks lie in all banks.
template <bool ALONG_K, u32 ROWS>
__device__ __forceinline__ void copy_step(u32 s, const Matrix& x, u32 first, u32 start, u32 k) {
    const u32 chunk = threadIdx.x % 8, row0 = threadIdx.x / 8;
#pragma unroll
    for (u32 i = 0; i < ROWS / 16; i++) {
        const u32 row = row0 + 16 * i;
        const u32 at = first + (ALONG_K ? row : 64 * (i / 4) + chunk * CHUNK);
        const u32 kk = start + (ALONG_K ? chunk * CHUNK : row0 + 16 * (i % 4));
        const u32 row_end = ALONG_K ? k - kk : x.extent - at;    // elements left in the row where the chunk lies inside
        const u32 left = at < x.extent && kk < k ? row_end : 0;
        const bf16* from = x.g + (ALONG_K ? at * x.ld + kk : kk * x.ld + at);
        cp_async<16>(s + row * SWIZZLE_BYTES + (chunk ^ row0 % 8) * 16, from, 2 * (left < CHUNK ? left : CHUNK));
    }
}

// What a block of one part does: every gridDim.x-th tile, each with the same steps along K.
struct Work {
    u32 m, n, k, begin, end, tiles_n, tiles;

    __device__ __forceinline__ Work(u32 m, u32 n, u32 k) : m(m), n(n), k(k) {
        const u32 steps = (k + DEEP - 1) / DEEP, part = (steps + gridDim.y - 1) / gridDim.y;
        begin = blockIdx.y * part, end = begin + part < steps ? begin + part : steps;
        tiles_n = (n + WIDE - 1) / WIDE, tiles = (m + TILE - 1) / TILE * tiles_n;
    }
};

// The warpgroup that copies.
template <bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void copy_tiles(u32 s, const Matrix& a, const Matrix& b, Work work) {
    u32 copied = 0;
    auto hand_over = [&] {
        cp_async_commit();  // empty past the end, so that the number of newer groups is always the same
        if (copied >= BEHIND) {
            cp_async_wait<BEHIND>();
            fence_proxy_async();
            __syncwarp();  // the warp's share is there
            if (threadIdx.x % WARP == 0) {
                mbarrier_arrive(s + FULL_AT + (copied - BEHIND) % RING * MBARRIER_BYTES);
            }
        }
        copied++;
    };
    for (u32 tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
        const Place place(work.m, work.tiles_n, tile);
        for (u32 step = work.begin; step < work.end; step++) {
            const u32 at = copied % RING;
            mbarrier_wait(s + EMPTY_AT + at * MBARRIER_BYTES, copied / RING % 2 ^ 1);
            copy_step<A_ALONG_K, TILE>(s + at * STEP_BYTES, a, place.m * TILE, step * DEEP, work.k);
            copy_step<B_ALONG_K, WIDE>(s + at * STEP_BYTES + A_BYTES, b, place.n * WIDE, step * DEEP, work.k);
            hand_over();
        }
    }
#pragma unroll 1
    for (u32 i = 0; i < BEHIND; i++) {
        hand_over();
    }
}

// Bytes that 16 of K lie apart: inside a row, or 16 rows on.
template <bool ALONG_K>
constexpr u32 K16_BYTES = ALONG_K ? 16 * 2 : 16 * SWIZZLE_BYTES;

// A warpgroup that multiplies: the `half`-th 64 rows of each tile.
template <bool A_ALONG_K, bool B_ALONG_K, typename O>
__device__ __forceinline__ void multiply_tiles(u32 s, char* sall, u32 half, Output<O> out, Work work) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP % 4;
    float* sstaged = reinterpret_cast<float*>(sall + STAGED_AT) + (half * 4 + warp) * 16 * STAGE_PITCH;  // (16, 32)
    const u32 to = shared_address(sstaged + Sums::staged(lane / 4, lane % 4 * 2));                        // the lane's first pair
    u32 read = 0;
    auto release = [&] {
        if (lane == 0) {
            mbarrier_arrive(s + EMPTY_AT + (read - 1) % RING * MBARRIER_BYTES);
        }
    };
    for (u32 tile = blockIdx.x; tile < work.tiles; tile += gridDim.x) {
        float sums[WIDE / 8][4] = {};                                           // (64, 256) of the warpgroup
#pragma unroll 1  // a step has a thousand cycles of products: nothing to gain
        for (u32 step = work.begin; step < work.end; step++) {
            const u32 at = read % RING, sa = s + at * STEP_BYTES + half * PART_BYTES, sb = s + at * STEP_BYTES + A_BYTES;
            mbarrier_wait(s + FULL_AT + at * MBARRIER_BYTES, read / RING % 2);
            wgmma_fence(sums);
#pragma unroll
            for (u32 i = 0; i < DEEP / 16; i++) {
                wgmma_m64n256k16<A_ALONG_K, B_ALONG_K>(
                    sums, matrix_descriptor<A_ALONG_K>(sa + i * K16_BYTES<A_ALONG_K>, PART_BYTES),
                    matrix_descriptor<B_ALONG_K>(sb + i * K16_BYTES<B_ALONG_K>, PART_BYTES));
            }
            wgmma_commit();
            wgmma_wait<1>(sums);  // the step before has been read
            if (step > work.begin) {
                release();
            }
            read++;
        }
        wgmma_wait<0>(sums);
        if (work.begin < work.end) {
            release();
        }
        const Place place(work.m, work.tiles_n, tile);
        const u32 row0 = place.m * TILE + half * 64 + warp * 16, col0 = place.n * WIDE;
#pragma unroll
        for (u32 j = 0; j < WIDE / 8; j += WARP_N / 8) {
            __syncwarp();  // the columns before have been read
#pragma unroll
            for (u32 i = 0; i < WARP_N / 8; i++) {
                st_shared_pair(to + 4 * (8 * i), sums[j + i][0], sums[j + i][1]);
                st_shared_pair(to + 4 * (8 * i + 8 * STAGE_PITCH), sums[j + i][2], sums[j + i][3]);
            }
            __syncwarp();  // the warp's 16 x 32 are there
            out.write(sstaged, row0, col0 + 8 * j);
        }
    }
}

template <bool A_ALONG_K, bool B_ALONG_K, typename O>
__device__ __forceinline__ void gemm(Output<O> out, Matrix a, Matrix b, u32 k) {
    extern __shared__ __align__(1024) char sall[];  // RING steps of A [128, 64] and B [256, 64], what is staged of C, barriers
    const u32 s = shared_address(sall);
    if (threadIdx.x == 0) {
        for (u32 i = 0; i < RING; i++) {
            mbarrier_init(s + FULL_AT + i * MBARRIER_BYTES, WARPGROUP / WARP);
            mbarrier_init(s + EMPTY_AT + i * MBARRIER_BYTES, MULTIPLYING_WARPS);
        }
    }
    __syncthreads();  // the barriers are made
    const Work work(out.m, out.n, k);
    if (threadIdx.x < WARPGROUP) {
        registers_less<COPYING_REGISTERS>();
        copy_tiles<A_ALONG_K, B_ALONG_K>(s, a, b, work);
    } else {
        registers_more<MULTIPLYING_REGISTERS>();
        out.gc += static_cast<u64>(blockIdx.y) * out.m * out.n;
        multiply_tiles<A_ALONG_K, B_ALONG_K>(s, sall, threadIdx.x / WARPGROUP - 1, out, work);
    }
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_wgmma_ak_bk_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, true, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_wgmma_ak_bk_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, true, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_wgmma_ak_bn_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, false, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_wgmma_ak_bn_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, false, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_wgmma_am_bk_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, true, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_wgmma_am_bk_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, true, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_wgmma_am_bn_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, false, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(384, 1) gemm_wgmma_am_bn_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, false, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}
