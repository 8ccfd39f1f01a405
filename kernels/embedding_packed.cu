// Rows of a table that stays in its quantised blocks: y_n = table[token_n].
//
//   y       [N, C]  bf16, =; zeros where a token is NOTHING, NaN where it is another that is not below V
//   table   [V, C]  in panels of eight rows of blocks (common/blocks.cuh), as words
//   tokens  [N]     u32
// C is a multiple of 32; y starts at a multiple of 8 bytes. Saves nothing. A thread writes eight elements: grid ceil(N C / 1024) blocks of 128
// threads. Must move N rows of the table and N C elements of y.
#include "common/blocks.cuh"

constexpr u32 THREADS = 128;
// A token that has no row.
constexpr u32 NOTHING = 0xffffffffu;

template <typename Kind>
__device__ __forceinline__ void look_up(bf16* gy, const u32* gtable, const u32* gtokens, u32 n, u32 v, u32 c) {
    const u64 item = static_cast<u64>(blockIdx.x) * THREADS + threadIdx.x;
    const u32 eights = c / 8, at = item % eights, block = at / 4, place = at % 4;
    const u64 row = item / eights;
    if (row >= n) {
        return;
    }
    const u32 token = gtokens[row], fill = token == NOTHING ? 0 : 0x7fff7fffu;  // NaN, twice
    Eight out = {{fill, fill}, {fill, fill}};
    if (token < v) {
        const u64 panel = static_cast<u64>(token / PANEL) * (c / BLOCK) + block;
        out = Kind::read(gtable + panel * Kind::WORDS, token % PANEL, place);
    }
    bf16* to = gy + row * c + block * BLOCK + 4 * place;
    *reinterpret_cast<uint2*>(to) = make_uint2(out.first[0], out.first[1]);
    *reinterpret_cast<uint2*>(to + BLOCK / 2) = make_uint2(out.second[0], out.second[1]);
}

extern "C" __global__ void __launch_bounds__(128, 8) embedding_packed_fwd_q4_0_bf16(bf16* y, const u32* table, const u32* tokens, u32 n, u32 v, u32 c) {
    look_up<Q4_0>(y, table, tokens, n, v, c);
}

extern "C" __global__ void __launch_bounds__(128, 8) embedding_packed_fwd_q4_1_bf16(bf16* y, const u32* table, const u32* tokens, u32 n, u32 v, u32 c) {
    look_up<Q4_1>(y, table, tokens, n, v, c);
}

extern "C" __global__ void __launch_bounds__(128, 8) embedding_packed_fwd_q8_0_bf16(bf16* y, const u32* table, const u32* tokens, u32 n, u32 v, u32 c) {
    look_up<Q8_0>(y, table, tokens, n, v, c);
}
