// Products and convolutions on Hopper (product_hopper.cu): what ends a product that is split along k among the blocks of a cluster.
#pragma once

#include "hopper_moments.cuh"

__device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

__device__ __forceinline__ uint4 load_vector(const void* from) {
    uint4 v;
    asm volatile("ld.global.nc.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "l"(from));
    return v;
}

__device__ __forceinline__ unsigned load_word(const void* from) {
    unsigned word;
    asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(word) : "l"(from));
    return word;
}

// Sums up what the blocks of a split have, and ends and stores this block's part of the rows. Sixteen rows of a warp are a
// part. Each block gets as many of all parts, from each other one; the last ones may get fewer or none.
template <typename T, typename S, bool NORMED>
__device__ __forceinline__ void end_split(const Problem& p, const Tiling& t, const Tile& tile, uint32_t ring,
                                          unsigned char* ring_at, const float* base, const float* scales,
                                          const Barriers<S>& barriers, int group,
                                          const float (&sums)[S::BN / 2]) {
    constexpr int BN = S::BN, MODE = S::MODE, VECTORS = BN / 8;
    const int warp = int(threadIdx.x) >> 5, lane = int(threadIdx.x) & 31, column = (lane & 3) * 2;
    T* const out = static_cast<T*>(p.out);
    const T* const onto = static_cast<const T*>(p.onto);
    float2* const cells = reinterpret_cast<float2*>(ring_at);
    constexpr int PARTS = BM / 16, ROUNDS = (PARTS / 2 * VECTORS + 7) / 8;
    const int splits = int(gridDim.z), share = (PARTS + splits - 1) / splits, first = int(blockIdx.z) * share;
    const int parts = max(min(share, PARTS - first), 0);
    if (threadIdx.x == 0 && parts > 0) barrier_expect(barriers.sums, uint32_t(splits * parts * VECTORS * 512));
    // Residuals, ahead of the sums.
    unsigned before[ROUNDS][2];
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const int item = round * 8 + warp, part = item / VECTORS, at = tile.column + 8 * (item - part * VECTORS) + column;
        const int b = (first + part) / 4, r = (first + part) % 4 * 16 + (lane >> 2);
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            before[round][half] = 0;
            if (onto != nullptr && item < parts * VECTORS && at < p.columns) {
                const Target to = target<MODE>(p, t, tile, b, r + 8 * half);
                if (to.inside) before[round][half] = load_word(onto + to.row * p.out_row + at);
            }
        }
    }
    cluster_meet();  // every ring is free
    const int part_of_mine = group * 4 + (warp & 3), to_block = part_of_mine / share;
    const int slot = int(blockIdx.z) * share + part_of_mine - to_block * share;
    const uint32_t there = place_in(ring + uint32_t((slot * VECTORS * 32 + lane) * 16), uint32_t(to_block));
    const uint32_t barrier_there = place_in(barriers.sums, uint32_t(to_block));
#pragma unroll
    for (int j = 0; j < VECTORS; ++j) {
        store_there(there + j * 512, barrier_there,
                    make_float4(sums[4 * j], sums[4 * j + 1], sums[4 * j + 2], sums[4 * j + 3]));
    }
    if (parts > 0) barrier_wait(barriers.sums, 0);
    const float4* const slots = reinterpret_cast<const float4*>(ring_at) + lane;
    float2 kept[ROUNDS], kept_below[MODE == ROWS ? ROUNDS : 1];
#pragma unroll
    for (int round = 0; round < ROUNDS; ++round) {
        const int item = round * 8 + warp, part = item / VECTORS, j = item - part * VECTORS;
        if (item >= parts * VECTORS) continue;
        float4 sum = slots[item * 32];
#pragma unroll 1
        for (int s = 1; s < splits; ++s) {
            const float4 next = slots[(s * share * VECTORS + item) * 32];
            sum.x += next.x;
            sum.y += next.y;
            sum.z += next.z;
            sum.w += next.w;
        }
        const int b = (first + part) / 4, r = (first + part) % 4 * 16 + (lane >> 2), at = tile.column + 8 * j + column;
        if (NORMED) {
            const float upper = scales[b * PLACES + r], lower = scales[b * PLACES + r + 8];
            sum.x *= upper;
            sum.y *= upper;
            sum.z *= lower;
            sum.w *= lower;
        }
        const float alpha = alpha_of(p, at);
        const float2 more = *reinterpret_cast<const float2*>(base + 8 * j + column);
        const float2 low = unpack2(before[round][0], T()), high = unpack2(before[round][1], T());
        const float2 upper = make_float2(fmaf(sum.x, alpha, more.x) + low.x, fmaf(sum.y, alpha, more.y) + low.y);
        const float2 lower = make_float2(fmaf(sum.z, alpha, more.x) + high.x, fmaf(sum.w, alpha, more.y) + high.y);
        const unsigned words[2] = {pack2(upper.x, upper.y, T()), pack2(lower.x, lower.y, T())};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Target to = target<MODE>(p, t, tile, b, r + 8 * half);
            if (to.inside && at < p.columns) *reinterpret_cast<unsigned*>(out + to.row * p.out_row + at) = words[half];
        }
        if (p.moments != nullptr) {
            const float2 above = unpack2(words[0], T()), below = unpack2(words[1], T());
            kept[round] = moments_of(above.x, above.y, below.x, below.y);
        }
        if (MODE == ROWS && p.row_sums != nullptr) {
            kept[round] = kept_below[MODE == ROWS ? round : 0] = make_float2(0.0f, 0.0f);
            add_pair(kept[round], upper);
            add_pair(kept_below[MODE == ROWS ? round : 0], lower);
        }
    }
    if (MODE == ROWS && p.row_sums != nullptr) {
        consumers_sync();  // all have read the slots
        // cells[part][row of 16][vector]
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            const int item = round * 8 + warp, part = item / VECTORS;
            if (item >= parts * VECTORS) continue;
            const float2 upper = over_quad(kept[round]), lower = over_quad(kept_below[MODE == ROWS ? round : 0]);
            float2* const to = cells + (part * 16 + (lane >> 2)) * VECTORS + (item - part * VECTORS);
            if ((lane & 3) == 0) to[0] = upper;
            if ((lane & 3) == 1) to[8 * VECTORS] = lower;
        }
        consumers_sync();
        for (int row = int(threadIdx.x); row < parts * 16; row += CONSUMERS) {
            float2 all = make_float2(0.0f, 0.0f);
            for (int j = 0; j < VECTORS; ++j) {
                all.x += cells[row * VECTORS + j].x;
                all.y += cells[row * VECTORS + j].y;
            }
            const int in_tile = first * 16 + row;
            if (tile.row + in_tile < tile.end) *row_sums_of<BN>(p, tile, in_tile) = all;
        }
    }
    if (p.moments != nullptr) {
        consumers_sync();  // all have read the slots
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            if (round * 8 + warp < parts * VECTORS && lane < 4) cells[(round * 8 + warp) * 4 + lane] = kept[round];
        }
        consumers_sync();
        store_moments<BN, MODE, 1>(p, t, tile, cells, parts, first);
    }
}
