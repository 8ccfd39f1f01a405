// The loss of the self-model: rows of predictions against features of the state, the token's loss, and whether its likeliest token
// is wrong; and the gradient, formed at once.
//
// loss = |s_F - y|^2 / (|y|^2 + 1e-12) + huber(s_l - l) + softplus(s_e) - e s_e
//   loss      [N]       f32, =; 0 where the target is ignored
//   ds        [N, F+2]  f32 or bf16, =, or null; zeros where the target is ignored
//   s         [N, F+2]  features, then the loss, then the score of an error
//   features  [N, F]    y;  losses, errors [N] f32: l, e;  targets [N] u32
//   scale     [1]       f32; not read where ds is null
// Grid: ceil(N / 8) blocks of 256 threads, a warp a row, no shared memory; any size. Must move N (4 F + 6) elements.
#include "common/reduce.cuh"
#include "common/vector.cuh"

constexpr u32 THREADS = 256;
constexpr u32 IGNORE = 0xffffffffu;
constexpr float TINY = 1e-12f;

template <typename E>
__device__ __forceinline__ void loss_row(float* gloss, E* gds, const E* gs, const E* gfeatures, const float* glosses,
                                         const float* gerrors, const u32* gtargets, const float* gscale, u32 n, u32 f) {
    const u32 row = blockIdx.x * (THREADS / WARP) + threadIdx.x / WARP, lane = threadIdx.x % WARP;
    if (row >= n) {
        return;
    }
    const E* s = gs + static_cast<u64>(row) * (f + 2);
    const E* y = gfeatures + static_cast<u64>(row) * f;
    const bool counts = gtargets[row] != IGNORE;
    float square = 0.0f, apart = 0.0f;
    for (u32 i = lane; i < f; i += WARP) {
        const float truth = load(y + i), r = load(s + i) - truth;
        square += truth * truth;
        apart += r * r;
    }
    square = warp_sum(square) + TINY;
    apart = warp_sum(apart);
    const float r = load(s + f) - glosses[row], score = load(s + f + 1), error = gerrors[row];
    // As comparisons, so that a NaN stays one.
    const float slope = r > 1.0f ? 1.0f : r < -1.0f ? -1.0f : r;
    if (lane == 0) {
        const float softplus = (score < 0.0f ? 0.0f : score) + logf(1.0f + expf(-fabsf(score)));
        gloss[row] = counts ? apart / square + slope * (r - 0.5f * slope) + softplus - error * score : 0.0f;
    }
    if (gds == nullptr) {
        return;
    }
    E* ds = gds + static_cast<u64>(row) * (f + 2);
    const float scale = counts ? *gscale : 0.0f, each = scale * 2.0f / square;
    for (u32 i = lane; i < f; i += WARP) {
        store(ds + i, counts ? (load(s + i) - load(y + i)) * each : 0.0f);
    }
    if (lane < 2) {
        const float slopes = lane == 0 ? slope : 1.0f / (1.0f + expf(-score)) - error;
        store(ds + f + lane, counts ? slopes * scale : 0.0f);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) self_loss_fwd_warp_per_row_f32(float* loss, float* ds, const float* s, const float* features, const float* losses, const float* errors, const u32* targets, const float* scale, u32 n, u32 f) {
    loss_row(loss, ds, s, features, losses, errors, targets, scale, n, f);
}

extern "C" __global__ void __launch_bounds__(256, 4) self_loss_fwd_warp_per_row_bf16(float* loss, bf16* ds, const bf16* s, const bf16* features, const float* losses, const float* errors, const u32* targets, const float* scale, u32 n, u32 f) {
    loss_row(loss, ds, s, features, losses, errors, targets, scale, n, f);
}
