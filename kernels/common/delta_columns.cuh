// The delta rule from chunk to chunk: blocks that carry 32 columns of a head's state, or of its gradient. See delta_rule.cu.
#pragma once

#include "delta_pairs.cuh"

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
