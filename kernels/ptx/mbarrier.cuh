// mbarrier: counters of arrivals in shared memory, by phases (PTX ISA 9.7.13.15; from sm_80 on, `try_wait` from sm_90 on).
//
// A phase ends with as many arrivals as the barrier was made for; the next begins at once. Waiting for the parity of a phase that
// has not begun, as for 1 on a new barrier, is over at once. Arrivals release and waits acquire, within the block.
#pragma once

#include "../common/types.cuh"

constexpr u32 MBARRIER_BYTES = 8;

// Others may use it after a barrier of the block.
__device__ __forceinline__ void mbarrier_init(u32 s, u32 arrivals) {
    asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(s), "r"(arrivals) : "memory");
}

__device__ __forceinline__ void mbarrier_arrive(u32 s) {
    asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(s) : "memory");
}

// Until the phase of this parity has ended: a try may give up before, so it is repeated.
__device__ __forceinline__ void mbarrier_wait(u32 s, u32 parity) {
    asm volatile(
        "{\n"
        ".reg .pred ended;\n"
        "again:\n"
        "mbarrier.try_wait.parity.shared::cta.b64 ended, [%0], %1;\n"
        "@!ended bra again;\n"
        "}" ::"r"(s), "r"(parity)
        : "memory");
}
