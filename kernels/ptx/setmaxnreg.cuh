// setmaxnreg: registers of a thread given back to the block, or taken from what others gave back (PTX ISA 9.7.19.5; sm_90a). All warps of
// a warpgroup execute it. A multiple of 8, from 24 to 256.
#pragma once

#include "../common/types.cuh"

template <u32 REGISTERS>
__device__ __forceinline__ void registers_less() {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0, "what the instruction takes");
    asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}

template <u32 REGISTERS>
__device__ __forceinline__ void registers_more() {
    static_assert(REGISTERS >= 24 && REGISTERS <= 256 && REGISTERS % 8 == 0, "what the instruction takes");
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(REGISTERS));
}
