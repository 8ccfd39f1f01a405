// Cross-entropy over rows of logits, and its gradient: l = cap(z), loss_n = log sum exp l_n - l_n[target_n],
// dz = scale (softmax(l) - onehot) (1 - (l / cap)^2).
//
//   loss     [N]     f32, =; 0 where the target is ignored, NaN where it is neither that nor below V
//   error    [N]     f32, =, or null; 1 where a logit is above the target's, 0 elsewhere and where the target is ignored
//   dlogits  [N, V]  f32 or bf16, =, or null; zeros where the target is ignored; f32 may be logits
//   logits   [N, V]  f32, before the soft-cap;  targets [N] u32;  cap 0: none
//   scale    [1]     f32; not read where dlogits is null
// Saves nothing: the gradient is formed at once. Grid: N blocks of 256 threads, 64 bytes of shared memory for each width of access; any size.
// Reads the logits twice (the second time mostly from L2), writes them once.
// Learnt from: llm.c (fused classifier), Liger Kernel (gradient in the forward pass).
#include "common/reduce.cuh"
#include "common/softmax.cuh"
#include "common/vector.cuh"

constexpr u32 THREADS = 256;
constexpr u32 IGNORE = 0xffffffffu;

__device__ __forceinline__ float capped(float x, float cap) { return cap == 0.0f ? x : cap * tanhf(x / cap); }

// W logits at a time.
template <u32 W, typename E>
__device__ __forceinline__ void loss_row(float* gloss, float* gerror, E* gdlogits, const float* glogits, const u32* gtargets,
                                         const float* gscale, float cap, u32 v) {
    __shared__ Softmax s[THREADS / WARP];
    const float* z = glogits + static_cast<u64>(blockIdx.x) * v;
    const u32 target = gtargets[blockIdx.x];
    // Finite, so that nobody subtracts infinities; below every finite logit.
    Softmax row = {-3.402823466e38f, 0.0f};
    for (u32 i = threadIdx.x * W; i < v; i += THREADS * W) {
        float l[W];
        load_vector<W>(l, z + i);
        Softmax wider = row;
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            l[k] = capped(l[k], cap);
            wider.peak = fmaxf(wider.peak, l[k]);
        }
        wider.sum *= expf(row.peak - wider.peak);
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            wider.sum += expf(l[k] - wider.peak);
        }
        row = wider;
    }
#pragma unroll
    for (u32 mask = WARP / 2; mask > 0; mask /= 2) {
        row = join(row, {__shfl_xor_sync(ALL_LANES, row.peak, mask), __shfl_xor_sync(ALL_LANES, row.sum, mask)});
    }
    if (threadIdx.x % WARP == 0) {
        s[threadIdx.x / WARP] = row;
    }
    const float at_target = target < v ? capped(z[target], cap) : __uint_as_float(0x7fffffffu);
    __syncthreads();  // every warp's part is there; the target's logit is read before it may be overwritten
    row = s[0];
#pragma unroll
    for (u32 warp = 1; warp < THREADS / WARP; warp++) {
        row = join(row, s[warp]);
    }
    if (threadIdx.x == 0) {
        gloss[blockIdx.x] = target == IGNORE ? 0.0f : logf(row.sum) + row.peak - at_target;
        if (gerror != nullptr) {
            gerror[blockIdx.x] = target != IGNORE && row.peak > at_target ? 1.0f : 0.0f;
        }
    }
    if (gdlogits == nullptr) {
        return;
    }
    E* dz = gdlogits + static_cast<u64>(blockIdx.x) * v;
    const float scale = *gscale, factor = target == IGNORE ? 0.0f : scale / row.sum;
    for (u32 i = threadIdx.x * W; i < v; i += THREADS * W) {
        float d[W];
        load_vector<W>(d, z + i);
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            const float l = capped(d[k], cap), ratio = cap == 0.0f ? 0.0f : l / cap;
            const float slope = expf(l - row.peak) * factor - (i + k == target ? scale : 0.0f);
            d[k] = target == IGNORE ? 0.0f : slope * (1.0f - ratio * ratio);
        }
        store_vector<W>(dz + i, d);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) lm_loss_fwd_block_per_row_f32(float* loss, float* error, float* dlogits, const float* logits, const u32* targets, const float* scale, float cap, u32 v) {
    if (v % 4 == 0 && aligned(16, dlogits, logits)) {
        loss_row<4>(loss, error, dlogits, logits, targets, scale, cap, v);
    } else {
        loss_row<1>(loss, error, dlogits, logits, targets, scale, cap, v);
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) lm_loss_fwd_block_per_row_bf16(float* loss, float* error, bf16* dlogits, const float* logits, const u32* targets, const float* scale, float cap, u32 v) {
    if (v % 4 == 0 && aligned(16, dlogits, logits)) {
        loss_row<4>(loss, error, dlogits, logits, targets, scale, cap, v);
    } else {
        loss_row<1>(loss, error, dlogits, logits, targets, scale, cap, v);
    }
}
