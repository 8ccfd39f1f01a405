// The continuous latent: chunks of 4 tokens, rows that are dropped, and the latent drawn from its distribution.
//
// Chunks. Slot s of a row of t tokens has the chunk that begins at 4 s .. 4 s + 3, at a multiple of 4 from its document's start, and
// lies in the row and in the document whole: there is one or none. Selected slot m is that of row m / per_row, number first +
// m % per_row * every.
//   tokens   [M, 4]  u32, =; 0 where there is no chunk
//   targets  [M, 4]  u32, =; the same, IGNORE where there is no chunk
//   kept     [M, 4]  u32, =; targets, and IGNORE where a token is dropped: the upper 24 bits of its noise are below `dropped`
//   from     [N]     u32;  doc_start [N] u32 or null;  noise [1] f32, the seed, or null: nothing is dropped
// Grid: ceil(4 M / 256) blocks of 256 threads.
//
// Mask rows: y_n = x_n, or 0 where kept_n is IGNORE; its own backward
//   y  [N, C]  f32 or bf16, =;  x [N, C];  kept [N] u32
// Grid: ceil(N C / 1024) (f32) or ceil(N C / 2048) (bf16) blocks of 256 threads. Must move 2 N C elements.
//
// Sample: z = keep (mu + sigma eps) / (1 - rate), KL_i = (mu_i^2 + sigma_i^2 - 1) / 2 - log sigma_i, kl = weight sum_i max(KL_i, floor)
//   z   [M, l]   f32 or bf16, =; mu where noise is null
//   kl  [M]      f32, =; 0 where there is no chunk
//   h   [M, 2l]  mu, then log sigma;  targets [M, 4] u32: the first of a row says whether there is a chunk
//   noise [1] f32 or null; a latent is dropped where the upper 24 bits of its second word of noise are below `dropped`;
//   boost 1 / (1 - rate)
// Backward: dmu = dz dz/dmu + factor weight [KL > floor] mu, dlog sigma = dz dz/dlog sigma + factor weight [KL > floor] (sigma^2 - 1)
//   dh  [M, 2l]  =;  dz [M, l] or null;  factor [1] f32
// Grid: ceil(M / 8) blocks of 256 threads, a warp a row. Must move M 3 l elements forward, M 5 l backward. No shared memory anywhere.
// Learnt from: CALM (arXiv 2510.27688).
#include "common/chunks.cuh"
#include "common/philox.cuh"
#include "common/row.cuh"

constexpr u32 THREADS = 256;
// Streams of noise, as in src/ops/latent.rs.
constexpr u32 TOKEN_STREAM = 1;
constexpr u32 LATENT_STREAM = 2;

extern "C" __global__ void __launch_bounds__(256, 8) latent_fwd_chunks_u32(u32* tokens, u32* targets, u32* kept, const u32* from, const u32* doc_start, const float* noise, u32 dropped, u32 per_row, u32 t, u32 first, u32 every, u32 m) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= m * CHUNK) {
        return;
    }
    const u32 chunk = i / CHUNK, slot = first + chunk % per_row * every;
    const u64 row = static_cast<u64>(chunk / per_row) * t;
    const u32 at = chunk_start(doc_start == nullptr ? nullptr : doc_start + row, slot, t);
    const u32 token = at == IGNORE ? IGNORE : from[row + at + i % CHUNK];
    const bool is_dropped = noise != nullptr && noise_words(*noise, TOKEN_STREAM, i).r[0] >> 8 < dropped;
    tokens[i] = at == IGNORE ? 0 : token;
    targets[i] = token;
    kept[i] = is_dropped ? IGNORE : token;
}

template <typename E, u32 W>
__device__ __forceinline__ void mask_rows(E* gy, const E* gx, const u32* gkept, u32 n, u32 c) {
    for_flat_packs<THREADS, WIDTH<E> / W, W>(n, c, [&](u64 row, u32, u64 element) {
        float x[W] = {};
        if (gkept[row] != IGNORE) {
            load_vector<W>(x, gx + element);
        }
        store_vector<W>(gy + element, x);
    });
}

// What the noise makes of a latent: z = (mu + sigma eps) keep.
struct Drawn {
    float eps, keep;
};

__device__ __forceinline__ Drawn draw(const float* gnoise, u32 i, u32 dropped, float boost) {
    if (gnoise == nullptr) {
        return {0.0f, 1.0f};
    }
    const Words words = noise_words(*gnoise, LATENT_STREAM, i);
    return {normal(words.r[0]), words.r[1] >> 8 < dropped ? 0.0f : boost};
}

__device__ __forceinline__ float divergence(float mu, float log_sigma, float sigma) {
    return 0.5f * (mu * mu + sigma * sigma - 1.0f) - log_sigma;
}

template <typename E>
__device__ __forceinline__ void sample(E* gz, float* gkl, const E* gh, const u32* gtargets, const float* gnoise, u32 dropped,
                                       float boost, float floor, float weight, u32 m, u32 l) {
    const u32 row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= m) {
        return;
    }
    const E* h = gh + static_cast<u64>(row) * 2 * l;
    float sum = 0.0f;
    for (u32 i = lane; i < l; i += WARP) {
        const float mu = load(h + i), log_sigma = load(h + l + i), sigma = expf(log_sigma);
        const Drawn drawn = draw(gnoise, row * l + i, dropped, boost);
        store(gz + static_cast<u64>(row) * l + i, (mu + sigma * drawn.eps) * drawn.keep);
        const float kl = divergence(mu, log_sigma, sigma);
        sum += kl < floor ? floor : kl;
    }
    sum = warp_sum(sum);
    if (lane == 0) {
        gkl[row] = gtargets[row * CHUNK] == IGNORE ? 0.0f : weight * sum;
    }
}

template <typename E>
__device__ __forceinline__ void sample_backward(E* gdh, const E* gdz, const E* gh, const u32* gtargets, const float* gnoise, const float* gfactor,
                                                u32 dropped, float boost, float floor, float weight, u32 m, u32 l) {
    const u32 row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= m) {
        return;
    }
    const u64 first = static_cast<u64>(row) * 2 * l;
    const float toward = gtargets[row * CHUNK] == IGNORE ? 0.0f : *gfactor * weight;
    for (u32 i = lane; i < l; i += WARP) {
        const float mu = load(gh + first + i), log_sigma = load(gh + first + l + i), sigma = expf(log_sigma);
        const Drawn drawn = draw(gnoise, row * l + i, dropped, boost);
        const float dz = (gdz == nullptr ? 0.0f : load(gdz + static_cast<u64>(row) * l + i)) * drawn.keep;
        const float pull = divergence(mu, log_sigma, sigma) > floor ? toward : 0.0f;
        store(gdh + first + i, dz + pull * mu);
        store(gdh + first + l + i, dz * sigma * drawn.eps + pull * (sigma * sigma - 1.0f));
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) latent_fwd_mask_rows_f32(float* y, const float* x, const u32* kept, u32 n, u32 c) {
    c % 4 == 0 && aligned(16, y, x) ? mask_rows<float, 4>(y, x, kept, n, c) : mask_rows<float, 1>(y, x, kept, n, c);
}

extern "C" __global__ void __launch_bounds__(256, 4) latent_fwd_mask_rows_bf16(bf16* y, const bf16* x, const u32* kept, u32 n, u32 c) {
    c % 8 == 0 && aligned(16, y, x) ? mask_rows<bf16, 8>(y, x, kept, n, c) : mask_rows<bf16, 1>(y, x, kept, n, c);
}

extern "C" __global__ void __launch_bounds__(256, 4) latent_fwd_sample_f32(float* z, float* kl, const float* h, const u32* targets, const float* noise, u32 dropped, float boost, float floor, float weight, u32 m, u32 l) {
    sample(z, kl, h, targets, noise, dropped, boost, floor, weight, m, l);
}

extern "C" __global__ void __launch_bounds__(256, 4) latent_fwd_sample_bf16(bf16* z, float* kl, const bf16* h, const u32* targets, const float* noise, u32 dropped, float boost, float floor, float weight, u32 m, u32 l) {
    sample(z, kl, h, targets, noise, dropped, boost, floor, weight, m, l);
}

extern "C" __global__ void __launch_bounds__(256, 4) latent_bwd_sample_f32(float* dh, const float* dz, const float* h, const u32* targets, const float* noise, const float* factor, u32 dropped, float boost, float floor, float weight, u32 m, u32 l) {
    sample_backward(dh, dz, h, targets, noise, factor, dropped, boost, floor, weight, m, l);
}

extern "C" __global__ void __launch_bounds__(256, 4) latent_bwd_sample_bf16(bf16* dh, const bf16* dz, const bf16* h, const u32* targets, const float* noise, const float* factor, u32 dropped, float boost, float floor, float weight, u32 m, u32 l) {
    sample_backward(dh, dz, h, targets, noise, factor, dropped, boost, floor, weight, m, l);
}
