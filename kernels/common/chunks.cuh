// Chunks of 4 tokens, counted from the start of their document.
#pragma once

#include "types.cuh"

constexpr u32 CHUNK = 4;
constexpr u32 IGNORE = 0xffffffffu;

// Where in its row of t tokens the chunk of a slot begins: at 4 slot .. 4 slot + 3, at a multiple of 4 from its document's start, whole
// in the row and in the document; IGNORE where there is none. gdoc_start is the row's, or null: one document a row.
__device__ __forceinline__ u32 chunk_start(const u32* gdoc_start, u32 slot, u32 t) {
    for (u32 at = slot * CHUNK; at < (slot + 1) * CHUNK && at + CHUNK <= t; at++) {
        const u32 first = gdoc_start == nullptr ? 0 : gdoc_start[at], last = gdoc_start == nullptr ? 0 : gdoc_start[at + CHUNK - 1];
        if ((at - first) % CHUNK == 0 && first == last) {
            return at;
        }
    }
    return IGNORE;
}
