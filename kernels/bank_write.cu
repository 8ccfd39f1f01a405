// A row for each finished segment into the bank of its stream, a ring: the newest takes the place of the oldest.
//
//   to_keys    [S, M, d]  f32 or bf16: row clock[b] mod M of bank b / segments is overwritten
//   to_values  [S, M, C]  likewise
//   born       [S, M]     likewise, by clock[b]
//   clock      [B]        the time of each segment; goes on by `segments`
//   times      [B]        =, the clock as it was
//   keys       [B, d];  values [B, C]
// Grid: B blocks of a warp. Two segments of one batch never write the same row (segments <= M). Must move 2 B (d + C) elements.
#include "common/vector.cuh"

template <typename E>
__device__ __forceinline__ void copy(E* to, const E* from, u32 n) {
    for (u32 i = threadIdx.x; i < n; i += WARP) {
        to[i] = from[i];
    }
}

template <typename E>
__device__ __forceinline__ void write(E* gto_keys, E* gto_values, u32* gborn, u32* gclock, u32* gtimes, const E* gkeys, const E* gvalues, u32 segments, u32 m, u32 d, u32 c) {
    const u64 b = blockIdx.x;
    // One lane reads and writes the clock.
    u32 time = 0;
    if (threadIdx.x == 0) {
        time = gclock[b];
        gclock[b] = time + segments;
    }
    time = __shfl_sync(ALL_LANES, time, 0);
    const u64 row = b / segments * m + time % m;
    copy(gto_keys + row * d, gkeys + b * d, d);
    copy(gto_values + row * c, gvalues + b * c, c);
    if (threadIdx.x == 0) {
        gborn[row] = time;
        gtimes[b] = time;
    }
}

extern "C" __global__ void __launch_bounds__(32, 16) bank_write_fwd_warp_per_row_f32(float* to_keys, float* to_values, u32* born, u32* clock, u32* times, const float* keys, const float* values, u32 segments, u32 m, u32 d, u32 c) {
    write(to_keys, to_values, born, clock, times, keys, values, segments, m, d, c);
}

extern "C" __global__ void __launch_bounds__(32, 16) bank_write_fwd_warp_per_row_bf16(bf16* to_keys, bf16* to_values, u32* born, u32* clock, u32* times, const bf16* keys, const bf16* values, u32 segments, u32 m, u32 d, u32 c) {
    write(to_keys, to_values, born, clock, times, keys, values, segments, m, d, c);
}
