// Matrix product on tensor cores for rows that are not 16 bytes apart: C = alpha A B + beta D, as gemm_mma.
//
//   c, d, a, b as in gemm_mma
//   a_width, b_width  elements of a copy: 8, 4, 2 or 1; the start, and lda or ldb, are multiples of it
// Grid and work as gemm_mma; copies of 8 and 4 bytes are cp.async, too, single elements go through registers. Odd vocabularies
// come this way: the gradient of logits is [N, V].
#include "common/gemm.cuh"

template <bool A_ALONG_K, bool B_ALONG_K, typename O>
__device__ __forceinline__ void gemm(Output<O> out, Matrix a, Matrix b, u32 k, u32 a_width, u32 b_width) {
    product<A_ALONG_K, B_ALONG_K>(
        out, k, [&](u32 s, From place, u32 start) { Tile<A_ALONG_K>::copy_narrow(a_width, s, a, place, start, k); },
        [&](u32 s, From place, u32 start) { Tile<B_ALONG_K>::copy_narrow(b_width, s, b, place, start, k); });
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_narrow_ak_bk_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb, u32 a_width, u32 b_width) {
    gemm<true, true, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k, a_width, b_width);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_narrow_ak_bk_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb, u32 a_width, u32 b_width) {
    gemm<true, true, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k, a_width, b_width);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_narrow_ak_bn_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb, u32 a_width, u32 b_width) {
    gemm<true, false, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k, a_width, b_width);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_narrow_ak_bn_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb, u32 a_width, u32 b_width) {
    gemm<true, false, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k, a_width, b_width);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_narrow_am_bk_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb, u32 a_width, u32 b_width) {
    gemm<false, true, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k, a_width, b_width);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_narrow_am_bk_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb, u32 a_width, u32 b_width) {
    gemm<false, true, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k, a_width, b_width);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_narrow_am_bn_bf16(bf16* c, const bf16* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb, u32 a_width, u32 b_width) {
    gemm<false, false, bf16>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k, a_width, b_width);
}

extern "C" __global__ void __launch_bounds__(256, 2) gemm_mma_narrow_am_bn_bf16_to_f32(float* c, const float* d, const bf16* a, const bf16* b, float alpha, float beta, u32 m, u32 n, u32 k, u64 lda, u64 ldb, u32 a_width, u32 b_width) {
    gemm<false, false, float>({c, d, alpha, beta, m, n}, {a, lda, m}, {b, ldb, n}, k, a_width, b_width);
}
