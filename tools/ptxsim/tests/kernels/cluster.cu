// Clusters: distributed shared memory, remote arrivals, bulk copies between CTAs, multicast.
#include "hopper.cuh"

// Every CTA of a cluster of 4 sums its 128 values; each then adds up the sums of all. out[CTA] = the cluster's sum.
// Launch: grid 4 n, cluster 4, 128 threads.
extern "C" __global__ void __cluster_dims__(4, 1, 1) cluster_sum(const float *in, float *out) {
  __shared__ float warps[4], total;
  float x = in[blockIdx.x * 128 + threadIdx.x];
  for (int i = 16; i; i /= 2) x += __shfl_xor_sync(~0u, x, i);
  if (threadIdx.x % 32 == 0) warps[threadIdx.x / 32] = x;
  __syncthreads();
  if (threadIdx.x == 0) total = warps[0] + warps[1] + warps[2] + warps[3];
  cluster_sync(); // every CTA's total is written
  if (threadIdx.x == 0) {
    float sum = 0;
    for (uint32_t rank = 0; rank < 4; rank++) sum += load_of_cta(&total, rank);
    out[blockIdx.x] = sum;
  }
  cluster_sync(); // nobody leaves while its total is read
}

// A ring of 2 CTAs: each sends 1 KiB to the other by a bulk copy, which tells the other's barrier; then it is stored from there.
// Launch: grid 2 n, cluster 2, 64 threads.
extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_ring(const float *in, float *out) {
  __shared__ __align__(128) float mine[256], theirs[256];
  __shared__ uint64_t bar;
  const uint32_t other = cluster_rank() ^ 1;
  if (threadIdx.x == 0) {
    mbarrier_init(&bar, 1);
    fence_mbarrier_init();
    mbarrier_expect_tx(&bar, 1024);
  }
  for (int i = threadIdx.x; i < 256; i += 64) mine[i] = in[blockIdx.x * 256 + i];
  fence_proxy_async();
  cluster_sync(); // both barriers expect their bytes, and `mine` is complete
  if (threadIdx.x == 0) bulk_copy_to(theirs, mine, 1024, &bar, other);
  mbarrier_wait_cluster(&bar, 0);
  for (int i = threadIdx.x; i < 256; i += 64) out[blockIdx.x * 256 + i] = theirs[i] + 1;
  cluster_sync(); // `mine` was read by the copy before it goes
}

// Two CTAs load half a tile each and send it to both (multicast), over and over through two stages; CTA `r` of the cluster writes tile i
// times (r + 1). A stage is free once both CTAs have read it: each arrives at the barrier of both.
// Launch: grid 2 n, cluster 2, 128 threads. The tensor has `tiles` * n tiles of 32 rows x 32 floats; a load takes 16 rows.
extern "C" __global__ void __cluster_dims__(2, 1, 1) cluster_multicast(const __grid_constant__ TensorMap map, float *out, int tiles) {
  __shared__ __align__(1024) float stage[2][32 * 32];
  __shared__ uint64_t full[2], empty[2];
  const uint32_t rank = cluster_rank();
  const int cluster = blockIdx.x / 2;
  if (threadIdx.x == 0) {
    for (int i = 0; i < 2; i++) {
      mbarrier_init(&full[i], 1);
      mbarrier_init(&empty[i], 2 * 4); // one arrival per warp of both CTAs
    }
    fence_mbarrier_init();
  }
  cluster_sync(); // all barriers exist before anyone signals them
  for (int tile = 0; tile < tiles; tile++) {
    const int s = tile % 2, round = tile / 2;
    if (threadIdx.x == 0) {
      mbarrier_wait_cluster(&empty[s], (round + 1) & 1);
      mbarrier_expect_tx(&full[s], 32 * 32 * 4);
      tensor_load_2d_multicast(&stage[s][rank * 512], &map, &full[s], 0, (cluster * tiles + tile) * 32 + rank * 16, 3);
    }
    mbarrier_wait(&full[s], round & 1);
    for (int i = threadIdx.x; i < 1024; i += 128) out[(blockIdx.x * tiles + tile) * 1024 + i] = stage[s][i] * (rank + 1);
    __syncwarp();
    if (threadIdx.x % 32 < 2) mbarrier_arrive_at(&empty[s], threadIdx.x % 32);
  }
  cluster_sync(); // the other CTA's copies into this one have landed and been waited for
}
