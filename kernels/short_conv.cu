// A causal convolution of each channel over 4 taps, and SiLU: y_t = z s(z), z_t = sum_j w_j x_(t-3+j), s the sigmoid.
//
// Forward
//   y       [B T, C]   f32 or bf16, =
//   next    [B, 3, C]  =: the last rows of each row of tokens that a next token of their document would reach, else zeros
//   x       [B T, C]
//   w       [C, 4]
//   starts  [B T]      u32, 1 where a document starts: taps do not reach before it; or null
//   rows    [B, 3, C]  the rows before the first, or null for zeros
// Saves x, starts, rows.
//
// Backward: dz = dy s (1 + z (1 - s)), dx_t = sum_j w_j dz_(t+3-j), dw_j = sum over rows of dz_t x_(t-3+j)
//   dx       [B T, C]   =
//   partial  [P, C, 4]  f32, =; row p is the sum over the runs of block p; `row_sum` adds them up
//   x, w, starts, rows as above;  dy [B T, C]
//
// Geometry: a lane for W neighbouring channels (forward 16 bytes of them, backward 4, or 1 where C or a pointer does not allow it), a
// warp for a run of 64 tokens of one row of tokens, which slides a window over them; blocks of 8 warps,
// ceil(C / (32 W)) x P, P = ceil(B ceil(T / 64) / 8). Any size.
// Must move 2 N C elements forward, 3 N C backward; a run reads 3 rows more of x forward, 6 of x and 3 of dy backward.
#include "common/reduce.cuh"
#include "common/vector.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 RUN = 64;                // 3 rows and the weights read again for each: 5 % and as much, most of it from L2
constexpr u32 TAPS = 4;
constexpr u32 BEFORE = TAPS - 1;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// The run of a warp: `b` its row of tokens, `t0` its first token.
struct Run {
    u32 b, t0;
    bool exists;

    __device__ __forceinline__ Run(u32 batch, u32 t) {
        const u32 runs = (t + RUN - 1) / RUN, run = blockIdx.y * WARPS + threadIdx.x / WARP;
        b = run / runs, t0 = run % runs * RUN, exists = b < batch;
    }
};

// Weights of W channels, and the last four rows of x that the taps of the newest reach: [0] the newest.
template <typename E, u32 W>
struct Window {
    float w[W][TAPS], x[TAPS][W];

    __device__ __forceinline__ Window(const E* gw) {
        float flat[TAPS * W];
        if constexpr (W == 1) {        // maybe not aligned
#pragma unroll
            for (u32 j = 0; j < TAPS; j++) {
                flat[j] = load(gw + j);
            }
        } else {                       // 16 bytes at once
#pragma unroll
            for (u32 i = 0; i < TAPS * W; i += WIDTH<E>) {
                float part[WIDTH<E>];
                load_vector<WIDTH<E>>(part, gw + i);
#pragma unroll
                for (u32 k = 0; k < WIDTH<E>; k++) {
                    flat[i + k] = part[k];
                }
            }
        }
#pragma unroll
        for (u32 c = 0; c < W; c++) {
#pragma unroll
            for (u32 j = 0; j < TAPS; j++) {
                w[c][j] = flat[c * TAPS + j];
                x[j][c] = 0.0f;
            }
        }
    }

    // Moves on to token t0 + i of the run, which may lie before the row; what a start hides becomes 0.
    __device__ __forceinline__ void advance(const E* gx, const u32* gstarts, const E* grows, const Run& run, i32 i, u32 t_len, u32 c) {
        const i32 t = static_cast<i32>(run.t0) + i;
        const u64 row = static_cast<u64>(run.b) * t_len + t;
        const bool start = t >= 0 && gstarts != nullptr && gstarts[row] != 0;
#pragma unroll
        for (u32 lag = BEFORE; lag > 0; lag--) {
#pragma unroll
            for (u32 k = 0; k < W; k++) {
                x[lag][k] = start ? 0.0f : x[lag - 1][k];
            }
        }
        if (t >= 0) {
            load_vector<W>(x[0], gx + row * c);
        } else if (grows != nullptr) {
            load_vector<W>(x[0], grows + static_cast<u64>(run.b * BEFORE + BEFORE + t) * c);
        }
    }

    __device__ __forceinline__ float sum(u32 k) const {
        float z = w[k][0] * x[BEFORE][k];
#pragma unroll
        for (u32 j = 1; j < TAPS; j++) {
            z += w[k][j] * x[BEFORE - j][k];
        }
        return z;
    }
};

template <typename E, u32 W>
__device__ __forceinline__ void forward(E* gy, E* gnext, const E* gx, const E* gw, const u32* gstarts, const E* grows, u32 batch, u32 t_len, u32 c) {
    const u32 column = (blockIdx.x * WARP + threadIdx.x % WARP) * W;
    const Run run(batch, t_len);
    if (!run.exists || column >= c) {
        return;
    }
    Window<E, W> window(gw + static_cast<u64>(column) * TAPS);
    for (i32 i = -static_cast<i32>(BEFORE); i < 0; i++) {
        window.advance(gx + column, gstarts, grows == nullptr ? grows : grows + column, run, i, t_len, c);
    }
    const u32 count = t_len - run.t0 < RUN ? t_len - run.t0 : RUN;
    for (u32 i = 0; i < count; i++) {
        window.advance(gx + column, gstarts, nullptr, run, i, t_len, c);
        float y[W];
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            const float z = window.sum(k);
            y[k] = z * sigmoid(z);
        }
        store_vector<W>(gy + (static_cast<u64>(run.b) * t_len + run.t0 + i) * c + column, y);
    }
    if (run.t0 + RUN >= t_len) {
#pragma unroll
        for (u32 lag = 0; lag < BEFORE; lag++) {
            store_vector<W>(gnext + static_cast<u64>(run.b * BEFORE + BEFORE - 1 - lag) * c + column, window.x[lag]);
        }
    }
}

template <typename E, u32 W>
__device__ __forceinline__ void backward(E* gdx, float* gpartial, const E* gx, const E* gw, const u32* gstarts, const E* grows, const E* gdy,
                                         u32 batch, u32 t_len, u32 c, float (&s)[WARPS][TAPS][WARP * 4]) {
    const u32 lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = (blockIdx.x * WARP + lane) * W;
    const Run run(batch, t_len);
    float dw[TAPS][W] = {};
    if (run.exists && column < c) {
        Window<E, W> window(gw + static_cast<u64>(column) * TAPS);
        float dx[TAPS][W] = {};        // [0] of the newest row
        u32 reach = BEFORE;            // rows before the newest that its taps reach
        for (i32 i = -static_cast<i32>(BEFORE); i < static_cast<i32>(RUN + BEFORE); i++) {
            const i32 t = static_cast<i32>(run.t0) + i;
            const bool inside = t < static_cast<i32>(t_len);
            const u64 row = static_cast<u64>(run.b) * t_len + t;
#pragma unroll
            for (u32 lag = BEFORE; lag > 0; lag--) {
#pragma unroll
                for (u32 k = 0; k < W; k++) {
                    dx[lag][k] = dx[lag - 1][k];
                }
            }
#pragma unroll
            for (u32 k = 0; k < W; k++) {
                dx[0][k] = 0.0f;
            }
            if (inside) {
                window.advance(gx + column, gstarts, grows == nullptr ? grows : grows + column, run, i, t_len, c);
                const bool start = t >= 0 && gstarts != nullptr && gstarts[row] != 0;
                reach = start ? 0 : reach < BEFORE ? reach + 1 : BEFORE;
            }
            if (inside && i >= 0) {
                float dy[W];
                load_vector<W>(dy, gdy + row * c + column);
#pragma unroll
                for (u32 k = 0; k < W; k++) {
                    const float z = window.sum(k), sigma = sigmoid(z), dz = dy[k] * sigma * (1.0f + z * (1.0f - sigma));
#pragma unroll
                    for (u32 lag = 0; lag < TAPS; lag++) {
                        dx[lag][k] += lag <= reach ? window.w[k][BEFORE - lag] * dz : 0.0f;
                        dw[BEFORE - lag][k] += i < static_cast<i32>(RUN) ? dz * window.x[lag][k] : 0.0f;
                    }
                }
            }
            if (i >= static_cast<i32>(BEFORE) && t - static_cast<i32>(BEFORE) < static_cast<i32>(t_len)) {
                store_vector<W>(gdx + (row - BEFORE) * c + column, dx[BEFORE]);
            }
        }
    }
#pragma unroll
    for (u32 j = 0; j < TAPS; j++) {
        store_vector<W>(&s[warp][j][lane * W], dw[j]);
    }
    __syncthreads();  // the sums of all eight runs are there
    for (u32 i = threadIdx.x; i < TAPS * WARP * W; i += THREADS) {
        const u32 channel = i / TAPS, j = i % TAPS, to = blockIdx.x * WARP * W + channel;
        if (to < c) {
            float sum = s[0][j][channel];
#pragma unroll
            for (u32 w = 1; w < WARPS; w++) {
                sum += s[w][j][channel];
            }
            gpartial[(static_cast<u64>(blockIdx.y) * c + to) * TAPS + j] = sum;
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) short_conv_fwd_channel_runs_f32(float* y, float* next, const float* x, const float* w, const u32* starts, const float* rows, u32 b, u32 t, u32 c) {
    if (c % 4 == 0 && aligned(16, y, next, x, w, rows)) {
        forward<float, 4>(y, next, x, w, starts, rows, b, t, c);
    } else {
        forward<float, 1>(y, next, x, w, starts, rows, b, t, c);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) short_conv_fwd_channel_runs_bf16(bf16* y, bf16* next, const bf16* x, const bf16* w, const u32* starts, const bf16* rows, u32 b, u32 t, u32 c) {
    if (c % 8 == 0 && aligned(16, y, next, x, w, rows)) {
        forward<bf16, 8>(y, next, x, w, starts, rows, b, t, c);
    } else {
        forward<bf16, 1>(y, next, x, w, starts, rows, b, t, c);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) short_conv_bwd_channel_runs_f32(float* dx, float* partial, const float* x, const float* w, const u32* starts, const float* rows, const float* dy, u32 b, u32 t, u32 c) {
    __shared__ __align__(16) float s[WARPS][TAPS][WARP * 4];
    if (c % 4 == 0 && aligned(16, dx, x, w, rows, dy)) {
        backward<float, 4>(dx, partial, x, w, starts, rows, dy, b, t, c, s);
    } else {
        backward<float, 1>(dx, partial, x, w, starts, rows, dy, b, t, c, s);
    }
}

extern "C" __global__ void __launch_bounds__(256, 2) short_conv_bwd_channel_runs_bf16(bf16* dx, float* partial, const bf16* x, const bf16* w, const u32* starts, const bf16* rows, const bf16* dy, u32 b, u32 t, u32 c) {
    __shared__ __align__(16) float s[WARPS][TAPS][WARP * 4];
    if (c % 4 == 0 && aligned(16, dx, x, w, rows, dy)) {
        backward<bf16, 4>(dx, partial, x, w, starts, rows, dy, b, t, c, s);
    } else {
        backward<bf16, 1>(dx, partial, x, w, starts, rows, dy, b, t, c, s);
    }
}
