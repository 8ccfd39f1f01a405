// The intrinsic functions of the CUDA math API that end in forms of their own: SIMD in a word, DPX, rounding by name, 8-bit floats.
#include <cstdint>
#include <cuda_fp16.h>
#include <cuda_fp8.h>

#define UNARY(F) *o++ = F(a);
#define BINARY(F) *o++ = F(a, b);

#define SIMD(W) \
  UNARY(__vabs##W) UNARY(__vabsss##W) UNARY(__vneg##W) UNARY(__vnegss##W) \
  BINARY(__vadd##W) BINARY(__vaddss##W) BINARY(__vaddus##W) BINARY(__vsub##W) BINARY(__vsubss##W) BINARY(__vsubus##W) \
  BINARY(__vavgs##W) BINARY(__vavgu##W) BINARY(__vhaddu##W) BINARY(__vabsdiffs##W) BINARY(__vabsdiffu##W) \
  BINARY(__vmaxs##W) BINARY(__vmaxu##W) BINARY(__vmins##W) BINARY(__vminu##W) BINARY(__vsads##W) BINARY(__vsadu##W) \
  BINARY(__vcmpeq##W) BINARY(__vcmpne##W) BINARY(__vcmpges##W) BINARY(__vcmpgeu##W) BINARY(__vcmpgts##W) BINARY(__vcmpgtu##W) \
  BINARY(__vcmples##W) BINARY(__vcmpleu##W) BINARY(__vcmplts##W) BINARY(__vcmpltu##W) \
  BINARY(__vseteq##W) BINARY(__vsetne##W) BINARY(__vsetges##W) BINARY(__vsetgeu##W) BINARY(__vsetgts##W) BINARY(__vsetgtu##W) \
  BINARY(__vsetles##W) BINARY(__vsetleu##W) BINARY(__vsetlts##W) BINARY(__vsetltu##W)

// 82 results of two words.
extern "C" __global__ void simd_in_a_word(const uint32_t *in, uint32_t *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const uint32_t a = in[3 * i], b = in[3 * i + 1];
  uint32_t *o = out + 82 * i;
  SIMD(2)
  SIMD(4)
}

// 16 results of three words.
extern "C" __global__ void dynamic_programming(const uint32_t *in, uint32_t *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const uint32_t a = in[3 * i], b = in[3 * i + 1], c = in[3 * i + 2];
  uint32_t *o = out + 16 * i;
  o[0] = __viaddmax_s32(a, b, c);
  o[1] = __viaddmin_u32(a, b, c);
  o[2] = __viaddmax_s16x2(a, b, c);
  o[3] = __viaddmin_s16x2(a, b, c);
  o[4] = __viaddmax_u16x2(a, b, c);
  o[5] = __viaddmin_u16x2(a, b, c);
  o[6] = __viaddmax_s16x2_relu(a, b, c);
  o[7] = __viaddmin_s16x2_relu(a, b, c);
  o[8] = __vimax3_s16x2(a, b, c);
  o[9] = __vimin3_u16x2(a, b, c);
  o[10] = __vimax3_s16x2_relu(a, b, c);
  o[11] = __vimin_s16x2_relu(a, b);
  o[12] = __vimax_s32_relu(a, b);
  bool high, low;
  o[13] = __vibmax_s16x2(a, b, &high, &low);
  o[14] = 2 * high + low;
  o[15] = __vimin3_s32_relu(a, b, c);
}

// 27 results of three words, by instructions that the compiler seldom chooses itself.
extern "C" __global__ void rare_integers(const uint32_t *in, uint32_t *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const uint32_t a = in[3 * i], b = in[3 * i + 1], c = in[3 * i + 2];
  uint32_t *o = out + 27 * i;
#define TERNARY(TEXT) asm(TEXT " %0, %1, %2, %3;" : "=r"(*o) : "r"(a), "r"(b), "r"(c)); o++;
#define TWO(TEXT) asm(TEXT " %0, %1, %2;" : "=r"(*o) : "r"(a), "r"(b)); o++;
  TERNARY("dp2a.lo.u32.u32") TERNARY("dp2a.lo.s32.u32") TERNARY("dp2a.hi.u32.s32") TERNARY("dp2a.hi.s32.s32")
  TERNARY("dp4a.u32.s32") TERNARY("dp4a.s32.u32")
  TWO("szext.clamp.u32") TWO("szext.clamp.s32") TWO("szext.wrap.u32") TWO("szext.wrap.s32")
  TWO("bmsk.clamp.b32") TWO("bmsk.wrap.b32")
  TERNARY("fns.b32") TERNARY("bfe.s32") TERNARY("sad.s32")
  TERNARY("mad24.hi.s32") TERNARY("mad24.lo.u32") TWO("mul24.hi.u32") TERNARY("mad.hi.sat.s32")
  TERNARY("prmt.b32.f4e") TERNARY("prmt.b32.b4e") TERNARY("prmt.b32.rc8") TERNARY("prmt.b32.ecl") TERNARY("prmt.b32.ecr")
  TERNARY("prmt.b32.rc16")
  asm("lop3.b32 %0, %1, %2, %3, 0xca;" : "=r"(*o) : "r"(a), "r"(b), "r"(c));
  o++;
  uint32_t low, high;
  asm("{\nmad.lo.cc.u32 %0, %2, %3, %4;\nmadc.hi.u32 %1, %2, %3, %4;\n}" : "=&r"(low), "=&r"(high) : "r"(a), "r"(b), "r"(c));
  asm("{\n.reg .u32 x;\nsub.cc.u32 x, %1, %2;\nsubc.u32 %0, %3, %4;\n}" : "=r"(*o) : "r"(low), "r"(a), "r"(high), "r"(b));
}

#define ROUNDED(T, SUFFIX, FMA, PREFIX) \
  *o++ = PREFIX##add_##SUFFIX(a, b); *o++ = PREFIX##sub_##SUFFIX(a, b); *o++ = PREFIX##mul_##SUFFIX(a, b); \
  *o++ = FMA##_##SUFFIX(a, b, c); *o++ = PREFIX##div_##SUFFIX(a, b); *o++ = PREFIX##rcp_##SUFFIX(b); *o++ = PREFIX##sqrt_##SUFFIX(a);

// 28 results of three values: nearest, toward zero, down, up.
extern "C" __global__ void rounded_doubles(const double *in, double *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const double a = in[3 * i], b = in[3 * i + 1], c = in[3 * i + 2];
  double *o = out + 28 * i;
  ROUNDED(double, rn, __fma, __d) ROUNDED(double, rz, __fma, __d) ROUNDED(double, rd, __fma, __d) ROUNDED(double, ru, __fma, __d)
}

extern "C" __global__ void rounded_floats(const float *in, float *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float a = in[3 * i], b = in[3 * i + 1], c = in[3 * i + 2];
  float *o = out + 28 * i;
  ROUNDED(float, rn, __fmaf, __f) ROUNDED(float, rz, __fmaf, __f) ROUNDED(float, rd, __fmaf, __f) ROUNDED(float, ru, __fmaf, __f)
}

// Both formats: from two floats, from two halves, back to halves.
extern "C" __global__ void floats_of_8_bits(const float2 *in, uint32_t *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float2 x = in[i];
  const __half2_raw h = __float22half2_rn(x);
  uint32_t *o = out + 8 * i;
  o[0] = __nv_cvt_float2_to_fp8x2(x, __NV_SATFINITE, __NV_E4M3);
  o[1] = __nv_cvt_float2_to_fp8x2(x, __NV_SATFINITE, __NV_E5M2);
  o[2] = __nv_cvt_halfraw2_to_fp8x2(h, __NV_SATFINITE, __NV_E4M3);
  o[3] = __nv_cvt_halfraw2_to_fp8x2(h, __NV_SATFINITE, __NV_E5M2);
  const uint16_t codes = __float_as_uint(x.x) >> 7;
  const __half2_raw e4m3 = __nv_cvt_fp8x2_to_halfraw2(codes, __NV_E4M3), e5m2 = __nv_cvt_fp8x2_to_halfraw2(codes, __NV_E5M2);
  o[4] = e4m3.x | (uint32_t)e4m3.y << 16;
  o[5] = e5m2.x | (uint32_t)e5m2.y << 16;
  o[6] = codes;
  o[7] = h.x | (uint32_t)h.y << 16;
}

// Registers of 128 and of 8 bits.
extern "C" __global__ void odd_widths(const uint32_t *in, uint32_t *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const uint64_t a = in[3 * i] | (uint64_t)in[3 * i + 1] << 32;
  uint64_t x, y;
  asm("{\n.reg .b128 q, r;\nmov.b128 q, {%2, %3};\nmov.b128 r, q;\nmov.b128 {%1, %0}, r;\n}" : "=l"(x), "=l"(y) : "l"(a), "l"(~a));
  uint16_t bytes;
  asm("{\n.reg .b8 low, high;\nmov.b16 {low, high}, %1;\nmov.b16 %0, {high, low};\n}" : "=h"(bytes) : "h"((uint16_t)in[3 * i]));
  uint32_t *o = out + 5 * i;
  o[0] = (uint32_t)x;
  o[1] = (uint32_t)(x >> 32);
  o[2] = (uint32_t)y;
  o[3] = (uint32_t)(y >> 32);
  o[4] = bytes;
}
