// A row of C elements held in the registers of LANES threads (a warp or a block): read once, written once.
//
// A thread has V numbers, in packs of W neighbours; pack p of a lane begins at (p * LANES + lane) * W, so that a warp's
// accesses lie side by side. W is the width of a 16-byte access, or 1 where rows are not aligned to that.
#pragma once

#include "reduce.cuh"
#include "vector.cuh"

template <u32 V, u32 W>
struct RowPart {
    float r[V / W][W];
};

// f(pack, first element) for every pack of this lane that lies in the row.
template <u32 LANES, u32 V, u32 W, typename F>
__device__ __forceinline__ void for_packs(u32 c, u32 lane, F f) {
#pragma unroll
    for (u32 p = 0; p < V / W; p++) {
        const u32 i = (p * LANES + lane) * W;
        if (i < c) {
            f(p, i);
        }
    }
}

// The sum over all packs of this lane of f(pack, k): what lies outside the row adds nothing.
template <u32 LANES, u32 V, u32 W, typename F>
__device__ __forceinline__ float sum_packs(u32 c, u32 lane, F f) {
    float sum = 0.0f;
    for_packs<LANES, V, W>(c, lane, [&](u32 p, u32) {
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            sum += f(p, k);
        }
    });
    return sum;
}

// Where element `first` of a flat [rows, c] lies, and others shortly after it: one wide division per block, narrow ones per
// thread.
struct Walk {
    u64 row;
    u32 column;
    u32 c;

    __device__ __forceinline__ Walk(u64 first, u32 c) : row(first / c), column(static_cast<u32>(first % c)), c(c) {}

    // The place `offset` elements after `first`.
    __device__ __forceinline__ void at(u32 offset, u64& r, u32& col) const {
        const u32 ahead = column + offset;
        r = row + ahead / c;
        col = ahead % c;
    }
};
