// Draws a token from each row of logits: of the `k` most probable the smallest set that reaches the share `p`, of these the ones that are not far
// less probable than the first. All in whole numbers, the same as src/ops/sample.rs: sums have one result in any order, so every device draws
// the same token.
//
//   token   [N]     u32, =; NOT_A_NUMBER where a logit is NaN or plus infinity, NOTHING where all are minus infinity
//   logits  [N, V]  f32 or bf16
//   how     [N, 8]  u32: words of `uniform` (u64, a fraction of 2^64), of `p` (likewise; 0 is no limit), of the least weight (u64), `k`, and the bits of
//                   `scale`, an f32
// Weight of a token: 2^40 2^((logit - largest) scale), cut to a whole number. Rank: falling logits, equal ones by rising id. Drawn is the first id at
// which the sum of weights, in the order of ids, exceeds `uniform` of the whole. V is below 2^23.
// Saves nothing. Grid: N blocks of 512 threads. Must move N V elements; reads them 2 times for the likeliest token, up to 18 times else, from L2.
#include "common/vector.cuh"

constexpr u32 THREADS = 512;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 BINS = 256;
constexpr u32 NOTHING = 0xffffffffu;
constexpr u32 NOT_A_NUMBER = 0xfffffffeu;

// Ordered as the logits are, with the lower ids first among equals.
__device__ __forceinline__ u64 rank_of(float logit, u32 id) {
    const u32 bits = __float_as_uint(logit + 0.0f);                             // no minus zero
    const u32 ordered = bits & 0x80000000u ? ~bits : bits | 0x80000000u;
    return static_cast<u64>(ordered) << 32 | (0xffffffffu - id);
}

__device__ __forceinline__ u64 weight_of(float logit, float largest, float scale) {
    const float e = __fmul_rn(__fsub_rn(logit, largest), scale);
    if (!(e > -64.0f)) {
        return 0;
    }
    const float whole = rintf(e), f = __fsub_rn(e, whole);
    float p = 1.5403530e-4f;                                                    // 2^f = sum of (f ln 2)^i / i!
    p = __fmaf_rn(p, f, 1.3333558e-3f);
    p = __fmaf_rn(p, f, 9.6181291e-3f);
    p = __fmaf_rn(p, f, 5.5504109e-2f);
    p = __fmaf_rn(p, f, 2.4022651e-1f);
    p = __fmaf_rn(p, f, 6.9314718e-1f);
    p = __fmaf_rn(p, f, 1.0f);
    return static_cast<u64>(__fmul_rn(p, __uint_as_float(static_cast<u32>(static_cast<i32>(whole) + 167) << 23)));
}

// By the first warp: the first of COUNT parts at which their sum exceeds `left`, which is less than all of it, and what of `left` is in that part.
template <u32 COUNT>
__device__ __forceinline__ void find(u64* sfound, const u64* sparts, u64 left) {
    constexpr u32 RUN = COUNT / WARP;
    u64 part = 0;
#pragma unroll
    for (u32 i = 0; i < RUN; i++) {
        part += sparts[threadIdx.x * RUN + i];
    }
    u64 through = part;
#pragma unroll
    for (u32 step = 1; step < WARP; step *= 2) {
        const u64 before = __shfl_up_sync(ALL_LANES, through, step);
        through += threadIdx.x >= step ? before : 0;
    }
    if (threadIdx.x == __ffs(__ballot_sync(ALL_LANES, through > left)) - 1) {
        left -= through - part;
        u32 i = threadIdx.x * RUN;
        while (sparts[i] <= left) {
            left -= sparts[i++];
        }
        sfound[0] = i, sfound[1] = left;
    }
}

template <typename E>
struct Row {
    const E* logits;
    u32 v;
    float largest, scale;

    __device__ __forceinline__ u64 rank(u32 id) const { return rank_of(load(logits + id), id); }
    __device__ __forceinline__ u64 weight(u32 id) const { return weight_of(load(logits + id), largest, scale); }

    // The largest rank of the row, in every thread; all bits where a logit is no number.
    __device__ __forceinline__ u64 first() const {
        __shared__ u64 sbest[WARPS];
        u64 best = 0;
        for (u32 id = threadIdx.x; id < v; id += THREADS) {
            const float x = load(logits + id);
            const u64 here = x < __uint_as_float(0x7f800000u) ? rank_of(x, id) : ~0ull;
            best = here > best ? here : best;
        }
#pragma unroll
        for (u32 step = WARP / 2; step > 0; step /= 2) {
            const u64 other = __shfl_xor_sync(ALL_LANES, best, step);
            best = other > best ? other : best;
        }
        if (threadIdx.x % WARP == 0) {
            sbest[threadIdx.x / WARP] = best;
        }
        __syncthreads();  // the best of every warp is there
#pragma unroll
        for (u32 warp = 0; warp < WARPS; warp++) {
            best = sbest[warp] > best ? sbest[warp] : best;
        }
        return best;
    }

    // The rank at which `measure` of the tokens from the first on, down to rank `least`, exceeds `left`, which is less than all of it. A byte of the
    // rank at a time.
    template <typename Measure>
    __device__ __forceinline__ u64 exceeds(u64 least, u64 left, Measure measure) const {
        __shared__ u64 sbins[BINS];
        __shared__ u64 sfound[2];
        u64 rank = 0;
        for (u32 shift = 64; shift > 0;) {
            shift -= 8;
            for (u32 bin = threadIdx.x; bin < BINS; bin += THREADS) {
                sbins[bin] = 0;
            }
            __syncthreads();  // the bins are empty
            for (u32 id = threadIdx.x; id < v; id += THREADS) {
                const u64 here = this->rank(id);
                if (here >= least && (shift == 56 || here >> (shift + 8) == rank >> (shift + 8))) {
                    const u64 amount = measure(id);
                    if (amount != 0) {
                        atomicAdd(&sbins[BINS - 1 - (here >> shift & (BINS - 1))], amount);  // whole numbers: one result in any order
                    }
                }
            }
            __syncthreads();  // the bins are full
            if (threadIdx.x < WARP) {
                find<BINS>(sfound, sbins, left);
            }
            __syncthreads();  // the bin is known, and nobody reads the others any more
            rank |= (BINS - 1 - sfound[0]) << shift;
            left = sfound[1];
        }
        return rank;
    }

    // The sum of `measure` over all tokens, in every thread; `sparts` keeps that of each thread's run of ids.
    template <typename Measure>
    __device__ __forceinline__ u64 sum(u64* sparts, Measure measure) const {
        __shared__ u64 stotal;
        const u32 run = (v + THREADS - 1) / THREADS;
        u64 part = 0;
        for (u32 id = threadIdx.x * run; id < min(v, (threadIdx.x + 1) * run); id++) {
            part += measure(id);
        }
        if (threadIdx.x == 0) {
            stotal = 0;
        }
        sparts[threadIdx.x] = part;
        __syncthreads();  // the parts are there, the total is 0
        if (part != 0) {
            atomicAdd(&stotal, part);
        }
        __syncthreads();  // the total is there; between two sums are other barriers
        return stotal;
    }

    static __device__ __forceinline__ u32 min(u32 a, u32 b) { return a < b ? a : b; }
};

__device__ __forceinline__ u64 words(const u32* g) { return static_cast<u64>(g[1]) << 32 | g[0]; }

template <typename E>
__device__ __forceinline__ void draw(u32* gtoken, const E* glogits, const u32* ghow, u32 v) {
    __shared__ u64 sparts[THREADS];
    __shared__ u64 schosen[2];
    u32* token = gtoken + blockIdx.x;
    const u32* how = ghow + 8 * blockIdx.x;
    Row<E> row = {glogits + static_cast<u64>(blockIdx.x) * v, v, 0.0f, __uint_as_float(how[7])};
    const u64 first = row.first(), uniform = words(how), p = words(how + 2), least_weight = words(how + 4);
    const u32 id = 0xffffffffu - static_cast<u32>(first), k = how[6];
    const bool is_number = first != ~0ull;
    row.largest = is_number ? load(row.logits + id) : 0.0f;
    const bool has_some = is_number && row.largest > __uint_as_float(0xff800000u);
    if (!has_some || k == 1) {
        if (threadIdx.x == 0) {
            *token = !is_number ? NOT_A_NUMBER : !has_some ? NOTHING : id;
        }
        return;
    }
    u64 least = 0;
    if (k < v) {
        least = row.exceeds(0, k - 1, [](u32) { return 1ull; });
    }
    if (p != 0) {
        const u64 whole = row.sum(sparts, [&](u32 i) { return row.rank(i) >= least ? row.weight(i) : 0ull; });
        const u64 enough = __umul64hi(p, whole);
        least = row.exceeds(least, enough - (enough > 0), [&](u32 i) { return row.weight(i); });
    }
    const auto kept = [&](u32 i) {
        const u64 weight = row.rank(i) >= least ? row.weight(i) : 0;
        return weight >= least_weight ? weight : 0ull;
    };
    const u64 whole = row.sum(sparts, kept);
    if (threadIdx.x < WARP) {
        find<THREADS>(schosen, sparts, __umul64hi(uniform, whole));
    }
    __syncthreads();  // whose run it is in is known
    if (threadIdx.x == schosen[0]) {
        const u32 run = (v + THREADS - 1) / THREADS;
        u64 left = schosen[1];
        u32 i = threadIdx.x * run;
        for (u64 weight = kept(i); weight <= left; weight = kept(i)) {
            left -= weight;
            i++;
        }
        *token = i;
    }
}

extern "C" __global__ void __launch_bounds__(512, 2) sample_fwd_block_per_row_f32(u32* token, const float* logits, const u32* how, u32 v) {
    draw(token, logits, how, v);
}

extern "C" __global__ void __launch_bounds__(512, 2) sample_fwd_block_per_row_bf16(u32* token, const bf16* logits, const u32* how, u32 v) {
    draw(token, logits, how, v);
}
