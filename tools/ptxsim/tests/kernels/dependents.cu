// Programmatic dependent launches: the second grid starts while the first one runs. Launch: any grid, 64 threads.
#include "hopper.cuh"

__device__ __forceinline__ void launch_dependents() { asm volatile("griddepcontrol.launch_dependents;" ::: "memory"); }
__device__ __forceinline__ void wait_for_grid() { asm volatile("griddepcontrol.wait;" ::: "memory"); }

// data = 2 in, after the next grid was let go.
extern "C" __global__ void produces(const uint32_t *in, uint32_t *data) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  const uint32_t x = in[i];
  __syncthreads();
  launch_dependents();
  data[i] = 2 * x;
}

// The same without letting anybody go earlier than at its end.
extern "C" __global__ void produces_quietly(const uint32_t *in, uint32_t *data) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  data[i] = 2 * in[i];
}

// out = data + table: the table is nobody's, and read before the wait; `early` makes it read the data there, too.
template <int FAULT> __device__ void consume(const uint32_t *data, const uint32_t *table, uint32_t *out, uint32_t *scratch) {
  const int i = blockIdx.x * 64 + threadIdx.x;
  const uint32_t x = table[i];
  uint32_t y = 0;
  if (FAULT == 1) y = data[i];
  if (FAULT == 2) scratch[i] = x;
  if (threadIdx.x < 32 || FAULT == 3) wait_for_grid(); // the barrier tells the other warp
  __syncthreads();
  if (FAULT != 1) y = data[i];
  out[i] = x + y;
}
#define CONSUME(NAME, FAULT) \
  extern "C" __global__ void NAME(const uint32_t *data, const uint32_t *table, uint32_t *out, uint32_t *scratch) { \
    consume<FAULT>(data, table, out, scratch); \
  }
CONSUME(consumes, 0) CONSUME(consumes_early, 1) CONSUME(overwrites_early, 2) CONSUME(all_wait, 3)
