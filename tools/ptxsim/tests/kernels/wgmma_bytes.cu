// One wgmma tile of bytes, D (64 x 32) = A (64 x 32) B (32 x 32) + D. Launch: 1 block of 128 threads.
#include "hopper.cuh"

// `a` and `b` are shared memory as the caller lays it out, 9216 bytes each; `first` is where the tile starts in both, `base_offset` the
// line in which its swizzle pattern starts.
#define OPERANDS \
  __shared__ __align__(1024) uint32_t sa[2304], sb[2304]; \
  const int t = threadIdx.x; \
  for (int i = t; i < 2304; i += 128) { \
    sa[i] = a[i]; \
    sb[i] = b[i]; \
  } \
  fence_proxy_async(); \
  __syncthreads(); \
  const uint64_t base = (uint64_t)base_offset << 49; \
  const uint64_t da = matrix_descriptor(sa + first / 4, leading, stride, layout) | base; \
  const uint64_t db = matrix_descriptor(sb + first / 4, leading, stride, layout) | base;
#define ARGUMENTS \
  const uint32_t *a, const uint32_t *b, const uint32_t *c, uint32_t *out, uint32_t leading, uint32_t stride, uint32_t layout, uint32_t first, \
      uint32_t base_offset
#define D16_NAMES "{%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15}"

#define D16_r \
  "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7]), "+r"(d[8]), "+r"(d[9]), "+r"(d[10]), "+r"(d[11]), \
      "+r"(d[12]), "+r"(d[13]), "+r"(d[14]), "+r"(d[15])
#define D16_f \
  "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7]), "+f"(d[8]), "+f"(d[9]), "+f"(d[10]), "+f"(d[11]), \
      "+f"(d[12]), "+f"(d[13]), "+f"(d[14]), "+f"(d[15])

#define FORM(NAME, T, C, TEXT, SCALES) \
  extern "C" __global__ void __launch_bounds__(128, 1) NAME(ARGUMENTS) { \
    OPERANDS \
    T d[16]; \
    for (int i = 0; i < 16; i++) d[i] = ((const T *)c)[t * 16 + i]; \
    wgmma_fence(); \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\nwgmma.mma_async.sync.aligned." TEXT " " D16_NAMES ", %16, %17, p" SCALES ";\n}" \
                 : D16_##C : "l"(da), "l"(db)); \
    wgmma_commit(); \
    wgmma_wait<0>(); \
    for (int i = 0; i < 16; i++) ((T *)out)[t * 16 + i] = d[i]; \
  }
FORM(wgmma_s8_s8, int, r, "m64n32k32.s32.s8.s8", "")
FORM(wgmma_u8_s8, int, r, "m64n32k32.s32.u8.s8.satfinite", "")
FORM(wgmma_e4m3_e5m2, float, f, "m64n32k32.f32.e4m3.e5m2", ", 1, 1")
FORM(wgmma_e5m2_negated, float, f, "m64n32k32.f32.e5m2.e5m2", ", -1, 1")

// f16 accumulators, two to a register; A in registers.
extern "C" __global__ void __launch_bounds__(128, 1) wgmma_e4m3_f16(ARGUMENTS) {
  OPERANDS
  uint32_t d[8], ra[4];
  for (int i = 0; i < 8; i++) d[i] = c[t * 8 + i];
  for (int i = 0; i < 4; i++) ra[i] = a[t * 4 + i];
  wgmma_fence();
  asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, 1, 0;\n"
               "wgmma.mma_async.sync.aligned.m64n32k32.f16.e4m3.e4m3 {%0, %1, %2, %3, %4, %5, %6, %7}, {%8, %9, %10, %11}, %12, p, 1, 1;\n}"
               : "+r"(d[0]), "+r"(d[1]), "+r"(d[2]), "+r"(d[3]), "+r"(d[4]), "+r"(d[5]), "+r"(d[6]), "+r"(d[7])
               : "r"(ra[0]), "r"(ra[1]), "r"(ra[2]), "r"(ra[3]), "l"(db));
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < 8; i++) out[t * 8 + i] = d[i];
  (void)da;
}
