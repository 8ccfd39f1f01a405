// Codes on the vertices of {-1, +1}^K, K <= 16, and the entropy loss that makes rows decide. v = u / sqrt(|u|^2 + 1e-12).
//
// `code`: b = +-height by the sign of u
//   b  [n]  f32 or bf16, =;  u [n], n = N K;  height = 1 / sqrt(K)
// Grid: ceil(n / 1024) (f32) or ceil(n / 2048) (bf16) blocks of 256 threads. Must move 2 n elements.
//
// `bwd`: du = (db - v <v, db>) / |u|, straight through the sign
//   du  [N, K]  =;  u, db [N, K]
// Grid: ceil(N / 16) blocks of 256 threads, half a warp a row. Must move 3 N K elements.
//
// `distribution`: with p_i = sigmoid(2 tau v_i / sqrt(K)), sums over rows of the distribution over the vertices of each group of 8
// bits, and of the rows' entropies
//   partial  [P, 513]  f32, =; 256 of the first group, 256 of the second, the entropy; `row_sum` adds the blocks up
//   u        [N, K];  tau [1] f32
// Grid: P blocks of 256 threads; a warp a row, lane l and register r hold vertex 32 r + l of both groups. 16 KiB of shared memory.
//
// `entropy`: the loss mean_t sum_i h2(p_ti) + sum over groups of P log P, P the mean distribution, and its gradient
//   loss  [1]     f32, =
//   du    [N, K]  f32 or bf16, =, or null;  times factor [1] f32
//   sums  [513]   f32: those of `distribution` over all rows
// Grid: 1 block without a gradient, any number of blocks with one.
//
// All sums in a fixed order. Learnt from: straight-through codes of lookup-free quantisation (the factorised entropy).
#include "common/elementwise.cuh"
#include "common/reduce.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 GROUP_BITS = 8;
constexpr u32 GROUP = 256;
// Vertices of a lane: 32 lanes of 8 are 256. The lane is the lower five bits, the register the upper three.
constexpr u32 HELD = GROUP / WARP;
constexpr u32 LANE_BITS = 5;
constexpr float TINY = 1e-12f;

__device__ __forceinline__ float sigmoid(float z) { return 1.0f / (1.0f + expf(-z)); }

// Sum over the 16 lanes of a half warp.
__device__ __forceinline__ float half_sum(float x) {
#pragma unroll
    for (u32 mask = 8; mask > 0; mask /= 2) {
        x += __shfl_xor_sync(ALL_LANES, x, mask);
    }
    return x;
}

template <typename E>
__device__ __forceinline__ void code_backward(E* gdu, const E* gu, const E* gdb, u32 n, u32 k) {
    const u32 row = blockIdx.x * (THREADS / 16) + threadIdx.x / 16, i = threadIdx.x % 16;
    const bool has = row < n && i < k;
    const u64 at = static_cast<u64>(row) * k + i;
    const float u = has ? load(gu + at) : 0.0f, d = has ? load(gdb + at) : 0.0f;
    const float r = 1.0f / sqrtf(half_sum(u * u) + TINY), v = u * r;
    const float along = half_sum(v * d);
    if (has) {
        store(gdu + at, (d - v * along) * r);
    }
}

// A row as its warp sees it: lane i < K has bit i.
struct Bits {
    float v, r, z;
};

template <typename E>
__device__ __forceinline__ Bits load_bits(const E* gu, u64 row, u32 k, float slope) {
    const u32 lane = threadIdx.x % WARP;
    const float u = lane < k ? load(gu + row * k + lane) : 0.0f;
    const float r = 1.0f / sqrtf(warp_sum(u * u) + TINY), v = u * r;
    return {v, r, slope * v};
}

// Probabilities of a set and of a clear bit; a bit beyond K is clear.
struct Pair {
    float p, q;
};

__device__ __forceinline__ void pairs(Pair (&bits)[GROUP_BITS], float z, u32 group, u32 k) {
#pragma unroll
    for (u32 j = 0; j < GROUP_BITS; j++) {
        const u32 bit = group * GROUP_BITS + j;
        const float theirs = __shfl_sync(ALL_LANES, z, bit);
        bits[j] = bit < k ? Pair{sigmoid(theirs), sigmoid(-theirs)} : Pair{0.0f, 1.0f};
    }
}

// Probability of the upper three bits being those of register r.
__device__ __forceinline__ float of_register(const Pair (&bits)[GROUP_BITS], u32 r) {
    float product = 1.0f;
#pragma unroll
    for (u32 j = LANE_BITS; j < GROUP_BITS; j++) {
        product *= (r >> (j - LANE_BITS)) & 1 ? bits[j].p : bits[j].q;
    }
    return product;
}

template <typename E>
__device__ __forceinline__ void distribution(float* gpartial, const E* gu, const float* gtau, u32 n, u32 k) {
    __shared__ float s[WARPS][2 * GROUP + 1];
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const float slope = 2.0f * *gtau / sqrtf(static_cast<float>(k));
    float sums[2][HELD] = {}, entropy = 0.0f;
    for (u64 row = blockIdx.x * WARPS + warp; row < n; row += gridDim.x * WARPS) {
        const Bits bits = load_bits(gu, row, k, slope);
        const float size = fabsf(bits.z);
        entropy += lane < k ? logf(1.0f + expf(-size)) + size * sigmoid(-size) : 0.0f;
#pragma unroll
        for (u32 group = 0; group < 2; group++) {
            Pair of[GROUP_BITS];
            pairs(of, bits.z, group, k);
            float mine = 1.0f;
#pragma unroll
            for (u32 j = 0; j < LANE_BITS; j++) {
                mine *= (lane >> j) & 1 ? of[j].p : of[j].q;
            }
#pragma unroll
            for (u32 r = 0; r < HELD; r++) {
                sums[group][r] += mine * of_register(of, r);
            }
        }
    }
    entropy = warp_sum(entropy);
#pragma unroll
    for (u32 r = 0; r < HELD; r++) {
        s[warp][r * WARP + lane] = sums[0][r];
        s[warp][GROUP + r * WARP + lane] = sums[1][r];
    }
    if (lane == 0) {
        s[warp][2 * GROUP] = entropy;
    }
    __syncthreads();  // the sums of all eight warps are there
    for (u32 i = threadIdx.x; i < 2 * GROUP + 1; i += THREADS) {
        float sum = s[0][i];
#pragma unroll
        for (u32 w = 1; w < WARPS; w++) {
            sum += s[w][i];
        }
        gpartial[blockIdx.x * (2 * GROUP + 1) + i] = sum;
    }
}

// The gradient of the entropy of the mean with respect to the probability of each bit: lane i has that of bit i.
__device__ __forceinline__ float spread(const Pair (&of)[GROUP_BITS], const float (&logs)[HELD], u32 group, u32 lane) {
    float result = 0.0f, mine = 1.0f, inner = 0.0f;
#pragma unroll
    for (u32 j = 0; j < LANE_BITS; j++) {
        mine *= (lane >> j) & 1 ? of[j].p : of[j].q;
    }
#pragma unroll
    for (u32 r = 0; r < HELD; r++) {
        inner += of_register(of, r) * logs[r];
    }
#pragma unroll
    for (u32 j = 0; j < GROUP_BITS; j++) {
        float part = 0.0f;
        if (j < LANE_BITS) {
            float others = 1.0f;
#pragma unroll
            for (u32 i = 0; i < LANE_BITS; i++) {
                others *= i == j ? 1.0f : (lane >> i) & 1 ? of[i].p : of[i].q;
            }
            part = ((lane >> j) & 1 ? others : -others) * inner;
        } else {
#pragma unroll
            for (u32 r = 0; r < HELD; r++) {
                float others = 1.0f;
#pragma unroll
                for (u32 i = LANE_BITS; i < GROUP_BITS; i++) {
                    others *= i == j ? 1.0f : (r >> (i - LANE_BITS)) & 1 ? of[i].p : of[i].q;
                }
                part += ((r >> (j - LANE_BITS)) & 1 ? others : -others) * logs[r];
            }
            part *= mine;
        }
        part = warp_sum(part);
        result = lane == group * GROUP_BITS + j ? part : result;
    }
    return result;
}

template <typename E>
__device__ __forceinline__ void entropy(float* gloss, E* gdu, const E* gu, const float* gsums, const float* gtau, const float* gfactor, u32 n,
                                        u32 k) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
    const float count = static_cast<float>(n), slope = 2.0f * *gtau / sqrtf(static_cast<float>(k));
    float logs[2][HELD], negative = 0.0f;
#pragma unroll
    for (u32 group = 0; group < 2; group++) {
#pragma unroll
        for (u32 r = 0; r < HELD; r++) {
            const float p = gsums[group * GROUP + r * WARP + lane] / count;
            logs[group][r] = p > 0.0f ? logf(p) : 0.0f;
            negative += p * logs[group][r];
        }
    }
    if (blockIdx.x == 0) {  // every warp has the same sum; the first tells it
        negative = warp_sum(negative);
        if (threadIdx.x == 0) {
            *gloss = negative + gsums[2 * GROUP] / count;
        }
    }
    if (gdu == nullptr) {
        return;
    }
    const float factor = *gfactor / count;
    for (u64 row = blockIdx.x * WARPS + warp; row < n; row += gridDim.x * WARPS) {
        const Bits bits = load_bits(gu, row, k, slope);
        float toward = 0.0f;
#pragma unroll
        for (u32 group = 0; group < 2; group++) {
            Pair of[GROUP_BITS];
            pairs(of, bits.z, group, k);
            toward += spread(of, logs[group], group, lane);
        }
        const float dv = lane < k ? (toward - bits.z) * sigmoid(bits.z) * sigmoid(-bits.z) * slope : 0.0f;
        const float along = warp_sum(bits.v * dv);
        if (lane < k) {
            store(gdu + row * k + lane, (dv - bits.v * along) * bits.r * factor);
        }
    }
}

extern "C" __global__ void __launch_bounds__(256, 4) hypercube_fwd_code_f32(float* b, const float* u, float height, u64 n) {
    elementwise([=](float u) { return u < 0.0f ? -height : height; }, n, b, u);
}

extern "C" __global__ void __launch_bounds__(256, 4) hypercube_fwd_code_bf16(bf16* b, const bf16* u, float height, u64 n) {
    elementwise([=](float u) { return u < 0.0f ? -height : height; }, n, b, u);
}

extern "C" __global__ void __launch_bounds__(256, 4) hypercube_bwd_half_warp_per_row_f32(float* du, const float* u, const float* db, u32 n, u32 k) {
    code_backward(du, u, db, n, k);
}

extern "C" __global__ void __launch_bounds__(256, 4) hypercube_bwd_half_warp_per_row_bf16(bf16* du, const bf16* u, const bf16* db, u32 n, u32 k) {
    code_backward(du, u, db, n, k);
}

extern "C" __global__ void __launch_bounds__(256, 2) hypercube_fwd_distribution_f32(float* partial, const float* u, const float* tau, u32 n, u32 k) {
    distribution(partial, u, tau, n, k);
}

extern "C" __global__ void __launch_bounds__(256, 2) hypercube_fwd_distribution_bf16(float* partial, const bf16* u, const float* tau, u32 n, u32 k) {
    distribution(partial, u, tau, n, k);
}

extern "C" __global__ void __launch_bounds__(256, 2) hypercube_fwd_entropy_f32(float* loss, float* du, const float* u, const float* sums, const float* tau, const float* factor, u32 n, u32 k) {
    entropy(loss, du, u, sums, tau, factor, n, k);
}

extern "C" __global__ void __launch_bounds__(256, 2) hypercube_fwd_entropy_bf16(float* loss, bf16* du, const bf16* u, const float* sums, const float* tau, const float* factor, u32 n, u32 k) {
    entropy(loss, du, u, sums, tau, factor, n, k);
}
