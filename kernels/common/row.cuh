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

// f(row, column, element) for every pack of W neighbours that this thread takes of a flat [rows, c]: PACKS of them, a block of
// THREADS owning THREADS * PACKS * W elements. W divides c. One wide division a block, narrow ones a thread.
template <u32 THREADS, u32 PACKS, u32 W, typename F>
__device__ __forceinline__ void for_flat_packs(u32 rows, u32 c, F f) {
    const u64 first = static_cast<u64>(blockIdx.x) * (THREADS * PACKS * W), end = static_cast<u64>(rows) * c;
    const u64 row = first / c;
    const u32 column = static_cast<u32>(first % c);
#pragma unroll
    for (u32 p = 0; p < PACKS; p++) {
        const u32 offset = (p * THREADS + threadIdx.x) * W, ahead = column + offset;
        if (first + offset < end) {
            f(row + ahead / c, ahead % c, first + offset);
        }
    }
}
