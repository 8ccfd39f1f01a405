// The delta rule within a chunk: its pairs of tokens, and the inverse of what they make of each other. See delta_rule.cu.
#pragma once

#include "delta.cuh"

// The pairs of tokens: in blocks of 16 the decayed key goes from token to token, as the recurrence has it (a thread has a token j and 8
// of 32 channels); 16 by 16 and 32 by 32 tokens are products, the decay split where the later half starts.
constexpr u32 SUB = 16;
constexpr u32 RAW = CHUNK * PITCH;     // floats of a slice of a chunk
constexpr u32 HALF = CHUNK / 2 * PITCH;
constexpr u32 GROUP = SUB * CHUNK + SUB;  // 16 more: the two groups of a warp then lie in different banks

// Factors of the pairs of halves of HALF_WARPS warps, in rows of their own: keys of earlier halves, keys and queries of later ones.
template <u32 HALF_WARPS>
__device__ __forceinline__ void stage_halves(float* s, const float (&rk)[ROWS], const float (&rq)[ROWS], const float (&ra)[ROWS],
                                             const float (&stotal)[WARPS][SLICE]) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 first = warp / HALF_WARPS * HALF_WARPS, to = (warp / (2 * HALF_WARPS) * HALF_WARPS + warp % HALF_WARPS) * ROWS;
    float decay[ROWS];
    if (warp / HALF_WARPS % 2 == 0) {
        decays_after(decay, ra, totals(stotal, warp + 1, first + HALF_WARPS));
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            s[(to + i) * PITCH + lane] = rk[i] * decay[i];
        }
    } else {
        decays_before(decay, ra, totals(stotal, first, warp));
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            s[HALF + (to + i) * PITCH + lane] = rk[i] * decay[i];
            s[2 * HALF + (to + i) * PITCH + lane] = rq[i] * decay[i];
        }
    }
}

// What a thread sums of the pairs of keys (k) and of queries with keys (q).
struct PairSums {
    float diagonal_k[SUB], diagonal_q[SUB];  // tokens of the block with token j
    float halves16_k[2], halves16_q[2];      // of a 16 by 16 product, row i, columns j and j + 8
    float halves32_k[2][2], halves32_q[2][2];
};

// Column j of a block of 16: `sraw` has keys, queries and alphas.
__device__ __forceinline__ void sum_diagonal(PairSums& sums, const float* sraw, u32 j, u32 group) {
    const float *sk = sraw, *sq = sraw + RAW, *salpha = sraw + 2 * RAW;
    const u32 block = j / SUB * SUB;
#pragma unroll 1  // or the loads of both take the registers of the sums
    for (u32 c = group * 8; c < group * 8 + 8; c += 4) {
        float4 key = four(sk + j * PITCH + c);
#pragma unroll
        for (u32 i = 0; i < SUB; i++) {
            const float4 alpha = four(salpha + (block + i) * PITCH + c);
            const bool later = i > j % SUB;
            key.x *= later ? alpha.x : 1.0f;
            key.y *= later ? alpha.y : 1.0f;
            key.z *= later ? alpha.z : 1.0f;
            key.w *= later ? alpha.w : 1.0f;
            sums.diagonal_k[i] = dot(four(sk + (block + i) * PITCH + c), key, sums.diagonal_k[i]);
            sums.diagonal_q[i] = dot(four(sq + (block + i) * PITCH + c), key, sums.diagonal_q[i]);
        }
    }
}

__device__ __forceinline__ void sum_halves16(PairSums& sums, const float* s) {
    const u32 block = threadIdx.x / 128 * SUB, i = block + threadIdx.x % 128 / 8, j = block + threadIdx.x % 8;
#pragma unroll 2
    for (u32 c = 0; c < SLICE; c += 4) {
        const float4 k = four(s + HALF + i * PITCH + c), q = four(s + 2 * HALF + i * PITCH + c);
#pragma unroll
        for (u32 side = 0; side < 2; side++) {
            const float4 key = four(s + (j + 8 * side) * PITCH + c);
            sums.halves16_k[side] = dot(k, key, sums.halves16_k[side]);
            sums.halves16_q[side] = dot(q, key, sums.halves16_q[side]);
        }
    }
}

__device__ __forceinline__ void sum_halves32(PairSums& sums, const float* s) {
    const u32 i = threadIdx.x / 16, j = threadIdx.x % 16;
#pragma unroll 2
    for (u32 c = 0; c < SLICE; c += 4) {
        float4 k[2], q[2];
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            k[row] = four(s + HALF + (i + 16 * row) * PITCH + c);
            q[row] = four(s + 2 * HALF + (i + 16 * row) * PITCH + c);
        }
#pragma unroll
        for (u32 side = 0; side < 2; side++) {
            const float4 key = four(s + (j + 16 * side) * PITCH + c);
#pragma unroll
            for (u32 row = 0; row < 2; row++) {
                sums.halves32_k[row][side] = dot(k[row], key, sums.halves32_k[row][side]);
                sums.halves32_q[row][side] = dot(q[row], key, sums.halves32_q[row][side]);
            }
        }
    }
}

// f(i, j, sum) for the pairs beyond blocks of 16 that this thread has summed.
template <typename F>
__device__ __forceinline__ void for_far_pairs(const float (&halves16)[2], const float (&halves32)[2][2], F f) {
    const u32 block = threadIdx.x / 128 * 2 * SUB;
#pragma unroll
    for (u32 side = 0; side < 2; side++) {
        f(block + SUB + threadIdx.x % 128 / 8, block + threadIdx.x % 8 + 8 * side, halves16[side]);
#pragma unroll
        for (u32 row = 0; row < 2; row++) {
            f(CHUNK / 2 + threadIdx.x / 16 + 16 * row, threadIdx.x % 16 + 16 * side, halves32[row][side]);
        }
    }
}

// Sum over the four groups of channels of a pair in a block of 16.
__device__ __forceinline__ float near_pair(const float* sgroups, u32 i, u32 j) {
    float sum = 0.0f;
#pragma unroll
    for (u32 group = 0; group < 4; group++) {
        sum += sgroups[group * GROUP + i % SUB * CHUNK + j];
    }
    return sum;
}

// X = (I + L)^-1 for a strictly lower L, both in rows of SQUARE; L is overwritten. Blocks of 16 column by column, then by halves: the
// lower left block of a pair is -X22 L21 X11.
__device__ __forceinline__ void invert(float* sx, float* sl) {
    if (threadIdx.x < CHUNK) {
        const u32 block = threadIdx.x / SUB * SUB, column = threadIdx.x % SUB;
        float x[SUB];
#pragma unroll
        for (u32 i = 0; i < SUB; i++) {
            x[i] = i == column ? 1.0f : 0.0f;
#pragma unroll
            for (u32 m = 0; m < i; m++) {
                x[i] -= sl[(block + i) * SQUARE + block + m] * x[m];
            }
            sx[(block + i) * SQUARE + block + column] = x[i];
        }
    } else {
        for (u32 e = threadIdx.x - CHUNK; e < PAIRS; e += THREADS - CHUNK) {
            const u32 i = e / CHUNK, j = e % CHUNK;
            if (i / SUB < j / SUB) {
                sx[i * SQUARE + j] = 0.0f;
            }
        }
    }
    __syncthreads();  // the blocks are inverted
#pragma unroll
    for (u32 m = SUB; m < CHUNK; m *= 2) {
        constexpr u32 MOST = CHUNK / 2 * CHUNK / 2 / THREADS;
        const u32 count = CHUNK / 2 * m / THREADS;
        float sums[MOST];
#pragma unroll
        for (u32 u = 0; u < MOST; u++) {
            const u32 e = u * THREADS + threadIdx.x, s = e / (m * m) * 2 * m, i = e / m % m, j = e % m;
            sums[u] = 0.0f;
            for (u32 k = 0; u < count && k < m; k++) {
                sums[u] += sl[(s + m + i) * SQUARE + s + k] * sx[(s + k) * SQUARE + s + j];
            }
        }
        __syncthreads();  // all have read L21
#pragma unroll
        for (u32 u = 0; u < MOST; u++) {
            const u32 e = u * THREADS + threadIdx.x, s = e / (m * m) * 2 * m, i = e / m % m, j = e % m;
            if (u < count) {
                sl[(s + m + i) * SQUARE + s + j] = sums[u];
            }
        }
        __syncthreads();  // L21 X11 is there
#pragma unroll
        for (u32 u = 0; u < MOST; u++) {
            const u32 e = u * THREADS + threadIdx.x, s = e / (m * m) * 2 * m, i = e / m % m, j = e % m;
            float sum = 0.0f;
            for (u32 k = 0; u < count && k < m; k++) {
                sum -= sx[(s + m + i) * SQUARE + s + m + k] * sl[(s + m + k) * SQUARE + s + j];
            }
            if (u < count) {
                sx[(s + m + i) * SQUARE + s + j] = sum;
            }
        }
        __syncthreads();  // the pair is inverted
    }
}

template <bool FORWARD, typename E>
__device__ __forceinline__ void chunk_pairs(float* ginverse, float* gqd, const E* gq, const E* gk, const E* glog_alpha, const E* gbeta,
                                            const u32* gstarts, u32 t_len, u32 h, u32 dk) {
    // Keys, queries, alphas and factors of a slice; then L beside sums by group; then L beside its inverse.
    __shared__ __align__(16) float s[3 * RAW + 3 * HALF];
    __shared__ float stotal[WARPS][SLICE], sbeta[CHUNK];
    __shared__ u32 sdocument[CHUNK];
    static_assert(CHUNK * SQUARE + 4 * GROUP <= 3 * RAW + 3 * HALF && 2 * CHUNK * SQUARE <= 3 * RAW + 3 * HALF, "both fit");
    const Place place(blockIdx.z, blockIdx.y, h, blockIdx.x, t_len);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const u32 j = warp / 2 * SUB + lane % SUB, group = warp % 2 * 2 + lane / SUB;  // of blocks of 16
    number_documents(sdocument, gstarts, place);
    if (threadIdx.x < CHUNK) {
        sbeta[threadIdx.x] = threadIdx.x < place.n ? load(gbeta + place.at(threadIdx.x, 1, 0)) : 0.0f;
    }
    PairSums sums = {};
    float *sraw = s, *shalves = s + 3 * RAW;
    for (u32 c = 0; c < dk; c += SLICE) {
        float rk[ROWS], rq[ROWS], ra[ROWS];
        load_rows(rk, gk, place, dk, c);
        load_rows(rq, gq, place, dk, c);
        load_rows(ra, glog_alpha, place, dk, c);
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {  // the slice before was read before its factors of 32 by 32 were there
            const u32 at = (warp * ROWS + i) * PITCH + lane;
            sraw[at] = rk[i];
            sraw[RAW + at] = rq[i];
            sraw[2 * RAW + at] = expf(ra[i]);
        }
        stotal[warp][lane] = total(ra);
        __syncthreads();  // rows and totals of all warps are there
        sum_diagonal(sums, sraw, j, group);
        stage_halves<2>(shalves, rk, rq, ra, stotal);
        __syncthreads();  // factors of 16 by 16 are there
        sum_halves16(sums, shalves);
        __syncthreads();  // and read
        stage_halves<4>(shalves, rk, rq, ra, stotal);
        __syncthreads();  // factors of 32 by 32 are there
        sum_halves32(sums, shalves);
    }
    __syncthreads();  // all have read the last slice
    float *sl = s, *sgroups = s + CHUNK * SQUARE;
    const auto seen = [&](u32 i, u32 j) { return sdocument[i] == sdocument[j]; };
    const auto weight = [&](u32 i, u32 j) { return FORWARD ? sbeta[j] : sbeta[i]; };
#pragma unroll
    for (u32 i = 0; i < SUB; i++) {
        sgroups[group * GROUP + i * CHUNK + j] = sums.diagonal_k[i];
    }
    for_far_pairs(sums.halves16_k, sums.halves32_k, [&](u32 i, u32 j, float sum) {
        sl[i * SQUARE + j] = seen(i, j) ? weight(i, j) * sum : 0.0f;
    });
    __syncthreads();  // the groups' sums are there
    for (u32 e = threadIdx.x; e < PAIRS; e += THREADS) {
        const u32 i = e / CHUNK, j = e % CHUNK;
        if (i / SUB == j / SUB) {
            sl[i * SQUARE + j] = i > j && seen(i, j) ? weight(i, j) * near_pair(sgroups, i, j) : 0.0f;
        }
    }
    __syncthreads();  // and read
#pragma unroll
    for (u32 i = 0; i < SUB; i++) {
        sgroups[group * GROUP + i * CHUNK + j] = sums.diagonal_q[i];
    }
    for_far_pairs(sums.halves16_q, sums.halves32_q, [&](u32 i, u32 j, float sum) {
        gqd[place.square + i * CHUNK + j] = seen(i, j) ? sum : 0.0f;
    });
    __syncthreads();  // likewise of queries
    for (u32 e = threadIdx.x; e < PAIRS; e += THREADS) {
        const u32 i = e / CHUNK, j = e % CHUNK;
        if (i / SUB <= j / SUB) {
            gqd[place.square + e] = i / SUB == j / SUB && i >= j && seen(i, j) ? near_pair(sgroups, i, j) : 0.0f;
        }
    }
    __syncthreads();  // and read
    float* sx = s + CHUNK * SQUARE;
    invert(sx, sl);
    for (u32 e = threadIdx.x; e < PAIRS; e += THREADS) {
        ginverse[place.square + e] = sx[e / CHUNK * SQUARE + e % CHUNK];
    }
}
