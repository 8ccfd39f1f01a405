// One wgmma tile, D (64 x 32) = A (64 x 16) B (16 x 32) + D, in every way to give the operands. Launch: 1 block of 128 threads.
#include "hopper.cuh"

enum Mode { BOTH_K_MAJOR, BOTH_MN_MAJOR, A_IN_REGISTERS, A_IN_REGISTERS_NEGATED };

// `a` and `b` are the bytes of the operands as they lie in shared memory; the caller lays them out (A in registers: 128 x 4 words). `layout`
// is the descriptor's swizzle field.
template <Mode MODE>
__device__ void forms(const uint32_t *a, const uint32_t *b, const float *c, float *out, uint32_t a_leading, uint32_t a_stride, uint32_t b_leading,
                      uint32_t b_stride, uint32_t layout, int accumulate) {
  __shared__ __align__(1024) uint32_t sa[4096 / 4], sb[4096 / 4];
  const int t = threadIdx.x;
  for (int i = t; i < 1024; i += 128) {
    sa[i] = a[i];
    sb[i] = b[i];
  }
  fence_proxy_async();
  __syncthreads();
  float d[16];
  for (int i = 0; i < 16; i++) d[i] = c[t * 16 + i];
  uint32_t ra[4];
  for (int i = 0; i < 4; i++) ra[i] = a[t * 4 + i];
  const uint64_t da = matrix_descriptor(sa, a_leading, a_stride, layout), db = matrix_descriptor(sb, b_leading, b_stride, layout);
  wgmma_fence();
  if (MODE == BOTH_K_MAJOR) wgmma_m64n32k16<0, 0>(d, da, db, accumulate);
  if (MODE == BOTH_MN_MAJOR) wgmma_m64n32k16<1, 1>(d, da, db, accumulate);
  if (MODE == A_IN_REGISTERS) wgmma_m64n32k16_registers<1, 0>(d, ra, db, accumulate);
  if (MODE == A_IN_REGISTERS_NEGATED) wgmma_m64n32k16_registers<-1, 0>(d, ra, db, accumulate);
  wgmma_commit();
  wgmma_wait<0>();
  for (int i = 0; i < 16; i++) out[t * 16 + i] = d[i];
}

#define FORM(NAME, MODE) \
  extern "C" __global__ void __launch_bounds__(128, 1) NAME(const uint32_t *a, const uint32_t *b, const float *c, float *out, uint32_t a_leading, \
                                                            uint32_t a_stride, uint32_t b_leading, uint32_t b_stride, uint32_t layout, int accumulate) { \
    forms<MODE>(a, b, c, out, a_leading, a_stride, b_leading, b_stride, layout, accumulate); \
  }
FORM(wgmma_k_major, BOTH_K_MAJOR)
FORM(wgmma_mn_major, BOTH_MN_MAJOR)
FORM(wgmma_registers, A_IN_REGISTERS)
FORM(wgmma_registers_negated, A_IN_REGISTERS_NEGATED)
