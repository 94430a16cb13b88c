// Products and convolutions on Hopper (product_hopper.cu): what a block works at, how its shared memory is shared out, and where its
// results go.
#pragma once

#include "product.cuh"
#include "wgmma.cuh"

RUST_CONSTANT(PRODUCT_HOPPER_THREADS, 288);
RUST_CONSTANT(PRODUCT_HOPPER_THREADS_ITSELF, 256);
RUST_CONSTANT(PRODUCT_HOPPER_ROWS, 128);
RUST_CONSTANT(PRODUCT_HOPPER_DEPTH, 64);       // k of a stage: 128 bytes, the width of the swizzle
RUST_CONSTANT(PRODUCT_HOPPER_PATCH, 8);        // places across and down
RUST_CONSTANT(PRODUCT_HOPPER_SHARED, 196608);       // leaves room for a small kernel beside
RUST_CONSTANT(PRODUCT_HOPPER_SHARED_OF_TWO, 102400);  // of each of two blocks on a multiprocessor
RUST_CONSTANT(PRODUCT_HOPPER_SHARED_ITSELF, 115712);  // the same, where it is all that there is
RUST_CONSTANT(PRODUCT_HOPPER_LOADED_COLUMNS, 128);    // with more, such a block loads itself
constexpr int BM = PRODUCT_HOPPER_ROWS;
constexpr int BK = PRODUCT_HOPPER_DEPTH;
constexpr int ROW = BK * 2;  // bytes of a tile's row in shared memory
constexpr int PATCH = PRODUCT_HOPPER_PATCH;
constexpr int PLACES = PATCH * PATCH;  // of a patch: the rows of one wgmma
constexpr int CONSUMERS = PRODUCT_HOPPER_THREADS_ITSELF;
constexpr int ROWS = 0, WINDOWS = 1, PATCHES = 2;  // Rust knows these numbers
RUST_CONSTANT(PRODUCT_HOPPER_SPLITS, 8);             // the most
RUST_CONSTANT(PRODUCT_HOPPER_SPLIT_COLUMNS, 160);    // with more, there are no splits: too few registers are left

// How a tile's two patches lie: one beside the other, one below the other, or in two images.
struct Tiling {
    int across, down, images;      // whether it is this, each 0 or 1
    int tiles_across, tiles_down;  // of a map, or of one of its phases; ROWS: of a problem
    int steps, first_steps;        // of 64 k: all, and those of one place of the first map
    int columns_first;             // whether the grid's x goes over tiles of columns, else over tiles of rows
};

// Tiles of BN columns, of which BLOCKS (1 or 2) are at work on a multiprocessor: while one ends, the other multiplies.
template <int BN_, int MODE_, int BLOCKS_> struct Shape {
    static constexpr int BN = BN_, MODE = MODE_, BLOCKS = BLOCKS_;
    // Two blocks that load by a warp of their own have too few registers for the sums of that many columns. Then a warp that
    // multiplies fills the rings as well, and the other block multiplies while it does.
    static constexpr bool LOADS_ITSELF = BLOCKS == 2 && BN > PRODUCT_HOPPER_LOADED_COLUMNS;
    static constexpr int SHARED = LOADS_ITSELF  ? PRODUCT_HOPPER_SHARED_ITSELF
                                  : BLOCKS == 2 ? PRODUCT_HOPPER_SHARED_OF_TWO
                                                : PRODUCT_HOPPER_SHARED;
    static constexpr int A_BYTES = MODE == PATCHES ? 200 * ROW : BM * ROW;  // at most two of 10 x 10 places
    static constexpr int B_BYTES = BN * ROW;
    static_assert(BN <= 256, "a box of W, and one wgmma");
    static constexpr int SCALES = MODE == ROWS ? BM : 0;
    static constexpr int FIXED = 1024 + (BN + SCALES) * 4 + 512;  // alignment, what is added to each column, scales of rows, barriers
    static constexpr int TOGETHER = (SHARED - FIXED) / (A_BYTES + B_BYTES);
    static constexpr int A_STAGES = MODE == PATCHES ? 2 : TOGETHER < 12 ? TOGETHER : 12;
    static constexpr int REST = (SHARED - FIXED - A_STAGES * A_BYTES) / B_BYTES;
    static constexpr int B_STAGES = MODE != PATCHES ? A_STAGES : REST < 16 ? REST : 16;
    static constexpr int RING = A_STAGES * A_BYTES + B_STAGES * B_BYTES;
    static_assert(A_BYTES % 1024 == 0 && B_BYTES % 1024 == 0 && B_STAGES >= 3);
    // A warp that fills the rings itself must not wait for a patch whose last place it has yet to multiply; a window has 4 or more.
    static_assert(!LOADS_ITSELF || MODE != PATCHES || B_STAGES <= 5);
    static_assert(8 * (2 * A_STAGES + 2 * B_STAGES + 1) <= 512, "barriers");
    static_assert(RING >= BM * (BN * 2 + 16) + BM / 16 * BN * 4, "results and moments");
    static constexpr bool SPLITS = BLOCKS == 1 && BN <= PRODUCT_HOPPER_SPLIT_COLUMNS;
    static_assert(!SPLITS || RING >= (BM / 16 + 7) * 16 * BN * 4, "sums of all splits");
};

// Addresses of the barriers.
template <typename S> struct Barriers {
    uint32_t full_b, empty_b, full_a, empty_a, sums;

    __device__ __forceinline__ explicit Barriers(uint32_t start) {
        full_b = start;
        empty_b = full_b + 8 * S::B_STAGES;
        full_a = empty_b + 8 * S::B_STAGES;
        empty_a = full_a + 8 * S::A_STAGES;
        sums = empty_a + 8 * S::A_STAGES;
    }
};

// What a block works at.
struct Tile {
    int column;        // first column of W
    int row, end;      // ROWS: the first row, and the one after its problem's last
    int problem;       // ROWS: which one
    int image, y, x;   // else: of the first place
    int phase;         // see product.cuh
    int chunk;         // which tile of its image
    int first, count;  // steps of k
};

template <int BN, int MODE> __device__ __forceinline__ Tile tile_of(const Problem& p, const Tiling& t) {
    Tile tile = {};
    tile.column = int(t.columns_first ? blockIdx.x : blockIdx.y) * BN;
    const int splits = int(gridDim.z), z = int(blockIdx.z), m = int(t.columns_first ? blockIdx.y : blockIdx.x);
    tile.first = int((long long)t.steps * z / splits);
    tile.count = int((long long)t.steps * (z + 1) / splits) - tile.first;
    if (MODE == ROWS) {
        tile.problem = m / t.tiles_across;
        tile.row = tile.problem * p.rows + (m - tile.problem * t.tiles_across) * BM;
        tile.end = (tile.problem + 1) * p.rows;
    } else {
        const int rest = m / t.tiles_across, phases = p.phased ? 4 : 1;
        tile.x = (m - rest * t.tiles_across) * (PATCH << t.across);
        const int down = rest / t.tiles_down;
        tile.y = (rest - down * t.tiles_down) * (PATCH << t.down);
        const int image = down / phases;
        tile.image = image << t.images;
        tile.phase = down - image * phases;
        tile.chunk = m - image * (phases * t.tiles_down * t.tiles_across);
    }
    return tile;
}

// ---- where results go

// Where one of a tile's rows is stored, and whether it exists.
struct Target {
    long long row;
    bool inside;
};

// Row r of patch b.
template <int MODE>
__device__ __forceinline__ Target target(const Problem& p, const Tiling& t, const Tile& tile, int b, int r) {
    if (MODE == ROWS) {
        const int row = tile.row + b * PLACES + r;
        return {row, row < tile.end};
    }
    const int px = b & t.across, py = b >> t.across & t.down, images = b >> (t.across + t.down);
    const int y = tile.y + py * PATCH + r / PATCH, x = tile.x + px * PATCH + r % PATCH;
    const int row = ((tile.image + images) * p.out_height + y) * p.out_width + x;
    const bool inside = y < p.out_height && x < p.out_width && row < p.rows;
    if (!p.phased) return {row, inside};
    // As out_row_of has it.
    return {4ll * row - 2 * x + (tile.phase >> 1) * 2 * p.out_width + (tile.phase & 1), inside};
}
