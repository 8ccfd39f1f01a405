// Tensor maps of pixels (im2col), and maps that a kernel changes. One thread issues. Launch: 1 block of 32 threads.
#include "hopper.cuh"

extern __shared__ __align__(1024) uint8_t column[];

__device__ void wait_and_store(uint64_t *bar, uint32_t *out, uint32_t bytes) {
  mbarrier_wait(bar, 0);
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) out[i] = reinterpret_cast<uint32_t *>(column)[i];
}

// A column of pixels of an image batch (channels, width, height, image), moved by (s, r).
extern "C" __global__ void pixels_2d(const __grid_constant__ TensorMap map, uint32_t *out, uint32_t bytes, int c, int w, int h, int n, int s, int r) {
  __shared__ uint64_t bar;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar, 1);
    fence_mbarrier_init();
    mbarrier_expect_tx(&bar, bytes);
    asm volatile("cp.async.bulk.tensor.4d.shared::cluster.global.im2col.mbarrier::complete_tx::bytes [%0], [%1, {%3, %4, %5, %6}], [%2], {%7, %8};"
                 ::"r"(shared_address(column)), "l"(&map), "r"(shared_address(&bar)), "r"(c), "r"(w), "r"(h), "r"(n), "h"((uint16_t)s),
                 "h"((uint16_t)r) : "memory");
  }
  __syncthreads(); // the barrier exists
  wait_and_store(&bar, out, bytes);
}

// `in` into shared memory, then as a column of pixels to the tensor.
extern "C" __global__ void pixels_stored(const __grid_constant__ TensorMap map, const uint32_t *in, uint32_t bytes, int c, int w, int h, int n) {
  for (int i = threadIdx.x; i < bytes / 4; i += blockDim.x) reinterpret_cast<uint32_t *>(column)[i] = in[i];
  fence_proxy_async();
  __syncthreads();
  if (threadIdx.x == 0) {
    asm volatile("cp.async.bulk.tensor.4d.global.shared::cta.im2col_no_offs.bulk_group [%1, {%2, %3, %4, %5}], [%0];"
                 ::"r"(shared_address(column)), "l"(&map), "r"(c), "r"(w), "r"(h), "r"(n) : "memory");
    bulk_commit();
    bulk_wait<0>();
  }
}

// Takes the map from its argument, makes it describe another tensor, publishes it in `changed`, and loads a box by it.
extern "C" __global__ void changed_map(const __grid_constant__ TensorMap map, TensorMap *changed, uint32_t *out, uint32_t bytes, const void *tensor,
                                       uint32_t width, uint32_t height, uint64_t pitch, uint32_t box_width, int x, int y) {
  __shared__ uint64_t bar;
  __shared__ __align__(128) TensorMap copy;
  reinterpret_cast<uint32_t *>(&copy)[threadIdx.x] = reinterpret_cast<const uint32_t *>(&map)[threadIdx.x];
  __syncthreads();
  const uint32_t at = shared_address(&copy);
  if (threadIdx.x == 0) {
    asm volatile("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%0], %1;" ::"r"(at), "l"(tensor) : "memory");
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(at), "r"(width) : "memory");
    asm volatile("tensormap.replace.tile.global_dim.shared::cta.b1024.b32 [%0], 1, %1;" ::"r"(at), "r"(height) : "memory");
    asm volatile("tensormap.replace.tile.global_stride.shared::cta.b1024.b64 [%0], 0, %1;" ::"r"(at), "l"(pitch) : "memory");
    asm volatile("tensormap.replace.tile.box_dim.shared::cta.b1024.b32 [%0], 0, %1;" ::"r"(at), "r"(box_width) : "memory");
    asm volatile("tensormap.replace.tile.swizzle_mode.shared::cta.b1024.b32 [%0], 0;" ::"r"(at) : "memory");
    asm volatile("tensormap.replace.tile.fill_mode.shared::cta.b1024.b32 [%0], 1;" ::"r"(at) : "memory");
  }
  __syncwarp();
  asm volatile("tensormap.cp_fenceproxy.global.shared::cta.tensormap::generic.release.gpu.sync.aligned [%0], [%1], 128;" ::"l"(changed), "r"(at) : "memory");
  if (threadIdx.x == 0) {
    asm volatile("fence.proxy.tensormap::generic.acquire.gpu [%0], 128;" ::"l"(changed) : "memory");
    mbarrier_init(&bar, 1);
    fence_mbarrier_init();
    mbarrier_expect_tx(&bar, bytes);
    tensor_load_2d(column, changed, &bar, x, y);
  }
  __syncthreads(); // the barrier exists
  wait_and_store(&bar, out, bytes);
}
