// The gated delta rule: S_t = (I - beta_t k_t k_t^T) Diag(alpha_t) S_{t-1} + beta_t k_t v_t^T, o_t = S_t^T q_t, alpha = exp(log_alpha).
//
// By chunks of 64 tokens, with P_ij the decay of a key channel from token j to token i, S the state before the chunk:
//   Kd_ij = <k_i, k_j P_ij>, Qd_ij = <q_i, k_j P_ij> (0 across a document start),  Kg_i = k_i P_i, Qg_i = q_i P_i, Ke_j = k_j P_last,j
//   N = (I + StrictTril(Kd) Diag(beta))^-1,  E = N (V - Kg S),  U = Diag(beta) E
//   O = Qg S + Tril(Qd) U,  S' = Diag(P_last) S + Ke^T U
// Backward, dS the gradient of the state after the chunk, T = (I + StrictTril(Diag(beta) Kd))^-1:
//   dB = T^T (Tril(Qd)^T dO + Ke dS),  dV = dW = Diag(beta) dB,  dbeta_i = <dB_i, E_i>
//   dS before = Diag(P_last) dS + Qg^T dO - Kg^T dW
//   dQd = Tril(dO U^T), dKd = -StrictTril(dW U^T), dQg = dO S^T, dKg = -dW S^T, dKe = U dS^T, and from those dq, dk, dlog_alpha
// P is never a quotient: every factor is exp of a sum of log_alpha over tokens between the two, so <= 1.
//
// q, k, log_alpha [B T, H Dk], v, o, do [B T, H Dv], beta [B T, H] f32 or bf16; starts [B T] u32, 1 where a document starts, or
// null; states, E and dB f32. Dk, Dv multiples of 32, Dk <= 256. Blocks of 256 threads; X = ceil(T / 64) chunks of a row of tokens.
//
//   fwd_chunk_pairs, bwd_chunk_pairs   inverse [B, H, X, 64, 64] f32, = (N forward, T backward); qd likewise, = (0 above the diagonal).
//       Grid X x H x B. Moves 3 N H Dk elements in, 128 N H f32 out.
//   fwd_value_columns   o, =; errors [B T, H Dv] f32, = (E) and states [B, H, X, Dk, Dv] f32, = (S), both or neither null;
//       last [B, H, Dk, Dv] f32, = (the state after the last token); first likewise, or null for zeros. A block has 32 columns of
//       a head's state in shared memory and goes from chunk to chunk. Grid Dv / 32 x H x B, 128 Dk bytes of dynamic shared memory.
//   bwd_value_columns   dv, =; db [B T, H Dv] f32, = (dB); dstates [B, H, X, Dk, Dv] f32, = (dS); dfirst [B, H, Dk, Dv] f32, =; dlast
//       likewise, or null for zeros. Grid and memory as forward; from the last chunk to the first.
//   bwd_pair_gradients   dpairs [B, H, X, 2, 64, 64] f32, = (dKd, then dQd); dbeta, =. Grid X x H x B.
//   bwd_key_channels     dq, dk, dlog_alpha, =. A block has 32 channels of a chunk. Grid Dk / 32 x X x B H, 53,248 bytes of dynamic
//       shared memory.
//   decode_state_columns o, =; state [B, H, Dk, Dv] f32, read and written: token by token, a thread having 1/8 of a column of the
//       state in registers. Grid Dv / 32 x H x B. One token moves the state once in and once out.
// Forward must do N H (64 Dk + 64 Dv + 3 Dk Dv) multiplications, backward the pairs' 64 Dk again and twice the rest.
// Saves the operands, E and the states before chunks. Sums in a fixed order.
// Learnt from: flash-linear-attention (chunked delta rules; blocks of pairs by a row between them), Kimi Linear.
#include "common/delta.cuh"

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

// What a block of value columns shares: the 32 columns of a head's state (or of its gradient) besides.
struct ColumnsShared {
    float a[2 * RAW];                  // factors of a slice, or a matrix of pairs
    float rows[2][CHUNK * SLICE];      // [CHUNK, SLICE] each
    float total[WARPS][SLICE];
    float decay[SLICE], beta[CHUNK];
    u32 document[CHUNK];
};
static_assert(CHUNK * SQUARE <= 2 * RAW, "a matrix of pairs fits");

// A lane's keys (and queries) times the decay from the chunk's start, or of keys times that to its end; of other documents 0.
// `s.total` must be there. Also the decay over the whole chunk, 0 where a document starts.
__device__ __forceinline__ void stage_before(ColumnsShared& s, const float (&rq)[ROWS], const float (&rk)[ROWS], const float (&ra)[ROWS]) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float decay[ROWS];
    decays_before(decay, ra, totals(s.total, 0, warp));
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        const u32 row = warp * ROWS + i;
        const float here = s.document[row] == 0 ? decay[i] : 0.0f;
        s.a[row * PITCH + lane] = rq[i] * here;
        s.a[RAW + row * PITCH + lane] = rk[i] * here;
    }
    if (warp == WARPS - 1) {
        s.decay[lane] = s.document[CHUNK - 1] == 0 ? decay[ROWS - 1] : 0.0f;
    }
}

__device__ __forceinline__ void stage_after(ColumnsShared& s, const float (&rk)[ROWS], const float (&ra)[ROWS]) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float decay[ROWS];
    decays_after(decay, ra, totals(s.total, warp + 1, WARPS));
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        const u32 row = warp * ROWS + i;
        s.a[row * PITCH + lane] = s.document[row] == s.document[CHUNK - 1] ? rk[i] * decay[i] : 0.0f;
    }
    if (warp == 0) {
        s.decay[lane] = s.document[CHUNK - 1] == 0 ? expf(totals(s.total, 0, WARPS)) : 0.0f;
    }
}

// f(state element in shared memory, the same in [Dk, Dv] of a head) for every four columns that this thread owns.
template <typename F>
__device__ __forceinline__ void for_state(u32 dk, u32 dv, F f) {
    const u32 column = threadIdx.x % 8 * 4;
    for (u32 c = threadIdx.x / 8; c < dk; c += SLICE) {
        f(c * SLICE + column, c * static_cast<u64>(dv) + blockIdx.x * SLICE + column);
    }
}

__device__ __forceinline__ void load_state(float* sstate, const float* g, u32 dk, u32 dv) {
    for_state(dk, dv, [&](u32 at, u64 i) {
        *reinterpret_cast<float4*>(sstate + at) = g == nullptr ? make_float4(0.0f, 0.0f, 0.0f, 0.0f) : four(g + i);
    });
}

__device__ __forceinline__ void store_state(float* g, const float* sstate, u32 dk, u32 dv) {
    for_state(dk, dv, [&](u32 at, u64 i) { *reinterpret_cast<float4*>(g + i) = four(sstate + at); });
}

// tile += M B, M lower triangular in s.a: rows ty + 16 i of the tile.
__device__ __forceinline__ void multiply_lower(Tile& tile, const float* sm, const float* sb) {
    const u32 ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll
    for (u32 block = 0; block < 4; block++) {
#pragma unroll
        for (u32 m = block * 16; m < block * 16 + 16; m += 4) {
#pragma unroll
            for (u32 i = block; i < 4; i++) {
                multiply(tile, i, four(sm + (ty + 16 * i) * SQUARE + m), sb + m * SLICE + 2 * tx);
            }
        }
    }
}

template <typename E>
__device__ __forceinline__ void forward_columns(E* go, float* gerrors, float* gstates, float* glast, const float* ginverse, const float* gqd,
                                                const E* gq, const E* gk, const E* gv, const E* glog_alpha, const E* gbeta,
                                                const u32* gstarts, const float* gfirst, u32 t_len, u32 h, u32 dk, u32 dv) {
    __shared__ __align__(16) ColumnsShared s;
    extern __shared__ __align__(16) float sstate[];  // [Dk, SLICE]
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const u32 chunks = (t_len + CHUNK - 1) / CHUNK, column = blockIdx.x * SLICE + 2 * tx;
    const u64 head_state = (static_cast<u64>(blockIdx.z) * h + blockIdx.y) * dk * dv;
    load_state(sstate, gfirst == nullptr ? gfirst : gfirst + head_state, dk, dv);
    for (u32 chunk = 0; chunk < chunks; chunk++) {
        const Place place(blockIdx.z, blockIdx.y, h, chunk, t_len);
        if (gstates != nullptr) {
            store_state(gstates + (place.of_head * chunks + chunk) * dk * dv, sstate, dk, dv);
        }
        number_documents(s.document, gstarts, place);
        if (threadIdx.x < CHUNK) {
            s.beta[threadIdx.x] = threadIdx.x < place.n ? load(gbeta + place.at(threadIdx.x, 1, 0)) : 0.0f;
        }
        Tile held = {}, out = {};
        for (u32 c = 0; c < dk; c += SLICE) {
            float rq[ROWS], rk[ROWS], ra[ROWS];
            load_rows(rq, gq, place, dk, c);
            load_rows(rk, gk, place, dk, c);
            load_rows(ra, glog_alpha, place, dk, c);
            s.total[warp][lane] = total(ra);
            __syncthreads();  // totals are there; what lay in s.a is read
            stage_before(s, rq, rk, ra);
            __syncthreads();  // Qg and Kg are there
#pragma unroll
            for (u32 k = 0; k < SLICE; k += 4) {
#pragma unroll
                for (u32 i = 0; i < 4; i++) {
                    const float* sb = sstate + (c + k) * SLICE + 2 * tx;
                    multiply(out, i, four(s.a + (ty + 16 * i) * PITCH + k), sb);
                    multiply(held, i, four(s.a + RAW + (ty + 16 * i) * PITCH + k), sb);
                }
            }
        }
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 row = ty + 16 * i;
            const float2 v = row < place.n ? load_pair(gv + place.at(row, dv, column)) : make_float2(0.0f, 0.0f);
            put_pair(&s.rows[0][row * SLICE + 2 * tx], v.x - held.r[i][0], v.y - held.r[i][1]);
        }
        __syncthreads();  // V - Kg S is there; factors are read
        load_square(s.a, ginverse + place.square);
        __syncthreads();  // N is there
        Tile errors = {};
        multiply_lower(errors, s.a, s.rows[0]);
        __syncthreads();  // and read
        load_square(s.a, gqd + place.square);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 row = ty + 16 * i;
            put_pair(&s.rows[0][row * SLICE + 2 * tx], s.beta[row] * errors.r[i][0], s.beta[row] * errors.r[i][1]);
            if (gerrors != nullptr && row < place.n) {
                store_pair(gerrors + place.at(row, dv, column), errors.r[i][0], errors.r[i][1]);
            }
        }
        __syncthreads();  // U and Qd are there
        multiply_lower(out, s.a, s.rows[0]);
#pragma unroll
        for (u32 i = 0; i < 4; i++) {
            const u32 row = ty + 16 * i;
            if (row < place.n) {
                store_pair(go + place.at(row, dv, column), out.r[i][0], out.r[i][1]);
            }
        }
        for (u32 c = 0; c < dk; c += SLICE) {
            float rk[ROWS], ra[ROWS];
            load_rows(rk, gk, place, dk, c);
            load_rows(ra, glog_alpha, place, dk, c);
            s.total[warp][lane] = total(ra);
            __syncthreads();  // totals are there; what lay in s.a is read
            stage_after(s, rk, ra);
            __syncthreads();  // Ke is there
            float* mine = sstate + c * SLICE + threadIdx.x * 4;
            const float decay = s.decay[threadIdx.x / 8];
            float r[4] = {decay * mine[0], decay * mine[1], decay * mine[2], decay * mine[3]};
            sum_tokens(r, s.a, s.rows[0], 1.0f);
            *reinterpret_cast<float4*>(mine) = make_float4(r[0], r[1], r[2], r[3]);
        }
    }
    store_state(glast + head_state, sstate, dk, dv);
}

// tile += M^T B, M lower triangular in s.a: rows 4 ty + r of the tile.
__device__ __forceinline__ void multiply_lower_transposed(Tile& tile, const float* sm, const float* sb) {
    const u32 ty = threadIdx.x / 16, tx = threadIdx.x % 16;
#pragma unroll 4
    for (u32 i = 4 * ty; i < CHUNK; i++) {
        const float4 m = four(sm + i * SQUARE + 4 * ty);
        const float2 b = *reinterpret_cast<const float2*>(sb + i * SLICE + 2 * tx);
        const float rows[4] = {m.x, m.y, m.z, m.w};
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
            tile.r[r][0] += rows[r] * b.x;
            tile.r[r][1] += rows[r] * b.y;
        }
    }
}

// In s.rows[0] dO; in s.rows[1] dU, then dW.
template <typename E>
__device__ __forceinline__ void backward_columns(E* gdv, float* gdb, float* gdstates, float* gdfirst, const float* ginverse, const float* gqd,
                                                 const E* gq, const E* gk, const E* glog_alpha, const E* gbeta, const E* gdo,
                                                 const u32* gstarts, const float* gdlast, u32 t_len, u32 h, u32 dk, u32 dv) {
    __shared__ __align__(16) ColumnsShared s;
    extern __shared__ __align__(16) float sstate[];  // [Dk, SLICE]: dS
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    const u32 chunks = (t_len + CHUNK - 1) / CHUNK, column = blockIdx.x * SLICE + 2 * tx;
    const u64 head_state = (static_cast<u64>(blockIdx.z) * h + blockIdx.y) * dk * dv;
    load_state(sstate, gdlast == nullptr ? gdlast : gdlast + head_state, dk, dv);
    for (u32 chunk = chunks; chunk-- > 0;) {
        const Place place(blockIdx.z, blockIdx.y, h, chunk, t_len);
        store_state(gdstates + (place.of_head * chunks + chunk) * dk * dv, sstate, dk, dv);
        __syncthreads();  // the chunk after this one is done with what is shared
        number_documents(s.document, gstarts, place);
        if (threadIdx.x < CHUNK) {
            s.beta[threadIdx.x] = threadIdx.x < place.n ? load(gbeta + place.at(threadIdx.x, 1, 0)) : 0.0f;
        }
        float rdo[ROWS];
        load_rows(rdo, gdo, place, dv, blockIdx.x * SLICE);
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            s.rows[0][(warp * ROWS + i) * SLICE + lane] = rdo[i];
        }
        load_square(s.a, gqd + place.square);
        __syncthreads();  // dO and Qd are there
        Tile du = {}, db = {};
        multiply_lower_transposed(du, s.a, s.rows[0]);
        for (u32 c = 0; c < dk; c += SLICE) {
            float rk[ROWS], ra[ROWS];
            load_rows(rk, gk, place, dk, c);
            load_rows(ra, glog_alpha, place, dk, c);
            s.total[warp][lane] = total(ra);
            __syncthreads();  // totals are there; what lay in s.a is read
            stage_after(s, rk, ra);
            __syncthreads();  // Ke is there
#pragma unroll
            for (u32 k = 0; k < SLICE; k += 4) {
#pragma unroll
                for (u32 r = 0; r < 4; r++) {
                    multiply(du, r, four(s.a + (4 * ty + r) * PITCH + k), sstate + (c + k) * SLICE + 2 * tx);
                }
            }
        }
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
            put_pair(&s.rows[1][(4 * ty + r) * SLICE + 2 * tx], du.r[r][0], du.r[r][1]);
        }
        __syncthreads();  // dU is there; Ke is read
        load_square(s.a, ginverse + place.square);
        __syncthreads();  // T is there
        multiply_lower_transposed(db, s.a, s.rows[1]);
        __syncthreads();  // T and dU are read
#pragma unroll
        for (u32 r = 0; r < 4; r++) {
            const u32 row = 4 * ty + r;
            const float dw[2] = {s.beta[row] * db.r[r][0], s.beta[row] * db.r[r][1]};
            put_pair(&s.rows[1][row * SLICE + 2 * tx], dw[0], dw[1]);
            if (row < place.n) {
                store_pair(gdb + place.at(row, dv, column), db.r[r][0], db.r[r][1]);
                store_pair(gdv + place.at(row, dv, column), dw[0], dw[1]);
            }
        }
        for (u32 c = 0; c < dk; c += SLICE) {
            float rq[ROWS], rk[ROWS], ra[ROWS];
            load_rows(rq, gq, place, dk, c);
            load_rows(rk, gk, place, dk, c);
            load_rows(ra, glog_alpha, place, dk, c);
            s.total[warp][lane] = total(ra);
            __syncthreads();  // totals and dW are there; what lay in s.a is read
            stage_before(s, rq, rk, ra);
            __syncthreads();  // Qg and Kg are there
            float* mine = sstate + c * SLICE + threadIdx.x * 4;
            const float decay = s.decay[threadIdx.x / 8];
            float r[4] = {decay * mine[0], decay * mine[1], decay * mine[2], decay * mine[3]};
            sum_tokens(r, s.a, s.rows[0], 1.0f);
            sum_tokens(r, s.a + RAW, s.rows[1], -1.0f);
            *reinterpret_cast<float4*>(mine) = make_float4(r[0], r[1], r[2], r[3]);
        }
    }
    store_state(gdfirst + head_state, sstate, dk, dv);
}

// A slice of value columns of dO, dW = beta dB and U = beta E in rows of PITCH; also <dB, E> of this lane's column, added.
template <typename E>
__device__ __forceinline__ void stage_columns(float* s, float (&rdbeta)[ROWS], const E* gdo, const float* gdb, const float* gerrors,
                                              const float (&sbeta)[CHUNK], const Place& place, u32 dv, u32 v) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    float rdo[ROWS], rdb[ROWS], rerrors[ROWS];
    load_rows(rdo, gdo, place, dv, v);
    load_rows(rdb, gdb, place, dv, v);
    load_rows(rerrors, gerrors, place, dv, v);
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        const u32 row = warp * ROWS + i, at = row * PITCH + lane;
        s[at] = rdo[i];
        s[RAW + at] = sbeta[row] * rdb[i];
        s[2 * RAW + at] = sbeta[row] * rerrors[i];
        rdbeta[i] += rdb[i] * rerrors[i];
    }
}

template <typename E>
__device__ __forceinline__ void pair_gradients(float* gdpairs, E* gdbeta, const float* gdb, const float* gerrors, const E* gbeta, const E* gdo,
                                               const u32* gstarts, u32 t_len, u32 h, u32 dv) {
    __shared__ __align__(16) float s[3 * RAW];
    __shared__ float sbeta[CHUNK];
    __shared__ u32 sdocument[CHUNK];
    const Place place(blockIdx.z, blockIdx.y, h, blockIdx.x, t_len);
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    number_documents(sdocument, gstarts, place);
    if (threadIdx.x < CHUNK) {
        sbeta[threadIdx.x] = threadIdx.x < place.n ? load(gbeta + place.at(threadIdx.x, 1, 0)) : 0.0f;
    }
    float dkd[4][4] = {}, dqd[4][4] = {}, dbeta[ROWS] = {};  // pairs (ty + 16 i, tx + 16 j), j <= i
    for (u32 v = 0; v < dv; v += SLICE) {
        __syncthreads();  // beta is there; all have read the slice before
        stage_columns(s, dbeta, gdo, gdb, gerrors, sbeta, place, dv, v);
        __syncthreads();  // dO, dW and U are there
#pragma unroll
        for (u32 k = 0; k < SLICE; k += 4) {
            float4 u[4];
#pragma unroll
            for (u32 j = 0; j < 4; j++) {
                u[j] = four(s + 2 * RAW + (tx + 16 * j) * PITCH + k);
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const float4 dout = four(s + (ty + 16 * i) * PITCH + k), dw = four(s + RAW + (ty + 16 * i) * PITCH + k);
#pragma unroll
                for (u32 j = 0; j <= i; j++) {
                    dqd[i][j] = dot(dout, u[j], dqd[i][j]);
                    dkd[i][j] = dot(dw, u[j], dkd[i][j]);
                }
            }
        }
    }
    float *gdkd = gdpairs + 2 * place.square, *gdqd = gdkd + PAIRS;
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 j = 0; j < 4; j++) {
            const u32 row = ty + 16 * i, col = tx + 16 * j;
            const bool seen = sdocument[row] == sdocument[col];
            gdkd[row * CHUNK + col] = seen && col < row ? -dkd[i][j] : 0.0f;
            gdqd[row * CHUNK + col] = seen && col <= row ? dqd[i][j] : 0.0f;
        }
    }
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        const float sum = warp_sum(dbeta[i]);
        const u32 row = warp * ROWS + i;
        if (lane == 0 && row < place.n) {
            store(gdbeta + place.at(row, 1, 0), sum);
        }
    }
}

// A channel (lane) of a warp's tokens: operands, and gradients so far.
struct Channel {
    float k[ROWS], q[ROWS], a[ROWS], dk[ROWS], dq[ROWS], da[ROWS];
};

// What sums of log decays hand back to what they sum, over warps first .. end: to each token the numbers of `d` from it on
// (sums that begin before it and end there), or those of tokens before it (sums over tokens after those).
template <bool FROM_IT_ON>
__device__ __forceinline__ void hand_back(float (&rda)[ROWS], const float (&d)[ROWS], const float (&stotal)[WARPS][SLICE], u32 first, u32 end) {
    const u32 warp = threadIdx.x / WARP;
    float sum = FROM_IT_ON ? totals(stotal, warp + 1, end) : totals(stotal, first, warp);
#pragma unroll
    for (u32 k = 0; k < ROWS; k++) {
        const u32 i = FROM_IT_ON ? ROWS - 1 - k : k;
        rda[i] += FROM_IT_ON ? sum + d[i] : sum;
        sum += d[i];
    }
}

// The pairs of halves of HALF_WARPS warps. `sf` takes the factors, `sdpairs` has dKd and dQd in rows of SQUARE.
template <u32 HALF_WARPS>
__device__ __forceinline__ void halves_backward(Channel& x, float* sf, float (&sdsum)[WARPS][SLICE], const float* sdpairs,
                                                const float (&stotal)[WARPS][SLICE]) {
    constexpr u32 HALF_ROWS = HALF_WARPS * ROWS;
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, mine = warp * ROWS;
    const u32 first = warp / HALF_WARPS * HALF_WARPS;
    const bool late = warp / HALF_WARPS % 2 == 1;
    const float *sdkd = sdpairs, *sdqd = sdpairs + CHUNK * SQUARE;
    float decay[ROWS], dk[ROWS] = {}, dq[ROWS] = {}, d[ROWS];
    if (late) {
        decays_before(decay, x.a, totals(stotal, first, warp));
    } else {
        decays_after(decay, x.a, totals(stotal, warp + 1, first + HALF_WARPS));
    }
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        sf[(mine + i) * SLICE + lane] = x.k[i] * decay[i];
        if (late) {
            sf[(CHUNK + mine + i) * SLICE + lane] = x.q[i] * decay[i];
        }
    }
    __syncthreads();  // the factors of both halves are there
    if (late) {
#pragma unroll 1
        for (u32 j = (first - HALF_WARPS) * ROWS; j < first * ROWS; j += 4) {
            float key[4];
#pragma unroll
            for (u32 k = 0; k < 4; k++) {
                key[k] = sf[(j + k) * SLICE + lane];
            }
            const float4 keys = make_float4(key[0], key[1], key[2], key[3]);
#pragma unroll
            for (u32 i = 0; i < ROWS; i++) {
                dk[i] = dot(four(sdkd + (mine + i) * SQUARE + j), keys, dk[i]);
                dq[i] = dot(four(sdqd + (mine + i) * SQUARE + j), keys, dq[i]);
            }
        }
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            const float of_k = dk[i] * decay[i], of_q = dq[i] * decay[i];
            x.dk[i] += of_k;
            x.dq[i] += of_q;
            d[i] = x.k[i] * of_k + x.q[i] * of_q;
        }
    } else {
        const u32 partner = (first + HALF_WARPS) * ROWS;
#pragma unroll 1  // or it takes the registers of the gradients
        for (u32 i = partner; i < partner + HALF_ROWS; i++) {
            const float key = sf[i * SLICE + lane], query = sf[(CHUNK + i) * SLICE + lane];
#pragma unroll
            for (u32 j = 0; j < ROWS; j += 4) {
                const float4 of_k = four(sdkd + i * SQUARE + mine + j), of_q = four(sdqd + i * SQUARE + mine + j);
                dk[j] += key * of_k.x + query * of_q.x;
                dk[j + 1] += key * of_k.y + query * of_q.y;
                dk[j + 2] += key * of_k.z + query * of_q.z;
                dk[j + 3] += key * of_k.w + query * of_q.w;
            }
        }
#pragma unroll
        for (u32 i = 0; i < ROWS; i++) {
            const float of_k = dk[i] * decay[i];
            x.dk[i] += of_k;
            d[i] = x.k[i] * of_k;
        }
    }
    if constexpr (HALF_WARPS > 1) {
        sdsum[warp][lane] = total(d);
        __syncthreads();  // totals are there; factors are read
    }
    if (late) {
        hand_back<true>(x.da, d, sdsum, first, first + HALF_WARPS);
    } else {
        hand_back<false>(x.da, d, sdsum, first, first + HALF_WARPS);
    }
}

// The pairs of a warp's own tokens: forth with the decayed key of each, back with its gradient.
__device__ __forceinline__ void own_backward(Channel& x, const float* sdpairs) {
    const u32 mine = threadIdx.x / WARP * ROWS;
    const float *sdkd = sdpairs + mine * SQUARE + mine, *sdqd = sdkd + CHUNK * SQUARE;
    float alpha[ROWS];
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        alpha[i] = expf(x.a[i]);
    }
#pragma unroll
    for (u32 j = 0; j < ROWS; j++) {
        float key[ROWS], dkey = 0.0f;
        key[j] = x.k[j];
#pragma unroll
        for (u32 i = j + 1; i < ROWS; i++) {
            key[i] = key[i - 1] * alpha[i];
        }
#pragma unroll
        for (u32 i = ROWS; i-- > j;) {
            const float dkd = sdkd[i * SQUARE + j], dqd = sdqd[i * SQUARE + j];
            x.dq[i] += dqd * key[i];
            dkey += dqd * x.q[i];
            if (i > j) {
                x.dk[i] += dkd * key[i];
                dkey += dkd * x.k[i];
                x.da[i] += key[i] * dkey;
                dkey *= alpha[i];
            }
        }
        x.dk[j] += dkey;
    }
}

constexpr u32 HANDOVER = SLICE + 16;   // rows of what goes from tiles to channels: two rows a warp writes at once lie in different banks

// dQg, dKg (times -1) and dKe of 32 channels of a chunk, in rows of HANDOVER one after another; and in sdecay the gradient of
// the decay over the whole chunk, <S, dS> of each channel.
template <typename E>
__device__ __forceinline__ void state_gradients(float* s, float (&sdecay)[SLICE], const float* gdb, const float* gerrors, const float* gstates,
                                                const float* gdstates, const E* gdo, const float (&sbeta)[CHUNK], const Place& place, u32 dv) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, ty = threadIdx.x / 16, tx = threadIdx.x % 16;
    float *sstate = s + 3 * RAW, *sdstate = sstate + SLICE * PITCH;
    float dqg[4][2] = {}, dkg[4][2] = {}, dke[4][2] = {}, unused[ROWS] = {}, ddecay = 0.0f;  // rows ty + 16 i, channels tx + 16 j
    for (u32 v = 0; v < dv; v += SLICE) {
        __syncthreads();  // beta is there; all have read the slice before
        stage_columns(s, unused, gdo, gdb, gerrors, sbeta, place, dv, v);
#pragma unroll
        for (u32 i = 0; i < SLICE / WARPS; i++) {
            const u32 c = warp * (SLICE / WARPS) + i;
            sstate[c * PITCH + lane] = gstates[static_cast<u64>(c) * dv + v + lane];
            sdstate[c * PITCH + lane] = gdstates[static_cast<u64>(c) * dv + v + lane];
        }
        __syncthreads();  // the slice is there
#pragma unroll 2
        for (u32 k = 0; k < SLICE; k += 4) {
            float4 state[2], dstate[2];
#pragma unroll
            for (u32 j = 0; j < 2; j++) {
                state[j] = four(sstate + (tx + 16 * j) * PITCH + k);
                dstate[j] = four(sdstate + (tx + 16 * j) * PITCH + k);
            }
#pragma unroll
            for (u32 i = 0; i < 4; i++) {
                const float* row = s + (ty + 16 * i) * PITCH + k;
                const float4 dout = four(row), dw = four(row + RAW), u = four(row + 2 * RAW);
#pragma unroll
                for (u32 j = 0; j < 2; j++) {
                    dqg[i][j] = dot(dout, state[j], dqg[i][j]);
                    dkg[i][j] = dot(dw, state[j], dkg[i][j]);
                    dke[i][j] = dot(u, dstate[j], dke[i][j]);
                }
            }
        }
        const u32 at = threadIdx.x / 8 * PITCH + threadIdx.x % 8 * 4;
        ddecay = dot(four(sstate + at), four(sdstate + at), ddecay);
    }
#pragma unroll
    for (u32 mask = 4; mask > 0; mask /= 2) {
        ddecay += __shfl_xor_sync(ALL_LANES, ddecay, mask);
    }
    __syncthreads();  // all have read the last slice
    if (threadIdx.x % 8 == 0) {
        sdecay[threadIdx.x / 8] = ddecay;
    }
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
#pragma unroll
        for (u32 j = 0; j < 2; j++) {
            float* to = s + (ty + 16 * i) * HANDOVER + tx + 16 * j;
            to[0] = dqg[i][j];
            to[CHUNK * HANDOVER] = dkg[i][j];
            to[2 * CHUNK * HANDOVER] = dke[i][j];
        }
    }
}

constexpr u32 KEY_POOL = 3 * RAW + 2 * SLICE * PITCH;  // floats: rows of a slice of columns, and of the state and its gradient
static_assert(2 * CHUNK * SQUARE <= KEY_POOL && 3 * CHUNK * HANDOVER <= KEY_POOL, "dKd and dQd fit, and what is handed over");

template <typename E>
__device__ __forceinline__ void key_channels(E* gdq, E* gdk, E* gdlog_alpha, const float* gdpairs, const float* gdb, const float* gerrors,
                                             const float* gstates, const float* gdstates, const E* gq, const E* gk, const E* glog_alpha,
                                             const E* gbeta, const E* gdo, const u32* gstarts, u32 t_len, u32 h, u32 dk, u32 dv) {
    extern __shared__ __align__(16) float s[];  // KEY_POOL, then two rows of factors a token
    __shared__ float stotal[WARPS][SLICE], sdbefore[WARPS][SLICE], sdafter[WARPS][SLICE], sdecay[SLICE], sbeta[CHUNK];
    __shared__ u32 sdocument[CHUNK];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, c = blockIdx.x * SLICE;
    const Place place(blockIdx.z / h, blockIdx.z % h, h, blockIdx.y, t_len);
    const u64 state = (place.of_head * gridDim.y + blockIdx.y) * dk * dv + static_cast<u64>(c) * dv;
    number_documents(sdocument, gstarts, place);
    if (threadIdx.x < CHUNK) {
        sbeta[threadIdx.x] = threadIdx.x < place.n ? load(gbeta + place.at(threadIdx.x, 1, 0)) : 0.0f;
    }
    state_gradients(s, sdecay, gdb, gerrors, gstates + state, gdstates + state, gdo, sbeta, place, dv);
    Channel x;
    load_rows(x.k, gk, place, dk, c);
    load_rows(x.q, gq, place, dk, c);
    load_rows(x.a, glog_alpha, place, dk, c);
    stotal[warp][lane] = total(x.a);
    __syncthreads();  // totals and the gradients of what meets the state are there
    float before[ROWS], after[ROWS], dbefore[ROWS], dafter[ROWS];
    decays_before(before, x.a, totals(stotal, 0, warp));
    decays_after(after, x.a, totals(stotal, warp + 1, WARPS));
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        const u32 row = warp * ROWS + i, at = row * HANDOVER + lane;
        const float first = sdocument[row] == 0 ? before[i] : 0.0f, last = sdocument[row] == sdocument[CHUNK - 1] ? after[i] : 0.0f;
        const float late = -s[CHUNK * HANDOVER + at] * first, early = s[2 * CHUNK * HANDOVER + at] * last;
        x.dq[i] = s[at] * first;
        x.dk[i] = late + early;
        x.da[i] = 0.0f;
        dbefore[i] = x.q[i] * x.dq[i] + x.k[i] * late;
        dafter[i] = x.k[i] * early;
    }
    if (warp == WARPS - 1 && sdocument[CHUNK - 1] == 0) {
        dbefore[ROWS - 1] += before[ROWS - 1] * sdecay[lane];  // tokens past the end decay nothing
    }
    sdbefore[warp][lane] = total(dbefore);
    sdafter[warp][lane] = total(dafter);
    __syncthreads();  // totals are there; what lay in s is read
    hand_back<true>(x.da, dbefore, sdbefore, 0, WARPS);
    hand_back<false>(x.da, dafter, sdafter, 0, WARPS);
    load_square(s, gdpairs + 2 * place.square);
    load_square(s + CHUNK * SQUARE, gdpairs + 2 * place.square + PAIRS);
    float* sf = s + KEY_POOL;
    halves_backward<4>(x, sf, sdbefore, s, stotal);
    halves_backward<2>(x, sf, sdbefore, s, stotal);
    halves_backward<1>(x, sf, sdbefore, s, stotal);
    own_backward(x, s);
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        const u32 row = warp * ROWS + i;
        if (row < place.n) {
            store(gdq + place.at(row, dk, c + lane), x.dq[i]);
            store(gdk + place.at(row, dk, c + lane), x.dk[i]);
            store(gdlog_alpha + place.at(row, dk, c + lane), x.da[i]);
        }
    }
}

constexpr u32 KEYS_MAX = 256;
constexpr u32 HELD = KEYS_MAX / WARPS;  // numbers of the state in a thread's registers: channels warp, warp + 8, ... of one column

template <typename E>
__device__ __forceinline__ void decode(E* go, float* gstate, const E* gq, const E* gk, const E* gv, const E* glog_alpha, const E* gbeta,
                                       const u32* gstarts, u32 t_len, u32 h, u32 dk, u32 dv) {
    __shared__ float sq[KEYS_MAX], sk[KEYS_MAX], salpha[KEYS_MAX], sheld[WARPS][SLICE], sout[WARPS][SLICE];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP, column = blockIdx.x * SLICE + lane, head = blockIdx.y;
    float* state = gstate + (static_cast<u64>(blockIdx.z) * h + head) * dk * dv + column;
    float r[HELD];
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        const u32 c = i * WARPS + warp;
        r[i] = c < dk ? state[static_cast<u64>(c) * dv] : 0.0f;
    }
    for (u32 t = 0; t < t_len; t++) {
        const u64 row = static_cast<u64>(blockIdx.z) * t_len + t, key = (row * h + head) * dk + threadIdx.x;
        const bool start = gstarts != nullptr && gstarts[row] != 0;
        if (threadIdx.x < dk) {
            sq[threadIdx.x] = load(gq + key);
            sk[threadIdx.x] = load(gk + key);
            salpha[threadIdx.x] = start ? 0.0f : expf(load(glog_alpha + key));
        }
        const float v = load(gv + (row * h + head) * dv + column), beta = load(gbeta + row * h + head);
        __syncthreads();  // the token is there
        float held = 0.0f;
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            const u32 c = i * WARPS + warp;
            if (c < dk) {
                r[i] = start ? 0.0f : r[i] * salpha[c];
                held += sk[c] * r[i];
            }
        }
        sheld[warp][lane] = held;
        __syncthreads();  // every warp's part of S^T k is there
        const float u = beta * (v - totals(sheld, 0, WARPS));
        float out = 0.0f;
#pragma unroll
        for (u32 i = 0; i < HELD; i++) {
            const u32 c = i * WARPS + warp;
            if (c < dk) {
                r[i] += sk[c] * u;
                out += sq[c] * r[i];
            }
        }
        sout[warp][lane] = out;
        __syncthreads();  // every warp's part of S^T q is there; the token is read
        if (warp == 0) {
            store(go + (row * h + head) * dv + column, totals(sout, 0, WARPS));
        }
    }
#pragma unroll
    for (u32 i = 0; i < HELD; i++) {
        const u32 c = i * WARPS + warp;
        if (c < dk) {
            state[static_cast<u64>(c) * dv] = r[i];
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_fwd_chunk_pairs_f32(float* inverse, float* qd, const float* q, const float* k, const float* log_alpha, const float* beta, const u32* starts, u32 t, u32 h, u32 dk) {
    chunk_pairs<true>(inverse, qd, q, k, log_alpha, beta, starts, t, h, dk);
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_bwd_chunk_pairs_f32(float* inverse, float* qd, const float* q, const float* k, const float* log_alpha, const float* beta, const u32* starts, u32 t, u32 h, u32 dk) {
    chunk_pairs<false>(inverse, qd, q, k, log_alpha, beta, starts, t, h, dk);
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_fwd_value_columns_f32(float* o, float* errors, float* states, float* last, const float* inverse, const float* qd, const float* q, const float* k, const float* v, const float* log_alpha, const float* beta, const u32* starts, const float* first, u32 t, u32 h, u32 dk, u32 dv) {
    forward_columns(o, errors, states, last, inverse, qd, q, k, v, log_alpha, beta, starts, first, t, h, dk, dv);
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_bwd_value_columns_f32(float* dv_out, float* db, float* dstates, float* dfirst, const float* inverse, const float* qd, const float* q, const float* k, const float* log_alpha, const float* beta, const float* dout, const u32* starts, const float* dlast, u32 t, u32 h, u32 dk, u32 dv) {
    backward_columns(dv_out, db, dstates, dfirst, inverse, qd, q, k, log_alpha, beta, dout, starts, dlast, t, h, dk, dv);
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_bwd_pair_gradients_f32(float* dpairs, float* dbeta, const float* db, const float* errors, const float* beta, const float* dout, const u32* starts, u32 t, u32 h, u32 dv) {
    pair_gradients(dpairs, dbeta, db, errors, beta, dout, starts, t, h, dv);
}

extern "C" __global__ void __launch_bounds__(256, 1) delta_rule_bwd_key_channels_f32(float* dq, float* dk_out, float* dlog_alpha, const float* dpairs, const float* db, const float* errors, const float* states, const float* dstates, const float* q, const float* k, const float* log_alpha, const float* beta, const float* dout, const u32* starts, u32 t, u32 h, u32 dk, u32 dv) {
    key_channels(dq, dk_out, dlog_alpha, dpairs, db, errors, states, dstates, q, k, log_alpha, beta, dout, starts, t, h, dk, dv);
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_decode_state_columns_f32(float* o, float* state, const float* q, const float* k, const float* v, const float* log_alpha, const float* beta, const u32* starts, u32 t, u32 h, u32 dk, u32 dv) {
    decode(o, state, q, k, v, log_alpha, beta, starts, t, h, dk, dv);
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_fwd_chunk_pairs_bf16(float* inverse, float* qd, const bf16* q, const bf16* k, const bf16* log_alpha, const bf16* beta, const u32* starts, u32 t, u32 h, u32 dk) {
    chunk_pairs<true>(inverse, qd, q, k, log_alpha, beta, starts, t, h, dk);
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_bwd_chunk_pairs_bf16(float* inverse, float* qd, const bf16* q, const bf16* k, const bf16* log_alpha, const bf16* beta, const u32* starts, u32 t, u32 h, u32 dk) {
    chunk_pairs<false>(inverse, qd, q, k, log_alpha, beta, starts, t, h, dk);
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_fwd_value_columns_bf16(bf16* o, float* errors, float* states, float* last, const float* inverse, const float* qd, const bf16* q, const bf16* k, const bf16* v, const bf16* log_alpha, const bf16* beta, const u32* starts, const float* first, u32 t, u32 h, u32 dk, u32 dv) {
    forward_columns(o, errors, states, last, inverse, qd, q, k, v, log_alpha, beta, starts, first, t, h, dk, dv);
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_bwd_value_columns_bf16(bf16* dv_out, float* db, float* dstates, float* dfirst, const float* inverse, const float* qd, const bf16* q, const bf16* k, const bf16* log_alpha, const bf16* beta, const bf16* dout, const u32* starts, const float* dlast, u32 t, u32 h, u32 dk, u32 dv) {
    backward_columns(dv_out, db, dstates, dfirst, inverse, qd, q, k, log_alpha, beta, dout, starts, dlast, t, h, dk, dv);
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_bwd_pair_gradients_bf16(float* dpairs, bf16* dbeta, const float* db, const float* errors, const bf16* beta, const bf16* dout, const u32* starts, u32 t, u32 h, u32 dv) {
    pair_gradients(dpairs, dbeta, db, errors, beta, dout, starts, t, h, dv);
}

extern "C" __global__ void __launch_bounds__(256, 1) delta_rule_bwd_key_channels_bf16(bf16* dq, bf16* dk_out, bf16* dlog_alpha, const float* dpairs, const float* db, const float* errors, const float* states, const float* dstates, const bf16* q, const bf16* k, const bf16* log_alpha, const bf16* beta, const bf16* dout, const u32* starts, u32 t, u32 h, u32 dk, u32 dv) {
    key_channels(dq, dk_out, dlog_alpha, dpairs, db, errors, states, dstates, q, k, log_alpha, beta, dout, starts, t, h, dk, dv);
}

extern "C" __global__ void __launch_bounds__(256, 2) delta_rule_decode_state_columns_bf16(bf16* o, float* state, const bf16* q, const bf16* k, const bf16* v, const bf16* log_alpha, const bf16* beta, const u32* starts, u32 t, u32 h, u32 dk, u32 dv) {
    decode(o, state, q, k, v, log_alpha, beta, starts, t, h, dk, dv);
}
