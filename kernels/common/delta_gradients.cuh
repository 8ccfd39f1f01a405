// What the gradients of the delta rule's pairs and states make of keys, queries and decays. See delta_rule.cu.
#pragma once

#include "delta_columns.cuh"

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
