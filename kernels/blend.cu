// Blend of three streams by weights of each row, and the norm of the blend, in one pass.
//
// z = W n(s) + b + lean, w = softmax(z), y = h_3 + sum_k (3 w_k - 1) d_k with d_1 = h_1, d_2 = h_2 - h_1, d_3 = h_3 - h_2;
// x = y r g. n(s) = s r_s without gain; s is stream `source` (0, 1, 2), none for 3.
//
// Forward
//   y, x        [N, C]  f32 or bf16, =
//   w, scores   [N, 3]  f32, =; the weights, and W n(s)
//   rstd        [N, 2]  f32, =; r_s and r
//   h1, h2, h3  [N, C]
//   controller  [3, C]  W, or null without a source;  bias [3];  gain [C]
// Grid: N blocks. Must move 5 N C elements.
//
// Backward, with t the gradient of y (dy, and dx through the norm; either may be null): dw_k = 3 <t, d_k>, dz = w (dw - <w, dw>),
// dh from (3 w_k - 1) t and, for the source, from W^T dz through its norm
//   dh1, dh2, dh3  [N, C]      =
//   dz             [N, 3]      =, times r_s, so that dW = dz^T s
//   partial        [P, C + 3]  f32, =; row p: dgain, then dbias, over the rows of block p; `row_sum` adds them up
// Grid: P blocks. Must move 8 N C elements.
//
// Blocks of 512 threads, C <= 8192: rows stay in registers, each read once; sums in a fixed order; 128 bytes of shared memory.
// Learnt from: rmsnorm.cu here (rows in registers).
#include "common/row.cuh"

constexpr u32 BLOCK = 512;
// Numbers of a thread: 512 threads of 16 are 8192. More would spill.
constexpr u32 V = 16;

__device__ __forceinline__ float softmax3(float (&w)[3]) {
    const float peak = fmaxf(fmaxf(w[0], w[1]), w[2]);
    float sum = 0.0f;
#pragma unroll
    for (u32 k = 0; k < 3; k++) {
        w[k] = expf(w[k] - peak);
        sum += w[k];
    }
#pragma unroll
    for (u32 k = 0; k < 3; k++) {
        w[k] /= sum;
    }
    return sum;
}

template <u32 W, typename E>
__device__ __forceinline__ void load_row(RowPart<V, W>& r, const E* g, u32 c) {
    for_packs<BLOCK, V, W>(c, threadIdx.x, [&](u32 p, u32 i) { load_vector<W>(r.r[p], g + i); });
}

// What the blend of three numbers is, rounded to the storage type.
template <typename E>
__device__ __forceinline__ float blended(float h1, float h2, float h3, const float (&excess)[3], const E* type) {
    return rounded(h3 + (excess[0] * h1 + excess[1] * (h2 - h1) + excess[2] * (h3 - h2)), type);
}

template <typename E, u32 W>
__device__ __forceinline__ void forward(E* gy, E* gx, float* gw, float* gscores, float* grstd, const E* gh1, const E* gh2, const E* gh3,
                                        const E* gcontroller, const E* gbias, const E* ggain, const float (&lean)[3], float eps, u32 source,
                                        u32 c, float (&s)[2][BLOCK / WARP]) {
    const u64 row = blockIdx.x, start = row * c;
    u32 round = 0;
    const auto sum = [&](float x) { return block_sum<BLOCK>(x, s, round++); };
    RowPart<V, W> h[3];
    load_row(h[0], gh1 + start, c);
    load_row(h[1], gh2 + start, c);
    load_row(h[2], gh3 + start, c);
    float w[3], r_source = 0.0f, scores[3] = {};
    if (source < 3) {  // the same for all threads
        float squares = 0.0f, dots[3] = {};
        for_packs<BLOCK, V, W>(c, threadIdx.x, [&](u32 p, u32 i) {
            float m[3][W];
#pragma unroll
            for (u32 k = 0; k < 3; k++) {
                load_vector<W>(m[k], gcontroller + k * c + i);
            }
#pragma unroll
            for (u32 j = 0; j < W; j++) {
                const float x = source == 0 ? h[0].r[p][j] : source == 1 ? h[1].r[p][j] : h[2].r[p][j];
                squares += x * x;
                dots[0] += m[0][j] * x, dots[1] += m[1][j] * x, dots[2] += m[2][j] * x;
            }
        });
        r_source = 1.0f / sqrtf(sum(squares) / static_cast<float>(c) + eps);
#pragma unroll
        for (u32 k = 0; k < 3; k++) {
            scores[k] = r_source * sum(dots[k]);
        }
    }
    float excess[3];
#pragma unroll
    for (u32 k = 0; k < 3; k++) {
        w[k] = scores[k] + (load(gbias + k) + lean[k]);
    }
    softmax3(w);
#pragma unroll
    for (u32 k = 0; k < 3; k++) {
        excess[k] = 3.0f * w[k] - 1.0f;
    }
    float squares = 0.0f;
    for_packs<BLOCK, V, W>(c, threadIdx.x, [&](u32 p, u32 i) {
#pragma unroll
        for (u32 j = 0; j < W; j++) {
            const float y = blended(h[0].r[p][j], h[1].r[p][j], h[2].r[p][j], excess, gy);
            h[2].r[p][j] = y;
            squares += y * y;
        }
        store_vector<W>(gy + start + i, h[2].r[p]);
    });
    const float r = 1.0f / sqrtf(sum(squares) / static_cast<float>(c) + eps);
    for_packs<BLOCK, V, W>(c, threadIdx.x, [&](u32 p, u32 i) {
        float g[W], x[W];
        load_vector<W>(g, ggain + i);
#pragma unroll
        for (u32 j = 0; j < W; j++) {
            x[j] = h[2].r[p][j] * r * g[j];
        }
        store_vector<W>(gx + start + i, x);
    });
    if (threadIdx.x < 3) {
        const u32 k = threadIdx.x;
        gw[row * 3 + k] = k == 0 ? w[0] : k == 1 ? w[1] : w[2];
        gscores[row * 3 + k] = k == 0 ? scores[0] : k == 1 ? scores[1] : scores[2];
    }
    if (threadIdx.x == 0) {
        grstd[row * 2] = r_source;
        grstd[row * 2 + 1] = r;
    }
}

// What backward writes and reads, so that its functions have few arguments.
template <typename E>
struct Backward {
    E* gdh[3];
    E* gdz;
    float* gpartial;
    const E* gh[3];
    const float *gw, *gscores, *grstd;
    const E *gdy, *gdx, *gcontroller, *ggain;
    u32 source, n, c;
};

// The gradient of y of one row into `t`; adds the row's share of dgain.
template <typename E, u32 W, typename Sum>
__device__ __forceinline__ void blend_gradient(RowPart<V, W>& t, RowPart<V, W>& dgain, const RowPart<V, W> (&h)[3], const Backward<E>& b,
                                               const float (&excess)[3], u64 row, Sum sum) {
    const u32 c = b.c;
    const u64 start = row * c;
    const float r = b.grstd[row * 2 + 1];
    float projected = 0.0f;
    for_packs<BLOCK, V, W>(c, threadIdx.x, [&](u32 p, u32 i) {
        float d[W] = {}, g[W];
        if (b.gdx != nullptr) {
            load_vector<W>(d, b.gdx + start + i);
        }
        load_vector<W>(g, b.ggain + i);
#pragma unroll
        for (u32 j = 0; j < W; j++) {
            const float y = blended(h[0].r[p][j], h[1].r[p][j], h[2].r[p][j], excess, b.gdz);
            dgain.r[p][j] += d[j] * r * y;
            t.r[p][j] = d[j] * g[j];
            projected += t.r[p][j] * y;
        }
    });
    const float slope = sum(projected) / static_cast<float>(c) * r * r * r;
    for_packs<BLOCK, V, W>(c, threadIdx.x, [&](u32 p, u32 i) {
        float own[W] = {};
        if (b.gdy != nullptr) {
            load_vector<W>(own, b.gdy + start + i);
        }
#pragma unroll
        for (u32 j = 0; j < W; j++) {
            const float y = blended(h[0].r[p][j], h[1].r[p][j], h[2].r[p][j], excess, b.gdz);
            t.r[p][j] = own[j] + (t.r[p][j] * r - y * slope);
        }
    });
}

template <typename E, u32 W>
__device__ __forceinline__ void backward_row(RowPart<V, W>& dgain, float (&dbias)[3], const Backward<E>& b, u64 row, float (&s)[2][BLOCK / WARP],
                                             u32& round) {
    const u32 c = b.c;
    const u64 start = row * c;
    const auto sum = [&](float x) { return block_sum<BLOCK>(x, s, round++); };
    RowPart<V, W> h[3], t;
    float w[3], excess[3], dw[3] = {}, dz[3];
    load_row(h[0], b.gh[0] + start, c);
    load_row(h[1], b.gh[1] + start, c);
    load_row(h[2], b.gh[2] + start, c);
#pragma unroll
    for (u32 k = 0; k < 3; k++) {
        w[k] = b.gw[row * 3 + k];
        excess[k] = 3.0f * w[k] - 1.0f;
    }
    blend_gradient<E, W>(t, dgain, h, b, excess, row, sum);
    for_packs<BLOCK, V, W>(c, threadIdx.x, [&](u32 p, u32) {
#pragma unroll
        for (u32 j = 0; j < W; j++) {
            const float h1 = h[0].r[p][j], h2 = h[1].r[p][j], h3 = h[2].r[p][j];
            dw[0] += t.r[p][j] * h1, dw[1] += t.r[p][j] * (h2 - h1), dw[2] += t.r[p][j] * (h3 - h2);
        }
    });
#pragma unroll
    for (u32 k = 0; k < 3; k++) {
        dw[k] = 3.0f * sum(dw[k]);
    }
    const float mean = w[0] * dw[0] + w[1] * dw[1] + w[2] * dw[2];
    const float r = b.grstd[row * 2];
    float along = 0.0f;
#pragma unroll
    for (u32 k = 0; k < 3; k++) {
        dz[k] = w[k] * (dw[k] - mean);
        dbias[k] += dz[k];
        along += dz[k] * b.gscores[row * 3 + k];
    }
    if (threadIdx.x < 3) {
        store(b.gdz + row * 3 + threadIdx.x, r * (threadIdx.x == 0 ? dz[0] : threadIdx.x == 1 ? dz[1] : dz[2]));
    }
    const float slope = along * r * r / static_cast<float>(c);
    for_packs<BLOCK, V, W>(c, threadIdx.x, [&](u32 p, u32 i) {
        float through[W] = {}, d[W];
        if (b.source < 3) {
#pragma unroll
            for (u32 k = 0; k < 3; k++) {
                float m[W];
                load_vector<W>(m, b.gcontroller + k * c + i);
#pragma unroll
                for (u32 j = 0; j < W; j++) {
                    through[j] += dz[k] * m[j];
                }
            }
        }
        // A lambda, not a loop over k: indexed by a loop, the rows went to local memory.
        const auto put = [&](E* gdh, const float (&x)[W], float share, bool is_source) {
#pragma unroll
            for (u32 j = 0; j < W; j++) {
                d[j] = share * t.r[p][j] + (is_source ? through[j] * r - x[j] * slope : 0.0f);
            }
            store_vector<W>(gdh + start + i, d);
        };
        put(b.gdh[0], h[0].r[p], 3.0f * (w[0] - w[1]), b.source == 0);
        put(b.gdh[1], h[1].r[p], 3.0f * (w[1] - w[2]), b.source == 1);
        put(b.gdh[2], h[2].r[p], 3.0f * w[2], b.source == 2);
    });
}

template <typename E, u32 W>
__device__ __forceinline__ void backward(const Backward<E>& b, float (&s)[2][BLOCK / WARP]) {
    RowPart<V, W> dgain = {};
    float dbias[3] = {};
    u32 round = 0;
    for (u64 row = blockIdx.x; row < b.n; row += gridDim.x) {
        backward_row<E, W>(dgain, dbias, b, row, s, round);
    }
    float* gpartial = b.gpartial + static_cast<u64>(blockIdx.x) * (b.c + 3);
    for_packs<BLOCK, V, W>(b.c, threadIdx.x, [&](u32 p, u32 i) {
#pragma unroll
        for (u32 j = 0; j < W; j++) {
            gpartial[i + j] = dgain.r[p][j];  // rows of C + 3 are not aligned to vectors
        }
    });
    if (threadIdx.x < 3) {
        gpartial[b.c + threadIdx.x] = threadIdx.x == 0 ? dbias[0] : threadIdx.x == 1 ? dbias[1] : dbias[2];
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) blend_fwd_block_per_row_f32(float* y, float* x, float* w, float* scores, float* rstd, const float* h1, const float* h2, const float* h3, const float* controller, const float* bias, const float* gain, float lean1, float lean2, float lean3, float eps, u32 source, u32 c) {
    __shared__ float s[2][BLOCK / WARP];
    const float lean[3] = {lean1, lean2, lean3};
    if (c % 4 == 0 && aligned(16, y, x, h1, h2, h3, controller, gain)) {
        forward<float, 4>(y, x, w, scores, rstd, h1, h2, h3, controller, bias, gain, lean, eps, source, c, s);
    } else {
        forward<float, 1>(y, x, w, scores, rstd, h1, h2, h3, controller, bias, gain, lean, eps, source, c, s);
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) blend_fwd_block_per_row_bf16(bf16* y, bf16* x, float* w, float* scores, float* rstd, const bf16* h1, const bf16* h2, const bf16* h3, const bf16* controller, const bf16* bias, const bf16* gain, float lean1, float lean2, float lean3, float eps, u32 source, u32 c) {
    __shared__ float s[2][BLOCK / WARP];
    const float lean[3] = {lean1, lean2, lean3};
    if (c % 8 == 0 && aligned(16, y, x, h1, h2, h3, controller, gain)) {
        forward<bf16, 8>(y, x, w, scores, rstd, h1, h2, h3, controller, bias, gain, lean, eps, source, c, s);
    } else {
        forward<bf16, 1>(y, x, w, scores, rstd, h1, h2, h3, controller, bias, gain, lean, eps, source, c, s);
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) blend_bwd_block_per_row_f32(float* dh1, float* dh2, float* dh3, float* dz, float* partial, const float* h1, const float* h2, const float* h3, const float* w, const float* scores, const float* rstd, const float* dy, const float* dx, const float* controller, const float* gain, u32 source, u32 n, u32 c) {
    __shared__ float s[2][BLOCK / WARP];
    const Backward<float> b = {{dh1, dh2, dh3}, dz, partial, {h1, h2, h3}, w, scores, rstd, dy, dx, controller, gain, source, n, c};
    if (c % 4 == 0 && aligned(16, dh1, dh2, dh3, h1, h2, h3, dy, dx, controller, gain)) {
        backward<float, 4>(b, s);
    } else {
        backward<float, 1>(b, s);
    }
}

extern "C" __global__ void __launch_bounds__(512, 1) blend_bwd_block_per_row_bf16(bf16* dh1, bf16* dh2, bf16* dh3, bf16* dz, float* partial, const bf16* h1, const bf16* h2, const bf16* h3, const float* w, const float* scores, const float* rstd, const bf16* dy, const bf16* dx, const bf16* controller, const bf16* gain, u32 source, u32 n, u32 c) {
    __shared__ float s[2][BLOCK / WARP];
    const Backward<bf16> b = {{dh1, dh2, dh3}, dz, partial, {h1, h2, h3}, w, scores, rstd, dy, dx, controller, gain, source, n, c};
    if (c % 8 == 0 && aligned(16, dh1, dh2, dh3, h1, h2, h3, dy, dx, controller, gain)) {
        backward<bf16, 8>(b, s);
    } else {
        backward<bf16, 1>(b, s);
    }
}
