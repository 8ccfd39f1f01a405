// Blocks of 32 quantised weights, of eight rows side by side as `src/device/packed/panels.rs` lays them: scales of the eight rows in f16, then for
// each place of four bytes in a block the eight rows behind each other. A warp that takes row `lane / 4` and place `lane % 4` reads 128 bytes
// in a row.
#pragma once

#include "../ptx/convert.cuh"

constexpr u32 BLOCK = 32;                                                       // weights
constexpr u32 PANEL = 8;                                                        // rows
// The f32 whose last bits count ones, with `q` there.
__device__ __forceinline__ float count(u32 q) {
    return __uint_as_float(0x4b000000u | q);
}

// What a lane has of a block: weights 4 p to 4 p + 3 and those 16 behind, for p = 0 to 3, in bf16.
struct Eight {
    u32 first[2], second[2];
};

// The nibbles of a word, `d q + m`: the lower ones are the first four weights.
__device__ __forceinline__ Eight from_nibbles(u32 word, float d, float m, float zero) {
    float first[4], second[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        first[i] = d * (count(word >> (8 * i) & 15u) - zero) + m;
        second[i] = d * (count(word >> (8 * i + 4) & 15u) - zero) + m;
    }
    return {{pack_bf16x2(first[0], first[1]), pack_bf16x2(first[2], first[3])},
            {pack_bf16x2(second[0], second[1]), pack_bf16x2(second[2], second[3])}};
}

// The bytes of a word as signed integers times `d`.
__device__ __forceinline__ void from_bytes(u32 (&pairs)[2], u32 word, float d) {
    float x[4];
#pragma unroll
    for (u32 i = 0; i < 4; i++) {
        x[i] = d * (count((word >> (8 * i) & 255u) ^ 128u) - 8388736.0f);       // 2^23 + 128
    }
    pairs[0] = pack_bf16x2(x[0], x[1]), pairs[1] = pack_bf16x2(x[2], x[3]);
}

// `block` is that of a panel; `row` below 8, `place` below 4.
struct Q4_0 {
    static constexpr u32 WORDS = 36;                                            // of a block of a panel
    static __device__ __forceinline__ Eight read(const u32* block, u32 row, u32 place) {
        const float d = from_f16(reinterpret_cast<const u16*>(block)[row]);
        return from_nibbles(block[4 + PANEL * place + row], d, 0.0f, 8388616.0f);  // 2^23 + 8
    }
};

struct Q4_1 {
    static constexpr u32 WORDS = 40;
    static __device__ __forceinline__ Eight read(const u32* block, u32 row, u32 place) {
        const u16* scales = reinterpret_cast<const u16*>(block);
        return from_nibbles(block[8 + PANEL * place + row], from_f16(scales[row]), from_f16(scales[PANEL + row]), 8388608.0f);
    }
};

struct Q8_0 {
    static constexpr u32 WORDS = 68;
    static __device__ __forceinline__ Eight read(const u32* block, u32 row, u32 place) {
        const float d = from_f16(reinterpret_cast<const u16*>(block)[row]);
        Eight out;
        from_bytes(out.first, block[4 + PANEL * place + row], d);
        from_bytes(out.second, block[4 + PANEL * (place + 4) + row], d);
        return out;
    }
};
