// Causal attention by tiles on tensor cores with an online softmax: o_t = sum_s p_ts v_s, p_t = softmax over visible s of
// <q_t, k_s> scale. No T x S matrix in memory.
//
// The mask is that of attention_naive.cu: query t sees keys max(doc_start_t, t + 1 - window) ..= t (window 0: all of the past), and query
// head j reads key/value head j / (H / G). q, k, v: bf16 rows of heads of D, `stride` elements apart; o and do [B T, H D]. All start at
// multiples of 16 bytes; strides are multiples of 8. D is 32, 64, 96 or 128: an instance each. Any T.
//
// Forward (`fwd_query_tiles`, grid ceil(T / 64) x H x B of 128 threads, 512 D bytes of dynamic shared memory)
//   out [B T, H D] bf16, =;  lse [B, H, T] f32, = (log sum exp of the scaled scores), or null
// Saves q, k, v, out, lse. Does 2 T T D H B operations; reads each key and
// value once per 64 queries, mostly from L2.
//
// Backward, with p = exp(score scale - lse), ds = p (<do, v> - delta):
//   delta_t = <do_t, o_t>                [B, H, T] f32, =  (`bwd_delta_rows`, grid ceil(B T H / 32) of 128 threads, four a row;
//                                        reads 4 D bytes and does 2 D operations for each number)
//   dq_t = scale sum_s ds_ts k_s         bf16, =, strided like q (`bwd_query_tiles`, geometry and shared memory of forward;
//                                        6 T S D H B operations, half of them for causality)
//   dk_s = scale sum_t ds_ts q_t, dv_s = sum_t p_ts do_t, over the H / G heads that read the key; bf16, =, strided like k, v
//                                        (`bwd_key_tiles`, grid ceil(T / 64) x G x B of 128 threads, 512 D + 768 bytes of
//                                        dynamic shared memory; 8 T S D H B operations, half of them)
// Two passes over the scores (7 products instead of 5) leave each sum to one block: no atomics, no buffer to add up afterwards.
//
// P and dS are rounded to bf16 for their products; the sum that P is divided by is not.
// Sums in a fixed order. Tiles of keys that no query of the block sees are not read; only those that an edge of the
// mask crosses are masked. The longest blocks, those of the last queries, start first.
// Learnt from: Dao, FlashAttention-2 (arXiv 2307.08691).
#include "common/attention.cuh"

template <u32 D>
__device__ __forceinline__ void forward(bf16* gout, float* glse, const bf16* gq, const bf16* gk, const bf16* gv, const u32* gdoc_start,
                                        float scale, u32 t_len, u32 h, u32 g, u32 stride, u32 window) {
    extern __shared__ __align__(128) char sall[];                               // K [2][64, D], V [2][64, D]
    constexpr u32 TILE_BYTES = FLASH_TILE * Rows<D>::ROW_BYTES;
    const u32 sk = shared_address(sall), sv = sk + 2 * TILE_BYTES;
    const u32 head = blockIdx.y, b = blockIdx.z, warp_row = threadIdx.x / WARP * 16, lane = threadIdx.x % WARP;
    const u64 row0 = static_cast<u64>(b) * t_len, key0 = static_cast<u64>(b) * t_len * stride + head / (h / g) * D;
    const QueryBlock block(gdoc_start, row0, gridDim.x - 1 - blockIdx.x, t_len, window);
    const float scale2 = scale * LOG2_E;

    auto copy = [&](u32 tile) {
        if (tile < block.tile_end) {
            const u32 at = tile % 2 * TILE_BYTES, first = tile * FLASH_TILE;
            const u64 from = key0 + static_cast<u64>(first) * stride;
            Rows<D>::template copy<FLASH_TILE>(sk + at, gk + from, stride, t_len - first);
            Rows<D>::template copy<FLASH_TILE>(sv + at, gv + from, stride, t_len - first);
        }
        cp_async_commit();
    };
    // Q comes through the place of the second tile of keys.
    const u32 sq = sk + (block.tile_first + 1) % 2 * TILE_BYTES;
    Rows<D>::template copy<FLASH_TILE>(sq, gq + (row0 + block.t0) * stride + head * D, stride, block.extent);
    copy(block.tile_first);
    cp_async_wait<0>();
    __syncthreads();  // Q and the first tile are there for all
    u32 rq[D / 16][4];                                                          // (16, D)
#pragma unroll
    for (u32 k = 0; k < D / 16; k++) {
        Rows<D>::load_a(rq[k], sq, warp_row, 16 * k);
    }
    float rout[D / 8][4] = {}, rpeak[2] = {-infinity(), -infinity()}, rsum[2] = {};
    for (u32 tile = block.tile_first; tile < block.tile_end; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // the tile is there for all, and all have read the one (or Q) that is overwritten next
        copy(tile + 1);
        const u32 at = tile % 2 * TILE_BYTES;
        float rs[FLASH_TILE / 8][4] = {};                                       // (16, 64)
        multiply_rows<D, FLASH_TILE>(rs, from_registers(rq), sk + at);
        block.mask(rs, tile);
        softmax_step<D>(rs, rpeak, rsum, rout, scale2);
        sum_rows<D, FLASH_TILE>(rout, rs, sv + at);
    }
    float inverse[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const float sum = row_sum(rsum[half]);
        const u32 row = warp_row + lane / 4 + 8 * half;
        inverse[half] = 1.0f / sum;
        if (glse != nullptr && lane % 4 == 0 && row < block.extent) {
            glse[(static_cast<u64>(b) * h + head) * t_len + block.t0 + row] = rpeak[half] * scale + logf(sum);
        }
    }
    // The place of the tile before the last one is free: all have passed the barrier after reading it.
    char* sstage = sall + block.tile_end % 2 * TILE_BYTES + warp_row * Rows<D>::ROW_BYTES;
    const u64 to = (row0 + block.t0 + warp_row) * h * D + head * D;
    Rows<D>::store(gout + to, h * D, block.extent > warp_row ? block.extent - warp_row : 0, sstage, rout, inverse);
}

// dQ of 64 queries: their Q and dO in registers, tiles of keys pass by.
template <u32 D>
__device__ __forceinline__ void backward_queries(bf16* gdq, const bf16* gq, const bf16* gk, const bf16* gv, const float* glse, const float* gdelta,
                                                 const bf16* gdout, const u32* gdoc_start, float scale, u32 t_len, u32 h, u32 g, u32 stride, u32 window) {
    extern __shared__ __align__(128) char sall[];                               // K [2][64, D], V [2][64, D]
    constexpr u32 TILE_BYTES = FLASH_TILE * Rows<D>::ROW_BYTES;
    const u32 sk = shared_address(sall), sv = sk + 2 * TILE_BYTES;
    const u32 head = blockIdx.y, b = blockIdx.z, warp_row = threadIdx.x / WARP * 16;
    const u64 row0 = static_cast<u64>(b) * t_len, key0 = row0 * stride + head / (h / g) * D;
    const QueryBlock block(gdoc_start, row0, gridDim.x - 1 - blockIdx.x, t_len, window);
    const float scale2 = scale * LOG2_E;

    auto copy = [&](u32 tile) {
        if (tile < block.tile_end) {
            const u32 at = tile % 2 * TILE_BYTES, first = tile * FLASH_TILE;
            const u64 from = key0 + static_cast<u64>(first) * stride;
            Rows<D>::template copy<FLASH_TILE>(sk + at, gk + from, stride, t_len - first);
            Rows<D>::template copy<FLASH_TILE>(sv + at, gv + from, stride, t_len - first);
        }
        cp_async_commit();
    };
    // Q and dO come through the places of the second tile.
    const u32 second = (block.tile_first + 1) % 2 * TILE_BYTES;
    Rows<D>::template copy<FLASH_TILE>(sk + second, gq + (row0 + block.t0) * stride + head * D, stride, block.extent);
    Rows<D>::template copy<FLASH_TILE>(sv + second, gdout + ((row0 + block.t0) * h + head) * D, h * D, block.extent);
    copy(block.tile_first);
    float lse2[2], delta[2];
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u64 stat = (static_cast<u64>(b) * h + head) * t_len + block.rlast[half];
        lse2[half] = glse[stat] * LOG2_E;
        delta[half] = gdelta[stat];
    }
    cp_async_wait<0>();
    __syncthreads();  // Q, dO and the first tile are there for all
    u32 rq[D / 16][4], rdout[D / 16][4];                                        // (16, D)
#pragma unroll
    for (u32 k = 0; k < D / 16; k++) {
        Rows<D>::load_a(rq[k], sk + second, warp_row, 16 * k);
        Rows<D>::load_a(rdout[k], sv + second, warp_row, 16 * k);
    }
    float rdq[D / 8][4] = {};
    for (u32 tile = block.tile_first; tile < block.tile_end; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // the tile is there for all, and all have read the one (or Q and dO) that is overwritten next
        copy(tile + 1);
        const u32 at = tile % 2 * TILE_BYTES;
        float rs[FLASH_TILE / 8][4] = {}, rdp[FLASH_TILE / 8][4] = {};          // (16, 64)
        multiply_rows<D, FLASH_TILE>(rs, from_registers(rq), sk + at);
        block.mask(rs, tile);
        multiply_rows<D, FLASH_TILE>(rdp, from_registers(rdout), sv + at);
#pragma unroll
        for (u32 j = 0; j < FLASH_TILE / 8; j++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                rs[j][i] = ex2(rs[j][i] * scale2 - lse2[i / 2]) * (rdp[j][i] - delta[i / 2]);
            }
        }
        sum_rows<D, FLASH_TILE>(rdq, rs, sk + at);
    }
    // The place of the tile before the last one is free: all have passed the barrier after reading it.
    char* sstage = sall + block.tile_end % 2 * TILE_BYTES + warp_row * Rows<D>::ROW_BYTES;
    const float factor[2] = {scale, scale};
    const u64 to = (row0 + block.t0 + warp_row) * stride + head * D;
    Rows<D>::store(gdq + to, stride, block.extent > warp_row ? block.extent - warp_row : 0, sstage, rdq, factor);
}

constexpr u32 PASSING = 32;                // queries of a tile that passes by keys: 64 would need more registers than there are

// The queries that see a key of s0 ..= s1 end before this one. Their first keys never decrease: bisection.
__device__ __forceinline__ u32 queries_end(const u32* gdoc_start, u64 row0, u32 s1, u32 t_len, u32 window) {
    u32 low = s1 + 1, high = t_len;
    while (low < high) {
        const u32 middle = (low + high) / 2;
        if (first_key(gdoc_start, row0 + middle, middle, window) > s1) {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    return low;
}

// What a tile of passing queries needs beside Q and dO, [3][PASSING]: lse in base 2 (inf past the end: p becomes 0), delta, first key.
__device__ __forceinline__ float passing_number(const float* glse, const float* gdelta, const u32* gdoc_start, u64 row0, u64 stat0, u32 first, u32 t_len, u32 window) {
    const u32 t = first + threadIdx.x % PASSING;
    switch (threadIdx.x / PASSING) {
        case 0: return t < t_len ? glse[stat0 + t] * LOG2_E : infinity();
        case 1: return t < t_len ? gdelta[stat0 + t] : 0.0f;
        case 2: return __uint_as_float(first_key(gdoc_start, row0 + (t < t_len ? t : t_len - 1), t < t_len ? t : t_len - 1, window));
        default: return 0.0f;
    }
}

// Scores [16 keys, 32 queries] become p, <v, do> becomes ds; p of what is not seen becomes 0. `t0` is the first query.
__device__ __forceinline__ void key_rows_ds(float (&rs)[PASSING / 8][4], float (&rdp)[PASSING / 8][4], const float* snumbers, float scale2, u32 key0, u32 t0, bool edge) {
    const u32 lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 j = 0; j < PASSING / 8; j++) {
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 column = 8 * j + lane % 4 * 2 + i % 2, key = key0 + lane / 4 + i / 2 * 8;
            float p = ex2(rs[j][i] * scale2 - snumbers[column]);
            if (edge && (t0 + column < key || __float_as_uint(snumbers[2 * PASSING + column]) > key)) {
                p = 0.0f;
            }
            rs[j][i] = p;
            rdp[j][i] = p * (rdp[j][i] - snumbers[PASSING + column]);
        }
    }
}

// dK and dV of 64 keys: tiles of 32 queries of all heads that read them pass by. Scores are transposed (rows are keys), so that P
// and dS lie as A operands. K and V are read from shared memory for each tile: dK and dV take the registers.
template <u32 D>
__device__ __forceinline__ void backward_keys(bf16* gdk, bf16* gdv, const bf16* gq, const bf16* gk, const bf16* gv, const float* glse, const float* gdelta,
                                              const bf16* gdout, const u32* gdoc_start, float scale, u32 t_len, u32 h, u32 g, u32 stride, u32 window) {
    extern __shared__ __align__(128) char sall[];          // K, V [64, D], Q, dO [2][32, D], numbers [2][3][32] f32
    constexpr u32 KEY_BYTES = FLASH_TILE * Rows<D>::ROW_BYTES, QUERY_BYTES = PASSING * Rows<D>::ROW_BYTES;
    const u32 sk = shared_address(sall), sv = sk + KEY_BYTES, sq = sv + KEY_BYTES, sdout = sq + 2 * QUERY_BYTES;
    float* snumbers = reinterpret_cast<float*>(sall + 2 * KEY_BYTES + 4 * QUERY_BYTES);
    const u32 s0 = blockIdx.x * FLASH_TILE, group = blockIdx.y, b = blockIdx.z, warp_row = threadIdx.x / WARP * 16;
    const u32 extent = t_len - s0, s1 = s0 + (extent < FLASH_TILE ? extent : FLASH_TILE) - 1;
    const u64 row0 = static_cast<u64>(b) * t_len, key_at = (row0 + s0) * stride + group * D;
    const u32 tile_first = s0 / PASSING, tiles = (queries_end(gdoc_start, row0, s1, t_len, window) + PASSING - 1) / PASSING - tile_first;
    const u32 total = tiles * (h / g);

    auto copy = [&](u32 i) {
        if (i < total) {
            const u32 head = group * (h / g) + i / tiles, t0 = (tile_first + i % tiles) * PASSING, at = i % 2 * QUERY_BYTES;
            Rows<D>::template copy<PASSING>(sq + at, gq + (row0 + t0) * stride + head * D, stride, t_len - t0);
            Rows<D>::template copy<PASSING>(sdout + at, gdout + ((row0 + t0) * h + head) * D, h * D, t_len - t0);
        }
        cp_async_commit();
    };
    auto number = [&](u32 i) {
        const u32 head = group * (h / g) + i / tiles, t0 = (tile_first + i % tiles) * PASSING;
        const u64 stat0 = (static_cast<u64>(b) * h + head) * t_len;
        return i < total ? passing_number(glse, gdelta, gdoc_start, row0, stat0, t0, t_len, window) : 0.0f;
    };
    auto put = [&](u32 i, float number) {
        if (threadIdx.x < 3 * PASSING) {
            snumbers[i % 2 * 3 * PASSING + threadIdx.x] = number;
        }
    };
    Rows<D>::template copy<FLASH_TILE>(sk, gk + key_at, stride, extent);
    Rows<D>::template copy<FLASH_TILE>(sv, gv + key_at, stride, extent);
    copy(0);
    put(0, number(0));
    float rdk[D / 8][4] = {}, rdv[D / 8][4] = {};                               // (16, D)
    for (u32 i = 0; i < total; i++) {
        cp_async_wait<0>();
        __syncthreads();  // the tile and its numbers are there for all, and all have read those that are overwritten next
        copy(i + 1);
        const float next = number(i + 1);
        const u32 at = i % 2 * QUERY_BYTES, t0 = (tile_first + i % tiles) * PASSING;
        const float* snow = snumbers + i % 2 * 3 * PASSING;
        float rs[PASSING / 8][4] = {}, rdp[PASSING / 8][4] = {};                // (16, 32)
        multiply_rows<D, PASSING>(rs, [&](u32(&ra)[4], u32 k) { Rows<D>::load_a(ra, sk, warp_row, 16 * k); }, sq + at);
        multiply_rows<D, PASSING>(rdp, [&](u32(&ra)[4], u32 k) { Rows<D>::load_a(ra, sv, warp_row, 16 * k); }, sdout + at);
        const u32 latest = __float_as_uint(snow[3 * PASSING - 1]);              // no query of the tile begins later
        const bool edge = t0 < s0 + FLASH_TILE - 1 || latest > s0;
        key_rows_ds(rs, rdp, snow, scale * LOG2_E, s0 + warp_row, t0, edge);
        sum_rows<D, PASSING>(rdv, rs, sdout + at);
        sum_rows<D, PASSING>(rdk, rdp, sq + at);
        put(i + 1, next);
    }
    // A warp reads its own rows of K and V alone, all lanes at once: without a barrier their places take its rows of dK and dV.
    const u32 rows = extent > warp_row ? extent - warp_row : 0, stage = warp_row * Rows<D>::ROW_BYTES;
    const u64 to = key_at + static_cast<u64>(warp_row) * stride;
    const float factor_k[2] = {scale, scale}, factor_v[2] = {1.0f, 1.0f};
    Rows<D>::store(gdk + to, stride, rows, sall + stage, rdk, factor_k);
    Rows<D>::store(gdv + to, stride, rows, sall + KEY_BYTES + stage, rdv, factor_v);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_flash_fwd_query_tiles_d32_bf16(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    forward<32>(out, lse, q, k, v, doc_start, scale, t, h, g, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_flash_fwd_query_tiles_d64_bf16(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    forward<64>(out, lse, q, k, v, doc_start, scale, t, h, g, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_flash_fwd_query_tiles_d96_bf16(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    forward<96>(out, lse, q, k, v, doc_start, scale, t, h, g, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_flash_fwd_query_tiles_d128_bf16(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    forward<128>(out, lse, q, k, v, doc_start, scale, t, h, g, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 8) attention_flash_bwd_delta_rows_bf16(float* delta, const bf16* out, const bf16* dout, u32 t, u32 h, u32 d, u32 n) {
    const u32 row = blockIdx.x * (FLASH_THREADS / 4) + threadIdx.x / 4;         // of [B T, H]
    float sum = 0.0f;
    for (u32 i = threadIdx.x % 4 * 8; row < n && i < d; i += 32) {
        float rout[8], rdout[8];
        load_vector<8>(rout, out + static_cast<u64>(row) * d + i);
        load_vector<8>(rdout, dout + static_cast<u64>(row) * d + i);
#pragma unroll
        for (u32 k = 0; k < 8; k++) {
            sum += rout[k] * rdout[k];
        }
    }
    sum = row_sum(sum);
    if (row < n && threadIdx.x % 4 == 0) {
        const u32 token = row / h, head = row % h;
        delta[(static_cast<u64>(token / t) * h + head) * t + token % t] = sum;
    }
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_flash_bwd_query_tiles_d32_bf16(bf16* dq, const bf16* q, const bf16* k, const bf16* v, const float* lse, const float* delta, const bf16* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    backward_queries<32>(dq, q, k, v, lse, delta, dout, doc_start, scale, t, h, g, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_flash_bwd_key_tiles_d32_bf16(bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v, const float* lse, const float* delta, const bf16* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    backward_keys<32>(dk, dv, q, k, v, lse, delta, dout, doc_start, scale, t, h, g, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_flash_bwd_query_tiles_d64_bf16(bf16* dq, const bf16* q, const bf16* k, const bf16* v, const float* lse, const float* delta, const bf16* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    backward_queries<64>(dq, q, k, v, lse, delta, dout, doc_start, scale, t, h, g, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 3) attention_flash_bwd_key_tiles_d64_bf16(bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v, const float* lse, const float* delta, const bf16* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    backward_keys<64>(dk, dv, q, k, v, lse, delta, dout, doc_start, scale, t, h, g, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_flash_bwd_query_tiles_d96_bf16(bf16* dq, const bf16* q, const bf16* k, const bf16* v, const float* lse, const float* delta, const bf16* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    backward_queries<96>(dq, q, k, v, lse, delta, dout, doc_start, scale, t, h, g, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_flash_bwd_key_tiles_d96_bf16(bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v, const float* lse, const float* delta, const bf16* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    backward_keys<96>(dk, dv, q, k, v, lse, delta, dout, doc_start, scale, t, h, g, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_flash_bwd_query_tiles_d128_bf16(bf16* dq, const bf16* q, const bf16* k, const bf16* v, const float* lse, const float* delta, const bf16* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    backward_queries<128>(dq, q, k, v, lse, delta, dout, doc_start, scale, t, h, g, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 2) attention_flash_bwd_key_tiles_d128_bf16(bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v, const float* lse, const float* delta, const bf16* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 stride, u32 window) {
    backward_keys<128>(dk, dv, q, k, v, lse, delta, dout, doc_start, scale, t, h, g, stride, window);
}
