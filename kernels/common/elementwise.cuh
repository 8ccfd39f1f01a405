// The loop of elementwise kernels: `y_i = f(x_i, ...)`, accesses of 16 bytes of the widest type.
//
// A block owns THREADS * W elements in a row. Where they all exist and all pointers are aligned, a thread takes W neighbours in
// vector accesses; else (the last block, odd views) it takes every THREADS-th, so that a warp's accesses still lie side by side.
// `y` may be one of the inputs: an element is read and written by one thread.
#pragma once

#include "vector.cuh"

constexpr u32 ELEMENTWISE_THREADS = 256;

// Elements a thread takes: 16 bytes of the widest type.
template <typename... E>
__device__ constexpr u32 elementwise_width() {
    u32 widest = 1;
    ((widest = sizeof(E) > widest ? sizeof(E) : widest), ...);
    return 16 / widest;
}

template <u32 W>
struct Lanes {
    float r[W];
};

template <u32 W, typename E>
__device__ __forceinline__ Lanes<W> load_lanes(const E* g) {
    Lanes<W> lanes;
    load_vector<W>(lanes.r, g);
    return lanes;
}

template <u32 W, typename F, typename... X>
__device__ __forceinline__ Lanes<W> map_lanes(F f, X... x) {
    Lanes<W> y;
#pragma unroll
    for (u32 k = 0; k < W; k++) {
        y.r[k] = f(x.r[k]...);
    }
    return y;
}

template <typename F, typename Y, typename... X>
__device__ __forceinline__ void elementwise(F f, u64 n, Y* gy, const X*... gx) {
    constexpr u32 W = elementwise_width<Y, X...>();
    constexpr u32 SPAN = ELEMENTWISE_THREADS * W;
    const u64 first = static_cast<u64>(blockIdx.x) * SPAN;
    if (first + SPAN <= n && aligned(16, gy, gx...)) {
        const u64 i = first + threadIdx.x * W;
        store_vector<W>(gy + i, map_lanes<W>(f, load_lanes<W>(gx + i)...).r);
    } else {
#pragma unroll
        for (u32 k = 0; k < W; k++) {
            const u64 i = first + k * ELEMENTWISE_THREADS + threadIdx.x;
            if (i < n) {
                store(gy + i, f(load(gx + i)...));
            }
        }
    }
}
