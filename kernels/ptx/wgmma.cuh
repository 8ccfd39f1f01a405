// wgmma: D [64, 256] += A [64, 16] B [16, 256] by a warpgroup, bf16 operands in shared memory, f32 sums in registers (PTX ISA 9.7.15;
// sm_90a). It runs on while the threads go on: groups of products are committed and waited for.
//
// Thread 32 w + l of the warpgroup, g = l / 4, t = l % 4: d[j][0] and [1] are row 16 w + g of D, columns 8 j + 2 t and the next; [2] and
// [3] row 16 w + g + 8. The warps of a warpgroup execute all of these together.
#pragma once

#include "../common/types.cuh"

constexpr u32 SWIZZLE_BYTES = 128;                   // a row of an operand in shared memory
constexpr u32 SWIZZLE_ROWS_BYTES = 8 * SWIZZLE_BYTES; // eight rows, after which the pattern repeats

// Where an operand lies in shared memory, from `s` on: rows of 128 bytes, whose 16-byte chunk c lies in the place of chunk
// c ^ row % 8; `s` is a multiple of 1024 but for steps along K inside a row. ALONG_K: a row of A (a column of B) holds 64 of K.
// Else a row is one k with 64 of M or N, and the next 64 follow `next_bytes` on. Descriptor fields (9.7.15.5.1): the start in units of
// 16 bytes; from bit 16 the leading offset, which rows along K do not use; from bit 32 the offset of the next eight rows; from
// bit 62 the swizzle, 1 for 128 bytes.
template <bool ALONG_K>
__device__ __forceinline__ u64 matrix_descriptor(u32 s, u32 next_bytes) {
    const u64 leading = ALONG_K ? 1 : next_bytes / 16, stride = SWIZZLE_ROWS_BYTES / 16;
    return u64{s / 16} | leading << 16 | stride << 32 | u64{1} << 62;
}

// The operands of all sums of a thread. They stand with fences and waits, too, so that the compiler moves nothing across.
#define WGMMA_SUM(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define WGMMA_SUMS \
    WGMMA_SUM(0), WGMMA_SUM(1), WGMMA_SUM(2), WGMMA_SUM(3), WGMMA_SUM(4), WGMMA_SUM(5), WGMMA_SUM(6), WGMMA_SUM(7), \
    WGMMA_SUM(8), WGMMA_SUM(9), WGMMA_SUM(10), WGMMA_SUM(11), WGMMA_SUM(12), WGMMA_SUM(13), WGMMA_SUM(14), WGMMA_SUM(15), \
    WGMMA_SUM(16), WGMMA_SUM(17), WGMMA_SUM(18), WGMMA_SUM(19), WGMMA_SUM(20), WGMMA_SUM(21), WGMMA_SUM(22), WGMMA_SUM(23), \
    WGMMA_SUM(24), WGMMA_SUM(25), WGMMA_SUM(26), WGMMA_SUM(27), WGMMA_SUM(28), WGMMA_SUM(29), WGMMA_SUM(30), WGMMA_SUM(31)

// Before the first product, and after the sums were touched otherwise.
__device__ __forceinline__ void wgmma_fence(float (&d)[32][4]) {
    asm volatile("wgmma.fence.sync.aligned;" : WGMMA_SUMS::"memory");
}

// Ends a group of products.
__device__ __forceinline__ void wgmma_commit() {
    asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory");
}

// Waits until at most `NEWEST` groups are under way.
template <u32 NEWEST>
__device__ __forceinline__ void wgmma_wait(float (&d)[32][4]) {
    asm volatile("wgmma.wait_group.sync.aligned %128;" : WGMMA_SUMS : "n"(NEWEST) : "memory");
}

template <bool A_ALONG_K, bool B_ALONG_K>
__device__ __forceinline__ void wgmma_m64n256k16(float (&d)[32][4], u64 a, u64 b) {
    // The last numbers: D is added to, signs of A and B, and whether rows of A and B lie along M and N.
    asm volatile(
        "{\n"
        ".reg .pred add;\n"
        "setp.ne.b32 add, 1, 0;\n"
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, "
        "%16, %17, %18, %19, %20, %21, %22, %23, %24, %25, %26, %27, %28, %29, %30, %31, "
        "%32, %33, %34, %35, %36, %37, %38, %39, %40, %41, %42, %43, %44, %45, %46, %47, "
        "%48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, %60, %61, %62, %63, "
        "%64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79, "
        "%80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, "
        "%96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, "
        "%112, %113, %114, %115, %116, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127}, "
        "%128, %129, add, 1, 1, %130, %131;\n"
        "}"
        : WGMMA_SUMS
        : "l"(a), "l"(b), "n"(A_ALONG_K ? 0 : 1), "n"(B_ALONG_K ? 0 : 1)
        : "memory");
}
