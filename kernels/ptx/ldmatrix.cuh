// ldmatrix: four 8x8 matrices of 16-bit elements from shared memory to a warp's registers (PTX ISA 9.7.14.5.15; from sm_75 on).
//
// Lane 8j + r gives the address (a multiple of 16) of row r of matrix j. Lane l receives of matrix j, in register j, columns
// 2 (l % 4) and the next of row l / 4; transposed, of column l / 4 rows 2 (l % 4) and the next.
#pragma once

#include "../common/types.cuh"

__device__ __forceinline__ void ldmatrix_x4(u32 (&r)[4], u32 s) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(s)
                 : "memory");
}

__device__ __forceinline__ void ldmatrix_x4_trans(u32 (&r)[4], u32 s) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
                 : "r"(s)
                 : "memory");
}
