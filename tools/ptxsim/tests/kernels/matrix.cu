// Tensor cores of sm_80: bf16 GEMM with a cp.async pipeline, wmma, single tiles of every type, attention.
#include "ptx.cuh"
#include <cuda_bf16.h>
#include <mma.h>

// C = A B^T: A is M x K, B is N x K, bf16 row-major; C is f32. 64 x 64 per block of 4 warps (each 32 x 32), K in tiles of 32, 3 stages.
constexpr int TILE = 64, DEPTH = 32, PITCH = DEPTH + 8, STAGES = 3;

extern "C" __global__ void __launch_bounds__(128) gemm_bf16_mma(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int m, int n, int k) {
  __shared__ __align__(16) __nv_bfloat16 sa[STAGES][TILE * PITCH], sb[STAGES][TILE * PITCH];
  const int t = threadIdx.x, lane = t % 32, warp = t / 32, row = blockIdx.y * TILE, column = blockIdx.x * TILE, tiles = k / DEPTH;
  auto load = [&](int tile) {
    if (tile < tiles)
      for (int i = t; i < TILE * DEPTH / 8; i += 128) {
        const int r = i / 4, j = i % 4 * 8;
        cp_async_16(shared_address(&sa[tile % STAGES][r * PITCH + j]), &a[(row + r) * k + tile * DEPTH + j]);
        cp_async_16(shared_address(&sb[tile % STAGES][r * PITCH + j]), &b[(column + r) * k + tile * DEPTH + j]);
      }
    cp_async_commit();
  };
  float d[2][4][4] = {};
  for (int i = 0; i < STAGES - 1; i++) load(i);
  for (int tile = 0; tile < tiles; tile++) {
    cp_async_wait<STAGES - 2>();
    __syncthreads(); // tile is in for everyone, and the stage that is loaded next was used up
    load(tile + STAGES - 1);
    const __nv_bfloat16 *pa = sa[tile % STAGES], *pb = sb[tile % STAGES];
#pragma unroll
    for (int kk = 0; kk < DEPTH; kk += 16) {
      uint32_t fa[2][4], fb[4][2];
      for (int i = 0; i < 2; i++)
        ldmatrix_x4(fa[i], shared_address(&pa[(warp / 2 * 32 + i * 16 + lane % 16) * PITCH + kk + lane / 16 * 8]));
      for (int j = 0; j < 4; j++)
        ldmatrix_x2(fb[j], shared_address(&pb[(warp % 2 * 32 + j * 8 + lane % 8) * PITCH + kk + lane / 8 % 2 * 8]));
      for (int i = 0; i < 2; i++)
        for (int j = 0; j < 4; j++) mma_bf16(d[i][j], fa[i], fb[j]);
    }
  }
  for (int i = 0; i < 2; i++)
    for (int j = 0; j < 4; j++)
      for (int e = 0; e < 4; e++)
        c[(row + warp / 2 * 32 + i * 16 + lane / 4 + e / 2 * 8) * n + column + warp % 2 * 32 + j * 8 + lane % 4 * 2 + e % 2] = d[i][j][e];
}

// One mma per warp on raw fragments: a[lane][4], b[lane][2], c[lane][4].
#define TILE_KERNEL(NAME, MMA)                                                                             \
  extern "C" __global__ void NAME(const uint4 *a, const uint2 *b, const float4 *c, float4 *out) {          \
    const int i = blockIdx.x * 32 + threadIdx.x;                                                           \
    uint32_t fa[4] = {a[i].x, a[i].y, a[i].z, a[i].w}, fb[2] = {b[i].x, b[i].y};                           \
    float d[4] = {c[i].x, c[i].y, c[i].z, c[i].w};                                                         \
    MMA(d, fa, fb);                                                                                        \
    out[i] = make_float4(d[0], d[1], d[2], d[3]);                                                          \
  }
TILE_KERNEL(mma_tile_bf16, mma_bf16)
TILE_KERNEL(mma_tile_f16, mma_f16)
TILE_KERNEL(mma_tile_tf32, mma_tf32)

extern "C" __global__ void mma_tile_f16_f16(const uint4 *a, const uint2 *b, const uint2 *c, uint2 *out) {
  const int i = blockIdx.x * 32 + threadIdx.x;
  uint32_t fa[4] = {a[i].x, a[i].y, a[i].z, a[i].w}, fb[2] = {b[i].x, b[i].y}, d[2] = {c[i].x, c[i].y};
  mma_f16_f16(d, fa, fb);
  out[i] = make_uint2(d[0], d[1]);
}

// C (16 x 16) = A (16 x K, row-major) B (K x 16, column-major) by wmma, through shared memory.
extern "C" __global__ void wmma_bf16(const __nv_bfloat16 *a, const __nv_bfloat16 *b, float *c, int k) {
  using namespace nvcuda::wmma;
  __shared__ __nv_bfloat16 sa[16 * 16];
  fragment<matrix_a, 16, 16, 16, __nv_bfloat16, row_major> fa;
  fragment<matrix_b, 16, 16, 16, __nv_bfloat16, col_major> fb;
  fragment<accumulator, 16, 16, 16, float> d;
  fill_fragment(d, 0.f);
  for (int k0 = 0; k0 < k; k0 += 16) {
    for (int i = threadIdx.x; i < 256; i += 32) sa[i] = a[i / 16 * k + k0 + i % 16];
    __syncwarp();
    load_matrix_sync(fa, sa, 16);
    load_matrix_sync(fb, b + k0, k);
    mma_sync(d, fa, fb, d);
    __syncwarp();
  }
  store_matrix_sync(c, d, 16, mem_row_major);
}

// out = softmax(Q K^T * scale) V for one head of width 32 per block; a block of one warp takes 16 queries; keys in tiles of 16, causal.
extern "C" __global__ void attention(const __nv_bfloat16 *q, const __nv_bfloat16 *k, const __nv_bfloat16 *v, float *out, int length, float scale) {
  __shared__ __align__(16) __nv_bfloat16 sq[16 * 40], sk[16 * 40], sv[16 * 40];
  const int lane = threadIdx.x, g = lane / 4, t = lane % 4, first = blockIdx.x * 16;
  const size_t head = (size_t)blockIdx.y * length * 32;
  auto load = [&](__nv_bfloat16 *to, const __nv_bfloat16 *from, int row) {
    for (int i = lane; i < 64; i += 32) cp_async_16(shared_address(to + i / 4 * 40 + i % 4 * 8), from + head + (row + i / 4) * 32 + i % 4 * 8);
  };
  load(sq, q, first);
  cp_async_wait_all();
  __syncwarp();
  uint32_t fq[2][4];
  for (int i = 0; i < 2; i++) ldmatrix_x4(fq[i], shared_address(&sq[lane % 16 * 40 + i * 16 + lane / 16 * 8]));
  float o[4][4] = {}, top[2] = {-INFINITY, -INFINITY}, sum[2] = {};
  for (int tile = 0; tile <= blockIdx.x; tile++) {
    __syncwarp(); // the last tile is used up
    load(sk, k, tile * 16);
    load(sv, v, tile * 16);
    cp_async_wait_all();
    __syncwarp(); // all lanes' parts are in
    float s[2][4] = {};
    for (int j = 0; j < 2; j++)
      for (int i = 0; i < 2; i++) {
        uint32_t fk[2];
        ldmatrix_x2(fk, shared_address(&sk[(j * 8 + lane % 8) * 40 + i * 16 + lane / 8 % 2 * 8]));
        mma_bf16(s[j], fq[i], fk);
      }
    float peak[2] = {top[0], top[1]};
    for (int j = 0; j < 2; j++)
      for (int e = 0; e < 4; e++) {
        const int row = first + g + e / 2 * 8, column = tile * 16 + j * 8 + 2 * t + e % 2;
        s[j][e] = column <= row ? s[j][e] * scale : -INFINITY;
        peak[e / 2] = fmaxf(peak[e / 2], s[j][e]);
      }
    for (int h = 0; h < 2; h++) {
      peak[h] = fmaxf(peak[h], __shfl_xor_sync(~0u, peak[h], 1));
      peak[h] = fmaxf(peak[h], __shfl_xor_sync(~0u, peak[h], 2));
      const float shrink = exp2f((top[h] - peak[h]) * 1.44269504f);
      top[h] = peak[h];
      sum[h] *= shrink;
      for (int n = 0; n < 4; n++) {
        o[n][2 * h] *= shrink;
        o[n][2 * h + 1] *= shrink;
      }
    }
    uint32_t p[4];
    for (int j = 0; j < 2; j++)
      for (int h = 0; h < 2; h++) {
        const float x = exp2f((s[j][2 * h] - top[h]) * 1.44269504f), y = exp2f((s[j][2 * h + 1] - top[h]) * 1.44269504f);
        sum[h] += x + y;
        __nv_bfloat162 pair = __floats2bfloat162_rn(x, y);
        p[2 * j + h] = *reinterpret_cast<uint32_t *>(&pair);
      }
    for (int n = 0; n < 4; n++) {
      uint32_t fv[2];
      ldmatrix_x2_trans(fv, shared_address(&sv[lane % 16 * 40 + n * 8]));
      mma_bf16(o[n], p, fv);
    }
  }
  for (int h = 0; h < 2; h++) {
    sum[h] += __shfl_xor_sync(~0u, sum[h], 1);
    sum[h] += __shfl_xor_sync(~0u, sum[h], 2);
  }
  for (int n = 0; n < 4; n++)
    for (int e = 0; e < 4; e++) out[head + (first + g + e / 2 * 8) * 32 + n * 8 + 2 * t + e % 2] = o[n][e] / sum[e / 2];
}
