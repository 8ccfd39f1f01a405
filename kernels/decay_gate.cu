// Decay by key channel: y = -exp(A_h) softplus(f + dt), h the head of the column.
//
// Forward                                    Backward, s the sigmoid of f + dt: df = -dy exp(A) s
//   y   [N, H D]  f32 or bf16, =             df       [N, H D]    =
//   f   [N, H D]                             partial  [P, 2 H D]  f32, =; row p has, of the rows of block p, the sums of df, then of
//   a   [H]                                                       dy y: `row_sum` adds up the first half into ddt, `head_sums` the second
//   dt  [H, D]                               f, dy    [N, H D];  a, dt
// Saves f. `head_sums`: da [H] f32, += the sum over p, then over the columns of the head, of the second half of `partial`.
//
// Geometry: forward ceil(N H D / 1024) (f32) or ceil(N H D / 2048) (bf16) blocks of 256 threads. Backward ceil(H D / (32 W)) x P
// blocks of 8 warps, a lane for W neighbours of a row (W = 4 where D and pointers allow, else 1), a warp for every 8 P-th row.
// `head_sums` H blocks of 32 threads. Must move 2 N H D elements forward, 3 N H D backward. Sums in a fixed order.
#include "common/row.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

// log(1 + e^x) without overflow; log1p keeps the digits of a small e^-|x|: long half-lives lie there.
__device__ __forceinline__ float softplus(float x) { return fmaxf(x, 0.0f) + log1pf(expf(-fabsf(x))); }

template <typename E, u32 W>
__device__ __forceinline__ void forward(E* gy, const E* gf, const E* ga, const E* gdt, u32 n, u32 h, u32 d) {
    for_flat_packs<THREADS, WIDTH<E> / W, W>(n, h * d, [&](u64, u32 column, u64 element) {
        float f[W], dt[W], y[W];
        load_vector<W>(f, gf + element);
        load_vector<W>(dt, gdt + column);
        const float rate = expf(load(ga + column / d));
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            y[k] = -rate * softplus(f[k] + dt[k]);
        }
        store_vector<W>(gy + element, y);
    });
}

template <typename E, u32 W>
__device__ __forceinline__ void backward(E* gdf, float* gpartial, const E* gf, const E* ga, const E* gdt, const E* gdy, u32 n, u32 h, u32 d,
                                         float (&s)[2][WARPS][4 * WARP]) {
    const u32 cols = h * d, lane = threadIdx.x % WARP, warp = threadIdx.x / WARP, column = (blockIdx.x * WARP + lane) * W;
    float rdt[W] = {}, ra[W] = {};
    if (column < cols) {
        float dt[W];
        load_vector<W>(dt, gdt + column);
        const float rate = expf(load(ga + column / d));
        for (u64 row = blockIdx.y * static_cast<u64>(WARPS) + warp; row < n; row += gridDim.y * static_cast<u64>(WARPS)) {
            float f[W], dy[W], df[W];
            load_vector<W>(f, gf + row * cols + column);
            load_vector<W>(dy, gdy + row * cols + column);
#pragma unroll
            for (u32 k = 0; k < W; k++) {
                df[k] = -dy[k] * rate * sigmoid(f[k] + dt[k]);
                rdt[k] += df[k];
                ra[k] += -dy[k] * rate * softplus(f[k] + dt[k]);
            }
            store_vector<W>(gdf + row * cols + column, df);
        }
    }
    store_vector<W>(&s[0][warp][lane * W], rdt);
    store_vector<W>(&s[1][warp][lane * W], ra);
    __syncthreads();  // the sums of all eight warps are there
    for (u32 i = threadIdx.x; i < 2 * W * WARP; i += THREADS) {
        const u32 half = i / (W * WARP), k = i % (W * WARP), to = blockIdx.x * WARP * W + k;
        if (to < cols) {
            float sum = s[half][0][k];
#pragma unroll
            for (u32 w = 1; w < WARPS; w++) {
                sum += s[half][w][k];
            }
            gpartial[static_cast<u64>(blockIdx.y) * 2 * cols + half * cols + to] = sum;
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) decay_gate_fwd_vector_f32(float* y, const float* f, const float* a, const float* dt, u32 n, u32 h, u32 d) {
    d % 4 == 0 && aligned(16, y, f, dt) ? forward<float, 4>(y, f, a, dt, n, h, d) : forward<float, 1>(y, f, a, dt, n, h, d);
}

extern "C" __global__ void __launch_bounds__(256, 4) decay_gate_fwd_vector_bf16(bf16* y, const bf16* f, const bf16* a, const bf16* dt, u32 n, u32 h, u32 d) {
    d % 8 == 0 && aligned(16, y, f, dt) ? forward<bf16, 8>(y, f, a, dt, n, h, d) : forward<bf16, 1>(y, f, a, dt, n, h, d);
}

extern "C" __global__ void __launch_bounds__(256, 4) decay_gate_bwd_column_runs_f32(float* df, float* partial, const float* f, const float* a, const float* dt, const float* dy, u32 n, u32 h, u32 d) {
    __shared__ __align__(16) float s[2][WARPS][4 * WARP];
    d % 4 == 0 && aligned(16, df, f, dt, dy) ? backward<float, 4>(df, partial, f, a, dt, dy, n, h, d, s)
                                             : backward<float, 1>(df, partial, f, a, dt, dy, n, h, d, s);
}

extern "C" __global__ void __launch_bounds__(256, 4) decay_gate_bwd_column_runs_bf16(bf16* df, float* partial, const bf16* f, const bf16* a, const bf16* dt, const bf16* dy, u32 n, u32 h, u32 d) {
    __shared__ __align__(16) float s[2][WARPS][4 * WARP];
    d % 4 == 0 && aligned(16, df, f, dt, dy) ? backward<bf16, 4>(df, partial, f, a, dt, dy, n, h, d, s)
                                            : backward<bf16, 1>(df, partial, f, a, dt, dy, n, h, d, s);
}

extern "C" __global__ void __launch_bounds__(32, 16) decay_gate_bwd_head_sums_f32(float* da, const float* partial, u32 p, u32 h, u32 d) {
    const u32 head = blockIdx.x;
    float sum = 0.0f;
    for (u32 part = 0; part < p; part++) {
        for (u32 c = threadIdx.x; c < d; c += WARP) {
            sum += partial[(static_cast<u64>(part) * 2 + 1) * h * d + head * d + c];
        }
    }
    sum = warp_sum(sum);
    if (threadIdx.x == 0) {
        da[head] += sum;
    }
}
