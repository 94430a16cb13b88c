// Products and convolutions on Hopper (product_hopper.cu): the moments of what is stored, for the group norm behind it.
#pragma once

#include "hopper_tile.cuh"

// The image and chunk of patch b's moments, a chunk being `parts` to a patch.
template <int MODE>
__device__ __forceinline__ int2 chunk_of(const Problem& p, const Tiling& t, const Tile& tile, int b, int parts) {
    if (MODE == ROWS) {
        const int row = tile.row + b * PLACES, all = p.out_height * p.out_width, image = row / all;
        return make_int2(image, (row - image * all) / PLACES * parts);
    }
    const int shift = t.across + t.down, images = b >> shift;
    return make_int2(tile.image + images, ((tile.chunk << shift) + b - (images << shift)) * parts);
}

// Adds two numbers to a sum and a sum of squares.
__device__ __forceinline__ void add_pair(float2& sums, float2 pair) {
    sums.x += pair.x + pair.y;
    sums.y = fmaf(pair.x, pair.x, fmaf(pair.y, pair.y, sums.y));
}

// Adds up what the four lanes of a quad have of one row.
__device__ __forceinline__ float2 over_quad(float2 sums) {
#pragma unroll
    for (int offset = 1; offset < 4; offset *= 2) {
        sums.x += __shfl_xor_sync(0xffffffffu, sums.x, offset);
        sums.y += __shfl_xor_sync(0xffffffffu, sums.y, offset);
    }
    return sums;
}

// Where the row sums of a tile's row go.
template <int BN> __device__ __forceinline__ float2* row_sums_of(const Problem& p, const Tile& tile, int row) {
    return p.row_sums + ((long long)(tile.column / BN) * p.all_rows + tile.row + row);
}

// Merges mean and squares of as many numbers each, `count` in all (Chan, Golub, LeVeque 1979).
__device__ __forceinline__ float2 merged(float2 a, float2 b, float count) {
    const float d = a.x - b.x;
    return make_float2(0.5f * (a.x + b.x), a.y + b.y + d * d * (0.25f * count));
}

// Mean and squares of two columns of 16 rows, of which a thread has four numbers.
__device__ __forceinline__ float2 moments_of(float a, float b, float c, float d) {
    const float2 left = make_float2(0.5f * (a + b), 0.5f * (a - b) * (a - b));
    const float2 right = make_float2(0.5f * (c + d), 0.5f * (c - d) * (c - d));
    float2 all = merged(left, right, 4.0f), other;
#pragma unroll
    for (int offset = 4; offset < 32; offset *= 2) {
        other.x = __shfl_xor_sync(0xffffffffu, all.x, offset);
        other.y = __shfl_xor_sync(0xffffffffu, all.y, offset);
        all = merged(all, other, float(2 * offset));
    }
    return all;
}

// Merges the cells of column pairs into the moments of groups and stores them. cells[part][pair of BN / 2]: mean and squares
// of 16 rows. MERGED of them are a chunk, and there are `chunks` of them, of which `first_chunk` is the first one's number.
template <int BN, int MODE, int MERGED>
__device__ __forceinline__ void store_moments(const Problem& p, const Tiling& t, const Tile& tile, const float2* cells, int chunks,
                                              int first_chunk) {
    const int channels = p.columns / p.groups, pairs = channels / 2, groups = BN / channels;
    for (int item = int(threadIdx.x); item < chunks * groups; item += CONSUMERS) {
        const int chunk = item / groups, group = item - chunk * groups;
        const int all = tile.column / channels + group;
        if (all >= p.groups) continue;
        const float2* from = cells + chunk * (MERGED * BN / 2) + group * pairs;
        const float shift = from[0].x;
        float total = 0.0f, spread = 0.0f;
        for (int i = 0; i < pairs; ++i) {
#pragma unroll
            for (int part = 0; part < MERGED; ++part) {
                const float2 cell = from[part * (BN / 2) + i];
                const float d = cell.x - shift;
                total += d;
                spread += fmaf(32.0f * d, d, cell.y);
            }
        }
        const float mean = total / float(MERGED * pairs);
        constexpr int OF_PATCH = 4 / MERGED;
        const int number = first_chunk + chunk, patch = number / OF_PATCH;
        const int2 place = chunk_of<MODE>(p, t, tile, patch, OF_PATCH);
        p.moments[((long long)place.x * p.groups + all) * p.chunks + place.y + number - patch * OF_PATCH] =
            make_float2(shift + mean, fmaxf(spread - 32.0f * total * mean, 0.0f));
    }
}

// Mean and squares of each column pair of a warp's 16 rows as they lie in shared memory.
template <typename T, int BN> __device__ __forceinline__ void measure_rows(float2* cells, uint32_t rows_at, int pitch) {
#pragma unroll 1
    for (int pair = int(threadIdx.x) & 31; pair < BN / 2; pair += 32) {
        float2 x[16];
#pragma unroll
        for (int r = 0; r < 16; ++r) {
            unsigned word;
            asm volatile("ld.shared.b32 %0, [%1];" : "=r"(word) : "r"(rows_at + r * pitch + pair * 4) : "memory");
            x[r] = unpack2(word, T());
        }
        float2 sum = x[0];
#pragma unroll
        for (int r = 1; r < 16; ++r) {
            sum.x += x[r].x;
            sum.y += x[r].y;
        }
        const float mean = (sum.x + sum.y) * (1.0f / 32.0f);
        float2 spread = make_float2(0.0f, 0.0f);
#pragma unroll
        for (int r = 0; r < 16; ++r) {
            spread.x = fmaf(x[r].x - mean, x[r].x - mean, spread.x);
            spread.y = fmaf(x[r].y - mean, x[r].y - mean, spread.y);
        }
        cells[pair] = make_float2(mean, spread.x + spread.y);
    }
}
