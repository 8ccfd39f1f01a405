// SwiGLU of a gate and its up value: y = g s u, s = 1 / (1 + e^-g); du = dy g s, dg = dy u s (1 + g (1 - s)).
#pragma once

#include "types.cuh"

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

__device__ __forceinline__ float swiglu(float g, float u) { return g * sigmoid(g) * u; }

__device__ __forceinline__ void swiglu_gradient(float& dg, float& du, float g, float u, float dy) {
    const float s = sigmoid(g);
    du = dy * g * s;
    dg = dy * u * s * (1.0f + g * (1.0f - s));
}
