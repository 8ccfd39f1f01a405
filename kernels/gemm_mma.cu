// Matrix product on tensor cores, any size: C = alpha A B + beta D, bf16 by bf16 with f32 sums.
//
//   c  [M, N]  f32 or bf16, =; with P parts the f32 sums of part p alone, at p M N: [P, M, N]
//   d  [M, N]  of the type of c, or c itself; where beta is 0 it is not read. With parts beta is 0
//   a  element (m, k) at m lda + k (`ak`: rows along K) or at k lda + m (`am`)          bf16
//   b  element (k, n) at n ldb + k (`bk`: columns along K) or at k ldb + n (`bn`)       bf16
// a and b start at multiples of 16 bytes, and lda and ldb are multiples of 8. Saves nothing.
// Grid: ceil(M / 128) ceil(N / 128) blocks along x, P along y that take ceil(ceil(K / 32) / P) steps of 32 each; 256 threads and
// 48 KiB of shared memory. Must move 2 (M K + K N) bytes, C, and D where it counts; does 2 M N K operations. The order of every
// sum is fixed.
#include "common/gemm.cuh"

template <bool A_ALONG_K, bool B_ALONG_K, typename O>
__device__ __forceinline__ void gemm(Output<O> out, Matrix a, Matrix b, u32 k) {
    product<A_ALONG_K, B_ALONG_K>(
        out, k, [&](u32 s, From place, u32 start) { Tile<A_ALONG_K>::template copy<8>(s, a, place, start, k); },
        [&](u32 s, From place, u32 start) { Tile<B_ALONG_K>::template copy<8>(s, b, place, start, k); });
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_ak_bk_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, true, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_ak_bk_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, true, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_ak_bn_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, false, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_ak_bn_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<true, false, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_am_bk_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, true, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_am_bk_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, true, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_am_bn_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, false, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_am_bn_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb) {
    gemm<false, false, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k);
}
