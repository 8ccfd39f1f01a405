// st.global.v4: 16 bytes to global memory in one access (PTX ISA 9.7.9.12). Written as a uint4, nvcc may split it into four stores of 4
// bytes where what it stores was computed one by one.
#pragma once

#include "../common/types.cuh"

// `g` is a multiple of 16.
__device__ __forceinline__ void st_global_words(void* g, u32 a, u32 b, u32 c, u32 d) {
    asm volatile("st.global.v4.u32 [%0], {%1, %2, %3, %4};" ::"l"(__cvta_generic_to_global(g)), "r"(a), "r"(b), "r"(c), "r"(d) : "memory");
}
