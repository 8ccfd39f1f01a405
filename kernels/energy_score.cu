// What a generator of latents is judged by: contexts of chunks, draws, and the energy score.
//
// Contexts. Of selected chunk m (as in latent.cu): the token before it, where there is one in its document
//   rows       [M, 4]  u32, =; that token among all, four times; 0 where there is none
//   documents  [M]     u32, =; the first token of its document among all, IGNORE where there is no token before it
//   doc_start  [N]     u32 or null
// Grid: ceil(M / 256) blocks of 256 threads.
//
// Draws: eps uniform in (-1/2, 1/2), and z = mu + sigma n, n standard normal
//   eps, z  [4 M, l]  f32 or bf16, =;  h [M, 2l] mu, then log sigma;  noise [1] f32, the seed
// Grid: ceil(4 M l / 256) blocks of 256 threads. Must move 10 M l elements.
//
// Score, strictly proper: L = [2 / (4 16) sum_n,m |zhat_n - z_m| - 1 / (4 3) sum_n != k |zhat_n - zhat_k|] / sqrt(l), z_m drawn as above,
// the first four the same; |x| = sqrt(x^2 + 1e-12)
//   loss   [M]       f32, =; 0 where there is no token before
//   dzhat  [4 M, l]  f32 or bf16, =, or null
//   zhat   [4 M, l];  h [M, 2l];  documents [M];  noise [1];  factor [1] f32, not read where dzhat is null;  l <= 64
// Grid: ceil(M / 8) blocks of 256 threads, a warp a chunk, two numbers of a latent a lane. Must move 10 M l elements. No shared memory.
// Learnt from: CALM (arXiv 2510.27688), the energy score of Gneiting and Raftery (2007).
#include "common/chunks.cuh"
#include "common/philox.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

constexpr u32 THREADS = 256;
constexpr u32 SAMPLES = 4;
constexpr u32 POSTERIOR = 16;
constexpr u32 HELD = 2;  // 32 lanes of 2 are the 64 numbers of a latent
constexpr float TINY = 1e-12f;
// Streams of noise, as in src/ops/energy_score.rs.
constexpr u32 POSTERIOR_STREAM = 3;
constexpr u32 GENERATOR_STREAM = 4;

extern "C" __global__ void __launch_bounds__(256, 8) energy_score_fwd_contexts_u32(u32* rows, u32* documents, const u32* doc_start, u32 per_row, u32 t, u32 first, u32 every, u32 m) {
    const u32 i = blockIdx.x * THREADS + threadIdx.x;
    if (i >= m) {
        return;
    }
    const u32 row = i / per_row * t;
    const u32* starts = doc_start == nullptr ? nullptr : doc_start + row;
    const u32 at = chunk_start(starts, first + i % per_row * every, t);
    const u32 start = at == IGNORE || starts == nullptr ? 0 : starts[at];
    const bool has = at != IGNORE && at > start;
    documents[i] = has ? row + start : IGNORE;
    for (u32 n = 0; n < SAMPLES; n++) {
        rows[i * SAMPLES + n] = has ? row + at - 1 : 0;
    }
}

__device__ __forceinline__ float posterior(float mu, float log_sigma, float seed, u32 index) {
    return mu + expf(log_sigma) * normal(noise_words(seed, POSTERIOR_STREAM, index).r[0]);
}

template <typename E>
__device__ __forceinline__ void draws(E* geps, E* gz, const E* gh, const float* gnoise, u32 m, u32 l) {
    const u32 at = blockIdx.x * THREADS + threadIdx.x;
    if (at >= m * SAMPLES * l) {
        return;
    }
    const u32 row = at / l, i = at % l, chunk = row / SAMPLES, n = row % SAMPLES;
    const E* h = gh + static_cast<u64>(chunk) * 2 * l;
    store(geps + at, 0.5f * centred(noise_words(*gnoise, GENERATOR_STREAM, at).r[0]));
    store(gz + at, posterior(load(h + i), load(h + l + i), *gnoise, (chunk * POSTERIOR + n) * l + i));
}

template <typename E>
__device__ __forceinline__ void score(float* gloss, E* gdzhat, const E* gzhat, const E* gh, const u32* gdocuments, const float* gnoise,
                                      const float* gfactor, u32 m, u32 l) {
    const u32 chunk = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (chunk >= m) {
        return;
    }
    const bool counts = gdocuments[chunk] != IGNORE;
    const u64 first = static_cast<u64>(chunk) * SAMPLES * l;
    const E* h = gh + static_cast<u64>(chunk) * 2 * l;
    float zhat[SAMPLES][HELD], d[SAMPLES][HELD] = {}, mu[HELD], log_sigma[HELD];
#pragma unroll
    for (u32 j = 0; j < HELD; j++) {
        const u32 i = j * WARP + lane;
        mu[j] = i < l ? load(h + i) : 0.0f;
        log_sigma[j] = i < l ? load(h + l + i) : 0.0f;
#pragma unroll
        for (u32 n = 0; n < SAMPLES; n++) {
            zhat[n][j] = i < l ? load(gzhat + first + n * l + i) : 0.0f;
        }
    }
    float toward = 0.0f, apart = 0.0f;
    for (u32 s = 0; s < POSTERIOR; s++) {
        float z[HELD];
#pragma unroll
        for (u32 j = 0; j < HELD; j++) {
            const u32 i = j * WARP + lane;
            z[j] = i < l ? posterior(mu[j], log_sigma[j], *gnoise, (chunk * POSTERIOR + s) * l + i) : 0.0f;
        }
#pragma unroll
        for (u32 n = 0; n < SAMPLES; n++) {
            float square = 0.0f;
#pragma unroll
            for (u32 j = 0; j < HELD; j++) {
                square += (zhat[n][j] - z[j]) * (zhat[n][j] - z[j]);
            }
            const float distance = sqrtf(warp_sum(square) + TINY);
            toward += distance;
#pragma unroll
            for (u32 j = 0; j < HELD; j++) {
                d[n][j] += (zhat[n][j] - z[j]) / distance * (2.0f / (SAMPLES * POSTERIOR));
            }
        }
    }
#pragma unroll
    for (u32 n = 0; n < SAMPLES; n++) {
#pragma unroll
        for (u32 k = n + 1; k < SAMPLES; k++) {
            float square = 0.0f;
#pragma unroll
            for (u32 j = 0; j < HELD; j++) {
                square += (zhat[n][j] - zhat[k][j]) * (zhat[n][j] - zhat[k][j]);
            }
            const float distance = sqrtf(warp_sum(square) + TINY);
            apart += distance;
#pragma unroll
            for (u32 j = 0; j < HELD; j++) {
                const float slope = (zhat[n][j] - zhat[k][j]) / distance * (2.0f / (SAMPLES * (SAMPLES - 1)));
                d[n][j] -= slope;
                d[k][j] += slope;
            }
        }
    }
    const float shrink = 1.0f / sqrtf(static_cast<float>(l));
    if (lane == 0) {
        const float sum = toward * (2.0f / (SAMPLES * POSTERIOR)) - apart * (2.0f / (SAMPLES * (SAMPLES - 1)));
        gloss[chunk] = counts ? sum * shrink : 0.0f;
    }
    if (gdzhat == nullptr) {
        return;
    }
    const float factor = counts ? *gfactor * shrink : 0.0f;
#pragma unroll
    for (u32 n = 0; n < SAMPLES; n++) {
#pragma unroll
        for (u32 j = 0; j < HELD; j++) {
            const u32 i = j * WARP + lane;
            if (i < l) {
                store(gdzhat + first + n * l + i, counts ? d[n][j] * factor : 0.0f);
            }
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) energy_score_fwd_draws_f32(float* eps, float* z, const float* h, const float* noise, u32 m, u32 l) {
    draws(eps, z, h, noise, m, l);
}

extern "C" __global__ void __launch_bounds__(256, 4) energy_score_fwd_draws_bf16(bf16* eps, bf16* z, const bf16* h, const float* noise, u32 m, u32 l) {
    draws(eps, z, h, noise, m, l);
}

extern "C" __global__ void __launch_bounds__(256, 4) energy_score_fwd_warp_per_chunk_f32(float* loss, float* dzhat, const float* zhat, const float* h, const u32* documents, const float* noise, const float* factor, u32 m, u32 l) {
    score(loss, dzhat, zhat, h, documents, noise, factor, m, l);
}

extern "C" __global__ void __launch_bounds__(256, 4) energy_score_fwd_warp_per_chunk_bf16(float* loss, bf16* dzhat, const bf16* zhat, const bf16* h, const u32* documents, const float* noise, const float* factor, u32 m, u32 l) {
    score(loss, dzhat, zhat, h, documents, noise, factor, m, l);
}
