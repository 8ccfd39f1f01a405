// Faulty kernels and their correct twins for sm_90a, as in faults.cu. `in` holds 1,024 floats.
#include "hopper.cuh"

#define TWINS(NAME) \
  extern "C" __global__ void NAME##_bad(const float *in, float *out, uint32_t *flag) { NAME<true>(in, out, flag); } \
  extern "C" __global__ void NAME##_good(const float *in, float *out, uint32_t *flag) { NAME<false>(in, out, flag); }

__device__ __forceinline__ void init_one(uint64_t *bar, int count) {
  if (threadIdx.x == 0) {
    mbarrier_init(bar, count);
    fence_mbarrier_init();
    fence_proxy_async();
  }
  __syncthreads();
}

// Stored by ordinary stores, sent off by a bulk copy.
template <bool BAD> __device__ void no_proxy_fence(const float *in, float *out, uint32_t *) {
  __shared__ __align__(128) float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  if (!BAD) fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(out, tile, 256);
    bulk_commit();
    bulk_wait<0>();
  }
}
TWINS(no_proxy_fence)

// The buffer is filled again while the copy may still read it.
template <bool BAD> __device__ void source_reused(const float *in, float *out, uint32_t *) {
  __shared__ __align__(128) float tile[64];
  for (int i = 0; i < 2; i++) {
    tile[threadIdx.x] = in[64 * i + threadIdx.x];
    fence_proxy_async();
    __syncthreads();
    if (threadIdx.x == 0) {
      bulk_store(out + 64 * i, tile, 256);
      bulk_commit();
      if (!BAD) bulk_wait_read<0>();
    }
    __syncthreads();
  }
  if (threadIdx.x == 0) bulk_wait<0>();
}
TWINS(source_reused)

template <bool BAD> __device__ void store_left(const float *in, float *out, uint32_t *) {
  __shared__ __align__(128) float tile[64];
  tile[threadIdx.x] = in[threadIdx.x];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(out, tile, 256);
    bulk_commit();
    if (!BAD) bulk_wait_read<0>();
  }
}
TWINS(store_left)

template <bool BAD> __device__ void load_not_waited(const float *in, float *out, uint32_t *) {
  __shared__ __align__(128) float tile[64];
  __shared__ uint64_t bar;
  init_one(&bar, 1);
  if (threadIdx.x == 0) {
    mbarrier_expect_tx(&bar, 256);
    bulk_load(tile, in, 256, &bar);
  }
  if (!BAD) mbarrier_wait(&bar, 0);
  out[threadIdx.x] = tile[threadIdx.x];
  mbarrier_wait(&bar, 0);
}
TWINS(load_not_waited)

// Nobody says how many bytes come: the phase may end before they are there.
template <bool BAD> __device__ void no_expect(const float *in, float *out, uint32_t *) {
  __shared__ __align__(128) float tile[64];
  __shared__ uint64_t bar;
  init_one(&bar, 1);
  if (threadIdx.x == 0) {
    if (BAD) mbarrier_arrive(&bar);
    else mbarrier_expect_tx(&bar, 256);
    bulk_load(tile, in, 256, &bar);
  }
  mbarrier_wait(&bar, 0);
  out[threadIdx.x] = tile[threadIdx.x];
}
TWINS(no_expect)

// The stage is loaded again although the other warp may still read it.
template <bool BAD> __device__ void stage_not_free(const float *in, float *out, uint32_t *) {
  __shared__ __align__(128) float tile[32];
  __shared__ uint64_t full, empty;
  init_one(&full, 1);
  init_one(&empty, 32);
  float sum = 0;
  for (int i = 0; i < 4; i++) {
    if (threadIdx.x == 0) {
      if (!BAD) mbarrier_wait(&empty, (i + 1) & 1);
      else mbarrier_wait(&full, (i + 1) & 1);
      mbarrier_expect_tx(&full, 128);
      bulk_load(tile, in + 32 * i, 128, &full);
    }
    if (threadIdx.x >= 32) {
      mbarrier_wait(&full, i & 1);
      sum += tile[threadIdx.x - 32];
      if (!BAD) mbarrier_arrive(&empty);
    }
  }
  if (threadIdx.x >= 32) out[threadIdx.x] = sum;
}
TWINS(stage_not_free)

template <bool BAD> __device__ void init_twice(const float *in, float *out, uint32_t *) {
  __shared__ uint64_t bar;
  init_one(&bar, 64);
  if (threadIdx.x == 0) {
    if (!BAD) mbarrier_invalidate(&bar);
    mbarrier_init(&bar, 64);
  }
  __syncthreads();
  mbarrier_arrive(&bar);
  mbarrier_wait(&bar, 0);
  out[threadIdx.x] = in[threadIdx.x];
}
TWINS(init_twice)

template <bool BAD> __device__ void never_initialised(const float *in, float *out, uint32_t *flag) {
  __shared__ uint64_t bar;
  if (!BAD) init_one(&bar, 64);
  mbarrier_arrive(&bar);
  out[threadIdx.x] = in[threadIdx.x] + (float)flag[0];
}
TWINS(never_initialised)

template <bool BAD> __device__ void peeked(const float *in, float *out, uint32_t *) {
  __shared__ uint64_t bar[2];
  if (threadIdx.x == 0) bar[1] = 7;
  init_one(&bar[0], 64);
  out[threadIdx.x] = in[threadIdx.x] + (float)*(volatile uint32_t *)&bar[BAD ? 0 : 1];
}
TWINS(peeked)

template <bool BAD> __device__ void init_not_fenced(const float *in, float *out, uint32_t *) {
  __shared__ __align__(128) float tile[64];
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar, 1);
    if (!BAD) fence_mbarrier_init();
  }
  __syncthreads();
  if (threadIdx.x == 0) {
    mbarrier_expect_tx(&bar, 256);
    bulk_load(tile, in, 256, &bar);
  }
  mbarrier_wait(&bar, 0);
  out[threadIdx.x] = tile[threadIdx.x];
}
TWINS(init_not_fenced)

// Expects an arrival that never comes.
template <bool BAD> __device__ void waits_for_ever(const float *in, float *out, uint32_t *) {
  __shared__ uint64_t bar;
  init_one(&bar, BAD ? 65 : 64);
  mbarrier_arrive(&bar);
  mbarrier_wait(&bar, 0);
  out[threadIdx.x] = in[threadIdx.x];
}
TWINS(waits_for_ever)

// One wgmma of zeros and ones; 128 threads. FAULT: 1 no wgmma.fence, 2 accumulators read before the wait, 3 no proxy fence.
template <int FAULT> __device__ void wgmma_once(float *out) {
  __shared__ __align__(1024) uint16_t a[64 * 16], b[32 * 16];
  for (int i = threadIdx.x; i < 64 * 16; i += 128) a[i] = 0x3f80;
  for (int i = threadIdx.x; i < 32 * 16; i += 128) b[i] = 0x4000;
  if (FAULT != 3) fence_proxy_async();
  __syncthreads();
  float d[16];
  for (int i = 0; i < 16; i++) d[i] = 1;
  for (int i = 0; i < 16; i++) asm volatile("" : "+f"(d[i])::"memory"); // the ones are in their registers before the fence
  if (FAULT != 1) wgmma_fence();
  wgmma_m64n32k16<0, 0>(d, matrix_descriptor(a, 128, 256, 0), matrix_descriptor(b, 128, 256, 0), 1);
  wgmma_commit();
  if (FAULT != 2) wgmma_wait<0>();
  float sum = 0;
  for (int i = 0; i < 16; i++) sum += d[i];
  if (FAULT == 2) wgmma_wait<0>();
  out[threadIdx.x] = sum;
}
template <bool BAD> __device__ void wgmma_no_fence(const float *, float *out, uint32_t *) { wgmma_once<BAD ? 1 : 0>(out); }
TWINS(wgmma_no_fence)
template <bool BAD> __device__ void wgmma_read_early(const float *, float *out, uint32_t *) { wgmma_once<BAD ? 2 : 0>(out); }
TWINS(wgmma_read_early)
template <bool BAD> __device__ void wgmma_no_proxy_fence(const float *, float *out, uint32_t *) { wgmma_once<BAD ? 3 : 0>(out); }
TWINS(wgmma_no_proxy_fence)

// The last warp gives another place for B.
template <bool BAD> __device__ void wgmma_descriptors_differ(const float *, float *out, uint32_t *) {
  __shared__ __align__(1024) uint16_t a[64 * 16], b[2 * 32 * 16];
  for (int i = threadIdx.x; i < 64 * 16; i += 128) a[i] = 0x3f80;
  for (int i = threadIdx.x; i < 2 * 32 * 16; i += 128) b[i] = 0x4000;
  fence_proxy_async();
  __syncthreads();
  float d[16];
  for (int i = 0; i < 16; i++) d[i] = 1;
  for (int i = 0; i < 16; i++) asm volatile("" : "+f"(d[i])::"memory");
  wgmma_fence();
  const int other = BAD && threadIdx.x >= 96;
  wgmma_m64n32k16<0, 0>(d, matrix_descriptor(a, 128, 256, 0), matrix_descriptor(b + other * 32 * 16, 128, 256, 0), 1);
  wgmma_commit();
  wgmma_wait<0>();
  float sum = 0;
  for (int i = 0; i < 16; i++) sum += d[i];
  out[threadIdx.x] = sum;
}
TWINS(wgmma_descriptors_differ)

// Clusters of 2: each CTA reads the other's value.
template <int FAULT> __device__ void peer_value(const float *in, float *out) {
  __shared__ float mine[64];
  mine[threadIdx.x] = in[blockIdx.x * 64 + threadIdx.x];
  if (FAULT != 1) cluster_sync();
  float sum = 0;
  for (int i = 0; i < (FAULT == 2 && cluster_rank() == 1 ? 200 : 1); i++) sum += load_of_cta(&mine[63 - threadIdx.x], cluster_rank() ^ 1);
  out[blockIdx.x * 64 + threadIdx.x] = sum;
  if (FAULT != 2) cluster_sync();
}
#define CLUSTER_TWINS(NAME, FAULT) \
  extern "C" __global__ void __cluster_dims__(2, 1, 1) NAME##_bad(const float *in, float *out, uint32_t *) { peer_value<FAULT>(in, out); } \
  extern "C" __global__ void __cluster_dims__(2, 1, 1) NAME##_good(const float *in, float *out, uint32_t *) { peer_value<0>(in, out); }
CLUSTER_TWINS(peer_not_ready, 1)
CLUSTER_TWINS(peer_gone, 2)
