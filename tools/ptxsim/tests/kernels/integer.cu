// Integer and bit instructions, on three words per element.
#include <cstdint>

extern "C" __global__ void integer_families(const uint32_t *in, uint32_t *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const uint32_t a = in[3 * i], b = in[3 * i + 1], c = in[3 * i + 2];
  const int32_t sa = a, sb = b;
  const uint64_t wide = (uint64_t)a << 32 | b;
  uint32_t *o = out + 40 * i;
  o[0] = a + b;
  o[1] = a - b;
  o[2] = a * b;
  o[3] = __umulhi(a, b);
  o[4] = __mulhi(sa, sb);
  o[5] = b ? a / b : 7;
  o[6] = b ? a % b : 7;
  o[7] = (sb && !(sa == INT32_MIN && sb == -1)) ? sa / sb : 7;
  o[8] = (sb && !(sa == INT32_MIN && sb == -1)) ? sa % sb : 7;
  o[9] = a & b;
  o[10] = a | b;
  o[11] = a ^ b;
  o[12] = ~a;
  o[13] = a << (b & 31);
  o[14] = a >> (b & 31);
  o[15] = sa >> (b & 31);
  o[16] = __clz(a);
  o[17] = __popc(a);
  o[18] = __brev(a);
  o[19] = __ffs(a);
  o[20] = __byte_perm(a, b, c & 0x7777);
  o[21] = __funnelshift_l(a, b, c);
  o[22] = __funnelshift_r(a, b, c);
  o[23] = __dp4a(sa, sb, (int32_t)c);
  o[24] = __dp4a(a, b, c);
  o[25] = min(sa, sb);
  o[26] = max(a, b);
  o[27] = abs(sa);
  o[28] = a * b + c;
  o[29] = (uint32_t)((wide * c) >> 32);
  o[30] = (uint32_t)(wide >> (c & 63));
  o[31] = (uint32_t)((int64_t)wide >> (c & 63));
  o[32] = (uint32_t)__umul64hi(wide, (uint64_t)c << 32 | a);
  o[33] = (uint32_t)(c ? wide / c : 7);
  o[34] = (uint32_t)((int64_t)wide % (int64_t)(c | 1));
  o[35] = __clzll(wide) | __popcll(wide) << 8 | __ffsll(wide) << 16;
  o[36] = __sad(sa, sb, c);
  o[37] = (a > b) + 2 * (sa > sb) + 4 * ((int16_t)a < (int16_t)b) + 8 * (wide > c) + 16 * ((uint8_t)a >= (uint8_t)b);
  o[38] = __usad(a, b, c) + __uhadd(a, b) + __rhadd(sa, sb);
  uint32_t field, insert;
  asm("bfe.u32 %0, %1, %2, %3;" : "=r"(field) : "r"(a), "r"(b & 31), "r"(c & 31));
  asm("bfi.b32 %0, %1, %2, %3, %4;" : "=r"(insert) : "r"(a), "r"(b), "r"(c & 31), "r"(c >> 8 & 31));
  o[39] = field ^ insert;
}
