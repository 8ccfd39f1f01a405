// Tensor copies of 1 to 5 dimensions: a box goes into shared memory and its bytes, as they lie there, to `out`. One thread issues.
// Launch: 1 block of 128 threads; dynamic shared memory: the box, aligned to 1024.
#include "hopper.cuh"

extern __shared__ __align__(1024) uint8_t box[];

template <int RANK> __device__ void load_box(const TensorMap &map, uint32_t *out, uint32_t bytes, int x, int y, int z, int w, int v) {
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar, 1);
    fence_mbarrier_init();
    mbarrier_expect_tx(&bar, bytes);
    if (RANK == 1) tensor_load_1d(box, &map, &bar, x);
    if (RANK == 2) tensor_load_2d(box, &map, &bar, x, y);
    if (RANK == 3) tensor_load_3d(box, &map, &bar, x, y, z);
    if (RANK == 4) tensor_load_4d(box, &map, &bar, x, y, z, w);
    if (RANK == 5) tensor_load_5d(box, &map, &bar, x, y, z, w, v);
  }
  __syncthreads(); // the barrier exists
  mbarrier_wait(&bar, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) out[i] = reinterpret_cast<uint32_t *>(box)[i];
}

#define LOAD(RANK) \
  extern "C" __global__ void tensor_load_##RANK##d_kernel(const __grid_constant__ TensorMap map, uint32_t *out, uint32_t bytes, int x, int y, int z, int w, int v) { \
    load_box<RANK>(map, out, bytes, x, y, z, w, v); \
  }
LOAD(1) LOAD(2) LOAD(3) LOAD(4) LOAD(5)

// The other way: `in` into shared memory, then a box out of it, clipped at the tensor's edges; `reduce` adds instead.
extern "C" __global__ void tensor_store_2d_kernel(const __grid_constant__ TensorMap map, const uint32_t *in, uint32_t bytes, int x, int y, int reduce) {
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) reinterpret_cast<uint32_t *>(box)[i] = in[i];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    if (reduce) tensor_reduce_add_2d(&map, box, x, y);
    else tensor_store_2d(&map, box, x, y);
    bulk_commit();
    bulk_wait<0>();
  }
}

extern "C" __global__ void tensor_store_3d_kernel(const __grid_constant__ TensorMap map, const uint32_t *in, uint32_t bytes, int x, int y, int z) {
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) reinterpret_cast<uint32_t *>(box)[i] = in[i];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    tensor_store_3d(&map, box, x, y, z);
    bulk_commit();
    bulk_wait_read<0>();
  }
}
