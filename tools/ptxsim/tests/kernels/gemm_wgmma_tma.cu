// C = A B^T in bf16 with f32 sums on sm_90a: a producer warp fills a ring of tiles by tensor copies, a consumer warpgroup multiplies them
// with wgmma; the result leaves through shared memory and a tensor store. A is M x K, B is N x K, C is M x N, all row-major.
// Launch: grid (N / 32, M / 64), 256 threads.
#include "hopper.cuh"
#include <cuda_bf16.h>

constexpr int BM = 64, BN = 32, BK = 64, STAGES = 3;

struct alignas(1024) Shared {
  __nv_bfloat16 a[STAGES][BM * BK]; // 128-byte rows, 128-byte swizzle
  __nv_bfloat16 b[STAGES][BN * BK];
  float c[BM * BN]; // plain rows
  uint64_t full[STAGES], empty[STAGES];
};

extern "C" __global__ void __launch_bounds__(256, 1)
gemm_wgmma_tma(const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_b, const __grid_constant__ TensorMap map_c, int k_tiles) {
  extern __shared__ __align__(1024) uint8_t raw[];
  Shared &s = *reinterpret_cast<Shared *>(raw);
  const int warpgroup = threadIdx.x / 128, row = blockIdx.y * BM, column = blockIdx.x * BN;
  if (threadIdx.x == 0) {
    for (int i = 0; i < STAGES; i++) {
      mbarrier_init(&s.full[i], 1);
      mbarrier_init(&s.empty[i], 128);
    }
    fence_mbarrier_init(); // the copies signal them
  }
  __syncthreads(); // the barriers exist

  if (warpgroup == 0) { // producer
    registers_less<40>();
    if (threadIdx.x == 0) {
      tensor_prefetch(&map_a);
      for (int tile = 0; tile < k_tiles; tile++) {
        const int stage = tile % STAGES, round = tile / STAGES;
        mbarrier_wait(&s.empty[stage], (round + 1) & 1);
        mbarrier_expect_tx(&s.full[stage], (BM + BN) * BK * 2);
        tensor_load_2d(s.a[stage], &map_a, &s.full[stage], tile * BK, row);
        tensor_load_2d(s.b[stage], &map_b, &s.full[stage], tile * BK, column);
      }
    }
  } else { // consumer
    registers_more<232>();
    float d[16];
    for (int tile = 0; tile < k_tiles; tile++) {
      const int stage = tile % STAGES, round = tile / STAGES;
      mbarrier_wait(&s.full[stage], round & 1);
      wgmma_fence();
#pragma unroll
      for (int k = 0; k < BK / 16; k++) {
        uint64_t a = matrix_descriptor(s.a[stage] + 16 * k, 16, 1024, 1), b = matrix_descriptor(s.b[stage] + 16 * k, 16, 1024, 1);
        wgmma_m64n32k16<0, 0>(d, a, b, tile > 0 || k > 0);
      }
      wgmma_commit();
      wgmma_wait<0>();
      mbarrier_arrive(&s.empty[stage]); // every consumer thread: 128 arrivals free the stage
    }
    const int t = threadIdx.x - 128, warp = t / 32, g = t % 32 / 4, q = t % 4;
#pragma unroll
    for (int i = 0; i < 16; i++) s.c[(16 * warp + g + 8 * ((i >> 1) & 1)) * BN + 8 * (i >> 2) + 2 * q + (i & 1)] = d[i];
    fence_proxy_async(); // the tensor store reads what these threads wrote
    named_barrier_sync(1, 128);
    if (t == 0) {
      tensor_store_2d(&map_c, s.c, column, row);
      bulk_commit();
      bulk_wait<0>();
    }
  }
}
