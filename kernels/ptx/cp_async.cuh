// cp.async: 4, 8 or 16 bytes from global to shared memory behind the thread's back, in groups (PTX ISA 9.7.9.25.3; from sm_80 on).
//
// A wait makes the data visible to the waiting thread alone: a barrier must follow before others read it.
#pragma once

#include "../common/types.cuh"

// The address of shared memory as these instructions want it.
__device__ __forceinline__ u32 shared_address(const void* s) {
    return static_cast<u32>(__cvta_generic_to_shared(s));
}

// Copies `bytes` (0 to BYTES) and fills up to BYTES with zeros; with 0 nothing is read, wherever `g` points. Both addresses are
// multiples of BYTES. 16 go past L1 (`.cg`): nobody in this block reads them again; narrower ones know `.ca` alone.
template <u32 BYTES>
__device__ __forceinline__ void cp_async(u32 s, const void* g, u32 bytes) {
    static_assert(BYTES == 4 || BYTES == 8 || BYTES == 16, "the sizes that there are");
    if constexpr (BYTES == 16) {
        asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(s), "l"(__cvta_generic_to_global(g)), "r"(bytes) : "memory");
    } else {
        asm volatile("cp.async.ca.shared.global [%0], [%1], %3, %2;" ::"r"(s), "l"(__cvta_generic_to_global(g)), "r"(bytes), "n"(BYTES)
                     : "memory");
    }
}

// Ends a group of the thread's copies.
__device__ __forceinline__ void cp_async_commit() {
    asm volatile("cp.async.commit_group;" ::: "memory");
}

// Waits until at most `NEWEST` of the thread's groups are under way.
template <u32 NEWEST>
__device__ __forceinline__ void cp_async_wait() {
    asm volatile("cp.async.wait_group %0;" ::"n"(NEWEST) : "memory");
}
