// ex2.approx: 2 to the power x, within 2 units of the last place (PTX ISA 9.7.3.21). Subnormal results become 0: one instruction
// instead of three. -inf gives 0.
#pragma once

#include "../common/types.cuh"

__device__ __forceinline__ float ex2(float x) {
    float y;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}
