// Stores and reductions that tell an mbarrier of another CTA (st.async, red.async), and bulk reductions of every operation and type.
#include "hopper.cuh"

__device__ uint32_t remote(const void *p, uint32_t rank) {
  uint32_t out;
  asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(out) : "r"(shared_address(p)), "r"(rank));
  return out;
}

// Each thread sends 16, 8 and 4 bytes to the next CTA and adds to a sum and a maximum there. Launch: clusters of 4, 64 threads.
extern "C" __global__ void __cluster_dims__(4, 1, 1) sends(const uint32_t *in, uint32_t *out) {
  __shared__ __align__(16) uint4 quads[64];
  __shared__ __align__(16) uint2 pairs[64];
  __shared__ uint32_t words[64], sum, largest;
  __shared__ uint64_t bar;
  const int t = threadIdx.x;
  const uint32_t rank = blockIdx.x % 4, next = (rank + 1) % 4;
  if (t == 0) {
    sum = 0;
    largest = 0;
    mbarrier_init(&bar, 1);
    fence_mbarrier_init();
    mbarrier_expect_tx(&bar, 64 * (16 + 8 + 4 + 4 + 4));
  }
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
  const uint32_t x = in[blockIdx.x * 64 + t], far_bar = remote(&bar, next);
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.v4.b32 [%0], {%1, %2, %3, %4}, [%5];"
               ::"r"(remote(&quads[t], next)), "r"(x), "r"(x + 1), "r"(x + 2), "r"(x + 3), "r"(far_bar) : "memory");
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b64 [%0], %1, [%2];"
               ::"r"(remote(&pairs[t], next)), "l"((uint64_t)x << 32 | t), "r"(far_bar) : "memory");
  asm volatile("st.async.weak.shared::cluster.mbarrier::complete_tx::bytes.b32 [%0], %1, [%2];"
               ::"r"(remote(&words[63 - t], next)), "r"(x ^ 5), "r"(far_bar) : "memory");
  asm volatile("red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%0], %1, [%2];"
               ::"r"(remote(&sum, next)), "r"(x), "r"(far_bar) : "memory");
  asm volatile("red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.max.u32 [%0], %1, [%2];"
               ::"r"(remote(&largest, next)), "r"(x), "r"(far_bar) : "memory");
  mbarrier_wait_cluster(&bar, 0);
  uint32_t *o = out + (blockIdx.x * 64 + t) * 6;
  o[0] = quads[t].x ^ quads[t].y ^ quads[t].z;
  o[1] = quads[t].w;
  o[2] = pairs[t].x + pairs[t].y;
  o[3] = words[t];
  o[4] = sum;
  o[5] = largest;
  asm volatile("barrier.cluster.arrive.aligned;\nbarrier.cluster.wait.aligned;" ::: "memory");
}

// 64 words from `in` combined with `to` in global memory, then (and, xor, add, inc) with shared memory of this CTA. Launch: 32 threads.
#define REDUCE(NAME, TEXT) \
  extern "C" __global__ void reduce_##NAME(const uint32_t *in, uint32_t *to) { \
    __shared__ __align__(16) uint32_t from[64]; \
    for (int i = threadIdx.x; i < 64; i += 32) from[i] = in[i]; \
    fence_proxy_async(); \
    __syncthreads(); \
    if (threadIdx.x == 0) { \
      asm volatile("cp.reduce.async.bulk.global.shared::cta.bulk_group." TEXT " [%0], [%1], 256;" ::"l"(to), "r"(shared_address(from)) : "memory"); \
      bulk_commit(); \
      bulk_wait<0>(); \
    } \
  }
REDUCE(add_u32, "add.u32") REDUCE(add_u64, "add.u64") REDUCE(min_s32, "min.s32") REDUCE(max_s64, "max.s64") REDUCE(max_u32, "max.u32")
REDUCE(inc_u32, "inc.u32") REDUCE(dec_u32, "dec.u32") REDUCE(and_b32, "and.b32") REDUCE(or_b64, "or.b64") REDUCE(xor_b32, "xor.b32")
REDUCE(add_f16, "add.noftz.f16") REDUCE(add_bf16, "add.noftz.bf16") REDUCE(min_f16, "min.f16") REDUCE(max_bf16, "max.bf16")
REDUCE(add_f64, "add.f64") REDUCE(add_f32, "add.f32")
