// Concept head: the bags of what comes soon, and cross-entropy of rows of logits against them.
//
// Windows
//   ids        [M, W]  u32, =; concepts of tokens n + 2 .. n + 1 + W of the row and document of selected token n, IGNORE elsewhere
//   tokens     [N]     u32;  doc_start [N] u32 or null: where in its row each token's document begins
// Selected token m is n = m / per_row * t + first + m % per_row * every; a concept is a token modulo `concepts`.
// Grid: ceil(M W / 256) blocks of 256 threads.
//
// Loss, with l = z + b and q(c) = sum over the window of idf(c_j) [c_j = c] / sum of idf(c_j):
// loss_m = log sum exp l - sum_c q(c) l_c, dz = scale (softmax(l) - q)
//   loss     [M]      f32, =; 0 where the window is empty
//   dlogits  [M, Nc]  f32 or bf16, =, or null; zeros where the window is empty; f32 may be logits
//   logits   [M, Nc]  f32, z;  bias, idf [Nc] f32;  windows [M, W] u32, W <= 32
//   scale    [1]      f32; not read where dlogits is null
// Grid: M blocks of 256 threads, 64 bytes of shared memory. Reads logits and bias twice (the second time mostly from L2), writes
// logits once. Learnt from: lm_loss.cu here.
#include "common/reduce.cuh"
#include "common/softmax.cuh"
#include "common/vector.cuh"

constexpr u32 THREADS = 256;
constexpr u32 IGNORE = 0xffffffffu;

template <typename E>
__device__ __forceinline__ void loss_row(float* gloss, E* gdlogits, const float* glogits, const float* gbias, const float* gidf,
                                         const u32* gwindows, const float* gscale, u32 w, u32 nc) {
    __shared__ Softmax s[THREADS / WARP];
    const u32 lane = threadIdx.x % WARP;
    const float* z = glogits + static_cast<u64>(blockIdx.x) * nc;
    // Every warp looks at the window: lane j has its j-th concept, with its share of the target.
    const u32 id = lane < w ? gwindows[blockIdx.x * w + lane] : IGNORE;
    const float weight = id < nc ? gidf[id] : 0.0f;
    const bool is_empty = __ballot_sync(ALL_LANES, id != IGNORE) == 0;
    const float share = is_empty ? 0.0f : weight / warp_sum(weight);
    const float at_target = id < nc ? z[id] + gbias[id] : 0.0f;
    // Finite, so that nobody subtracts infinities; below every finite logit.
    Softmax row = {-3.402823466e38f, 0.0f};
    for (u32 i = threadIdx.x; i < nc; i += THREADS) {
        row = join(row, {z[i] + gbias[i], 1.0f});
    }
#pragma unroll
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        row = join(row, {__shfl_xor_sync(ALL_LANES, row.peak, mask), __shfl_xor_sync(ALL_LANES, row.sum, mask)});
    }
    if (lane == 0) {
        s[threadIdx.x / WARP] = row;
    }
    __syncthreads();  // every warp's part is there; the targets' logits are read before they may be overwritten
    row = s[0];
#pragma unroll
    for (u32 warp = 1; warp < THREADS / WARP; warp++) {
        row = join(row, s[warp]);
    }
    // A concept beyond all makes the loss NaN.
    const bool is_beyond = id != IGNORE && id >= nc;
    const float part = warp_sum(is_beyond ? __uint_as_float(0x7fffffffu) : share * (at_target - row.peak));
    if (threadIdx.x == 0) {
        gloss[blockIdx.x] = is_empty ? 0.0f : logf(row.sum) - part;
    }
    if (gdlogits == nullptr) {
        return;
    }
    E* dz = gdlogits + static_cast<u64>(blockIdx.x) * nc;
    const float scale = *gscale, factor = is_empty ? 0.0f : scale / row.sum;
    for (u32 i = threadIdx.x; i < nc; i += THREADS) {
        store(dz + i, expf(z[i] + gbias[i] - row.peak) * factor);
    }
    // Of several lanes with one concept the first has the sum of their shares.
    float q = 0.0f;
    bool is_first = true;
    for (u32 j = 0; j < w; j++) {
        const u32 other = __shfl_sync(ALL_LANES, id, j);
        const float theirs = __shfl_sync(ALL_LANES, share, j);
        q += other == id ? theirs : 0.0f;
        is_first = is_first && !(other == id && j < lane);
    }
    // Who wrote a concept's softmax takes its target off, so nobody waits for another.
    const float d = expf(at_target - row.peak) * factor - scale * q;
    const u32 owned = id < nc && is_first ? id : IGNORE;
    for (u32 j = 0; j < w; j++) {
        const u32 concept_id = __shfl_sync(ALL_LANES, owned, j);
        const float theirs = __shfl_sync(ALL_LANES, d, j);
        if (concept_id != IGNORE && concept_id % THREADS == threadIdx.x) {
            store(dz + concept_id, theirs);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) concept_loss_fwd_windows_u32(u32* ids, const u32* tokens, const u32* doc_start, u32 concepts, u32 w, u32 per_row, u32 t, u32 first, u32 every, u32 m) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= m * w) {
        return;
    }
    const u32 selected = i / w, n = selected / per_row * t + first + selected % per_row * every;
    const u32 at = n + 2 + i % w, end = (n / t + 1) * t;
    const bool is_inside = at < end && (doc_start == nullptr || doc_start[at] == doc_start[n]);
    ids[i] = is_inside ? tokens[at] % concepts : IGNORE;
}

extern "C" __global__ void __launch_bounds__(256, 4) concept_loss_fwd_block_per_row_f32(float* loss, float* dlogits, const float* logits, const float* bias, const float* idf, const u32* windows, const float* scale, u32 w, u32 nc) {
    loss_row(loss, dlogits, logits, bias, idf, windows, scale, w, nc);
}

extern "C" __global__ void __launch_bounds__(256, 4) concept_loss_fwd_block_per_row_bf16(float* loss, bf16* dlogits, const float* logits, const float* bias, const float* idf, const u32* windows, const float* scale, u32 w, u32 nc) {
    loss_row(loss, dlogits, logits, bias, idf, windows, scale, w, nc);
}
