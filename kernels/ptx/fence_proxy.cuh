// fence.proxy.async: what the thread did to shared memory by ordinary accesses and cp.async comes before what wgmma and bulk copies do
// there after it (PTX ISA 9.7.13.4; from sm_90 on). The thread that wrote executes it, before the barrier that lets others start.
#pragma once

#include "../common/types.cuh"

__device__ __forceinline__ void fence_proxy_async() {
    asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
}
