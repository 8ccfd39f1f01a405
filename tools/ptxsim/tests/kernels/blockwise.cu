// Blocks with shared memory: histogram, transpose, f32 matrix product, named barriers, block-wide votes.
#include "ptx.cuh"

extern "C" __global__ void histogram(const uint8_t *in, uint32_t *bins, int n) {
  __shared__ uint32_t local[256];
  for (int i = threadIdx.x; i < 256; i += blockDim.x) local[i] = 0;
  __syncthreads();
  for (int i = blockIdx.x * blockDim.x + threadIdx.x; i < n; i += gridDim.x * blockDim.x) atomicAdd(&local[in[i]], 1u);
  __syncthreads();
  for (int i = threadIdx.x; i < 256; i += blockDim.x) atomicAdd(&bins[i], local[i]);
}

// 32 x 32 tiles, the 33rd column keeps the banks apart. Launch: 32 x 8 threads.
extern "C" __global__ void transpose(const float *in, float *out, int rows, int columns) {
  __shared__ float tile[32][33];
  const int x = blockIdx.x * 32 + threadIdx.x, y = blockIdx.y * 32 + threadIdx.y;
  for (int i = 0; i < 32; i += 8)
    if (x < columns && y + i < rows) tile[threadIdx.y + i][threadIdx.x] = in[(y + i) * columns + x];
  __syncthreads();
  const int tx = blockIdx.y * 32 + threadIdx.x, ty = blockIdx.x * 32 + threadIdx.y;
  for (int i = 0; i < 32; i += 8)
    if (tx < rows && ty + i < columns) out[(ty + i) * rows + tx] = tile[threadIdx.x][threadIdx.y + i];
}

// C = A B, 64 x 64 per block of 256 threads, 4 x 4 per thread, K in steps of 16. M, N multiples of 64, K of 16.
extern "C" __global__ void __launch_bounds__(256) sgemm(const float *a, const float *b, float *c, int m, int n, int k) {
  __shared__ float sa[16][64], sb[16][64];
  const int t = threadIdx.x, tx = t % 16, ty = t / 16, row = blockIdx.y * 64, column = blockIdx.x * 64;
  float sum[4][4] = {};
  for (int k0 = 0; k0 < k; k0 += 16) {
    for (int i = t; i < 1024; i += 256) {
      sa[i % 16][i / 16] = a[(row + i / 16) * k + k0 + i % 16];
      sb[i / 64][i % 64] = b[(k0 + i / 64) * n + column + i % 64];
    }
    __syncthreads(); // the tiles are in
#pragma unroll
    for (int kk = 0; kk < 16; kk++) {
      float x[4], y[4];
      for (int i = 0; i < 4; i++) {
        x[i] = sa[kk][ty * 4 + i];
        y[i] = sb[kk][tx * 4 + i];
      }
      for (int i = 0; i < 4; i++)
        for (int j = 0; j < 4; j++) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
    }
    __syncthreads(); // the tiles are used up
  }
  for (int i = 0; i < 4; i++)
    for (int j = 0; j < 4; j++) c[(row + ty * 4 + i) * n + column + tx * 4 + j] = sum[i][j];
}

// Two warps hand a buffer to and fro through named barriers: warp 0 writes round r, warp 1 adds it up. Launch: 64 threads.
extern "C" __global__ void ping_pong(const uint32_t *in, uint32_t *out, int rounds) {
  __shared__ uint32_t buffer[2][32];
  const int lane = threadIdx.x % 32;
  if (threadIdx.x < 32) {
    for (int r = 0; r < rounds; r++) {
      const int s = r % 2;
      if (r >= 2) named_barrier_sync(3 + s, 64); // free again
      buffer[s][lane] = in[r * 32 + lane];
      named_barrier_arrive(1 + s, 64); // full
    }
  } else {
    uint32_t sum = 0;
    for (int r = 0; r < rounds; r++) {
      const int s = r % 2;
      named_barrier_sync(1 + s, 64); // full
      sum = sum * 3 + buffer[s][31 - lane];
      if (r + 2 < rounds) named_barrier_arrive(3 + s, 64); // free
    }
    out[lane] = sum;
  }
}

extern "C" __global__ void block_votes(const int *in, int *out) {
  const int x = in[blockIdx.x * blockDim.x + threadIdx.x];
  const int count = __syncthreads_count(x > 0), all = __syncthreads_and(x > -100), any = __syncthreads_or(x == 7);
  if (threadIdx.x == 0) out[blockIdx.x] = count | (all ? 1 << 16 : 0) | (any ? 1 << 17 : 0);
}
