// Embedding: y_n = table[token_n]; backward dtable[token_n] += dy_n, in the order of n for every element.
//
// Forward
//   y       [N, C]  f32 or bf16, =; zeros where a token is NOTHING, NaN where it is another that is not below V
//   table   [V, C]
//   tokens  [N]     u32
// Grid: ceil(N C / 1024) (f32) or ceil(N C / 2048) (bf16) blocks of 256 threads. Must move 2 N C elements.
//
// Backward
//   dtable  [V, C]  f32, +=
//   tokens  [N];  dy [N, C]  f32 or bf16
// Grid: ceil(V / 16) blocks of 256 threads; block b owns 16 rows of the table, looks through all tokens for them, and adds
// what it finds in the order of n: no atomics, one result. 1 KiB of shared memory; any size. Must move N C elements of dy and
// 2 C of dtable per token; reads the tokens ceil(V / 16) times, from L2.
#include "common/row.cuh"

constexpr u32 THREADS = 256;
constexpr u32 TABLE_ROWS = 16;
// A token that has no row.
constexpr u32 NOTHING = 0xffffffffu;

template <typename E, u32 W>
__device__ __forceinline__ void forward(E* gy, const E* gtable, const u32* gtokens, u32 n, u32 v, u32 c) {
    for_flat_packs<THREADS, WIDTH<E> / W, W>(n, c, [&](u64 row, u32 column, u64 element) {
        const u32 token = gtokens[row];
        float x[W];
        if (token < v) {
            load_vector<W>(x, gtable + static_cast<u64>(token) * c + column);
        } else {
#pragma unroll
            for (u32 j = 0; j < W; j++) {
                x[j] = token == NOTHING ? 0.0f : __uint_as_float(0x7fffffffu);
            }
        }
        store_vector<W>(gy + element, x);
    });
}

template <typename E>
__device__ __forceinline__ void backward(float* gdtable, const u32* gtokens, const E* gdy, u32 n, u32 v, u32 c) {
    __shared__ u32 sfound[THREADS / WARP];
    const u32 low = blockIdx.x * TABLE_ROWS;
    for (u32 start = 0; start < n; start += THREADS) {
        const u32 mine = start + threadIdx.x;
        const bool hit = mine < n && gtokens[mine] < v && gtokens[mine] - low < TABLE_ROWS;  // unsigned: below `low` wraps
        const u32 found = __ballot_sync(ALL_LANES, hit);
        if (threadIdx.x % WARP == 0) {
            sfound[threadIdx.x / WARP] = found;
        }
        __syncthreads();  // all eight warps have said where they found some
        for (u32 warp = 0; warp < THREADS / WARP; warp++) {
            for (u32 left = sfound[warp]; left != 0; left &= left - 1) {
                const u32 row = start + warp * WARP + __ffs(left) - 1;
                float* to = gdtable + static_cast<u64>(gtokens[row]) * c;
                const E* from = gdy + static_cast<u64>(row) * c;
                // A column belongs to one thread, so what it adds comes in order without a barrier.
                for (u32 i = threadIdx.x; i < c; i += THREADS) {
                    to[i] += load(from + i);
                }
            }
        }
        __syncthreads();  // all have read what was found, before it is overwritten
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) embedding_fwd_vector_f32(float* y, const float* table, const u32* tokens, u32 n, u32 v, u32 c) {
    c % 4 == 0 && aligned(16, y, table) ? forward<float, 4>(y, table, tokens, n, v, c) : forward<float, 1>(y, table, tokens, n, v, c);
}

extern "C" __global__ void __launch_bounds__(256, 4) embedding_fwd_vector_bf16(bf16* y, const bf16* table, const u32* tokens, u32 n, u32 v, u32 c) {
    c % 8 == 0 && aligned(16, y, table) ? forward<bf16, 8>(y, table, tokens, n, v, c) : forward<bf16, 1>(y, table, tokens, n, v, c);
}

extern "C" __global__ void __launch_bounds__(256, 4) embedding_bwd_table_rows_f32(float* dtable, const u32* tokens, const float* dy, u32 n, u32 v, u32 c) {
    backward(dtable, tokens, dy, n, v, c);
}

extern "C" __global__ void __launch_bounds__(256, 4) embedding_bwd_table_rows_bf16(float* dtable, const u32* tokens, const bf16* dy, u32 n, u32 v, u32 c) {
    backward(dtable, tokens, dy, n, v, c);
}
