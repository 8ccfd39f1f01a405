// mma.sp of 16-bit floats. Every lane's registers as they are. Launch: one warp.
#include <cstdint>

#define K16(NAME, SELECTOR) \
  extern "C" __global__ void NAME(const uint32_t *a, const uint32_t *b, const uint32_t *e, float *d) { \
    const int l = threadIdx.x; \
    float r[4]; \
    for (int i = 0; i < 4; i++) r[i] = d[4 * l + i]; \
    asm volatile("mma.sp.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5}, {%6, %7}, {%0, %1, %2, %3}, %8, " SELECTOR ";" \
                 : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3]) : "r"(a[2 * l]), "r"(a[2 * l + 1]), "r"(b[2 * l]), "r"(b[2 * l + 1]), "r"(e[l])); \
    for (int i = 0; i < 4; i++) d[4 * l + i] = r[i]; \
  }
#define K32(NAME, TYPE, SELECTOR) \
  extern "C" __global__ void NAME(const uint32_t *a, const uint32_t *b, const uint32_t *e, float *d) { \
    const int l = threadIdx.x; \
    float r[4]; \
    for (int i = 0; i < 4; i++) r[i] = d[4 * l + i]; \
    asm volatile("mma.sp::ordered_metadata.sync.aligned.m16n8k32.row.col.f32." TYPE "." TYPE ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9, %10, %11}, " \
                 "{%0, %1, %2, %3}, %12, " SELECTOR ";" \
                 : "+f"(r[0]), "+f"(r[1]), "+f"(r[2]), "+f"(r[3]) \
                 : "r"(a[4 * l]), "r"(a[4 * l + 1]), "r"(a[4 * l + 2]), "r"(a[4 * l + 3]), "r"(b[4 * l]), "r"(b[4 * l + 1]), "r"(b[4 * l + 2]), \
                   "r"(b[4 * l + 3]), "r"(e[l])); \
    for (int i = 0; i < 4; i++) d[4 * l + i] = r[i]; \
  }
K16(sparse_k16_0, "0x0") K16(sparse_k16_3, "0x3") K32(sparse_k32_0, "bf16", "0x0") K32(sparse_k32_1, "f16", "0x1")
