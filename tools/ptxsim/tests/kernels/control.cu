// Control flow, calls, local memory, printf, volatile accesses and fences.
#include <cstdint>
#include <cstdio>

// Steps of the Collatz sequence, with a switch on the last digit.
extern "C" __global__ void collatz_switch(uint32_t *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  uint32_t x = i + 1, steps = 0, kinds = 0;
  while (x != 1) {
    switch (x % 11) {
      case 0: kinds += 1; break;
      case 1: kinds ^= x; break;
      case 2: kinds = kinds << 1 | kinds >> 31; break;
      case 3: kinds -= 3; break;
      case 4: kinds *= 5; break;
      case 5: kinds |= 1; // falls through
      case 6: kinds += x; break;
      case 7: if (kinds & 1) { kinds ^= 0x55; } break;
      case 8: kinds = ~kinds; break;
      case 9: kinds += steps; break;
      default: kinds ^= kinds >> 3;
    }
    x = x % 2 ? 3 * x + 1 : x / 2;
    steps++;
  }
  out[2 * i] = steps;
  out[2 * i + 1] = kinds;
}

__device__ __noinline__ uint32_t ackermann(uint32_t m, uint32_t n) {
  if (m == 0) return n + 1;
  if (n == 0) return ackermann(m - 1, 1);
  return ackermann(m - 1, ackermann(m, n - 1));
}
extern "C" __global__ void recursion(uint32_t *out) { out[threadIdx.x] = ackermann(2, threadIdx.x % 5); }

// An array with run-time indices lives in local memory.
extern "C" __global__ void local_array(const uint32_t *in, uint32_t *out, int rounds) {
  uint32_t a[16];
  for (int i = 0; i < 16; i++) a[i] = in[i] + threadIdx.x;
  for (int r = 0; r < rounds; r++) a[a[r % 16] % 16] += a[(r * 7 + 3) % 16] ^ r;
  uint32_t sum = 0;
  for (int i = 0; i < 16; i++) sum = sum * 31 + a[i];
  out[threadIdx.x] = sum;
}

extern "C" __global__ void prints(int n) {
  if (threadIdx.x < n) printf("thread %d of %u: %s %.3f %llx\n", threadIdx.x, blockDim.x, "says", threadIdx.x * 0.5, 0x123456789abcdefULL);
}

__device__ uint32_t d_table[4] = {3, 1, 4, 1};
__constant__ uint32_t c_table[4] = {10, 20, 30, 40};

// Volatile accesses, fences at all scopes, module variables, exchange and compare-and-swap.
extern "C" __global__ void memory_kinds(volatile uint32_t *v, uint32_t *out, uint32_t *lock, uint32_t *counter) {
  __shared__ volatile uint32_t s[32];
  s[threadIdx.x] = v[threadIdx.x] + d_table[threadIdx.x % 4] + c_table[(threadIdx.x + blockIdx.x) % 4];
  __threadfence_block();
  __syncwarp();
  v[threadIdx.x + 32] = s[31 - threadIdx.x];
  __threadfence();
  __threadfence_system();
  uint32_t old = atomicInc(counter, 1000);
  old += atomicCAS(&lock[threadIdx.x % 4], 0, 1);
  old += atomicExch(&lock[4 + threadIdx.x % 4], 1);
  out[threadIdx.x] = old != 0xffffffffu;
}

// A spin lock per block: lanes of one warp must make progress while others spin.
extern "C" __global__ void spin_lock(int *lock, int *total) {
  while (atomicCAS(lock, 0, 1) != 0) __nanosleep(20);
  __threadfence();
  *(volatile int *)total = *(volatile int *)total + 1;
  __threadfence();
  atomicExch(lock, 0);
}
