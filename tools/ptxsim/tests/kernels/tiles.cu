// mma and wmma of integers, bits, f64 and 8-bit floats. Launch: one warp. `mma` kernels take every lane's registers as they are.
#include <cstdint>
#include <mma.h>
using namespace nvcuda;

#define KERNEL(NAME) extern "C" __global__ void NAME(const uint32_t *a, const uint32_t *b, const uint32_t *c, uint32_t *d)
#define M8(NAME, TEXT) \
  KERNEL(NAME) { \
    const int l = threadIdx.x; \
    asm volatile(TEXT " {%0, %1}, {%2}, {%3}, {%4, %5};" : "=r"(d[2 * l]), "=r"(d[2 * l + 1]) : "r"(a[l]), "r"(b[l]), "r"(c[2 * l]), "r"(c[2 * l + 1])); \
  }
#define M16(NAME, TEXT) \
  KERNEL(NAME) { \
    const int l = threadIdx.x; \
    asm volatile(TEXT " {%0, %1, %2, %3}, {%4, %5}, {%6}, {%7, %8, %9, %10};" \
                 : "=r"(d[4 * l]), "=r"(d[4 * l + 1]), "=r"(d[4 * l + 2]), "=r"(d[4 * l + 3]) \
                 : "r"(a[2 * l]), "r"(a[2 * l + 1]), "r"(b[l]), "r"(c[4 * l]), "r"(c[4 * l + 1]), "r"(c[4 * l + 2]), "r"(c[4 * l + 3])); \
  }
#define M16_DEEP(NAME, TEXT) \
  KERNEL(NAME) { \
    const int l = threadIdx.x; \
    asm volatile(TEXT " {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};" \
                 : "=r"(d[4 * l]), "=r"(d[4 * l + 1]), "=r"(d[4 * l + 2]), "=r"(d[4 * l + 3]) \
                 : "r"(a[4 * l]), "r"(a[4 * l + 1]), "r"(a[4 * l + 2]), "r"(a[4 * l + 3]), "r"(b[2 * l]), "r"(b[2 * l + 1]), "r"(c[4 * l]), \
                   "r"(c[4 * l + 1]), "r"(c[4 * l + 2]), "r"(c[4 * l + 3])); \
  }

M8(mma_m8n8k16_s8_s8, "mma.sync.aligned.m8n8k16.row.col.s32.s8.s8.s32")
M8(mma_m8n8k16_u8_s8, "mma.sync.aligned.m8n8k16.row.col.satfinite.s32.u8.s8.s32")
M8(mma_m8n8k32_s4_u4, "mma.sync.aligned.m8n8k32.row.col.s32.s4.u4.s32")
M8(mma_m8n8k128_b1_xor, "mma.sync.aligned.m8n8k128.row.col.s32.b1.b1.s32.xor.popc")
M16(mma_m16n8k16_s8_u8, "mma.sync.aligned.m16n8k16.row.col.s32.s8.u8.s32")
M16(mma_m16n8k32_s4_s4, "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s4.s4.s32")
M16(mma_m16n8k128_b1_and, "mma.sync.aligned.m16n8k128.row.col.s32.b1.b1.s32.and.popc")
M16_DEEP(mma_m16n8k32_s8_s8, "mma.sync.aligned.m16n8k32.row.col.satfinite.s32.s8.s8.s32")
M16_DEEP(mma_m16n8k32_u8_u8, "mma.sync.aligned.m16n8k32.row.col.s32.u8.u8.s32")
M16_DEEP(mma_m16n8k64_u4_s4, "mma.sync.aligned.m16n8k64.row.col.s32.u4.s4.s32")
M16_DEEP(mma_m16n8k256_b1_xor, "mma.sync.aligned.m16n8k256.row.col.s32.b1.b1.s32.xor.popc")

extern "C" __global__ void mma_m8n8k4_f64(const double *a, const double *b, const double *c, double *d) {
  const int l = threadIdx.x;
  asm volatile("mma.sync.aligned.m8n8k4.row.col.f64.f64.f64.f64 {%0, %1}, {%2}, {%3}, {%4, %5};"
               : "=d"(d[2 * l]), "=d"(d[2 * l + 1]) : "d"(a[l]), "d"(b[l]), "d"(c[2 * l]), "d"(c[2 * l + 1]));
}

#if __CUDA_ARCH__ >= 900
#define IF_HOPPER(...) __VA_ARGS__
#else
#define IF_HOPPER(...)
#endif
extern "C" __global__ void mma_m16n8k8_f64(const double *a, const double *b, const double *c, double *d) {
  const int l = threadIdx.x;
  IF_HOPPER(asm volatile("mma.sync.aligned.m16n8k8.row.col.f64.f64.f64.f64 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                         : "=d"(d[4 * l]), "=d"(d[4 * l + 1]), "=d"(d[4 * l + 2]), "=d"(d[4 * l + 3])
                         : "d"(a[4 * l]), "d"(a[4 * l + 1]), "d"(a[4 * l + 2]), "d"(a[4 * l + 3]), "d"(b[2 * l]), "d"(b[2 * l + 1]), "d"(c[4 * l]),
                           "d"(c[4 * l + 1]), "d"(c[4 * l + 2]), "d"(c[4 * l + 3]));)
}
extern "C" __global__ void mma_m16n8k32_e4m3_e5m2(const uint32_t *a, const uint32_t *b, const float *c, float *d) {
  const int l = threadIdx.x;
  IF_HOPPER(asm volatile("mma.sync.aligned.m16n8k32.row.col.f32.e4m3.e5m2.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%10, %11, %12, %13};"
                         : "=f"(d[4 * l]), "=f"(d[4 * l + 1]), "=f"(d[4 * l + 2]), "=f"(d[4 * l + 3])
                         : "r"(a[4 * l]), "r"(a[4 * l + 1]), "r"(a[4 * l + 2]), "r"(a[4 * l + 3]), "r"(b[2 * l]), "r"(b[2 * l + 1]), "f"(c[4 * l]),
                           "f"(c[4 * l + 1]), "f"(c[4 * l + 2]), "f"(c[4 * l + 3]));)
}
extern "C" __global__ void mma_m16n8k32_e4m3_f16(const uint32_t *a, const uint32_t *b, const uint32_t *c, uint32_t *d) {
  const int l = threadIdx.x;
  IF_HOPPER(asm volatile("mma.sync.aligned.m16n8k32.row.col.f16.e4m3.e4m3.f16 {%0, %1}, {%2, %3, %4, %5}, {%6, %7}, {%8, %9};"
                         : "=r"(d[2 * l]), "=r"(d[2 * l + 1])
                         : "r"(a[4 * l]), "r"(a[4 * l + 1]), "r"(a[4 * l + 2]), "r"(a[4 * l + 3]), "r"(b[2 * l]), "r"(b[2 * l + 1]), "r"(c[2 * l]),
                           "r"(c[2 * l + 1]));)
}

// Whole matrices: A by rows or columns of pitch `pitch_a`, and so on; C and D by rows.
template <int M, int N, int K, class T, class A, class B, class C>
__device__ void whole(const T *a, const T *b, const C *c, C *d, int pitch_a, int pitch_b, int pitch_c) {
  wmma::fragment<wmma::matrix_a, M, N, K, T, A> fa;
  wmma::fragment<wmma::matrix_b, M, N, K, T, B> fb;
  wmma::fragment<wmma::accumulator, M, N, K, C> fc;
  wmma::load_matrix_sync(fa, a, pitch_a);
  wmma::load_matrix_sync(fb, b, pitch_b);
  wmma::load_matrix_sync(fc, c, pitch_c, wmma::mem_row_major);
  wmma::mma_sync(fc, fa, fb, fc);
  wmma::store_matrix_sync(d, fc, pitch_c, wmma::mem_row_major);
}
#define WHOLE(NAME, M, N, K, T, A, B, C) \
  extern "C" __global__ void NAME(const T *a, const T *b, const C *c, C *d, int pitch_a, int pitch_b, int pitch_c) { \
    whole<M, N, K, T, wmma::A##_major, wmma::B##_major>(a, b, c, d, pitch_a, pitch_b, pitch_c); \
  }
WHOLE(wmma_16_16_row_col, 16, 16, 16, signed char, row, col, int)
WHOLE(wmma_16_16_col_row, 16, 16, 16, signed char, col, row, int)
WHOLE(wmma_32_8_row_row, 32, 8, 16, signed char, row, row, int)
WHOLE(wmma_8_32_col_col, 8, 32, 16, signed char, col, col, int)
WHOLE(wmma_8_8_f64_row_col, 8, 8, 4, double, row, col, double)
WHOLE(wmma_8_8_f64_col_row, 8, 8, 4, double, col, row, double)

// Rows of 32 nibbles and columns of 128 bits; `pitch` in elements.
extern "C" __global__ void wmma_nibbles(const void *a, const void *b, const int *c, int *d, int pitch_a, int pitch_b, int pitch_c) {
  wmma::fragment<wmma::matrix_a, 8, 8, 32, wmma::experimental::precision::s4, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 8, 8, 32, wmma::experimental::precision::s4, wmma::col_major> fb;
  wmma::fragment<wmma::accumulator, 8, 8, 32, int> fc;
  wmma::load_matrix_sync(fa, a, pitch_a);
  wmma::load_matrix_sync(fb, b, pitch_b);
  wmma::load_matrix_sync(fc, c, pitch_c, wmma::mem_row_major);
  wmma::mma_sync(fc, fa, fb, fc);
  wmma::store_matrix_sync(d, fc, pitch_c, wmma::mem_row_major);
}
extern "C" __global__ void wmma_bits(const void *a, const void *b, const int *c, int *d, int pitch_a, int pitch_b, int pitch_c) {
  wmma::fragment<wmma::matrix_a, 8, 8, 128, wmma::experimental::precision::b1, wmma::row_major> fa;
  wmma::fragment<wmma::matrix_b, 8, 8, 128, wmma::experimental::precision::b1, wmma::col_major> fb;
  wmma::fragment<wmma::accumulator, 8, 8, 128, int> fc;
  wmma::load_matrix_sync(fa, a, pitch_a);
  wmma::load_matrix_sync(fb, b, pitch_b);
  wmma::load_matrix_sync(fc, c, pitch_c, wmma::mem_row_major);
  wmma::bmma_sync(fc, fa, fb, fc, wmma::experimental::bmmaBitOpAND);
  wmma::store_matrix_sync(d, fc, pitch_c, wmma::mem_row_major);
}
