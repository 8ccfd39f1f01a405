// Softmax over the k <= 32 highest scores of each row, zero elsewhere: a = softmax(scale s) over them.
//
// `fwd`
//   y       [N, M]  f32 or bf16, =
//   index   [N, k]  =; the chosen entries, the highest score first (of equal ones the earlier entry); ~0 past the last
//   weight  [N, k]  f32, =; their weights
//   scores  [N, M]
//   born    [S, M]  when each entry of each bank came, the rows in equal shares to the banks in order; null where all are seen
//   limits  [N / t] t rows each see the entries born before this
//
// `bwd`: ds_i = -scale a_i sum_j a_j (da_j - da_i)
//   ds      [N, M]  =;  da [N, M]
//   cost    [N, k]  f32, =, or null: a_i sum_j a_j (da_j - da_i) / sum_{j != i} a_j, what the loss would rise by were entry i removed
//   index, weight   saved
//
// Grid of both: ceil(N / 8) blocks of 256 threads, a warp a row; lane l holds the l-th chosen entry. No shared memory.
// Must move 2 N M elements forward; backward writes N M and reads N k of da.
//
// `entry_per_thread`: costs and weights by entry, over the rows of a part of 256; `row_sum` adds the parts up
//   partial  [P, 2, M]  f32, =
// Grid: (ceil(M / 256), P) blocks of 256 threads, an entry a thread, which looks at all chosen entries of its part.
// All sums in a fixed order.
#include "common/reduce.cuh"
#include "common/vector.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 PART_ROWS = 256;
constexpr u32 NONE = ~0u;

// A score and its entry; `entry` is NONE where there is none.
struct Candidate {
    float score;
    u32 entry;
};

// NaN first, so that it is seen; of equal scores the earlier entry.
__device__ __forceinline__ bool is_above(Candidate a, Candidate b) {
    if (a.entry == NONE || b.entry == NONE) {
        return b.entry == NONE && a.entry != NONE;
    }
    if (isnan(a.score) || isnan(b.score)) {
        return isnan(a.score) && (!isnan(b.score) || a.entry < b.entry);
    }
    return a.score > b.score || (a.score == b.score && a.entry < b.entry);
}

__device__ __forceinline__ Candidate warp_best(Candidate a) {
#pragma unroll
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        const Candidate b = {__shfl_xor_sync(ALL_LANES, a.score, mask), __shfl_xor_sync(ALL_LANES, a.entry, mask)};
        a = is_above(b, a) ? b : a;
    }
    return a;
}

// This lane's best entry of those that are seen and below `last`; lane l has entries l, l + 32, ...
template <typename E>
__device__ __forceinline__ Candidate lane_best(const E* row, const u32* born, u32 limit, u32 m, u32 lane, Candidate last) {
    Candidate best = {0.0f, NONE};
    for (u32 i = lane; i < m; i += WARP) {
        const Candidate c = {load(row + i), i};
        const bool is_seen = born == nullptr || born[i] < limit;
        if (is_seen && is_above(c, best) && (last.entry == NONE || is_above(last, c))) {
            best = c;
        }
    }
    return best;
}

template <typename E>
__device__ __forceinline__ void forward(E* gy, u32* gindex, float* gweight, const E* gscores, const u32* gborn, const u32* glimits, float scale, u32 n, u32 m, u32 k, u32 rows, u32 t) {
    const u32 row = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= n) {
        return;  // a whole warp
    }
    const E* scores = gscores + static_cast<u64>(row) * m;
    const u32* born = gborn == nullptr ? nullptr : gborn + static_cast<u64>(row / rows) * m;
    const u32 limit = gborn == nullptr ? 0 : glimits[row / t];
    // Each lane offers its best; whose is taken looks for its next.
    Candidate mine = {0.0f, NONE};
    Candidate offer = lane_best(scores, born, limit, m, lane, mine);
    for (u32 j = 0; j < k; j++) {
        const Candidate best = warp_best(offer);
        if (lane == j) {
            mine = best;
        }
        if (best.entry != NONE && offer.entry == best.entry) {
            offer = lane_best(scores, born, limit, m, lane, best);
        }
    }
    const float peak = __shfl_sync(ALL_LANES, mine.score, 0);
    const float raised = mine.entry == NONE ? 0.0f : expf(scale * (mine.score - peak));
    const float sum = warp_sum(raised);
    const float weight = mine.entry == NONE ? 0.0f : raised / sum;
    E* y = gy + static_cast<u64>(row) * m;
    for (u32 i = lane; i < m; i += WARP) {
        store(y + i, 0.0f);
    }
    // The lane that wrote the zero writes the weight over it.
    for (u32 j = 0; j < k; j++) {
        const u32 entry = __shfl_sync(ALL_LANES, mine.entry, j);
        const float w = __shfl_sync(ALL_LANES, weight, j);
        if (entry != NONE && entry % WARP == lane) {
            store(y + entry, w);
        }
    }
    if (lane < k) {
        gindex[static_cast<u64>(row) * k + lane] = mine.entry;
        gweight[static_cast<u64>(row) * k + lane] = weight;
    }
}

template <typename E>
__device__ __forceinline__ void backward(E* gds, float* gcost, const u32* gindex, const float* gweight, const E* gda, float scale, u32 n, u32 m, u32 k) {
    const u32 row = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= n) {
        return;  // a whole warp
    }
    const u64 at = static_cast<u64>(row) * k + lane;
    const u32 entry = lane < k ? gindex[at] : NONE;
    const float a = entry == NONE ? 0.0f : gweight[at];
    const float da = entry == NONE ? 0.0f : load(gda + static_cast<u64>(row) * m + entry);
    float rise = 0.0f, others = 0.0f;
    for (u32 j = 0; j < k; j++) {
        const float a_j = __shfl_sync(ALL_LANES, a, j), da_j = __shfl_sync(ALL_LANES, da, j);
        rise = fmaf(a_j, da_j - da, rise);
        others += j == lane ? 0.0f : a_j;
    }
    const float ds = -scale * a * rise;
    E* to = gds + static_cast<u64>(row) * m;
    for (u32 i = lane; i < m; i += WARP) {
        store(to + i, 0.0f);
    }
    for (u32 j = 0; j < k; j++) {
        const u32 chosen = __shfl_sync(ALL_LANES, entry, j);
        const float d = __shfl_sync(ALL_LANES, ds, j);
        if (chosen != NONE && chosen % WARP == lane) {
            store(to + chosen, d);
        }
    }
    if (gcost != nullptr && lane < k) {
        gcost[at] = others > 0.0f ? a * rise / others : 0.0f;
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) top_k_softmax_fwd_warp_per_row_f32(float* y, u32* index, float* weight, const float* scores, const u32* born, const u32* limits, float scale, u32 n, u32 m, u32 k, u32 rows, u32 t) {
    forward(y, index, weight, scores, born, limits, scale, n, m, k, rows, t);
}

extern "C" __global__ void __launch_bounds__(256, 4) top_k_softmax_fwd_warp_per_row_bf16(bf16* y, u32* index, float* weight, const bf16* scores, const u32* born, const u32* limits, float scale, u32 n, u32 m, u32 k, u32 rows, u32 t) {
    forward(y, index, weight, scores, born, limits, scale, n, m, k, rows, t);
}

extern "C" __global__ void __launch_bounds__(256, 4) top_k_softmax_bwd_warp_per_row_f32(float* ds, float* cost, const u32* index, const float* weight, const float* da, float scale, u32 n, u32 m, u32 k) {
    backward(ds, cost, index, weight, da, scale, n, m, k);
}

extern "C" __global__ void __launch_bounds__(256, 4) top_k_softmax_bwd_warp_per_row_bf16(bf16* ds, float* cost, const u32* index, const float* weight, const bf16* da, float scale, u32 n, u32 m, u32 k) {
    backward(ds, cost, index, weight, da, scale, n, m, k);
}

extern "C" __global__ void __launch_bounds__(256, 4) top_k_softmax_bwd_entry_per_thread_f32(float* partial, const u32* index, const float* weight, const float* cost, u32 n, u32 m, u32 k) {
    const u32 entry = blockIdx.x * THREADS + threadIdx.x, first = blockIdx.y * PART_ROWS;
    if (entry >= m) {
        return;
    }
    const u64 end = static_cast<u64>(min(n, first + PART_ROWS)) * k;
    float costs = 0.0f, weights = 0.0f;
    for (u64 at = static_cast<u64>(first) * k; at < end; at++) {
        if (index[at] == entry) {
            costs += cost[at];
            weights += weight[at];
        }
    }
    float* to = partial + static_cast<u64>(blockIdx.y) * (2 * m);
    to[entry] = costs;
    to[m + entry] = weights;
}
