// Calls through pointers, memory taken while a kernel runs, 128-bit atomics, printf, meeting of a whole grid.
#include <cooperative_groups.h>
#include <cstdint>
#include <cstdio>

struct Shape {
  int side;
  __device__ virtual int area(int x) { return x; }
};
struct Square : Shape {
  __device__ int area(int x) override { return side * side + x; }
};
struct Cube : Shape {
  __device__ int area(int x) override { return 6 * side * side - x; }
};

typedef int (*Binary)(int, int);
__device__ __noinline__ int sum_of(int a, int b) { return a + b; }
__device__ __noinline__ int difference_of(int a, int b) { return a - b; }
__device__ __noinline__ int fibonacci(int n, int scale) { return n < 2 ? n * scale : fibonacci(n - 1, scale) + fibonacci(n - 2, scale); }
__device__ Binary operations[3] = {sum_of, difference_of, fibonacci};

// Each thread by a function of its own choice; `choice` may be chosen so that it is none.
extern "C" __global__ void by_pointer(const int *in, int *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  out[i] = operations[in[3 * i]](in[3 * i + 1], in[3 * i + 2]);
}

extern "C" __global__ void by_value(Binary *f, int *out) { out[threadIdx.x] = (*f)(threadIdx.x, 1); }

extern "C" __global__ void virtual_functions(const int *in, int *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  Shape *shape = in[2 * i] & 1 ? (Shape *)new Square : (Shape *)new Cube;
  if (in[2 * i] & 2) {
    delete shape;
    shape = new Shape;
  }
  shape->side = in[2 * i + 1];
  out[i] = shape->area(in[2 * i]);
  delete shape;
}

// A linked list of `n` nodes per thread, in blocks of different sizes.
struct Node { Node *next; int value; };
extern "C" __global__ void linked_lists(int *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  Node *head = nullptr;
  for (int k = 0; k < n; k++) {
    Node *node = (Node *)malloc(sizeof(Node) + 8 * (i % 5));
    node->next = head;
    node->value = k * (i + 1);
    head = node;
  }
  int sum = 0;
  while (head) {
    Node *next = head->next;
    sum = sum * 3 + head->value;
    free(head);
    head = next;
  }
  out[i] = sum;
}

enum HeapFault { OUT_OF_BOUNDS, AFTER_FREE, NEVER_FREED, NEVER_WRITTEN, FREED_TWICE, FREED_ELSEWHERE, EXHAUSTED };
extern "C" __global__ void heap_faults(int *out, int fault) {
  volatile int *p = (int *)malloc(16);
  if (fault != NEVER_WRITTEN) p[0] = 1;
  if (fault == OUT_OF_BOUNDS) p[4] = 2;
  if (fault == AFTER_FREE || fault == FREED_TWICE) free((void *)p);
  if (fault == AFTER_FREE || fault == NEVER_WRITTEN) out[0] = p[0];
  if (fault == FREED_ELSEWHERE) free((void *)(p + 1));
  if (fault == EXHAUSTED) out[0] = malloc(1 << 24) == nullptr;
  if (fault != AFTER_FREE && fault != NEVER_FREED) free((void *)p);
}

// A scratch array whose length only the thread knows.
extern "C" __global__ void scratch(const int *in, int *out, int n) {
  const int i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const int length = in[2 * i] & 31;
  int *a = (int *)alloca(4 * (length + 1));
  for (int k = 0; k <= length; k++) a[k] = in[2 * i + 1] + k * k;
  int *b = (int *)alloca(4 * (length + 1));
  for (int k = 0; k <= length; k++) b[k] = sum_of(a[length - k], k);
  int sum = 0;
  for (int k = 0; k <= length; k++) sum = sum * 5 + a[k] - b[k];
  out[i] = sum;
}

extern "C" __global__ void prints(int n) {
  const int counted = printf("[%5.1f|%-6s|%+d|%#x|%c|%%|%lld|%.3e|%5hd|%g|%p]\n", 2.25 * n, "abc", n, 255, 'z', 1ll << 40, 0.00012345, 7, 0.5, (void *)0);
  printf("%d %d\n", counted, printf("no arguments\n"));
}

// All CTAs meet twice: each writes its number, sums all, writes the sum of all sums.
extern "C" __global__ void grid_meets(int *values, int *sums, int *out) {
  cooperative_groups::grid_group grid = cooperative_groups::this_grid();
  const int block = blockIdx.x;
  int own = 0;
  if (threadIdx.x == 0) values[block] = block + 1;
  grid.sync();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int i = 0; i < gridDim.x; i++) sum += i == block ? block + 1 : values[i];
    own = sum * (block + 1);
    sums[block] = own;
  }
  grid.sync();
  if (threadIdx.x == 0) {
    int sum = 0;
    for (int i = 0; i < gridDim.x; i++) sum += i == block ? own : sums[i];
    out[block] = sum;
  }
}

#if __CUDA_ARCH__ >= 900
// Adds (1, i) to a pair of 64-bit numbers, both in one step.
__device__ void add_pair(uint64_t *pair, uint64_t a, uint64_t b) {
  uint64_t low = 0, high = 0, seen_low, seen_high;
  while (true) {
    asm volatile("{\n.reg .b128 wanted, given, seen;\nmov.b128 wanted, {%3, %4};\nmov.b128 given, {%5, %6};\n"
                 "atom.global.cas.b128 seen, [%2], wanted, given;\nmov.b128 {%0, %1}, seen;\n}"
                 : "=l"(seen_low), "=l"(seen_high) : "l"(pair), "l"(low), "l"(high), "l"(low + a), "l"(high + b) : "memory");
    if (seen_low == low && seen_high == high) return;
    low = seen_low;
    high = seen_high;
  }
}
#endif
extern "C" __global__ void pairs(uint64_t *pair, uint64_t *exchanged, const uint64_t *in, uint64_t *copy) {
#if __CUDA_ARCH__ >= 900
  const uint64_t i = blockIdx.x * blockDim.x + threadIdx.x;
  add_pair(pair, 1, i << 32 | i);
  asm volatile("{\n.reg .b128 given, seen;\nmov.b128 given, {%1, %2};\natom.global.exch.b128 seen, [%0], given;\n}" ::"l"(exchanged), "l"(i), "l"(~i) : "memory");
  asm volatile("{\n.reg .b128 x;\nld.global.b128 x, [%0];\nst.global.b128 [%1], x;\n}" ::"l"(in + 2 * i), "l"(copy + 2 * i) : "memory");
#endif
}
