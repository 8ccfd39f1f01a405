// Bulk copies without tensor maps: global to shared and back, and reductions.
#include "hopper.cuh"

// out = 2 in, 256 floats per block; sums += in. Launch: 64 threads.
extern "C" __global__ void bulk_double(const float *in, float *out, float *sums) {
  __shared__ __align__(128) float from[256], to[256];
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar, 1);
    fence_mbarrier_init();
    mbarrier_expect_tx(&bar, 1024);
    bulk_load(from, in + blockIdx.x * 256, 1024, &bar);
  }
  __syncthreads(); // the barrier exists
  mbarrier_wait(&bar, 0);
  for (int i = threadIdx.x; i < 256; i += 64) to[i] = 2 * from[i];
  fence_proxy_async(); // the bulk store reads what these threads wrote
  __syncthreads();
  if (threadIdx.x == 0) {
    bulk_store(out + blockIdx.x * 256, to, 1024);
    bulk_reduce_add_f32(sums, from, 1024);
    bulk_commit();
    bulk_wait<0>();
  }
  __syncthreads();
  if (threadIdx.x == 0) mbarrier_invalidate(&bar);
}

// Stage s is loaded by cp.async and announced to an mbarrier; every thread copies its own 16 bytes. Launch: 32 threads.
extern "C" __global__ void cp_async_to_mbarrier(const float *in, float *out) {
  __shared__ __align__(16) float data[128];
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) mbarrier_init(&bar, 32);
  __syncthreads();
  cp_async_16(shared_address(&data[4 * threadIdx.x]), in + blockIdx.x * 128 + 4 * threadIdx.x);
  asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(shared_address(&bar)) : "memory");
  mbarrier_wait(&bar, 0);
  for (int i = threadIdx.x; i < 128; i += 32) out[blockIdx.x * 128 + i] = data[127 - i];
}

// Dependent launch: waits for the grid before it, and says that the next one may start.
extern "C" __global__ void dependent(const float *in, float *out) {
  asm volatile("griddepcontrol.launch_dependents;");
  asm volatile("griddepcontrol.wait;" ::: "memory");
  out[blockIdx.x * blockDim.x + threadIdx.x] = in[blockIdx.x * blockDim.x + threadIdx.x] + 1;
}

// The elected lane's number, and whether this lane is it.
extern "C" __global__ void elect(uint32_t *out) {
  const bool leads = elect_one();
  out[threadIdx.x] = leads;
}
