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
#include "common/delta_gradients.cuh"

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
