// Every so manieth row: of each t rows those at first, first + every, ...
//
// Forward
//   y  [M, C]  f32 or bf16, =; row m of y is row m / per_row * t + first + m % per_row * every of x
//   x  [N, C]  the same type
// Grid: ceil(M C / 1024) (f32) or ceil(M C / 2048) (bf16) blocks of 256 threads. Must move 2 M C elements.
//
// Backward
//   dx  [N, C]  =; zeros in rows that are not selected
//   dy  [M, C]
// Grid as above over N C. Must move M C + N C elements. No shared memory; any size.
#include "common/row.cuh"

constexpr u32 THREADS = 256;

template <typename E, u32 W>
__device__ __forceinline__ void forward(E* gy, const E* gx, u32 per_row, u32 t, u32 first, u32 every, u32 m, u32 c) {
    for_flat_packs<THREADS, WIDTH<E> / W, W>(m, c, [&](u64 row, u32 column, u64 element) {
        const u32 i = static_cast<u32>(row);
        float x[W];
        load_vector<W>(x, gx + (static_cast<u64>(i / per_row) * t + first + i % per_row * every) * c + column);
        store_vector<W>(gy + element, x);
    });
}

template <typename E, u32 W>
__device__ __forceinline__ void backward(E* gdx, const E* gdy, u32 per_row, u32 t, u32 first, u32 every, u32 n, u32 c) {
    for_flat_packs<THREADS, WIDTH<E> / W, W>(n, c, [&](u64 row, u32 column, u64 element) {
        const u32 i = static_cast<u32>(row), at = i % t;
        float d[W] = {};
        if (at >= first && (at - first) % every == 0) {
            load_vector<W>(d, gdy + (static_cast<u64>(i / t) * per_row + (at - first) / every) * c + column);
        }
        store_vector<W>(gdx + element, d);
    });
}

extern "C" __global__ void __launch_bounds__(256, 4) select_rows_fwd_vector_f32(float* y, const float* x, u32 per_row, u32 t, u32 first, u32 every, u32 m, u32 c) {
    c % 4 == 0 && aligned(16, y, x) ? forward<float, 4>(y, x, per_row, t, first, every, m, c) : forward<float, 1>(y, x, per_row, t, first, every, m, c);
}

extern "C" __global__ void __launch_bounds__(256, 4) select_rows_fwd_vector_bf16(bf16* y, const bf16* x, u32 per_row, u32 t, u32 first, u32 every, u32 m, u32 c) {
    c % 8 == 0 && aligned(16, y, x) ? forward<bf16, 8>(y, x, per_row, t, first, every, m, c) : forward<bf16, 1>(y, x, per_row, t, first, every, m, c);
}

extern "C" __global__ void __launch_bounds__(256, 4) select_rows_bwd_vector_f32(float* dx, const float* dy, u32 per_row, u32 t, u32 first, u32 every, u32 n, u32 c) {
    c % 4 == 0 && aligned(16, dx, dy) ? backward<float, 4>(dx, dy, per_row, t, first, every, n, c) : backward<float, 1>(dx, dy, per_row, t, first, every, n, c);
}

extern "C" __global__ void __launch_bounds__(256, 4) select_rows_bwd_vector_bf16(bf16* dx, const bf16* dy, u32 per_row, u32 t, u32 first, u32 every, u32 n, u32 c) {
    c % 8 == 0 && aligned(16, dx, dy) ? backward<bf16, 8>(dx, dy, per_row, t, first, every, n, c) : backward<bf16, 1>(dx, dy, per_row, t, first, every, n, c);
}
