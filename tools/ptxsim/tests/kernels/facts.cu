// Small facts of the machine, in the layout of the recorded file: rows of 32 lanes. Launch: one warp.
#include <cstdint>

extern "C" __global__ void facts(uint32_t *o) {
  const int l = threadIdx.x;
#if __CUDA_ARCH__ >= 900
  uint32_t leader, leads;
  asm volatile("{\n.reg .pred p;\nelect.sync %0|p, 0xffffffff;\nselp.u32 %1, 1, 0, p;\n}" : "=r"(leader), "=r"(leads));
  o[l] = 2 * leader + leads;
  if (l >= 5) {
    asm volatile("{\n.reg .pred p;\nelect.sync %0|p, 0xffffffe0;\nselp.u32 %1, 1, 0, p;\n}" : "=r"(leader), "=r"(leads));
    o[32 + l] = 2 * leader + leads;
  }
#endif
  o[64 + l] = __shfl_down_sync(~0u, l, 7);
  o[96 + l] = __shfl_up_sync(~0u, l, 7);
  o[128 + l] = __shfl_xor_sync(~0u, l, 13, 16);
  o[160 + l] = __shfl_sync(~0u, l, 40);
  o[192 + l] = __activemask();
  if (l & 1) o[224 + l] = __activemask();
  else o[224 + l] = ~__activemask();
  const float small = __uint_as_float(1 + l), nan = __uint_as_float(0x7fc00000 + l);
  float y;
  asm("add.ftz.f32 %0, %1, %1;" : "=f"(y) : "f"(small));
  o[256 + l] = __float_as_uint(y);
  asm("mul.f32 %0, %1, %2;" : "=f"(y) : "f"(small), "f"(3.0f));
  o[288 + l] = __float_as_uint(y);
  asm("add.f32 %0, %1, %2;" : "=f"(y) : "f"(nan), "f"(1.0f));
  o[320 + l] = __float_as_uint(y);
  asm("min.f32 %0, %1, %2;" : "=f"(y) : "f"(nan), "f"(1.0f));
  o[352 + l] = __float_as_uint(y);
  asm("max.NaN.f32 %0, %1, %2;" : "=f"(y) : "f"(nan), "f"(1.0f));
  o[384 + l] = __float_as_uint(y);
  asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(o[416 + l]) : "f"(nan), "f"(3.3895314e38f));
}
