// Number types of all kernels, without any CUDA header: nvcc and NVRTC both compile these files alone.
#pragma once

using u8 = unsigned char;
using u16 = unsigned short;
using u32 = unsigned int;
using i32 = int;
using u64 = unsigned long long;
using i64 = long long;

// The upper half of an f32.
struct bf16 {
    u16 bits;
};

constexpr u32 WARP = 32;
constexpr u32 ALL_LANES = 0xffffffffu;
