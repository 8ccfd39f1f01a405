// Attention of the next tokens of cached sequences, whose keys and values lie in pages of 16 tokens: o_t = sum_s p_ts v_s,
// p_t = softmax of <q_t, k_s> scale over keys max(0, position + 1 - window) ..= position of the row's sequence (window 0: all of them).
//
// `write_rows` takes packed rows apart: RMSNorm of query and key heads with gains (where they are not null), rotation by the row's position
// (as in rope.cu), keys and values to their slots.
//   q       [N, H D]        f32 or bf16, =
//   k, v    [slots, G D]    =, the rows that `slots` names
//   qkv     [N, (H+2G)D]; positions, slots [N]; cos, sin [S, D/2] f32; q_gain, k_gain [D] or null
// Grid: ceil(N (H+2G) / 8) blocks of 8 warps, a warp a head. Must move 2 N (H+2G) D elements.
//
// `split_keys`: a block has one row, one key head and one part of 256 keys, counted from the beginning of the sequence.
//   partial [N, H, splits, D + 2]  f32, =: sum of p v with p = exp(score - peak), peak, sum of p; parts without a visible key are left alone
//   q, k, v as above; sequences, positions [N]; tables [sequences, pages]
// Grid: N x G x splits blocks of 4 warps; 4 (H/G) (D + 256) bytes of dynamic shared memory. Must move each visible key and value once, 4 H D
// operations for each.
//
// `tile_keys`: the same parts on tensor cores, in bf16, D 32, 64, 96 or 128 (an instance each). A block has rows of one sequence, one key
// head, whose H/G query heads in each row make up to 64 slots of a product, and one part.
//   tiles [T, 2]: first row of a block, and how many follow each other, at most 64 / (H/G); null where every row is a block of its own
// Weights are rounded to bf16, their sum is not. A slot's sums are its own: keys that it does not see add zeros.
// Grid: T x G x splits blocks of 4 warps; 512 D bytes of dynamic shared memory. Must move each visible key and value once for each block.
//
// `combine`: out [N, H D] f32 or bf16, =, from the parts in their order. Grid: ceil(N H / 8) blocks of 8 warps, a warp a head.
//
// So a row's sums depend on its position alone: not on its neighbours, on how the sequence came in pieces, or on where pages lie.
// Saves nothing. H/G at most 16, D even, at most 256. Parts and their sum follow "Flash-Decoding for long-context inference" (Dao et al., 2023).
#include "common/attention.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

constexpr u32 PAGE = 16;
constexpr u32 SPLIT = 256;
constexpr u32 THREADS = 128;
constexpr u32 WARPS = THREADS / WARP;
// Columns that a lane of a warp, and that a thread of a block holds at most: of 256.
constexpr u32 LANE_COLUMNS = 8, THREAD_COLUMNS = 2;
// Query heads that share the loads of a key or a value.
constexpr u32 TILE = 4;

__device__ __forceinline__ u32 larger(u32 a, u32 b) { return a > b ? a : b; }
__device__ __forceinline__ u32 smaller(u32 a, u32 b) { return a < b ? a : b; }

__device__ __forceinline__ u32 first_visible(u32 position, u32 window) {
    return window != 0 && position + 1 > window ? position + 1 - window : 0;
}

template <typename E>
__device__ __forceinline__ void write_rows(E* gq, E* gk, E* gv, const E* gqkv, const u32* gpositions, const u32* gslots, const float* gcos,
                                           const float* gsin, const E* gq_gain, const E* gk_gain, float eps, u32 n, u32 h, u32 g, u32 d) {
    const u64 item = blockIdx.x * 8ull + threadIdx.x / WARP;
    const u32 heads = h + 2 * g, index = static_cast<u32>(item % heads), lane = threadIdx.x % WARP, half = d / 2;
    const u64 row = item / heads;
    if (row >= n) {
        return;
    }
    const E* x = gqkv + (row * heads + index) * d;
    float low[LANE_COLUMNS / 2], high[LANE_COLUMNS / 2];                        // pairs lane, lane + 32, ..
    float squares = 0.0f;
#pragma unroll
    for (u32 p = 0; p < LANE_COLUMNS / 2; p++) {
        const u32 i = p * WARP + lane;
        low[p] = i < half ? load(x + i) : 0.0f;
        high[p] = i < half ? load(x + half + i) : 0.0f;
        squares += low[p] * low[p] + high[p] * high[p];
    }
    const E* ggain = index < h ? gq_gain : index < h + g ? gk_gain : nullptr;
    const float r = ggain == nullptr ? 1.0f : 1.0f / sqrtf(warp_sum(squares) / static_cast<float>(d) + eps);
    const u64 position = gpositions[row], slot = gslots[row];
    E* to = index < h ? gq + (row * h + index) * d : index < h + g ? gk + (slot * g + index - h) * d : gv + (slot * g + index - h - g) * d;
#pragma unroll
    for (u32 p = 0; p < LANE_COLUMNS / 2; p++) {
        const u32 i = p * WARP + lane;
        if (i >= half) {
            continue;
        }
        float a = low[p], b = high[p];
        if (ggain != nullptr) {
            a *= r * load(ggain + i);
            b *= r * load(ggain + half + i);
        }
        if (index < h + g) {
            const float c = gcos[position * half + i], s = gsin[position * half + i], rotated = a * c - b * s;
            b = b * c + a * s;
            a = rotated;
        }
        store(to + i, a);
        store(to + half + i, b);
    }
}

template <typename E>
__device__ __forceinline__ void split_keys(float* gpartial, const E* gq, const E* gk, const E* gv, const u32* gsequences, const u32* gpositions,
                                           const u32* gtables, float scale, u32 h, u32 g, u32 d, u32 pages, u32 splits, u32 window) {
    extern __shared__ float sq[];                                               // [H/G][D], then scores [H/G][256]
    __shared__ u32 srow[SPLIT];                                                 // rows of the pools
    const u32 row = blockIdx.x, group = blockIdx.y, split = blockIdx.z, shared = h / g, warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 position = gpositions[row], visible = first_visible(position, window);
    const u32 first = larger(visible, split * SPLIT), end = smaller(position + 1, (split + 1) * SPLIT);
    if (first >= end) {
        return;
    }
    float* sscore = sq + shared * d;
    const u32 count = end - first;
    const u64 head0 = static_cast<u64>(row) * h + group * shared;
    for (u32 i = threadIdx.x; i < shared * d; i += THREADS) {
        sq[i] = load(gq + head0 * d + i);
    }
    const u32* gtable = gtables + static_cast<u64>(gsequences[row]) * pages;
    for (u32 i = threadIdx.x; i < count; i += THREADS) {
        srow[i] = gtable[(first + i) / PAGE] * PAGE + (first + i) % PAGE;
    }
    __syncthreads();  // queries and rows are there
    for (u32 i = warp; i < count; i += WARPS) {
        const E* key = gk + (static_cast<u64>(srow[i]) * g + group) * d;
        float rkey[LANE_COLUMNS];
#pragma unroll
        for (u32 m = 0; m < LANE_COLUMNS; m++) {
            const u32 column = m * WARP + lane;
            rkey[m] = column < d ? load(key + column) : 0.0f;
        }
        for (u32 head = 0; head < shared; head++) {
            float sum = 0.0f;
#pragma unroll
            for (u32 m = 0; m < LANE_COLUMNS; m++) {
                const u32 column = m * WARP + lane;
                sum += column < d ? rkey[m] * sq[head * d + column] : 0.0f;
            }
            sum = warp_sum(sum);
            if (lane == 0) {
                sscore[head * SPLIT + i] = sum * scale;
            }
        }
    }
    __syncthreads();  // all scores are there
    for (u32 head = warp; head < shared; head += WARPS) {
        float* score = sscore + head * SPLIT;
        float peak = -infinity(), sum = 0.0f;
        for (u32 i = lane; i < count; i += WARP) {
            peak = fmaxf(peak, score[i]);
        }
        peak = warp_max(peak);
        for (u32 i = lane; i < count; i += WARP) {
            score[i] = expf(score[i] - peak);
            sum += score[i];
        }
        sum = warp_sum(sum);
        if (lane == 0) {
            float* part = gpartial + ((head0 + head) * splits + split) * (d + 2);
            part[d] = peak;
            part[d + 1] = sum;
        }
    }
    __syncthreads();  // all weights are there
    for (u32 tile = 0; tile < shared; tile += TILE) {
        float racc[TILE][THREAD_COLUMNS] = {};
        for (u32 i = 0; i < count; i++) {
            const E* value = gv + (static_cast<u64>(srow[i]) * g + group) * d;
#pragma unroll
            for (u32 m = 0; m < THREAD_COLUMNS; m++) {
                const u32 column = m * THREADS + threadIdx.x;
                const float x = column < d ? load(value + column) : 0.0f;
#pragma unroll
                for (u32 t = 0; t < TILE; t++) {
                    racc[t][m] += tile + t < shared ? sscore[(tile + t) * SPLIT + i] * x : 0.0f;
                }
            }
        }
#pragma unroll
        for (u32 t = 0; t < TILE; t++) {
#pragma unroll
            for (u32 m = 0; m < THREAD_COLUMNS; m++) {
                const u32 column = m * THREADS + threadIdx.x;
                if (tile + t < shared && column < d) {
                    gpartial[((head0 + tile + t) * splits + split) * (d + 2) + column] = racc[t][m];
                }
            }
        }
    }
}

template <u32 D>
__device__ __forceinline__ void tile_keys(float* gpartial, const bf16* gq, const bf16* gk, const bf16* gv, const u32* gsequences,
                                          const u32* gpositions, const u32* gtables, const u32* gtiles, float scale, u32 h, u32 g, u32 pages,
                                          u32 splits, u32 window) {
    extern __shared__ __align__(128) char sall[];                               // K [2][64, D], V [2][64, D]
    constexpr u32 TILE_BYTES = FLASH_TILE * Rows<D>::ROW_BYTES;
    const u32 sk = shared_address(sall), sv = sk + 2 * TILE_BYTES, warp_slot = threadIdx.x / WARP * 16, lane = threadIdx.x % WARP;
    const u32 group = blockIdx.y, split = blockIdx.z, shared = h / g;
    const u32 row0 = gtiles == nullptr ? blockIdx.x : gtiles[2 * blockIdx.x], rows = gtiles == nullptr ? 1 : gtiles[2 * blockIdx.x + 1];
    const u32 slots = rows * shared, position0 = gpositions[row0];
    const u32 first = larger(first_visible(position0, window), split * SPLIT), end = smaller(position0 + rows, (split + 1) * SPLIT);
    if (first >= end) {
        return;
    }
    const u32* gtable = gtables + static_cast<u64>(gsequences[row0]) * pages;
    auto head_of = [&](u32 slot) { return static_cast<u64>(row0 + slot / shared) * h + group * shared + slot % shared; };
    auto copy = [&](u32 tile) {
        if (tile * FLASH_TILE < end) {
            auto at = [&](const bf16* g_all) {
                return [&, g_all](u32 row) {
                    const u32 key = tile * FLASH_TILE + row;
                    const bf16* none = nullptr;
                    return key < first || key >= end ? none : g_all + (static_cast<u64>(gtable[key / PAGE] * PAGE + key % PAGE) * g + group) * D;
                };
            };
            Rows<D>::template gather<FLASH_TILE>(sk + tile % 2 * TILE_BYTES, gk, at(gk));
            Rows<D>::template gather<FLASH_TILE>(sv + tile % 2 * TILE_BYTES, gv, at(gv));
        }
        cp_async_commit();
    };
    const u32 tile_first = first / FLASH_TILE, tile_end = (end - 1) / FLASH_TILE + 1;
    // Q comes through the place of the second tile of keys.
    const u32 sq = sk + (tile_first + 1) % 2 * TILE_BYTES;
    Rows<D>::template gather<FLASH_TILE>(sq, gq, [&](u32 slot) {
        const bf16* none = nullptr;
        return slot < slots ? gq + head_of(slot) * D : none;
    });
    copy(tile_first);
    cp_async_wait<0>();
    __syncthreads();  // Q and the first tile are there for all
    u32 rq[D / 16][4];                                                          // (16, D)
#pragma unroll
    for (u32 k = 0; k < D / 16; k++) {
        Rows<D>::load_a(rq[k], sq, warp_slot, 16 * k);
    }
    u32 rfirst[2], rlast[2];                                                    // keys that this lane's two slots see
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        rlast[half] = position0 + smaller(warp_slot + lane / 4 + 8 * half, slots - 1) / shared;
        rfirst[half] = first_visible(rlast[half], window);
    }
    float rout[D / 8][4] = {}, rpeak[2] = {-infinity(), -infinity()}, rsum[2] = {};
    for (u32 tile = tile_first; tile < tile_end; tile++) {
        cp_async_wait<0>();
        __syncthreads();  // the tile is there for all, and all have read the one (or Q) that is overwritten next
        copy(tile + 1);
        if (warp_slot >= slots) {
            continue;
        }
        const u32 at = tile % 2 * TILE_BYTES;
        float rs[FLASH_TILE / 8][4] = {};                                       // (16, 64)
        multiply_rows<D, FLASH_TILE>(rs, from_registers(rq), sk + at);
#pragma unroll
        for (u32 j = 0; j < FLASH_TILE / 8; j++) {
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const u32 key = tile * FLASH_TILE + 8 * j + lane % 4 * 2 + i % 2;
                rs[j][i] = key < rfirst[i / 2] || key > rlast[i / 2] ? -infinity() : rs[j][i];
            }
        }
        softmax_step<D>(rs, rpeak, rsum, rout, scale * LOG2_E);
        sum_rows<D, FLASH_TILE>(rout, rs, sv + at);
    }
#pragma unroll
    for (u32 half = 0; half < 2; half++) {
        const u32 slot = warp_slot + lane / 4 + 8 * half;
        const float sum = row_sum(rsum[half]);
        if (slot >= slots || rpeak[half] == -infinity()) {
            continue;
        }
        float* part = gpartial + (head_of(slot) * splits + split) * (D + 2);
#pragma unroll
        for (u32 j = 0; j < D / 8; j++) {
            *reinterpret_cast<float2*>(part + 8 * j + lane % 4 * 2) = make_float2(rout[j][2 * half], rout[j][2 * half + 1]);
        }
        if (lane % 4 == 0) {
            *reinterpret_cast<float2*>(part + D) = make_float2(rpeak[half] * scale, sum);
        }
    }
}

template <typename E>
__device__ __forceinline__ void combine(E* gout, const float* gpartial, const u32* gpositions, u32 n, u32 h, u32 d, u32 splits, u32 window) {
    const u64 item = blockIdx.x * 8ull + threadIdx.x / WARP;
    const u32 lane = threadIdx.x % WARP;
    if (item >= static_cast<u64>(n) * h) {
        return;
    }
    const u32 position = gpositions[item / h], first = first_visible(position, window) / SPLIT, last = position / SPLIT;
    const float* part = gpartial + item * splits * (d + 2);
    float peak = -infinity(), sum = 0.0f;
    for (u32 split = first; split <= last; split++) {
        peak = fmaxf(peak, part[split * (d + 2) + d]);
    }
    for (u32 split = first; split <= last; split++) {
        sum += part[split * (d + 2) + d + 1] * expf(part[split * (d + 2) + d] - peak);
    }
    for (u32 column = lane; column < d; column += WARP) {
        float out = 0.0f;
        for (u32 split = first; split <= last; split++) {
            out += part[split * (d + 2) + column] * expf(part[split * (d + 2) + d] - peak);
        }
        store(gout + item * d + column, out / sum);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) paged_attention_fwd_write_rows_f32(float* q, float* k, float* v, const float* qkv, const u32* positions, const u32* slots, const float* cos, const float* sin, const float* q_gain, const float* k_gain, float eps, u32 n, u32 h, u32 g, u32 d) {
    write_rows(q, k, v, qkv, positions, slots, cos, sin, q_gain, k_gain, eps, n, h, g, d);
}

extern "C" __global__ void __launch_bounds__(256, 4) paged_attention_fwd_write_rows_bf16(bf16* q, bf16* k, bf16* v, const bf16* qkv, const u32* positions, const u32* slots, const float* cos, const float* sin, const bf16* q_gain, const bf16* k_gain, float eps, u32 n, u32 h, u32 g, u32 d) {
    write_rows(q, k, v, qkv, positions, slots, cos, sin, q_gain, k_gain, eps, n, h, g, d);
}

extern "C" __global__ void __launch_bounds__(128, 8) paged_attention_fwd_split_keys_f32(float* partial, const float* q, const float* k, const float* v, const u32* sequences, const u32* positions, const u32* tables, float scale, u32 h, u32 g, u32 d, u32 pages, u32 splits, u32 window) {
    split_keys(partial, q, k, v, sequences, positions, tables, scale, h, g, d, pages, splits, window);
}

extern "C" __global__ void __launch_bounds__(128, 8) paged_attention_fwd_split_keys_bf16(float* partial, const bf16* q, const bf16* k, const bf16* v, const u32* sequences, const u32* positions, const u32* tables, float scale, u32 h, u32 g, u32 d, u32 pages, u32 splits, u32 window) {
    split_keys(partial, q, k, v, sequences, positions, tables, scale, h, g, d, pages, splits, window);
}

extern "C" __global__ void __launch_bounds__(128, 4) paged_attention_fwd_tile_keys_d32_bf16(float* partial, const bf16* q, const bf16* k, const bf16* v, const u32* sequences, const u32* positions, const u32* tables, const u32* tiles, float scale, u32 h, u32 g, u32 pages, u32 splits, u32 window) {
    tile_keys<32>(partial, q, k, v, sequences, positions, tables, tiles, scale, h, g, pages, splits, window);
}

extern "C" __global__ void __launch_bounds__(128, 3) paged_attention_fwd_tile_keys_d64_bf16(float* partial, const bf16* q, const bf16* k, const bf16* v, const u32* sequences, const u32* positions, const u32* tables, const u32* tiles, float scale, u32 h, u32 g, u32 pages, u32 splits, u32 window) {
    tile_keys<64>(partial, q, k, v, sequences, positions, tables, tiles, scale, h, g, pages, splits, window);
}

extern "C" __global__ void __launch_bounds__(128, 2) paged_attention_fwd_tile_keys_d96_bf16(float* partial, const bf16* q, const bf16* k, const bf16* v, const u32* sequences, const u32* positions, const u32* tables, const u32* tiles, float scale, u32 h, u32 g, u32 pages, u32 splits, u32 window) {
    tile_keys<96>(partial, q, k, v, sequences, positions, tables, tiles, scale, h, g, pages, splits, window);
}

extern "C" __global__ void __launch_bounds__(128, 2) paged_attention_fwd_tile_keys_d128_bf16(float* partial, const bf16* q, const bf16* k, const bf16* v, const u32* sequences, const u32* positions, const u32* tables, const u32* tiles, float scale, u32 h, u32 g, u32 pages, u32 splits, u32 window) {
    tile_keys<128>(partial, q, k, v, sequences, positions, tables, tiles, scale, h, g, pages, splits, window);
}

extern "C" __global__ void __launch_bounds__(256, 4) paged_attention_fwd_combine_f32(float* out, const float* partial, const u32* positions, u32 n, u32 h, u32 d, u32 splits, u32 window) {
    combine(out, partial, positions, n, h, d, splits, window);
}

extern "C" __global__ void __launch_bounds__(256, 4) paged_attention_fwd_combine_bf16(bf16* out, const float* partial, const u32* positions, u32 n, u32 h, u32 d, u32 splits, u32 window) {
    combine(out, partial, positions, n, h, d, splits, window);
}
