// st.shared.v2: two f32 to shared memory in one access of 8 bytes (PTX ISA 9.7.9.12). Written as a float2, nvcc may split it into two
// stores of 4 bytes, which meet in banks where the pair does not.
#pragma once

#include "../common/types.cuh"

// `s` is a multiple of 8.
__device__ __forceinline__ void st_shared_pair(u32 s, float x, float y) {
    asm volatile("st.shared.v2.f32 [%0], {%1, %2};" ::"r"(s), "f"(x), "f"(y) : "memory");
}
