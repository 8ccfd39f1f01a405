// mma.sync on tensor cores: D [16, 8] += A [16, 16] B [16, 8], bf16 operands, f32 sums (PTX ISA 9.7.14.5.8; from sm_80 on).
//
// Lane l, g = l / 4, t = l % 4. A: registers 0 to 3 hold rows g, g + 8, g, g + 8, columns 2t and the next, from 8 on in
// registers 2 and 3. B: registers 0 and 1 hold column g, rows 2t and the next, from 8 on in register 1. D: numbers 0 and 1 are
// row g, columns 2t and the next; 2 and 3 row g + 8.
#pragma once

#include "../common/types.cuh"

__device__ __forceinline__ void mma_m16n8k16(float (&d)[4], const u32 (&a)[4], u32 b0, u32 b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
