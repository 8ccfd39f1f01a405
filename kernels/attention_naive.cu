// Causal attention, a block per query (or key) row: o_t = sum_s p_ts v_s, p_t = softmax over visible s of <q_t, k_s> scale.
//
// Query t sees keys max(doc_start_t, t + 1 - window) ..= t (window 0: all of the past). Query head j reads key/value head j / (H / G).
// q, k, v are [rows, heads * D] with rows `stride` apart; o and do are [B T, H D].
//
// Forward
//   out  f32 or bf16, =;  lse [B, H, T] f32, = (log sum exp of the scaled scores), or null
// Saves q, k, v, out, lse. Grid: T x H x B blocks of 128 threads; 4 T bytes of dynamic shared memory.
//
// Backward, with p = exp(score scale - lse), delta_t = <do_t, o_t>, ds = p (<do, v> - delta) scale:
//   dq_t = sum_s ds_ts k_s     delta [B, H, T] f32, =     (`bwd_query_rows`, grid T x H x B, 4 T bytes)
//   dk_s = sum_t ds_ts q_t, dv_s = sum_t p_ts do_t, over the H / G heads that read the key  (`bwd_key_rows`, grid T x G x B)
// dq, dk, dv: f32 or bf16, =, strided like q, k, v.
//
// The twin of the flash kernels: what they are held against. Sums in a fixed order.
// T up to 40,000 (shared memory); D at most 512.
#include "common/attention.cuh"
#include "common/reduce.cuh"
#include "common/vector.cuh"

constexpr u32 THREADS = 128;
// Columns of a head that a thread owns: 128 threads of 4 are 512.
constexpr u32 COLUMNS = 4;

template <typename E>
__device__ __forceinline__ float dot(const E* ga, const E* gb, u32 d) {
    float sum = 0.0f;
    for (u32 i = 0; i < d; i++) {
        sum += load(ga + i) * load(gb + i);
    }
    return sum;
}

__device__ __forceinline__ float block_max(float x, float (&s)[THREADS / WARP]) {
    x = warp_max(x);
    if (threadIdx.x % WARP == 0) {
        s[threadIdx.x / WARP] = x;
    }
    __syncthreads();  // every warp's maximum is there
    x = s[0];
#pragma unroll
    for (u32 warp = 1; warp < THREADS / WARP; warp++) {
        x = fmaxf(x, s[warp]);
    }
    return x;
}

template <typename E>
__device__ __forceinline__ void forward(E* gout, float* glse, const E* gq, const E* gk, const E* gv, const u32* gdoc_start, float scale,
                                        u32 t_len, u32 h, u32 g, u32 d, u32 stride, u32 window) {
    extern __shared__ float sscore[];  // [S]
    __shared__ float smax[THREADS / WARP], ssum[2][THREADS / WARP];
    const u32 t = blockIdx.x, head = blockIdx.y, b = blockIdx.z, group = head / (h / g);
    const u64 key0 = static_cast<u64>(b) * t_len, row = key0 + t;
    const E* q = gq + row * stride + head * d;
    const u32 first = first_key(gdoc_start, row, t, window);
    float peak = __uint_as_float(0xff800000u);                                  // -inf
    for (u32 s = first + threadIdx.x; s <= t; s += THREADS) {
        const float score = dot(q, gk + (key0 + s) * stride + group * d, d) * scale;
        sscore[s] = score;
        peak = fmaxf(peak, score);
    }
    peak = block_max(peak, smax);
    float sum = 0.0f;
    for (u32 s = first + threadIdx.x; s <= t; s += THREADS) {
        const float p = expf(sscore[s] - peak);
        sscore[s] = p;
        sum += p;
    }
    sum = block_sum<THREADS>(sum, ssum, 0);  // its barrier also makes all of sscore visible
    for (u32 i = threadIdx.x; i < d; i += THREADS) {
        float out = 0.0f;
        for (u32 s = first; s <= t; s++) {
            out += sscore[s] * load(gv + (key0 + s) * stride + group * d + i);
        }
        store(gout + row * h * d + head * d + i, out / sum);
    }
    if (glse != nullptr && threadIdx.x == 0) {
        glse[(static_cast<u64>(b) * h + head) * t_len + t] = peak + logf(sum);
    }
}

template <typename E>
__device__ __forceinline__ void backward_query(E* gdq, float* gdelta, const E* gq, const E* gk, const E* gv, const E* gout,
                                               const float* glse, const E* gdout, const u32* gdoc_start, float scale, u32 t_len, u32 h,
                                               u32 g, u32 d, u32 stride, u32 window) {
    extern __shared__ float sds[];  // [T]
    __shared__ float ssum[2][THREADS / WARP];
    const u32 t = blockIdx.x, head = blockIdx.y, b = blockIdx.z, group = head / (h / g);
    const u64 row0 = static_cast<u64>(b) * t_len, row = row0 + t, stat = (static_cast<u64>(b) * h + head) * t_len + t;
    const E* q = gq + row * stride + head * d;
    const E* dout = gdout + row * h * d + head * d;
    const E* out = gout + row * h * d + head * d;
    float share = 0.0f;
    for (u32 i = threadIdx.x; i < d; i += THREADS) {
        share += load(dout + i) * load(out + i);
    }
    const float delta = block_sum<THREADS>(share, ssum, 0), lse = glse[stat];
    if (threadIdx.x == 0) {
        gdelta[stat] = delta;
    }
    const u32 first = first_key(gdoc_start, row, t, window);
    for (u32 s = first + threadIdx.x; s <= t; s += THREADS) {
        const u64 key = (row0 + s) * stride + group * d;
        const float p = expf(dot(q, gk + key, d) * scale - lse);
        sds[s] = p * (dot(dout, gv + key, d) - delta) * scale;
    }
    __syncthreads();  // all of ds is there
    for (u32 i = threadIdx.x; i < d; i += THREADS) {
        float dq = 0.0f;
        for (u32 s = first; s <= t; s++) {
            dq += sds[s] * load(gk + (row0 + s) * stride + group * d + i);
        }
        store(gdq + row * stride + head * d + i, dq);
    }
}

template <typename E>
__device__ __forceinline__ void backward_key(E* gdk, E* gdv, const E* gq, const E* gk, const E* gv, const float* glse,
                                             const float* gdelta, const E* gdout, const u32* gdoc_start, float scale, u32 t_len, u32 h,
                                             u32 g, u32 d, u32 stride, u32 window) {
    __shared__ float sp[THREADS], sds[THREADS];
    const u32 s = blockIdx.x, group = blockIdx.y, b = blockIdx.z;
    const u64 row0 = static_cast<u64>(b) * t_len, key = (row0 + s) * stride + group * d;
    float rdk[COLUMNS] = {}, rdv[COLUMNS] = {};
    for (u32 head = group * (h / g); head < (group + 1) * (h / g); head++) {
        const u64 stat0 = (static_cast<u64>(b) * h + head) * t_len;
        for (u32 start = s; start < t_len; start += THREADS) {  // queries that may see this key
            const u32 t = start + threadIdx.x;
            float p = 0.0f, ds = 0.0f;
            if (t < t_len && first_key(gdoc_start, row0 + t, t, window) <= s) {
                const E* dout = gdout + (row0 + t) * h * d + head * d;
                p = expf(dot(gq + (row0 + t) * stride + head * d, gk + key, d) * scale - glse[stat0 + t]);
                ds = p * (dot(dout, gv + key, d) - gdelta[stat0 + t]) * scale;
            }
            __syncthreads();  // all have read the chunk before
            sp[threadIdx.x] = p;
            sds[threadIdx.x] = ds;
            __syncthreads();  // p and ds of the chunk are there
            const u32 count = t_len - start < THREADS ? t_len - start : THREADS;
#pragma unroll
            for (u32 column = 0; column < COLUMNS; column++) {
                const u32 i = column * THREADS + threadIdx.x;
                for (u32 k = 0; i < d && k < count; k++) {
                    rdv[column] += sp[k] * load(gdout + (row0 + start + k) * h * d + head * d + i);
                    rdk[column] += sds[k] * load(gq + (row0 + start + k) * stride + head * d + i);
                }
            }
        }
    }
#pragma unroll
    for (u32 column = 0; column < COLUMNS; column++) {
        const u32 i = column * THREADS + threadIdx.x;
        if (i < d) {
            store(gdk + key + i, rdk[column]);
            store(gdv + key + i, rdv[column]);
        }
    }
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_naive_fwd_query_rows_f32(float* out, float* lse, const float* q, const float* k, const float* v, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 d, u32 stride, u32 window) {
    forward(out, lse, q, k, v, doc_start, scale, t, h, g, d, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_naive_fwd_query_rows_bf16(bf16* out, float* lse, const bf16* q, const bf16* k, const bf16* v, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 d, u32 stride, u32 window) {
    forward(out, lse, q, k, v, doc_start, scale, t, h, g, d, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_naive_bwd_query_rows_f32(float* dq, float* delta, const float* q, const float* k, const float* v, const float* out, const float* lse, const float* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 d, u32 stride, u32 window) {
    backward_query(dq, delta, q, k, v, out, lse, dout, doc_start, scale, t, h, g, d, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_naive_bwd_query_rows_bf16(bf16* dq, float* delta, const bf16* q, const bf16* k, const bf16* v, const bf16* out, const float* lse, const bf16* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 d, u32 stride, u32 window) {
    backward_query(dq, delta, q, k, v, out, lse, dout, doc_start, scale, t, h, g, d, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_naive_bwd_key_rows_f32(float* dk, float* dv, const float* q, const float* k, const float* v, const float* lse, const float* delta, const float* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 d, u32 stride, u32 window) {
    backward_key(dk, dv, q, k, v, lse, delta, dout, doc_start, scale, t, h, g, d, stride, window);
}

extern "C" __global__ void __launch_bounds__(128, 4) attention_naive_bwd_key_rows_bf16(bf16* dk, bf16* dv, const bf16* q, const bf16* k, const bf16* v, const float* lse, const float* delta, const bf16* dout, const u32* doc_start, float scale, u32 t, u32 h, u32 g, u32 d, u32 stride, u32 window) {
    backward_key(dk, dv, q, k, v, lse, delta, dout, doc_start, scale, t, h, g, d, stride, window);
}
