// The running softmax of a row of logits that are read once.
#pragma once

#include "types.cuh"

// A maximum and the sum of exp(x - maximum) so far.
struct Softmax {
    float peak, sum;
};

__device__ __forceinline__ Softmax join(Softmax a, Softmax b) {
    const float peak = fmaxf(a.peak, b.peak);
    return {peak, a.sum * expf(a.peak - peak) + b.sum * expf(b.peak - peak)};
}
