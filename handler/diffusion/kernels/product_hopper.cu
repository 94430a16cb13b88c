// Products and convolutions by wgmma and the copy engine (sm_90a only): the problem of product.cuh, of f16 or bf16, whole,
// with the ending AS_IT_IS or SOFTMAX, neither wide nor crossed, and without partials. Several problems lie one after the
// other: rows of A and of out are ROWS, and follow those of the problem before. Or they are phases: then the places of all
// phases' windows follow one another in W's rows.
//
// A block makes a tile of 128 rows by BN columns. Two warpgroups multiply, 64 rows each. One more warp has the copy engine
// fill two rings, one of stages of A, one of stages of W's BN rows by 64 k; or one that multiplies does it (LOADS_ITSELF). How
// the rows of a tile lie, by MODE:
//   ROWS     consecutive rows of a matrix; a stage of A is 64 of their k
//   WINDOWS  two patches of 8 x 8 places; a stage of A is one place of their windows, and 64 channels
//   PATCHES  the same, and a stage of A is the patches with the places around them, of 64 channels: all places of their
//            windows are read from it, at other offsets. For windows of 3 x 3 and a stride of 1, and for phases
// What is outside of a map or past the last channel is zero: the copy engine fills it in.
//
// k is split among the blocks of a cluster, each of which then sums up and ends a part of the rows, always in the
// same order.
//
// Entries product_hopper_T_MODE_BN; block = (PRODUCT_HOPPER_THREADS, 1, 1), cluster = (1, 1, splits), grid = (tiles of rows,
// tiles of columns, splits), or the other way round if Tiling says so; dynamic shared memory: PRODUCT_HOPPER_SHARED. Tiles of
// which two are at work on a multiprocessor have PRODUCT_HOPPER_SHARED_OF_TWO instead and no splits, and with more columns than
// PRODUCT_HOPPER_LOADED_COLUMNS they have PRODUCT_HOPPER_THREADS_ITSELF and PRODUCT_HOPPER_SHARED_ITSELF. A ROWS tile is 128
// rows. Else, Tiling says: tiles of a map go across, then down, then through its phases if there are any, then through images.
// Moments are those of 64 rows, or of 16 if there are splits; then images are whole patches, BN is a multiple of a
// group's channels, and these are even.
//
// A part of row_sums is a tile's columns, and with them, or a_sums, the mode is ROWS. Kernels for a_sums have _normed behind their names;
// those with a softmax take both.
//
// The kernel starts early (see common.cuh): w, bias and *step are read before the kernel ahead has ended.
#include "hopper_load.cuh"
#include "hopper_split.cuh"
#include "row_sums.cuh"
#include "softmax.cuh"

namespace {

// ---- multiplying

// Makes 64 rows of sums: sums[4 j + i] are row + 8 (i / 2) and column 8 j + 2 t + i % 2, of lane 4 row + t of each warp.
template <typename T, typename S>
__device__ __forceinline__ void sum_up(const Problem& p, const Tiling& t, const Tile& tile, uint32_t ring,
                                       const Barriers<S>& barriers, Loader<S>& loader, int group, float (&sums)[S::BN / 2]) {
    constexpr int BN = S::BN, MODE = S::MODE;
    const bool first_lane = (threadIdx.x & 31) == 0;
    const int pitch = (PATCH << t.across) + p.side - 1;
    int start = group * PLACES;  // in places, of this group's patch
    if (MODE == PATCHES) {
        start = group * (t.images ? pitch * (PATCH + p.side - 1) : t.down ? pitch * PATCH : PATCH);
    }
    // The lower halves of descriptors; the upper ones stay.
    const uint64_t b_first = descriptor(ring + S::A_STAGES * S::A_BYTES);
    const uint64_t a_first = descriptor_apart(ring + uint32_t(start * ROW), MODE == PATCHES ? pitch * ROW : 1024);
    const uint32_t b_high = uint32_t(b_first >> 32), a_high = uint32_t(a_first >> 32);
    const int taps = MODE == PATCHES ? p.side * p.side : 1;
    int tap = MODE == PATCHES ? tile.first % taps : 0, ky = tap / p.side, kx = tap - ky * p.side;
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
        if (MODE == PATCHES) hop = (stage_a * S::A_BYTES + (ky * pitch + kx) * ROW) >> 4;
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
            if (S::LOADS_ITSELF && threadIdx.x < 32 && loader.step < tile.count) loader.next();
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

// ---- results

// The other way of load_matrices: lane 4 r + t of each matrix has columns 2 t and 2 t + 1 of row r, as it has sums.
__device__ __forceinline__ void store_matrices(uint32_t row, const unsigned (&w)[4]) {
    asm volatile("stmatrix.sync.aligned.m8n8.x4.shared.b16 [%0], {%1, %2, %3, %4};" ::"r"(row), "r"(w[0]), "r"(w[1]), "r"(w[2]),
                 "r"(w[3]) : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t to, uint4 v) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w) : "memory");
}
__device__ __forceinline__ uint4 load_shared(uint32_t from) {
    uint4 v;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];" : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w) : "r"(from) : "memory");
    return v;
}

template <typename T, typename S, int ENDING, bool NORMED>
__device__ __forceinline__ void multiply(Early early, const Problem& p, const Tiling& t, const Tile& tile, uint32_t ring,
                                         unsigned char* ring_at, float* base, const Barriers<S>& barriers, Loader<S>& loader,
                                         int group) {
    constexpr int BN = S::BN, MODE = S::MODE, VECTORS = BN / 8, FOURS = VECTORS / 4;
    const int warp = int(threadIdx.x) >> 5, lane = int(threadIdx.x) & 31, lane4 = lane & 3, column = lane4 * 2;
    T* const out = static_cast<T*>(p.out);
    const T* const onto = ENDING == SOFTMAX ? nullptr : static_cast<const T*>(p.onto);

    // What is added to each column. Only the table's row waits for the kernel ahead.
    const T* const bias = static_cast<const T*>(p.bias) + (ENDING == SOFTMAX ? tile.problem * p.columns : 0);
    const int at_step = p.table == nullptr ? 0 : row_of_step(p.step, p.steps);
    const int my_column = tile.column + int(threadIdx.x);
    const bool has_column = int(threadIdx.x) < BN && my_column < p.columns;
    static_assert(BN <= CONSUMERS, "a thread for each column");
    float own = has_column && p.bias != nullptr ? alpha_of(p, my_column) * widen(bias[my_column]) : 0.0f;
    const bool loads = S::LOADS_ITSELF && threadIdx.x < 32;
    if (loads) loader.begin();
    wait_for_last(early);
    if (loads) {
        for (int i = 0; i < loader.ahead; ++i) loader.next();
    }
    if (has_column && p.table != nullptr) {
        own += widen(static_cast<const T*>(p.table)[(long long)at_step * p.columns + my_column]);
    }
    if (int(threadIdx.x) < BN) base[threadIdx.x] = own;
    // What each row is multiplied by.
    float* const scales = base + BN;
    if (NORMED && int(threadIdx.x) < BM) {
        const int row = tile.row + int(threadIdx.x);
        scales[threadIdx.x] = p.a_sums != nullptr && row < tile.end ? scale_of(p, row) : 1.0f;
    }

    // A warp's rows lie in shared memory once the sums are made: what is added to them goes there in whole vectors and is read
    // as the sums lie, and results the other way. Lane 4 r + t takes vector 4 v + t of rows r and r + 8, and of the last two
    // vectors lane 2 r + t.
    static_assert(VECTORS % 4 == 0 || VECTORS % 4 == 2, "vectors");
    constexpr bool LAST = VECTORS % 4 == 2;
    constexpr uint32_t PITCH = BN * 2 + 16;  // spreads the banks
    const uint32_t rows_at = ring + uint32_t(threadIdx.x >> 5) * (16 * PITCH);
    const int patch_row = (warp & 3) * 16;
    // Residuals that fit into registers are fetched before the sums are made. Another block on the multiprocessor hides the wait
    // for them, too.
    constexpr bool KEEPS = BN <= 160 && S::BLOCKS == 1;
    uint4 held[KEEPS ? 2 * FOURS : 1], held_last;
    const auto fetch = [&](int r, int vector) {
        const Target to = target<MODE>(p, t, tile, group, patch_row + r);
        const int at = tile.column + vector * 8;
        return to.inside && at < p.columns ? load_vector(onto + to.row * p.out_row + at) : make_uint4(0, 0, 0, 0);
    };
    if (KEEPS && onto != nullptr && gridDim.z == 1) {
#pragma unroll
        for (int i = 0; i < 2 * FOURS; ++i) held[KEEPS ? i : 0] = fetch((lane >> 2) + 8 * (i / FOURS), 4 * (i % FOURS) + lane4);
        if (LAST) held_last = fetch(lane >> 1, 4 * FOURS + (lane & 1));
    }

    float sums[BN / 2];
    sum_up<T, S>(p, t, tile, ring, barriers, loader, group, sums);
    consumers_sync();  // base is there, and the ring is free
    // Of this warp's first row, and of both rows that this thread has.
    const int first_row = group * PLACES + patch_row;
    const float upper = NORMED ? scales[first_row + (lane >> 2)] : 1.0f;
    const float lower = NORMED ? scales[first_row + (lane >> 2) + 8] : 1.0f;
    if constexpr (ENDING == SOFTMAX) {
        static_assert(BN % SOFTMAX_SLOTS == 0, "whole heads");
#pragma unroll
        for (int j = 0; j < BN / 8; ++j) {
            const float2 more = *reinterpret_cast<const float2*>(base + 8 * j + column);
            sums[4 * j] = fmaf(sums[4 * j], upper, more.x);
            sums[4 * j + 1] = fmaf(sums[4 * j + 1], upper, more.y);
            sums[4 * j + 2] = fmaf(sums[4 * j + 2], lower, more.x);
            sums[4 * j + 3] = fmaf(sums[4 * j + 3], lower, more.y);
        }
#pragma unroll
        for (int head = 0; head < BN / SOFTMAX_SLOTS; ++head) {
#pragma unroll
            for (int half = 0; half < 2; ++half) {
                softmax_of_quad(p.groups, [&](int n, int i) -> float& {
                    return sums[4 * (head * (SOFTMAX_SLOTS / 8) + n) + 2 * half + i];
                });
            }
        }
    }

    if (gridDim.z == 1) {
        float2* const cells = reinterpret_cast<float2*>(ring_at + BM * PITCH);
        const uint32_t mine = rows_at + (lane >> 2) * PITCH + lane4 * 16, last = rows_at + (lane >> 1) * PITCH + (4 * FOURS + (lane & 1)) * 16;
        if (onto != nullptr) {
#pragma unroll
            for (int i = 0; i < 2 * FOURS; ++i) {
                const int v = i % FOURS, half = i / FOURS;
                store_shared(mine + half * (8 * PITCH) + v * 64, KEEPS ? held[KEEPS ? i : 0] : fetch((lane >> 2) + 8 * half, 4 * v + lane4));
            }
            if (LAST) store_shared(last, KEEPS ? held_last : fetch(lane >> 1, 4 * FOURS + (lane & 1)));
            __syncwarp();
        }
        // Two columns of two rows of vector j, with what is added.
        const auto end = [&](int j, unsigned& low, unsigned& high) {
            if (ENDING == SOFTMAX) {
                low = pack2(sums[4 * j], sums[4 * j + 1], T());
                high = pack2(sums[4 * j + 2], sums[4 * j + 3], T());
                return;
            }
            const float alpha = alpha_of(p, tile.column + 8 * j);
            const float2 more = *reinterpret_cast<const float2*>(base + 8 * j + column);
            const float2 a = unpack2(low, T()), b = unpack2(high, T());
            const float first = alpha * upper, second = alpha * lower;
            low = pack2(fmaf(sums[4 * j], first, more.x) + a.x, fmaf(sums[4 * j + 1], first, more.y) + a.y, T());
            high = pack2(fmaf(sums[4 * j + 2], second, more.x) + b.x, fmaf(sums[4 * j + 3], second, more.y) + b.y, T());
        };
        const uint32_t matrix = rows_at + (lane & 7) * PITCH + (lane >> 3) * 16;
        const uint32_t last_matrix = rows_at + (lane & 15) * PITCH + (4 * FOURS + (lane >> 4)) * 16;
#pragma unroll
        for (int v = 0; v < FOURS; ++v) {
            unsigned low[4] = {}, high[4] = {};
            if (onto != nullptr) {
                load_matrices(low, matrix + v * 64);
                load_matrices(high, matrix + v * 64 + 8 * PITCH);
            }
#pragma unroll
            for (int u = 0; u < 4; ++u) end(4 * v + u, low[u], high[u]);
            store_matrices(matrix + v * 64, low);
            store_matrices(matrix + v * 64 + 8 * PITCH, high);
        }
        if (LAST) {
            unsigned words[4] = {};
            if (onto != nullptr) load_matrices(words, last_matrix);
            end(4 * FOURS, words[0], words[1]);
            end(4 * FOURS + 1, words[2], words[3]);
            store_matrices(last_matrix, words);
        }
        __syncwarp();
        const auto store = [&](const Target& to, int vector, uint32_t from) {
            const int at = tile.column + vector * 8;
            if (to.inside && at < p.columns) *reinterpret_cast<uint4*>(out + to.row * p.out_row + at) = load_shared(from);
        };
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const Target to = target<MODE>(p, t, tile, group, patch_row + (lane >> 2) + 8 * half);
#pragma unroll
            for (int v = 0; v < FOURS; ++v) store(to, 4 * v + lane4, mine + half * (8 * PITCH) + v * 64);
        }
        if (LAST) store(target<MODE>(p, t, tile, group, patch_row + (lane >> 1)), 4 * FOURS + (lane & 1), last);
        if (MODE == ROWS && ENDING == AS_IT_IS && p.row_sums != nullptr) {
            float2* const to = row_sums_of<BN>(p, tile, first_row);
            const int rows = tile.end - tile.row - first_row;
            sum_up_rows<T, BN>(rows_at, PITCH, [&](int row, float2 of) {
                if (row < rows) to[row] = of;
            });
        }
        if (ENDING == AS_IT_IS && p.moments != nullptr) {
            measure_rows<T, BN>(cells + (threadIdx.x >> 5) * (BN / 2), rows_at, PITCH);
            consumers_sync();
            store_moments<BN, MODE, 4>(p, t, tile, cells, 2, 0);
        }
    } else if constexpr (S::SPLITS && ENDING == AS_IT_IS) {
        end_split<T, S, NORMED>(p, t, tile, ring, ring_at, base, scales, barriers, group, sums);
    }
}

template <typename T, typename S, int ENDING, bool NORMED>
__device__ __forceinline__ void product_hopper_body(Early early, const TensorMap& a, const TensorMap& more,
                                                    const TensorMap& w, const Problem& p, const Tiling& t) {
    constexpr int BN = S::BN, MODE = S::MODE;
    extern __shared__ unsigned char shared[];
    const uint32_t start = uint32_t(__cvta_generic_to_shared(shared)), ring = (start + 1023u) & ~1023u;
    unsigned char* const ring_at = shared + (ring - start);
    float* const base = reinterpret_cast<float*>(ring_at + S::RING);
    const Barriers<S> barriers(ring + S::RING + (BN + S::SCALES) * 4);

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
    if (threadIdx.x == (S::LOADS_ITSELF ? 0 : CONSUMERS)) {
        fetch_map(&a);
        fetch_map(&w);
        if (p.others > 0) fetch_map(&more);
    }
    __syncthreads();
    const Tile tile = tile_of<BN, MODE>(p, t);
    // The same in a whole warp, and known to be: what follows from it alone is computed once for all of its threads.
    const int group = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 7, 0);
    Loader<S> loader(p, t, tile, a, more, w, ring, barriers);
    if (S::LOADS_ITSELF || group < CONSUMERS / 128) {
        multiply<T, S, ENDING, NORMED>(early, p, t, tile, ring, ring_at, base, barriers, loader, group);
    } else {
        loader.begin();
        wait_for_last(early);
        for (int i = 0; i < tile.count; ++i) loader.next();
        __syncwarp();
        if (gridDim.z > 1) cluster_meet();
    }
}

}  // namespace

STARTS_EARLY(product_hopper)

#define PRODUCT_HOPPER_ENTRY(NAME, T, MODE, BN, BLOCKS, WITH, NORMED)                                                             \
    extern "C" __global__ void __launch_bounds__(Shape<BN, MODE, BLOCKS>::LOADS_ITSELF ? CONSUMERS : PRODUCT_HOPPER_THREADS, BLOCKS) \
        NAME(const __grid_constant__ TensorMap a, const __grid_constant__ TensorMap more,                         \
             const __grid_constant__ TensorMap w, const __grid_constant__ Problem p, const __grid_constant__ Tiling t) { \
        const Early early{};                                                                                      \
        product_hopper_body<T, Shape<BN, MODE, BLOCKS>, WITH, NORMED>(early, a, more, w, p, t);                                        \
    }

// Name ending, mode, BN, blocks on a multiprocessor; then what the choice among them goes by, in nanoseconds on an H200: around the steps of a block, a
// step where more than half of the multiprocessors are busy, and a split. build.rs finds the rows of this table, and Rust launches by them.
#define PRODUCT_HOPPER_TILE(ENDING, MODE, BN, BLOCKS, AROUND, STEP, SPLIT)    \
    PRODUCT_HOPPER_ENTRY(product_hopper_f16_##ENDING, half, MODE, BN, BLOCKS, AS_IT_IS, false) \
    PRODUCT_HOPPER_ENTRY(product_hopper_bf16_##ENDING, __nv_bfloat16, MODE, BN, BLOCKS, AS_IT_IS, false) \
    NORMED_OF_MODE_##MODE(ENDING, BN, BLOCKS)
// The same for rows of A that are to be normalised. The others are shorter without: what runs once comes from memory.
#define NORMED_OF_MODE_0(ENDING, BN, BLOCKS) \
    PRODUCT_HOPPER_ENTRY(product_hopper_f16_##ENDING##_normed, half, ROWS, BN, BLOCKS, AS_IT_IS, true) \
    PRODUCT_HOPPER_ENTRY(product_hopper_bf16_##ENDING##_normed, __nv_bfloat16, ROWS, BN, BLOCKS, AS_IT_IS, true)
#define NORMED_OF_MODE_1(ENDING, BN, BLOCKS)
#define NORMED_OF_MODE_2(ENDING, BN, BLOCKS)
// The same with the ending SOFTMAX; BN is of whole heads, and there are no splits.
#define SOFTMAX_HOPPER_TILE(ENDING, MODE, BN, BLOCKS, AROUND, STEP, SPLIT) \
    PRODUCT_HOPPER_ENTRY(product_hopper_f16_##ENDING, half, MODE, BN, BLOCKS, SOFTMAX, true) \
    PRODUCT_HOPPER_ENTRY(product_hopper_bf16_##ENDING, __nv_bfloat16, MODE, BN, BLOCKS, SOFTMAX, true)

PRODUCT_HOPPER_TILE(rows_240, 0, 240, 1, 6210, 551, 0)
PRODUCT_HOPPER_TILE(rows_160, 0, 160, 1, 3070, 447, 4050)
PRODUCT_HOPPER_TILE(rows_128, 0, 128, 1, 3150, 354, 3260)
PRODUCT_HOPPER_TILE(rows_80, 0, 80, 1, 2460, 316, 1990)
PRODUCT_HOPPER_TILE(rows_128_of_two, 0, 128, 2, 3950, 487, 0)
PRODUCT_HOPPER_TILE(rows_160_of_two, 0, 160, 2, 4400, 505, 0)
PRODUCT_HOPPER_TILE(windows_80, 1, 80, 1, 7570, 261, 320)
PRODUCT_HOPPER_TILE(windows_80_of_two, 1, 80, 2, 7000, 300, 0)
PRODUCT_HOPPER_TILE(patches_160, 2, 160, 1, 6790, 386, 4730)
PRODUCT_HOPPER_TILE(patches_160_of_two, 2, 160, 2, 20000, 427, 0)
PRODUCT_HOPPER_TILE(patches_128, 2, 128, 1, 7530, 300, 4590)
PRODUCT_HOPPER_TILE(patches_128_of_two, 2, 128, 2, 6480, 358, 0)
PRODUCT_HOPPER_TILE(patches_80, 2, 80, 1, 1940, 290, 3780)
PRODUCT_HOPPER_TILE(patches_80_of_two, 2, 80, 2, 3560, 294, 0)
PRODUCT_HOPPER_TILE(patches_32, 2, 32, 1, 3150, 230, 771)
PRODUCT_HOPPER_TILE(patches_32_of_two, 2, 32, 2, 3500, 175, 0)
SOFTMAX_HOPPER_TILE(softmax_160_of_two, 0, 160, 2, 6500, 450, 0)
SOFTMAX_HOPPER_TILE(softmax_80, 0, 80, 1, 3360, 273, 0)
