// Faulty kernels and their correct twins for sm_80: NAME_bad has the fault, NAME_good has not. All take `in` (1,024 floats, written by
// the host), `out` (1,024 floats) and `flag` (64 zeros). The fault is the line that asks for BAD.
#include "ptx.cuh"

#define TWINS(NAME) \
  extern "C" __global__ void NAME##_bad(const float *in, float *out, uint32_t *flag) { NAME<true>(in, out, flag); } \
  extern "C" __global__ void NAME##_good(const float *in, float *out, uint32_t *flag) { NAME<false>(in, out, flag); }

// One block of 1,024: the last thread writes behind the end.
template <bool BAD> __device__ void outside(const float *in, float *out, uint32_t *) { out[threadIdx.x + (BAD ? 1 : 0)] = in[threadIdx.x]; }
TWINS(outside)

template <bool BAD> __device__ void outside_shared(const float *in, float *out, uint32_t *flag) {
  extern __shared__ float tile[]; // 64 floats
  tile[threadIdx.x] = in[threadIdx.x];
  if (BAD) tile[64 + flag[0] + threadIdx.x] = 1;
  out[threadIdx.x] = tile[threadIdx.x];
}
TWINS(outside_shared)

template <bool BAD> __device__ void misaligned(const float *in, float *out, uint32_t *) {
  out[threadIdx.x] = *(const float *)((const char *)(in + threadIdx.x) + (BAD ? 2 : 0));
}
TWINS(misaligned)

template <bool BAD> __device__ void uninitialised_global(const float *in, float *out, uint32_t *) {
  if (!BAD) out[threadIdx.x] = in[threadIdx.x];
  out[threadIdx.x + 512] = out[threadIdx.x] + 1;
}
TWINS(uninitialised_global)

template <bool BAD> __device__ void uninitialised_shared(const float *in, float *out, uint32_t *) {
  __shared__ float tile[64];
  if (threadIdx.x < (BAD ? 63 : 64)) tile[threadIdx.x] = in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}
TWINS(uninitialised_shared)

// The other warp reads what this one wrote.
template <bool BAD> __device__ void no_barrier(const float *in, float *out, uint32_t *) {
  __shared__ float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  if (!BAD) __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}
TWINS(no_barrier)

// The tile is overwritten while the other warp may still read it.
template <bool BAD> __device__ void no_second_barrier(const float *in, float *out, uint32_t *) {
  __shared__ float tile[64];
  float sum = 0;
  for (int i = 0; i < 4; i++) {
    tile[threadIdx.x] = in[i * 64 + threadIdx.x];
    __syncthreads();
    sum += tile[63 - threadIdx.x];
    if (!BAD) __syncthreads();
  }
  out[threadIdx.x] = sum;
}
TWINS(no_second_barrier)

// Neighbouring halves of a word belong to different warps: no race.
template <bool BAD> __device__ void halves(const float *in, float *out, uint32_t *) {
  __shared__ uint16_t tile[128];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  tile[2 * lane + (BAD ? 0 : warp)] = (uint16_t)in[threadIdx.x];
  __syncthreads();
  out[threadIdx.x] = tile[2 * lane];
}
TWINS(halves)

// Warp 1 adds up what warp 0 writes; nothing tells warp 0 that the buffer is free again.
template <bool BAD> __device__ void named_barrier(const float *in, float *out, uint32_t *) {
  __shared__ float tile[32];
  const int lane = threadIdx.x % 32;
  float sum = 0;
#pragma unroll
  for (int i = 0; i < 4; i++) {
    if (threadIdx.x < 32) {
      if (!BAD && i > 0) named_barrier_sync(4 + i, 64);
      tile[lane] = in[i * 32 + lane];
      named_barrier_arrive(1 + i, 64);
    } else {
      named_barrier_sync(1 + i, 64);
      sum += tile[31 - lane];
      if (!BAD && i < 3) named_barrier_arrive(5 + i, 64);
    }
  }
  if (threadIdx.x >= 32) out[lane] = sum;
}
TWINS(named_barrier)

template <bool BAD> __device__ void no_syncwarp(const float *in, float *out, uint32_t *) {
  __shared__ float tile[32];
  tile[threadIdx.x] = in[threadIdx.x];
  if (!BAD) __syncwarp();
  out[threadIdx.x] = tile[31 - threadIdx.x];
}
TWINS(no_syncwarp)

// Every block adds to one word.
template <bool BAD> __device__ void plain_sum(const float *in, float *, uint32_t *flag) {
  if (threadIdx.x == 0) {
    if (BAD) flag[0] += (uint32_t)in[blockIdx.x];
    else atomicAdd(&flag[0], (uint32_t)in[blockIdx.x]);
  }
}
TWINS(plain_sum)

// The last of 4 blocks adds up what all wrote; a block that does not publish its part by a fence is not ordered before it.
template <bool BAD> __device__ void last_block(const float *in, float *out, uint32_t *flag) {
  __shared__ uint32_t order;
  out[blockIdx.x * 32 + threadIdx.x] = in[threadIdx.x];
  if (!BAD) __threadfence();
  __syncthreads();
  if (threadIdx.x == 0) {
    order = atomicAdd(&flag[0], 1);
    __threadfence();
  }
  __syncthreads();
  if (order == 3) {
    float sum = 0;
    for (int i = 0; i < 4; i++) sum += out[i * 32 + threadIdx.x];
    out[512 + threadIdx.x] = sum;
  }
}
TWINS(last_block)

template <bool BAD> __device__ void copy_not_waited(const float *in, float *out, uint32_t *) {
  __shared__ __align__(16) float tile[32];
  cp_async_4(shared_address(&tile[threadIdx.x]), &in[threadIdx.x]);
  cp_async_commit();
  if (BAD) cp_async_wait<1>();
  else cp_async_wait<0>();
  out[threadIdx.x] = tile[threadIdx.x];
  cp_async_wait<0>();
}
TWINS(copy_not_waited)

// Waiting tells only the thread that waits.
template <bool BAD> __device__ void copy_without_barrier(const float *in, float *out, uint32_t *) {
  __shared__ __align__(16) float tile[64];
  cp_async_4(shared_address(&tile[threadIdx.x]), &in[threadIdx.x]);
  cp_async_wait_all();
  if (!BAD) __syncthreads();
  out[threadIdx.x] = tile[63 - threadIdx.x];
}
TWINS(copy_without_barrier)

template <bool BAD> __device__ void copy_left(const float *in, float *out, uint32_t *) {
  __shared__ __align__(16) float tile[32];
  cp_async_4(shared_address(&tile[threadIdx.x]), &in[threadIdx.x]);
  cp_async_commit();
  if (!BAD) cp_async_wait<0>();
  out[threadIdx.x] = 1;
}
TWINS(copy_left)

// A barrier that only a part of the warp comes to.
template <bool BAD> __device__ void partial_warp(const float *in, float *out, uint32_t *) {
  if (!BAD || threadIdx.x % 32 < 16) asm volatile("bar.sync 0;" ::: "memory");
  asm volatile("bar.sync 1;" ::: "memory");
  out[threadIdx.x] = in[threadIdx.x];
}
TWINS(partial_warp)

template <bool BAD> __device__ void barrier_count(const float *in, float *out, uint32_t *) {
  if (threadIdx.x < 32) named_barrier_sync(1, 64);
  else named_barrier_sync(1, BAD ? 96 : 64);
  out[threadIdx.x] = in[threadIdx.x];
}
TWINS(barrier_count)

template <bool BAD> __device__ void nobody_else(const float *in, float *out, uint32_t *) {
  if (threadIdx.x < 32 || !BAD) named_barrier_sync(1, 64);
  out[threadIdx.x] = in[threadIdx.x];
}
TWINS(nobody_else)

template <bool BAD> __device__ void absent_lane(const float *in, float *out, uint32_t *) {
  float x = in[threadIdx.x];
  if (threadIdx.x < 16) x = __shfl_sync(0xffff, x, BAD ? 20 : 3);
  out[threadIdx.x] = x;
}
TWINS(absent_lane)

// Every block writes its row of `out` and reads that of the next block, which nothing orders.
extern "C" __global__ void reads_next_block(const float *in, float *out, uint32_t *flag) {
  const int i = blockIdx.x * 64 + threadIdx.x, n = gridDim.x * 64;
  out[i] = in[i];
  const float next = out[(i + 64) % n];
  if (next > 1e30f) flag[0] = 1;
}
