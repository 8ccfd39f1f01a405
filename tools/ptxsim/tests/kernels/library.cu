// NVIDIA's own device libraries: cooperative groups, cuda::barrier, cuda::pipeline, cuda::atomic. Launch: 128 threads.
#include <cooperative_groups.h>
#include <cooperative_groups/memcpy_async.h>
#include <cooperative_groups/reduce.h>
#include <cooperative_groups/scan.h>
#include <cuda/atomic>
#include <cuda/barrier>
#include <cuda/pipeline>
#include <cstdint>
namespace cg = cooperative_groups;

// Sum and running sum over tiles of 8, maximum over the lanes with odd values, ballot of each tile of 4.
extern "C" __global__ void groups(const int *in, int *out) {
  const int i = blockIdx.x * 128 + threadIdx.x, x = in[i];
  auto block = cg::this_thread_block();
  auto eight = cg::tiled_partition<8>(block);
  auto four = cg::tiled_partition<4>(block);
  out[5 * i] = cg::reduce(eight, x, cg::plus<int>());
  out[5 * i + 1] = cg::inclusive_scan(eight, x);
  out[5 * i + 2] = four.ballot(x > 0);
  out[5 * i + 3] = eight.shfl_xor(x, 5);
  out[5 * i + 4] = 0;
  if (x & 1) {
    auto odd = cg::coalesced_threads();
    out[5 * i + 4] = cg::reduce(odd, x, cg::greater<int>()) + odd.size();
  }
}

// A block of 128 words arrives by memcpy_async, announced by a barrier; then turned round.
extern "C" __global__ void by_barrier(const int *in, int *out) {
  __shared__ __align__(16) int data[128];
#pragma nv_diag_suppress static_var_with_dynamic_init
  __shared__ cuda::barrier<cuda::thread_scope_block> arrived;
  auto block = cg::this_thread_block();
  if (threadIdx.x == 0) {
    init(&arrived, 128);
#if __CUDA_ARCH__ >= 900
    // memcpy_async is a bulk copy there, whose proxy must see the barrier.
    asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
#endif
  }
  block.sync();
  cuda::memcpy_async(block, data, in + blockIdx.x * 128, cuda::aligned_size_t<16>(512), arrived);
  arrived.arrive_and_wait();
  out[blockIdx.x * 128 + threadIdx.x] = data[127 - threadIdx.x];
}

// out = sum over tiles of 128 words, two of them in flight.
extern "C" __global__ void by_pipeline(const int *in, int *out, int tiles) {
  __shared__ __align__(16) int data[2][128];
  __shared__ cuda::pipeline_shared_state<cuda::thread_scope_block, 2> state;
  auto block = cg::this_thread_block();
  auto pipeline = cuda::make_pipeline(block, &state);
  int sum = 0;
  for (int ahead = 0, tile = 0; tile < tiles; tile++) {
    for (; ahead < tiles && ahead < tile + 2; ahead++) {
      pipeline.producer_acquire();
      cuda::memcpy_async(block, data[ahead % 2], in + ahead * 128, cuda::aligned_size_t<16>(512), pipeline);
      pipeline.producer_commit();
    }
    pipeline.consumer_wait();
    block.sync();
    sum += data[tile % 2][127 - threadIdx.x] * (tile + 1);
    block.sync();
    pipeline.consumer_release();
  }
  out[threadIdx.x] = sum;
}

// The last block to come adds up what all have left; tickets by an atomic object.
extern "C" __global__ void by_ticket(const int *in, int *left, cuda::atomic<int, cuda::thread_scope_device> *tickets, int *out) {
  if (threadIdx.x == 0) {
    left[blockIdx.x] = in[blockIdx.x] * 3;
    if (tickets->fetch_add(1, cuda::memory_order_acq_rel) == gridDim.x - 1) {
      int sum = 0;
      for (int i = 0; i < gridDim.x; i++) sum += i == blockIdx.x ? in[i] * 3 : left[i];
      out[0] = sum;
    }
  }
}
