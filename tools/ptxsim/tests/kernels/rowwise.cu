// Operations on rows: RMSNorm, softmax with cross-entropy, RoPE, embedding gradient, argmax.
#include <cuda_bf16.h>
#include <cstdint>

__device__ float warp_sum(float x) {
  for (int i = 16; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  return x;
}

// y = x / sqrt(mean(x^2) + eps) * g; one warp per row.
extern "C" __global__ void rmsnorm(const float *x, const float *g, float *y, int rows, int width, float eps) {
  const int row = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32;
  if (row >= rows) return;
  float sum = 0;
  for (int i = lane; i < width; i += 32) sum += x[row * width + i] * x[row * width + i];
  const float r = rsqrtf(warp_sum(sum) / width + eps);
  for (int i = lane; i < width; i += 32) y[row * width + i] = x[row * width + i] * r * g[i];
}

// loss[row] = log(sum(exp(x))) - x[target]; one block of 128 per row, with shared memory for its reductions.
extern "C" __global__ void softmax_xent(const __nv_bfloat16 *x, const int *target, float *loss, __nv_bfloat16 *dx, int width) {
  __shared__ float part[4];
  const __nv_bfloat16 *in = x + (size_t)blockIdx.x * width;
  float top = -INFINITY;
  for (int i = threadIdx.x; i < width; i += blockDim.x) top = fmaxf(top, __bfloat162float(in[i]));
  for (int i = 16; i; i /= 2) top = fmaxf(top, __shfl_down_sync(~0u, top, i));
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = top;
  __syncthreads();
  top = fmaxf(fmaxf(part[0], part[1]), fmaxf(part[2], part[3]));
  __syncthreads(); // `part` was read
  float sum = 0;
  for (int i = threadIdx.x; i < width; i += blockDim.x) sum += expf(__bfloat162float(in[i]) - top);
  sum = warp_sum(sum);
  if (threadIdx.x % 32 == 0) part[threadIdx.x / 32] = sum;
  __syncthreads();
  sum = part[0] + part[1] + part[2] + part[3];
  if (threadIdx.x == 0) loss[blockIdx.x] = logf(sum) + top - __bfloat162float(in[target[blockIdx.x]]);
  for (int i = threadIdx.x; i < width; i += blockDim.x)
    dx[(size_t)blockIdx.x * width + i] = __float2bfloat16(expf(__bfloat162float(in[i]) - top) / sum - (i == target[blockIdx.x] ? 1.f : 0.f));
}

// Pairs (i, i + half) of each row turn by position * base^(-i / half).
extern "C" __global__ void rope(float *x, int length, int half, float base) {
  const int i = threadIdx.x, position = blockIdx.x % length;
  if (i >= half) return;
  float *row = x + (size_t)blockIdx.x * 2 * half;
  float sine, cosine;
  sincosf(position * powf(base, -(float)i / half), &sine, &cosine);
  const float a = row[i], b = row[i + half];
  row[i] = a * cosine - b * sine;
  row[i + half] = a * sine + b * cosine;
}

// dtable[token] += dy[row]: integer-valued gradients, so that the order does not matter.
extern "C" __global__ void embedding_bwd(const int *tokens, const float *dy, float *dtable, int rows, int width) {
  for (int row = blockIdx.x; row < rows; row += gridDim.x)
    for (int i = threadIdx.x; i < width; i += blockDim.x) atomicAdd(&dtable[tokens[row] * width + i], dy[row * width + i]);
}

// Index of the largest of 32 per warp, and who else has that value.
extern "C" __global__ void argmax_warp(const uint32_t *x, uint32_t *top, uint32_t *where, uint32_t *peers, uint32_t *any) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  const uint32_t v = x[i], best = __reduce_max_sync(~0u, v);
  const uint32_t holders = __ballot_sync(~0u, v == best);
  top[i] = best;
  where[i] = __ffs(holders) - 1;
  peers[i] = __match_any_sync(~0u, v & 7);
  any[i] = __any_sync(~0u, v == 5) | __all_sync(~0u, v < 1000) << 1 | __reduce_add_sync(~0u, v & 3) << 2 | __popc(__activemask()) << 16;
}
