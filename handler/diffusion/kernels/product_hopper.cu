// Products and convolutions by wgmma and the copy engine (sm_90a only): the problem of product.cuh, of f16 or bf16, whole,
// with the ending AS_IT_IS, neither wide nor crossed, and without partials and batches.
//
// A block makes a tile of 128 rows by BN columns. Two warpgroups multiply, 64 rows each; one more warp has the copy engine
// fill two rings: one of stages of A, one of stages of W's BN rows by 64 k. How the rows of a tile lie, by MODE:
//   ROWS     consecutive rows of a matrix; a stage of A is 64 of their k
//   WINDOWS  two patches of 8 x 8 places; a stage of A is one place of their windows, and 64 channels
//   PATCHES  the same, and a stage of A is the patches with the places around them, of 64 channels: all nine places of
//            their windows are read from it, at other offsets. For windows of 3 x 3 and a stride of 1. If the map is read
//            as a larger one, the places of a tile are every second one down and across: then they are a patch, too
// What is outside of a map or past the last channel is zero: the copy engine fills it in.
//
// k is split among the blocks of a cluster, each of which then sums up and ends a part of the rows, always in the
// same order.
//
// Entries product_hopper_T_MODE_BN; block = (PRODUCT_HOPPER_THREADS, 1, 1), cluster = (1, 1, splits), grid = (tiles of rows,
// tiles of columns, splits); dynamic shared memory: PRODUCT_HOPPER_SHARED. A ROWS tile is 128 rows. Else, Tiling says: tiles
// of a map go across, then down, then through the four kinds of places if it is read as a larger one, then through images.
// Moments are those of 64 rows, or of 16 if there are splits; then images are whole patches, BN is a multiple of a
// group's channels, and these are even.
//
// The kernel starts early (see common.cuh): w, bias and *step are read before the kernel ahead has ended.
#include "product.cuh"
#include "wgmma.cuh"

namespace {

RUST_CONSTANT(PRODUCT_HOPPER_THREADS, 288);
RUST_CONSTANT(PRODUCT_HOPPER_ROWS, 128);
RUST_CONSTANT(PRODUCT_HOPPER_DEPTH, 64);       // k of a stage: 128 bytes, the width of the swizzle
RUST_CONSTANT(PRODUCT_HOPPER_PATCH, 8);        // places across and down
RUST_CONSTANT(PRODUCT_HOPPER_SHARED, 196608);  // leaves room for a small kernel beside
constexpr int BM = PRODUCT_HOPPER_ROWS;
constexpr int BK = PRODUCT_HOPPER_DEPTH;
constexpr int ROW = BK * 2;  // bytes of a tile's row in shared memory
constexpr int PATCH = PRODUCT_HOPPER_PATCH;
constexpr int PLACES = PATCH * PATCH;  // of a patch: the rows of one wgmma
constexpr int CONSUMERS = 256;
constexpr int CELL_PITCH = 36;  // of 32 cells of moments: spreads the banks
constexpr int ROWS = 0, WINDOWS = 1, PATCHES = 2;  // Rust knows these numbers
RUST_CONSTANT(PRODUCT_HOPPER_SPLITS, 8);             // the most
RUST_CONSTANT(PRODUCT_HOPPER_SPLIT_COLUMNS, 160);    // with more, there are no splits: too few registers are left

// How a tile's two patches lie: one beside the other, one below the other, or in two images.
struct Tiling {
    int across, down, images;      // whether it is this, each 0 or 1
    int tiles_across, tiles_down;  // of a map, or of every second place of one that is read as a larger one
    int steps, first_steps;        // of 64 k: all, and those of one place of the first map
};

template <int BN, int MODE> struct Shape {
    static constexpr int A_BYTES = MODE == PATCHES ? 200 * ROW : BM * ROW;  // at most two of 10 x 10 places
    static constexpr int B_BYTES = BN * ROW;
    static constexpr int FIXED = 1024 + BN * 4 + 512;  // alignment, what is added to each column, barriers
    static constexpr int TOGETHER = (PRODUCT_HOPPER_SHARED - FIXED) / (A_BYTES + B_BYTES);
    static constexpr int A_STAGES = MODE == PATCHES ? 2 : TOGETHER < 12 ? TOGETHER : 12;
    static constexpr int REST = (PRODUCT_HOPPER_SHARED - FIXED - A_STAGES * A_BYTES) / B_BYTES;
    static constexpr int B_STAGES = MODE != PATCHES ? A_STAGES : REST < 16 ? REST : 16;
    static constexpr int RING = A_STAGES * A_BYTES + B_STAGES * B_BYTES;
    static_assert(A_BYTES % 1024 == 0 && B_BYTES % 1024 == 0 && B_STAGES >= 3);
    static_assert(8 * (2 * A_STAGES + 2 * B_STAGES + 1) <= 512, "barriers");
    static_assert(RING >= BN * CELL_PITCH * 8, "moments");
    static constexpr bool SPLITS = BN <= PRODUCT_HOPPER_SPLIT_COLUMNS;
    static_assert(!SPLITS || RING >= (BM / 16 + 7) * 16 * BN * 4, "sums of all splits");
};

// Addresses of the barriers.
template <int BN, int MODE> struct Barriers {
    uint32_t full_b, empty_b, full_a, empty_a, sums;

    __device__ __forceinline__ explicit Barriers(uint32_t start) {
        using S = Shape<BN, MODE>;
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
    int row;           // ROWS: the first row
    int image, y, x;   // else: of the first place
    int odd_y, odd_x;  // which of four places, if the map is read as a larger one
    int chunk;         // which tile of its image
    int first, count;  // steps of k
};

template <int BN, int MODE> __device__ __forceinline__ Tile tile_of(const Problem& p, const Tiling& t) {
    Tile tile = {};
    tile.column = int(blockIdx.y) * BN;
    const int splits = int(gridDim.z), z = int(blockIdx.z), m = int(blockIdx.x);
    tile.first = int((long long)t.steps * z / splits);
    tile.count = int((long long)t.steps * (z + 1) / splits) - tile.first;
    tile.row = m * BM;
    if (MODE != ROWS) {
        const int rest = m / t.tiles_across, kinds = p.doubled ? 4 : 1;
        tile.x = (m - rest * t.tiles_across) * (PATCH << t.across);
        const int down = rest / t.tiles_down;
        tile.y = (rest - down * t.tiles_down) * (PATCH << t.down);
        const int image = down / kinds, kind = down - image * kinds;
        tile.image = image << t.images;
        tile.odd_y = kind >> 1;
        tile.odd_x = kind & 1;
        tile.chunk = m - image * (kinds * t.tiles_down * t.tiles_across);
    }
    return tile;
}

// ---- loading

// By one warp. All of its threads go through this, so that its numbers are computed once for all of them; the first acts.
template <int BN, int MODE>
__device__ __forceinline__ void load(Early early, const Problem& p, const Tiling& t, const Tile& tile, const TensorMap& a,
                                     const TensorMap& more, const TensorMap& w, uint32_t ring,
                                     const Barriers<BN, MODE>& barriers) {
    using S = Shape<BN, MODE>;
    const uint32_t ring_b = ring + S::A_STAGES * S::A_BYTES;
    const int taps = p.side * p.side;
    const uint32_t patch_bytes =
        uint32_t(((PATCH << t.across) + 2) * ((PATCH << t.down) + 2) * (1 + t.images) * ROW);
    const uint32_t bytes_b = S::B_BYTES + (MODE == PATCHES ? 0 : S::A_BYTES);
    const bool leads = (threadIdx.x & 31) == 0;

    // What a step reads: channels of the map and of W, and the place of the window.
    struct At {
        int chunk, map_channel, w_channel, tap, ky, kx;
    };
    At at;
    at.chunk = tile.first / taps;
    const bool in_second = at.chunk >= t.first_steps;
    at.map_channel = (at.chunk - (in_second ? t.first_steps : 0)) * BK;
    at.w_channel = at.map_channel + (in_second ? p.channels : 0);
    at.tap = tile.first - at.chunk * taps;
    at.ky = at.tap / p.side;
    at.kx = at.tap - at.ky * p.side;
    const auto advance = [&](At& at) {
        ++at.tap;
        if (MODE == WINDOWS && ++at.kx == p.side) {
            at.kx = 0;
            ++at.ky;
        }
        if (at.tap == taps) {
            at.tap = at.ky = at.kx = 0;
            at.map_channel += BK;
            at.w_channel += BK;
            if (++at.chunk == t.first_steps) {
                at.map_channel = 0;
                at.w_channel = p.channels;
            }
        }
    };
    const auto load_b = [&](int stage, const At& at) {
        barrier_expect(barriers.full_b + 8 * stage, bytes_b);
        copy_box(ring_b + stage * S::B_BYTES, &w, barriers.full_b + 8 * stage, at.w_channel, at.tap, tile.column);
    };
    const auto load_a = [&](int stage, uint32_t barrier, const At& at) {
        const uint32_t to = ring + stage * S::A_BYTES;
        const TensorMap* map = at.chunk < t.first_steps ? &a : &more;
        if (MODE == ROWS) {
            copy_box(to, map, barrier, at.map_channel, tile.row, 0, 0);
        } else if (MODE == WINDOWS) {
            const int x = tile.x * p.stride + at.kx - p.pad_across, y = tile.y * p.stride + at.ky - p.pad_down;
            const int next = PATCH * p.stride;
            copy_box(to, map, barrier, at.map_channel, x, y, tile.image);
            copy_box(to + PLACES * ROW, map, barrier, at.map_channel, x + t.across * next, y + t.down * next,
                     tile.image + t.images);
        } else {
            // Of a map that is read as a larger one, the window of an even place begins a place before it, too.
            copy_box(to, map, barrier, at.map_channel, tile.x - p.pad_across, tile.y - p.pad_down, tile.image);
        }
    };

    // W's rows are there before the kernel ahead has ended.
    const int ahead = min(S::B_STAGES, tile.count);
    At next = at;
    for (int i = 0; i < ahead; ++i) {
        if (leads) load_b(i, next);
        advance(next);
    }
    wait_for_last(early);
    int stage_a = 0, parity_a = 1, stage_b = 0, parity_b = 1;
    for (int i = 0; i < tile.count; ++i) {
        if (MODE == PATCHES && (i == 0 || at.tap == 0)) {
            barrier_wait(barriers.empty_a + 8 * stage_a, parity_a);
            if (leads) {
                barrier_expect(barriers.full_a + 8 * stage_a, patch_bytes);
                load_a(stage_a, barriers.full_a + 8 * stage_a, at);
            }
            stage_a ^= 1;
            parity_a ^= stage_a == 0;
        }
        if (i >= ahead) barrier_wait(barriers.empty_b + 8 * stage_b, parity_b);
        if (leads) {
            if (i >= ahead) load_b(stage_b, at);
            if (MODE != PATCHES) load_a(stage_b, barriers.full_b + 8 * stage_b, at);
        }
        if (++stage_b == S::B_STAGES) {
            stage_b = 0;
            parity_b ^= 1;
        }
        advance(at);
    }
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
        return {row, row < p.rows};
    }
    const int px = b & t.across, py = b >> t.across & t.down, images = b >> (t.across + t.down);
    int y = tile.y + py * PATCH + r / PATCH, x = tile.x + px * PATCH + r % PATCH;
    if (p.doubled) {
        y = 2 * y + tile.odd_y;
        x = 2 * x + tile.odd_x;
    }
    const long long row = ((long long)(tile.image + images) * p.out_height + y) * p.out_width + x;
    return {row, y < p.out_height && x < p.out_width && row < p.rows};
}

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

// Lane t of four neighbours holds word t of each of four vectors in w, and then the four words of vector t; and back.
__device__ __forceinline__ uint4 transpose4(unsigned (&w)[4], int t) {
    const bool odd = t & 1, high = t & 2;
#pragma unroll
    for (int i = 0; i < 4; i += 2) {
        const unsigned got = __shfl_xor_sync(0xffffffffu, odd ? w[i] : w[i + 1], 1);
        w[i] = odd ? got : w[i];
        w[i + 1] = odd ? w[i + 1] : got;
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
        const unsigned got = __shfl_xor_sync(0xffffffffu, high ? w[i] : w[i + 2], 2);
        w[i] = high ? got : w[i];
        w[i + 2] = high ? w[i + 2] : got;
    }
    return make_uint4(w[0], w[1], w[2], w[3]);
}

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

// Merges the cells of column pairs into the moments of groups and stores them. cells[part][pair of BN / 2]: mean and
// squares of 16 rows, which are a chunk.
template <int BN, int MODE>
__device__ __forceinline__ void store_moments(const Problem& p, const Tiling& t, const Tile& tile, const float2* cells,
                                              int parts, int first_part) {
    const int channels = p.columns / p.groups, pairs = channels / 2, groups = BN / channels;
    for (int item = int(threadIdx.x); item < parts * groups; item += CONSUMERS) {
        const int chunk = item / groups, group = item - chunk * groups;
        const int all = tile.column / channels + group;
        if (all >= p.groups) continue;
        const float2* from = cells + chunk * (BN / 2) + group * pairs;
        const float shift = from[0].x;
        float total = 0.0f, spread = 0.0f;
        for (int i = 0; i < pairs; ++i) {
            const float d = from[i].x - shift;
            total += d;
            spread += fmaf(32.0f * d, d, from[i].y);
        }
        const float mean = total / float(pairs);
        const int part = first_part + chunk, patch = part / 4;
        const int2 place = chunk_of<MODE>(p, t, tile, patch, 4);
        p.moments[((long long)place.x * p.groups + all) * p.chunks + place.y + part - patch * 4] =
            make_float2(shift + mean, fmaxf(spread - 32.0f * total * mean, 0.0f));
    }
}

// The same where a chunk is a patch: cells[patch][pair of BN / 2][CELL_PITCH] are mean and squares of what a thread has,
// two columns of two rows. As many threads as there are share a group.
template <int BN, int MODE>
__device__ __forceinline__ void store_moments_of_patches(const Problem& p, const Tiling& t, const Tile& tile,
                                                         const float2* cells) {
    const int channels = p.columns / p.groups, pairs = channels / 2, groups = BN / channels, items = 2 * groups;
    int sharing = 1;
    while (sharing < 32 && 2 * sharing * items <= CONSUMERS) sharing *= 2;
    const int member = int(threadIdx.x) % sharing, slots = 32 / sharing;
    for (int first = 0; first < items; first += CONSUMERS / sharing) {
        const int item = min(first + int(threadIdx.x) / sharing, items - 1);
        const int patch = item / groups, group = item - patch * groups, all = tile.column / channels + group;
        const float2* from = cells + (patch * (BN / 2) + group * pairs) * CELL_PITCH;
        const float shift = from[0].x;
        float total = 0.0f, spread = 0.0f;
        for (int i = 0; i < pairs; ++i) {
#pragma unroll 4
            for (int slot = 0; slot < slots; ++slot) {
                const float2 cell = from[i * CELL_PITCH + slot * sharing + member];
                const float d = cell.x - shift;
                total += d;
                spread += fmaf(4.0f * d, d, cell.y);
            }
        }
        for (int offset = sharing / 2; offset > 0; offset /= 2) {
            total += __shfl_xor_sync(0xffffffffu, total, offset);
            spread += __shfl_xor_sync(0xffffffffu, spread, offset);
        }
        if (member == 0 && first + int(threadIdx.x) / sharing < items && all < p.groups) {
            const float mean = total / float(32 * pairs);
            const int2 place = chunk_of<MODE>(p, t, tile, patch, 1);
            p.moments[((long long)place.x * p.groups + all) * p.chunks + place.y] =
                make_float2(shift + mean, fmaxf(spread - 4.0f * total * mean, 0.0f));
        }
    }
}

// ---- multiplying

__device__ __forceinline__ void consumers_sync() { asm volatile("bar.sync 1, 256;" ::: "memory"); }

// Makes 64 rows of sums: sums[4 j + i] are row + 8 (i / 2) and column 8 j + 2 t + i % 2, of lane 4 row + t of each warp.
template <typename T, int BN, int MODE>
__device__ __forceinline__ void sum_up(const Problem& p, const Tiling& t, const Tile& tile, uint32_t ring,
                                       const Barriers<BN, MODE>& barriers, int group, float (&sums)[BN / 2]) {
    using S = Shape<BN, MODE>;
    const bool first_lane = (threadIdx.x & 31) == 0;
    const int pitch = (PATCH << t.across) + 2;
    int start = group * PLACES;  // in places, of this group's patch
    if (MODE == PATCHES) {
        start = group * (t.images ? pitch * (PATCH + 2) : t.down ? pitch * PATCH : PATCH);
    }
    // The lower halves of descriptors; the upper ones stay.
    const uint64_t b_first = descriptor(ring + S::A_STAGES * S::A_BYTES);
    const uint64_t a_first = descriptor_apart(ring + uint32_t(start * ROW), MODE == PATCHES ? pitch * ROW : 1024);
    const uint32_t b_high = uint32_t(b_first >> 32), a_high = uint32_t(a_first >> 32);
    const int taps = MODE == PATCHES ? p.side * p.side : 1;
    int tap = MODE == PATCHES ? tile.first % taps : 0, ky = tap / 3, kx = tap - ky * 3;
    if (tile.count == 0) {
#pragma unroll
        for (int j = 0; j < BN / 2; ++j) sums[j] = 0.0f;
    }

    int stage_a = 0, parity_a = 0, stage_b = 0, parity_b = 0, before_b = 0, before_a = 0;
    bool begins = true, ended = false;  // whether this step is the first of its stage of A, and the one before the last
    for (int step = 0; step < tile.count; ++step) {
        if (MODE == PATCHES && begins) barrier_wait(barriers.full_a + 8 * stage_a, parity_a);
        barrier_wait(barriers.full_b + 8 * stage_b, parity_b);
        int hop = stage_b * (S::A_BYTES >> 4);
        if (MODE == PATCHES) {
            const int y = (tile.odd_y + ky + p.doubled) >> p.doubled, x = (tile.odd_x + kx + p.doubled) >> p.doubled;
            hop = (stage_a * S::A_BYTES + (y * pitch + x) * ROW) >> 4;
        }
        const uint32_t a_low = uint32_t(a_first) + hop, b_low = uint32_t(b_first) + stage_b * (S::B_BYTES >> 4);
        wgmma_fence();
#pragma unroll
        for (int k = 0; k < BK / 16; ++k) {
            wgmma<BN>(sums, joined(a_low + 2 * k, a_high), joined(b_low + 2 * k, b_high), k == 0 ? step : 1, T());
        }
        wgmma_commit();
        if (step > 0) {
            wgmma_wait<1>();
            if (first_lane) barrier_arrive(barriers.empty_b + 8 * before_b);
            if (MODE == PATCHES && ended && first_lane) barrier_arrive(barriers.empty_a + 8 * before_a);
        }
        before_b = stage_b;
        if (++stage_b == S::B_STAGES) {
            stage_b = 0;
            parity_b ^= 1;
        }
        if (MODE == PATCHES) {
            before_a = stage_a;
            begins = ended = ++tap == taps;
            if (++kx == p.side) {
                kx = 0;
                ++ky;
            }
            if (ended) {
                tap = ky = kx = 0;
                stage_a ^= 1;
                parity_a ^= stage_a == 0;
            }
        }
    }
    wgmma_wait<0>();
#pragma unroll
    for (int j = 0; j < BN / 2; ++j) asm volatile("" : "+f"(sums[j])::"memory");
}

// Sums up what the blocks of a split have, and ends and stores this block's part of the rows. Sixteen rows of a warp are a
// part. Each block gets as many of all parts, from each other one; the last ones may get fewer or none.
template <typename T, int BN, int MODE>
__device__ __forceinline__ void end_split(const Problem& p, const Tiling& t, const Tile& tile, uint32_t ring,
                                          unsigned char* ring_at, const float* base, const Barriers<BN, MODE>& barriers,
                                          int group, const float (&sums)[BN / 2]) {
    constexpr int VECTORS = BN / 8;
    const int warp = int(threadIdx.x) >> 5, lane = int(threadIdx.x) & 31, column = (lane & 3) * 2;
    T* const out = static_cast<T*>(p.out);
    const T* const onto = static_cast<const T*>(p.onto);
    float2* const cells = reinterpret_cast<float2*>(ring_at);
    const float alpha = p.alpha;
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
    float2 kept[ROUNDS];
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
        const float2 more = *reinterpret_cast<const float2*>(base + 8 * j + column);
        const float2 low = unpack2(before[round][0], T()), high = unpack2(before[round][1], T());
        const unsigned words[2] = {
            pack2(fmaf(sum.x, alpha, more.x) + low.x, fmaf(sum.y, alpha, more.y) + low.y, T()),
            pack2(fmaf(sum.z, alpha, more.x) + high.x, fmaf(sum.w, alpha, more.y) + high.y, T())};
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Target to = target<MODE>(p, t, tile, b, r + 8 * half);
            if (to.inside && at < p.columns) *reinterpret_cast<unsigned*>(out + to.row * p.out_row + at) = words[half];
        }
        if (p.moments != nullptr) {
            const float2 above = unpack2(words[0], T()), below = unpack2(words[1], T());
            kept[round] = moments_of(above.x, above.y, below.x, below.y);
        }
    }
    if (p.moments != nullptr) {
        consumers_sync();  // all have read the slots
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            if (round * 8 + warp < parts * VECTORS && lane < 4) cells[(round * 8 + warp) * 4 + lane] = kept[round];
        }
        consumers_sync();
        store_moments<BN, MODE>(p, t, tile, cells, parts, first);
    }
}

template <typename T, int BN, int MODE>
__device__ __forceinline__ void multiply(Early early, const Problem& p, const Tiling& t, const Tile& tile, uint32_t ring,
                                         unsigned char* ring_at, float* base, const Barriers<BN, MODE>& barriers,
                                         int group) {
    constexpr int VECTORS = BN / 8, FOURS = VECTORS / 4;
    const int warp = int(threadIdx.x) >> 5, lane = int(threadIdx.x) & 31, lane4 = lane & 3, column = lane4 * 2;
    const int row = (warp & 3) * 16 + (lane >> 2);
    T* const out = static_cast<T*>(p.out);
    const T* const onto = static_cast<const T*>(p.onto);

    // What is added to each column. Only the table's row waits for the kernel ahead.
    const T* const bias = static_cast<const T*>(p.bias);
    const int at_step = p.table == nullptr ? 0 : row_of_step(p.step, p.steps);
    const int my_column = tile.column + int(threadIdx.x);
    const bool has_column = int(threadIdx.x) < BN && my_column < p.columns;
    float own = has_column && bias != nullptr ? widen(bias[my_column]) : 0.0f;
    wait_for_last(early);
    if (has_column && p.table != nullptr) {
        own += widen(static_cast<const T*>(p.table)[(long long)at_step * p.columns + my_column]);
    }
    if (int(threadIdx.x) < BN) base[threadIdx.x] = own;

    // Residuals that fit into registers are fetched before the sums are made.
    constexpr bool KEEPS = BN <= 160;
    uint4 held[KEEPS ? 2 * FOURS : 1];
    if (KEEPS && onto != nullptr && gridDim.z == 1) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Target to = target<MODE>(p, t, tile, group, row + 8 * half);
#pragma unroll
            for (int v = 0; v < FOURS; ++v) {
                const int at = tile.column + (4 * v + lane4) * 8;
                held[half * FOURS + v] = make_uint4(0, 0, 0, 0);
                if (to.inside && at < p.columns) held[half * FOURS + v] = load_vector(onto + to.row * p.out_row + at);
            }
        }
    }

    float sums[BN / 2];
    sum_up<T, BN, MODE>(p, t, tile, ring, barriers, group, sums);
    consumers_sync();  // base is there, and the ring is free

    float2* const cells = reinterpret_cast<float2*>(ring_at);
    const float alpha = p.alpha;
    if (gridDim.z == 1) {
        const Target to[2] = {target<MODE>(p, t, tile, group, row), target<MODE>(p, t, tile, group, row + 8)};
        float2* const my_cells = cells + (group * (BN / 2) + lane4) * CELL_PITCH + (warp & 3) * 8 + (lane >> 2);
        // Two columns of two rows of vector j, with what is added.
        const auto end = [&](int j, unsigned onto_low, unsigned onto_high, unsigned (&words)[2]) {
            const float2 more = *reinterpret_cast<const float2*>(base + 8 * j + column);
            const float2 low = unpack2(onto_low, T()), high = unpack2(onto_high, T());
            words[0] = pack2(fmaf(sums[4 * j], alpha, more.x) + low.x, fmaf(sums[4 * j + 1], alpha, more.y) + low.y, T());
            words[1] =
                pack2(fmaf(sums[4 * j + 2], alpha, more.x) + high.x, fmaf(sums[4 * j + 3], alpha, more.y) + high.y, T());
            if (p.moments != nullptr) {
                const float2 a = unpack2(words[0], T()), b = unpack2(words[1], T());
                const float mean = 0.25f * ((a.x + a.y) + (b.x + b.y));
                const float d[4] = {a.x - mean, a.y - mean, b.x - mean, b.y - mean};
                my_cells[4 * j * CELL_PITCH] =
                    make_float2(mean, fmaf(d[0], d[0], fmaf(d[1], d[1], fmaf(d[2], d[2], d[3] * d[3]))));
            }
        };
#pragma unroll
        for (int v = 0; v < FOURS; ++v) {
            const int at = tile.column + (4 * v + lane4) * 8;
            unsigned before[2][4] = {}, words[2][4];
            if (onto != nullptr) {
#pragma unroll
                for (int half = 0; half < 2; ++half) {
                    uint4 vector = make_uint4(0, 0, 0, 0);
                    if (KEEPS) {
                        vector = held[KEEPS ? half * FOURS + v : 0];
                    } else if (to[half].inside && at < p.columns) {
                        vector = load_vector(onto + to[half].row * p.out_row + at);
                    }
                    unsigned w[4] = {vector.x, vector.y, vector.z, vector.w};
                    const uint4 turned = transpose4(w, lane4);
                    before[half][0] = turned.x;
                    before[half][1] = turned.y;
                    before[half][2] = turned.z;
                    before[half][3] = turned.w;
                }
            }
#pragma unroll
            for (int u = 0; u < 4; ++u) {
                unsigned both[2];
                end(4 * v + u, before[0][u], before[1][u], both);
                words[0][u] = both[0];
                words[1][u] = both[1];
            }
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                const uint4 vector = transpose4(words[half], lane4);
                if (to[half].inside && at < p.columns) {
                    *reinterpret_cast<uint4*>(out + to[half].row * p.out_row + at) = vector;
                }
            }
        }
#pragma unroll
        for (int v = 4 * FOURS; v < VECTORS; ++v) {
            const int at = tile.column + v * 8 + column;
            unsigned before[2] = {}, words[2];
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (onto != nullptr && to[half].inside && at < p.columns) {
                    before[half] = load_word(onto + to[half].row * p.out_row + at);
                }
            }
            end(v, before[0], before[1], words);
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                if (to[half].inside && at < p.columns) {
                    *reinterpret_cast<unsigned*>(out + to[half].row * p.out_row + at) = words[half];
                }
            }
        }
        if (p.moments != nullptr) {
            consumers_sync();
            store_moments_of_patches<BN, MODE>(p, t, tile, cells);
        }
    } else if constexpr (Shape<BN, MODE>::SPLITS) {
        end_split<T, BN, MODE>(p, t, tile, ring, ring_at, base, barriers, group, sums);
    }
}

template <typename T, int BN, int MODE>
__device__ __forceinline__ void product_hopper_body(Early early, const TensorMap& a, const TensorMap& more,
                                                    const TensorMap& w, const Problem& p, const Tiling& t) {
    using S = Shape<BN, MODE>;
    extern __shared__ unsigned char shared[];
    const uint32_t start = uint32_t(__cvta_generic_to_shared(shared)), ring = (start + 1023u) & ~1023u;
    unsigned char* const ring_at = shared + (ring - start);
    float* const base = reinterpret_cast<float*>(ring_at + S::RING);
    const Barriers<BN, MODE> barriers(ring + S::RING + BN * 4);

    let_next_start(early);
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::B_STAGES; ++i) {
            barrier_init(barriers.full_b + 8 * i, 1);
            barrier_init(barriers.empty_b + 8 * i, CONSUMERS / 32);
        }
        for (int i = 0; i < S::A_STAGES; ++i) {
            barrier_init(barriers.full_a + 8 * i, 1);
            barrier_init(barriers.empty_a + 8 * i, CONSUMERS / 32);
        }
        barrier_init(barriers.sums, 1);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    if (threadIdx.x == CONSUMERS) {
        fetch_map(&a);
        fetch_map(&w);
        if (p.others > 0) fetch_map(&more);
    }
    __syncthreads();
    const Tile tile = tile_of<BN, MODE>(p, t);
    // The same in a whole warp, and known to be: what follows from it alone is computed once for all of its threads.
    const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 7, 0);
    if (group < CONSUMERS / 128) {
        multiply<T, BN, MODE>(early, p, t, tile, ring, ring_at, base, barriers, group);
    } else {
        load<BN, MODE>(early, p, t, tile, a, more, w, ring, barriers);
        __syncwarp();
        if (gridDim.z > 1) cluster_meet();
    }
}

}  // namespace

STARTS_EARLY(product_hopper)

#define PRODUCT_HOPPER_ENTRY(NAME, T, MODE, BN)                                                                   \
    extern "C" __global__ void __launch_bounds__(PRODUCT_HOPPER_THREADS, 1)                                       \
        NAME(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap more,                         \
             const __grid_constant__ TensorMap w, const __grid_constant__ Problem p, const __grid_constant__ Tiling t) { \
        const Early early{};                                                                                      \
        product_hopper_body<T, BN, MODE>(early, a, more, w, p, t);                                                \
    }

// Name ending, mode, BN; then what the choice among them goes by, in nanoseconds on an H200: around the steps of a block, a
// step, and a split. build.rs finds the rows of this table, and Rust launches by them.
#define PRODUCT_HOPPER_TILE(ENDING, MODE, BN, AROUND, STEP, SPLIT)    \
    PRODUCT_HOPPER_ENTRY(product_hopper_f16_##ENDING, half, MODE, BN) \
    PRODUCT_HOPPER_ENTRY(product_hopper_bf16_##ENDING, __nv_bfloat16, MODE, BN)

PRODUCT_HOPPER_TILE(rows_240, 0, 240, 5000, 620, 0)
PRODUCT_HOPPER_TILE(rows_160, 0, 160, 4423, 411, 3643)
PRODUCT_HOPPER_TILE(rows_128, 0, 128, 3407, 319, 2948)
PRODUCT_HOPPER_TILE(rows_80, 0, 80, 3237, 277, 1948)
PRODUCT_HOPPER_TILE(windows_80, 1, 80, 5500, 240, 2000)
PRODUCT_HOPPER_TILE(patches_160, 2, 160, 9481, 361, 2227)
PRODUCT_HOPPER_TILE(patches_128, 2, 128, 6985, 291, 7108)
PRODUCT_HOPPER_TILE(patches_80, 2, 80, 5946, 243, 2326)
PRODUCT_HOPPER_TILE(patches_32, 2, 32, 5000, 180, 1500)
