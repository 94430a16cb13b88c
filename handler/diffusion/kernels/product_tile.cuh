// Sizes of a tile of product.cu, and where its parts lie in shared memory.
#pragma once

#include "mma.cuh"
#include "product.cuh"

constexpr int BK = 64;
constexpr int ROW = BK * 2;  // bytes of a row of a tile
constexpr unsigned WARP = 0xffffffffu;

// BM x BN of out. WM x WN warps have a part of it each; if WK is not 1, so many warps share a part: each takes some of
// every step's k, and in the end they add up their sums, each for some of the rows. On sm_75, where a warp has no
// registers for that, each has those rows from the start.
template <int BM_, int BN_, int WM, int WN, int WK_, int STAGES_> struct Tile {
    static constexpr bool COPIES_AHEAD = ARCH >= 800;
    static constexpr int BM = BM_, BN = BN_, WK = COPIES_AHEAD ? WK_ : 1, THREADS = WM * WN * WK_ * 32;
    static constexpr int STAGES = COPIES_AHEAD ? STAGES_ : 1;
    // What a warp multiplies, in elements and in tiles of mma.sync.
    static constexpr int DOWN = COPIES_AHEAD ? WM : WM * WK_;
    static constexpr int ROWS = BM / DOWN, COLUMNS = BN / WN, MT = ROWS / 16, NT = COLUMNS / 8;
    // Rows and tiles that it ends with.
    static constexpr int LAST_ROWS = ROWS / WK, LAST_MT = MT / WK;
    static constexpr int STAGE = (BM + BN) * ROW;
    // A warp's sums go through shared memory. Of each eight columns the first four lie in the left half of a row and the
    // others HALF numbers further: what is written as fragments, and then read as rows, both falls on different banks.
    static constexpr int HALF = (COLUMNS / 2 + 3) / 8 * 8 + 4, PITCH = (COLUMNS + 7) / 16 * 16 + 8;
    static_assert(HALF >= COLUMNS / 2 && PITCH >= HALF + COLUMNS / 2, "room");
    // Behind the ring and the sums lie the scales of A's rows.
    static constexpr int RING = STAGES * STAGE, STAGING = BM * WN * PITCH * 4;
    static constexpr int SCALES_AT = RING > STAGING ? RING : STAGING;
    // Rows that all threads copy at once, a chunk each.
    static constexpr int AT_ONCE = THREADS / 8;
    static constexpr int A_ROUNDS = BM / AT_ONCE, W_ROUNDS = BN / AT_ONCE, COPIES = A_ROUNDS + W_ROUNDS;
    static_assert(BM % AT_ONCE == 0 && BN % AT_ONCE == 0 && ROWS % 16 == 0 && COLUMNS % 8 == 0 && MT % WK == 0, "sizes");
    // More sums than that leave sm_75 no registers for what it copies.
    static constexpr bool IS_THERE = COPIES_AHEAD || MT * NT * 4 <= 80;
};

// Byte of chunk `chunk` of row `row` in a tile.
__device__ __forceinline__ int place_of(int row, int chunk) { return row * ROW + ((chunk ^ (row & 7)) << 4); }
