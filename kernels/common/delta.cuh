// What the kernels of the delta rule share: a chunk of tokens of one head, its decays, and products of tiles in shared memory.
//
// Two ways to share out a chunk among 8 warps. By channels: a warp has 8 tokens, a lane one channel of a slice of 32 (loads of
// neighbouring lanes lie side by side). By tiles: a thread has rows and columns of a product, in registers.
#pragma once

#include "../ptx/cp_async.cuh"
#include "../ptx/st_shared.cuh"
#include "reduce.cuh"
#include "vector.cuh"

constexpr u32 THREADS = 256;
constexpr u32 WARPS = THREADS / WARP;
constexpr u32 CHUNK = 64;
constexpr u32 SLICE = 32;              // key channels, or columns of values, worked on at a time
constexpr u32 ROWS = CHUNK / WARPS;    // tokens of a warp
constexpr u32 PITCH = SLICE + 4;       // rows of 16-byte accesses, eight of which in a row hit all 32 banks
constexpr u32 SQUARE = CHUNK + 4;      // likewise, of a matrix of pairs
constexpr u32 PAIRS = CHUNK * CHUNK;
static_assert(SLICE == WARP, "a lane is a channel of a slice");

// Where a chunk lies.
struct Place {
    u64 row0;                          // its first token among all
    u32 n;                             // its tokens
    u32 head, heads;
    u64 of_head;                       // which row of tokens and head, of all
    u64 square;                        // its matrix of pairs, of all, in elements

    __device__ __forceinline__ Place(u32 batch, u32 head, u32 heads, u32 chunk, u32 t_len) : head(head), heads(heads) {
        const u32 chunks = (t_len + CHUNK - 1) / CHUNK, first = chunk * CHUNK;
        row0 = static_cast<u64>(batch) * t_len + first;
        n = t_len - first < CHUNK ? t_len - first : CHUNK;
        of_head = static_cast<u64>(batch) * heads + head;
        square = (of_head * chunks + chunk) * PAIRS;
    }

    // The element of token i, column c, of rows of `width` a head.
    __device__ __forceinline__ u64 at(u32 i, u32 width, u32 c) const { return ((row0 + i) * heads + head) * width + c; }
};

// By one warp: the documents started in the chunk up to each token. Tokens past the end go on with the last.
__device__ __forceinline__ void number_documents(u32 (&sdocument)[CHUNK], const u32* gstarts, const Place& place) {
    if (threadIdx.x < WARP) {
        u32 before = 0;
#pragma unroll
        for (u32 half = 0; half < CHUNK / WARP; half++) {
            const u32 i = half * WARP + threadIdx.x;
            const u32 started = __ballot_sync(ALL_LANES, gstarts != nullptr && i < place.n && gstarts[place.row0 + i] != 0);
            sdocument[i] = before + __popc(started & (ALL_LANES >> (WARP - 1 - threadIdx.x)));
            before += __popc(started);
        }
    }
}

// A lane's channel in its warp's tokens; 0 past the end.
template <typename E>
__device__ __forceinline__ void load_rows(float (&r)[ROWS], const E* g, const Place& place, u32 width, u32 c) {
    const u32 warp = threadIdx.x / WARP, lane = threadIdx.x % WARP;
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        const u32 row = warp * ROWS + i;
        r[i] = row < place.n ? load(g + place.at(row, width, c + lane)) : 0.0f;
    }
}

__device__ __forceinline__ float total(const float (&r)[ROWS]) {
    float sum = 0.0f;
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        sum += r[i];
    }
    return sum;
}

// Sum over warps first .. end of their totals in this lane's channel.
__device__ __forceinline__ float totals(const float (&stotal)[WARPS][SLICE], u32 first, u32 end) {
    float sum = 0.0f;
    for (u32 warp = first; warp < end; warp++) {
        sum += stotal[warp][threadIdx.x % WARP];
    }
    return sum;
}

// exp of the sums of a lane's log decays: from `offset` up to and with each token, and over the tokens after each.
__device__ __forceinline__ void decays_before(float (&r)[ROWS], const float (&ra)[ROWS], float offset) {
#pragma unroll
    for (u32 i = 0; i < ROWS; i++) {
        offset += ra[i];
        r[i] = expf(offset);
    }
}

__device__ __forceinline__ void decays_after(float (&r)[ROWS], const float (&ra)[ROWS], float offset) {
#pragma unroll
    for (u32 i = ROWS; i-- > 0;) {
        r[i] = expf(offset);
        offset += ra[i];
    }
}

// Copies a matrix of pairs.
__device__ __forceinline__ void load_square(float* s, const float* g) {
#pragma unroll
    for (u32 step = 0; step < PAIRS / (4 * THREADS); step++) {
        const u32 i = (step * THREADS + threadIdx.x) * 4;
        *reinterpret_cast<float4*>(s + i / CHUNK * SQUARE + i % CHUNK) = *reinterpret_cast<const float4*>(g + i);
    }
}

// Two neighbours: columns of a tile.
__device__ __forceinline__ float2 load_pair(const float* g) { return *reinterpret_cast<const float2*>(g); }
__device__ __forceinline__ float2 load_pair(const bf16* g) {
    const u32 word = *reinterpret_cast<const u32*>(g);
    return make_float2(from_bf16_low(word), from_bf16_high(word));
}
__device__ __forceinline__ void store_pair(float* g, float x, float y) { *reinterpret_cast<float2*>(g) = make_float2(x, y); }
__device__ __forceinline__ void store_pair(bf16* g, float x, float y) { *reinterpret_cast<u32*>(g) = pack_bf16x2(x, y); }

// The same to shared memory, in one access whatever nvcc makes of a float2.
__device__ __forceinline__ void put_pair(float* s, float x, float y) {
    st_shared_pair(shared_address(s), x, y);
}

__device__ __forceinline__ float4 four(const float* s) { return *reinterpret_cast<const float4*>(s); }

__device__ __forceinline__ float dot(float4 a, float4 b, float sum) {
    sum += a.x * b.x;
    sum += a.y * b.y;
    sum += a.z * b.z;
    return sum + a.w * b.w;
}

// A tile of [CHUNK, SLICE]: rows first + r * step (r < 4), columns 2 tx and the next.
struct Tile {
    float r[4][2];
};

__device__ __forceinline__ void multiply(Tile& tile, u32 i, float4 a, const float* sb) {
    const float rows[4] = {a.x, a.y, a.z, a.w};
#pragma unroll
    for (u32 k = 0; k < 4; k++) {
        const float2 b = *reinterpret_cast<const float2*>(sb + k * SLICE);
        tile.r[i][0] += rows[k] * b.x;
        tile.r[i][1] += rows[k] * b.y;
    }
}

// S [SLICE channels, SLICE columns] += A^T B over the tokens of the chunk, A [CHUNK, SLICE] in rows of PITCH, B [CHUNK, SLICE]; this
// thread's four columns of one channel.
__device__ __forceinline__ void sum_tokens(float (&r)[4], const float* sa, const float* sb, float sign) {
    const u32 channel = threadIdx.x / 8, column = threadIdx.x % 8 * 4;
#pragma unroll 8
    for (u32 i = 0; i < CHUNK; i++) {
        const float a = sign * sa[i * PITCH + channel];
        const float4 b = four(sb + i * SLICE + column);
        r[0] += a * b.x;
        r[1] += a * b.y;
        r[2] += a * b.z;
        r[3] += a * b.w;
    }
}
