// Elementwise operations: GELU, squared ReLU, AdamW, Philox random numbers, conversions.
#include "ptx.cuh"
#include <cuda_bf16.h>
#include <cuda_fp16.h>

extern "C" __global__ void gelu(const float *x, float *y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i < n) y[i] = 0.5f * x[i] * (1.f + tanh_approx(0.79788456f * (x[i] + 0.044715f * x[i] * x[i] * x[i])));
}

// Four bf16 at a time, as 8-byte vectors.
extern "C" __global__ void relu2_bf16(const uint2 *x, uint2 *y, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  uint2 v = x[i];
  __nv_bfloat162 *p = reinterpret_cast<__nv_bfloat162 *>(&v);
  for (int j = 0; j < 2; j++) {
    p[j] = __hmax2(p[j], __float2bfloat162_rn(0.f));
    p[j] = __hmul2(p[j], p[j]);
  }
  y[i] = v;
}

extern "C" __global__ void adamw(float *w, const float *g, float *m, float *v, int n, float lr, float beta1, float beta2, float eps, float decay, float scale1, float scale2) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float m1 = beta1 * m[i] + (1 - beta1) * g[i], v1 = beta2 * v[i] + (1 - beta2) * g[i] * g[i];
  m[i] = m1;
  v[i] = v1;
  w[i] -= lr * (m1 * scale1 / (sqrtf(v1 * scale2) + eps) + decay * w[i]);
}

// Philox 4x32-10 of counter i and a key.
extern "C" __global__ void philox(uint4 *out, uint32_t key0, uint32_t key1) {
  const uint32_t i = blockIdx.x * blockDim.x + threadIdx.x;
  uint4 c = make_uint4(i, 0, 0, 0);
  for (int round = 0; round < 10; round++) {
    const uint32_t high0 = __umulhi(0xD2511F53u, c.x), high1 = __umulhi(0xCD9E8D57u, c.z);
    c = make_uint4(high1 ^ c.y ^ key0, 0xCD9E8D57u * c.z, high0 ^ c.w ^ key1, 0xD2511F53u * c.x);
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  out[i] = c;
}

// Conversions of one f32, as words. ROWS per element.
extern "C" __global__ void conversions(const float *in, uint32_t *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const float x = in[i];
  uint32_t *o = out + i * 24;
  o[0] = __bfloat16_as_ushort(__float2bfloat16_rn(x));
  o[1] = __half_as_ushort(__float2half_rn(x));
  o[2] = __half_as_ushort(__float2half_rz(x));
  o[3] = __float2int_rn(x);
  o[4] = __float2int_rz(x);
  o[5] = __float2int_rd(x);
  o[6] = __float2int_ru(x);
  o[7] = __float2uint_rz(x);
  o[8] = (uint32_t)__float2ll_rn(x);
  o[9] = (uint32_t)(__float2ull_rz(x) >> 32);
  o[10] = __float_as_uint(rintf(x));
  o[11] = __float_as_uint(floorf(x));
  o[12] = __float_as_uint(ceilf(x));
  o[13] = __float_as_uint(truncf(x));
  o[14] = __float_as_uint(__saturatef(x));
  o[15] = __float_as_uint((float)((double)x * 1.0000001));
  o[16] = __float_as_uint(__double2float_rz((double)x * 1.0000001));
  o[17] = __float_as_uint(__int2float_rn(__float_as_int(x)));
  o[18] = __float_as_uint(__uint2float_rz(__float_as_uint(x)));
  o[19] = __float_as_uint(__ll2float_rn((long long)__float_as_int(x) * 1234567));
  o[20] = (uint32_t)(signed char)__float2int_rz(x);
  o[21] = __float_as_uint(__half2float(__ushort_as_half((unsigned short)__float_as_uint(x))));
  o[22] = __double2int_rn((double)x * 0.5);
  __nv_bfloat162 pair = __floats2bfloat162_rn(x, -x);
  o[23] = *reinterpret_cast<uint32_t *>(&pair);
}
