// The energy head's contrast of true latents with generated ones, and the retrieval score among those of other documents. <a, b> = dot
// product, S = 1 / sqrt(d).
//
// Contrast: E(k) = -S <q, k> - b, loss = weight (softplus(E(good)) + softplus(-E(bad)))
//   loss                 [R]     f32, =; 0 where the chunk has no context
//   dq, dgood, dbad      [R, d]  f32 or bf16, =, all null without a gradient;  dbias [R]
//   q, good, bad         [R, d];  bias [R], b for each row;  documents [R / 4] u32, IGNORE: no context
//   factor               [1]     f32
// Grid: ceil(R / 8) blocks of 256 threads, a warp a row; any d. Must move 6 R d elements.
//
// Retrieve: row m's own k against those of the rows up to 256 after it, the first following the last, that are of other documents:
// loss = log sum_c exp(S <q_m, k_c>) - S <q_m, k_m>
//   loss, norm  [M]     f32, =; loss 0 and norm the largest f32 where there is no context or none to tell from; else norm the logarithm
//   dq          [M, d]  =, or null;  q, k [M, d], d <= 128;  documents [M];  factor [1]
// Backward of k, from the rows that see it:
//   dk          [M, d]  =;  q, k, documents, norm, factor
// Grid: ceil(M / 8) blocks of 256 threads each, a warp a row of q or of k, four numbers a lane. Operations: up to 257 M d multiply-adds
// forward, twice with the gradient, twice again for dk; reads from L2. No shared memory. Learnt from: InfoNCE (arXiv 1807.03748).
#include "common/reduce.cuh"
#include "common/softmax.cuh"
#include "common/vector.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 IGNORE = 0xffffffffu;
constexpr u32 SAMPLES = 4;
constexpr u32 REACH = 256;
constexpr u32 HELD = 4;  // 32 lanes of 4 are the 128 numbers of a key
constexpr float NOTHING = 3.402823466e38f;

__device__ __forceinline__ float softplus(float x) { return (x < 0.0f ? 0.0f : x) + logf(1.0f + expf(-fabsf(x))); }
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename E>
__device__ __forceinline__ void contrast(float* gloss, E* gdq, E* gdgood, E* gdbad, E* gdbias, const E* gq, const E* ggood, const E* gbad,
                                         const E* gbias, const u32* gdocuments, const float* gfactor, float weight, u32 rows, u32 d) {
    const u32 row = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= rows) {
        return;
    }
    const u64 first = static_cast<u64>(row) * d;
    float good = 0.0f, bad = 0.0f;
    for (u32 i = lane; i < d; i += WARP) {
        const float q = load(gq + first + i);
        good += q * load(ggood + first + i);
        bad += q * load(gbad + first + i);
    }
    const float scale = 1.0f / sqrtf(static_cast<float>(d)), bias = load(gbias + row);
    const float at_good = -warp_sum(good) * scale - bias, at_bad = -warp_sum(bad) * scale - bias;
    const bool counts = gdocuments[row / SAMPLES] != IGNORE;
    if (lane == 0) {
        gloss[row] = counts ? weight * (softplus(at_good) + softplus(-at_bad)) : 0.0f;
    }
    if (gdq == nullptr) {
        return;
    }
    const float factor = counts ? *gfactor * weight : 0.0f;
    const float dgood = counts ? sigmoid(at_good) * factor : 0.0f, dbad = counts ? -sigmoid(-at_bad) * factor : 0.0f;
    for (u32 i = lane; i < d; i += WARP) {
        const float q = load(gq + first + i);
        const float toward = counts ? dgood * load(ggood + first + i) + dbad * load(gbad + first + i) : 0.0f;
        store(gdq + first + i, -toward * scale);
        store(gdgood + first + i, counts ? -dgood * q * scale : 0.0f);
        store(gdbad + first + i, counts ? -dbad * q * scale : 0.0f);
    }
    if (lane == 0) {
        store(gdbias + row, -(dgood + dbad));
    }
}

template <typename E>
__device__ __forceinline__ void load_key(float (&r)[HELD], const E* g, u32 row, u32 d) {
#pragma unroll
    for (u32 j = 0; j < HELD; j++) {
        const u32 i = j * WARP + threadIdx.x % WARP;
        r[j] = i < d ? load(g + static_cast<u64>(row) * d + i) : 0.0f;
    }
}

template <typename E>
__device__ __forceinline__ void store_key(E* g, u32 row, u32 d, const float (&r)[HELD]) {
#pragma unroll
    for (u32 j = 0; j < HELD; j++) {
        const u32 i = j * WARP + threadIdx.x % WARP;
        if (i < d) {
            store(g + static_cast<u64>(row) * d + i, r[j]);
        }
    }
}

__device__ __forceinline__ float dot(const float (&a)[HELD], const float (&b)[HELD]) {
    float sum = 0.0f;
#pragma unroll
    for (u32 j = 0; j < HELD; j++) {
        sum += a[j] * b[j];
    }
    return warp_sum(sum);
}

// Whether row c is told from row m, which has a context: its own, or one of another document.
__device__ __forceinline__ bool is_seen(const u32* gdocuments, u32 m, u32 c) {
    return c == m || (gdocuments[c] != IGNORE && gdocuments[c] != gdocuments[m]);
}

template <typename E>
__device__ __forceinline__ void retrieve(float* gloss, float* gnorm, E* gdq, const E* gq, const E* gk, const u32* gdocuments,
                                         const float* gfactor, u32 rows, u32 d) {
    const u32 m = blockIdx.x * WARPS + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (m >= rows) {
        return;
    }
    const u32 reach = rows - 1 < REACH ? rows - 1 : REACH;
    const float scale = 1.0f / sqrtf(static_cast<float>(d));
    const bool has_context = gdocuments[m] != IGNORE;
    float q[HELD], k[HELD], dq[HELD] = {};
    load_key(q, gq, m, d);
    load_key(k, gk, m, d);
    const float own = dot(q, k) * scale;
    Softmax all = {own, 1.0f};
    bool is_alone = true;
    for (u32 ahead = 1; has_context && ahead <= reach; ahead++) {
        const u32 c = m + ahead < rows ? m + ahead : m + ahead - rows;
        if (is_seen(gdocuments, m, c)) {
            load_key(k, gk, c, d);
            all = join(all, {dot(q, k) * scale, 1.0f});
            is_alone = false;
        }
    }
    const float norm = is_alone ? NOTHING : logf(all.sum) + all.peak;
    if (lane == 0) {
        gloss[m] = is_alone ? 0.0f : norm - own;
        gnorm[m] = norm;
    }
    if (gdq == nullptr) {
        return;
    }
    for (u32 ahead = 0; !is_alone && ahead <= reach; ahead++) {
        const u32 c = m + ahead < rows ? m + ahead : m + ahead - rows;
        if (is_seen(gdocuments, m, c)) {
            load_key(k, gk, c, d);
            const float p = (expf(dot(q, k) * scale - norm) - (c == m ? 1.0f : 0.0f)) * scale * *gfactor;
#pragma unroll
            for (u32 j = 0; j < HELD; j++) {
                dq[j] += p * k[j];
            }
        }
    }
    store_key(gdq, m, d, dq);
}

template <typename E>
__device__ __forceinline__ void retrieve_keys(E* gdk, const E* gq, const E* gk, const u32* gdocuments, const float* gnorm,
                                              const float* gfactor, u32 rows, u32 d) {
    const u32 c = blockIdx.x * WARPS + threadIdx.x / WARP;
    if (c >= rows) {
        return;
    }
    const u32 reach = rows - 1 < REACH ? rows - 1 : REACH;
    const float scale = 1.0f / sqrtf(static_cast<float>(d));
    float q[HELD], k[HELD], dk[HELD] = {};
    load_key(k, gk, c, d);
    for (u32 behind = 0; behind <= reach; behind++) {
        const u32 m = c >= behind ? c - behind : c + rows - behind;
        if (gnorm[m] != NOTHING && is_seen(gdocuments, m, c)) {
            load_key(q, gq, m, d);
            const float p = (expf(dot(q, k) * scale - gnorm[m]) - (c == m ? 1.0f : 0.0f)) * scale * *gfactor;
#pragma unroll
            for (u32 j = 0; j < HELD; j++) {
                dk[j] += p * q[j];
            }
        }
    }
    store_key(gdk, c, d, dk);
}

extern "C" __global__ void __launch_bounds__(256, 4) energy_contrast_fwd_warp_per_row_f32(float* loss, float* dq, float* dgood, float* dbad, float* dbias, const float* q, const float* good, const float* bad, const float* bias, const u32* documents, const float* factor, float weight, u32 rows, u32 d) {
    contrast(loss, dq, dgood, dbad, dbias, q, good, bad, bias, documents, factor, weight, rows, d);
}

extern "C" __global__ void __launch_bounds__(256, 4) energy_contrast_fwd_warp_per_row_bf16(float* loss, bf16* dq, bf16* dgood, bf16* dbad, bf16* dbias, const bf16* q, const bf16* good, const bf16* bad, const bf16* bias, const u32* documents, const float* factor, float weight, u32 rows, u32 d) {
    contrast(loss, dq, dgood, dbad, dbias, q, good, bad, bias, documents, factor, weight, rows, d);
}

extern "C" __global__ void __launch_bounds__(256, 4) energy_contrast_fwd_retrieve_f32(float* loss, float* norm, float* dq, const float* q, const float* k, const u32* documents, const float* factor, u32 rows, u32 d) {
    retrieve(loss, norm, dq, q, k, documents, factor, rows, d);
}

extern "C" __global__ void __launch_bounds__(256, 4) energy_contrast_fwd_retrieve_bf16(float* loss, float* norm, bf16* dq, const bf16* q, const bf16* k, const u32* documents, const float* factor, u32 rows, u32 d) {
    retrieve(loss, norm, dq, q, k, documents, factor, rows, d);
}

extern "C" __global__ void __launch_bounds__(256, 4) energy_contrast_bwd_keys_f32(float* dk, const float* q, const float* k, const u32* documents, const float* norm, const float* factor, u32 rows, u32 d) {
    retrieve_keys(dk, q, k, documents, norm, factor, rows, d);
}

extern "C" __global__ void __launch_bounds__(256, 4) energy_contrast_bwd_keys_bf16(bf16* dk, const bf16* q, const bf16* k, const u32* documents, const float* norm, const float* factor, u32 rows, u32 d) {
    retrieve_keys(dk, q, k, documents, norm, factor, rows, d);
}
