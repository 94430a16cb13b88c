// Products and convolutions on tensor cores by mma.sync (f16 from sm_75 on, bf16 from sm_80 on), see product.cuh.
//
// A block has a tile of BM x BN of out, its warps a part of it each (product_tile.cuh). A and W come through a ring in
// shared memory, 64 of k at a time, by cp.async (sm_75: one buffer, and registers ahead of it; product_loop.cuh,
// product_source.cuh). Chunks of 16 bytes are swizzled so that neither copies nor ldmatrix meet in a bank. The sums then
// go through shared memory, too, so that rows are written (product_ending.cuh). Dynamic shared memory is what the ring
// takes, or the sums, if that is more, and a float for each row: Rust computes it (gpu/product/plan.rs).
//
// grid = (ceil(rows / BM) * ceil(columns / BN), splits, problems), block = (threads); the tables at the end have names,
// threads and tiles. All rows, batches and addresses are multiples of 16 bytes (`whole`), inner of
// 8. A chunk of moments has BM / WM / WK rows, which must divide an image's, and columns / groups must divide BN / WN.
// A part of row_sums has BN / WN columns.
//
// The bf16 kernels trap below sm_80.
#include <type_traits>

#include "product_ending.cuh"
#include "product_loop.cuh"
#include "softmax.cuh"

namespace {

// What a kernel takes.
enum class Kind { STEADY, ANY, CROSSED, SOFTMAX };

template <typename T, typename S, Kind WHICH> __device__ __forceinline__ void product_body(const Problem& p) {
    constexpr int MT = S::LAST_MT, NT = S::NT;
    constexpr bool CROSSED = WHICH == Kind::CROSSED;
    using Source = std::conditional_t<WHICH == Kind::STEADY || WHICH == Kind::SOFTMAX, Steady<T, S>, Any<T, S, CROSSED>>;
    extern __shared__ __align__(128) unsigned char buffer[];
    const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
    const int warp_row = warp % S::DOWN * S::ROWS, group = S::WK == 1 ? 0 : warp / S::DOWN % S::WK;
    const int warp_column = warp / S::DOWN / S::WK * S::COLUMNS;
    const int across = (p.columns + S::BN - 1) / S::BN;
    const int tile_row = int(blockIdx.x) / across, tile_column = int(blockIdx.x) - tile_row * across;
    const int row0 = tile_row * S::BM, column0 = tile_column * S::BN;
    const int from = int(blockIdx.y) * p.depth, to = min(p.inner, from + p.depth);
    const int steps = (to - from + BK - 1) / BK;

    constexpr int PART = S::LAST_ROWS * S::PITCH;
    float* const parts = reinterpret_cast<float*>(buffer) + (warp - group * S::DOWN) * PART;
    const auto part_of = [&](int group) { return parts + group * S::DOWN * PART; };
    const auto ending = [&]() {
        return Last<T, S>(p, part_of(group), row0 + warp_row + group * S::LAST_ROWS, column0 + warp_column);
    };
    ending().expect();
    float* const scales = reinterpret_cast<float*>(buffer + S::SCALES_AT);
    const auto beside = [&]() {
        if (p.a_sums == nullptr) return;
        for (int i = int(threadIdx.x); i < min(S::BM, p.rows - row0); i += S::THREADS) {
            scales[i] = scale_of(p, int(blockIdx.z) * p.rows + row0 + i);
        }
    };

    // The stage that is written last has room for what the source needs at first.
    Source source(p, row0, column0, from, reinterpret_cast<unsigned*>(buffer + (S::STAGES - 1) * S::STAGE));
    Loop<T, S, Source, CROSSED> loop(source, shared_address(buffer), warp_row, warp_column, group);
    if constexpr (S::COPIES_AHEAD) {
        loop.run(steps, beside);
    } else {
        beside();
        loop.run_plain(buffer, steps);
    }

    Last<T, S> last = ending();
    last.prepare();
    wait_copies<0>();
    __syncthreads();  // the ring is read
    const int in_part = (lane >> 2) * S::PITCH + (lane >> 1 & 1) * S::HALF + (lane & 1) * 2;
    const auto each = [&](float* part, int first, auto act) {
        float* const place = part + in_part;
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    float* const sums = loop.sums[first + m][n] + 2 * h;
                    act(*reinterpret_cast<float2*>(place + (m * 16 + h * 8) * S::PITCH + n * 4), sums[0], sums[1]);
                }
            }
        }
    };
    const auto store = [](float2& to, float& x, float& y) { to = make_float2(x, y); };
    if constexpr (S::WK == 2) {
        // What each has summed up for the other.
        each(part_of(1 - group), MT, store);
        __syncthreads();
        each(part_of(group), 0, [](float2& from, float& x, float& y) {
            x += from.x;
            y += from.y;
        });
    }
    if (p.a_sums != nullptr) {
        const float* const of_mine = scales + warp_row + group * S::LAST_ROWS + (lane >> 2);
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                const float scale = of_mine[m * 16 + h * 8];
#pragma unroll
                for (int n = 0; n < NT; ++n) {
                    loop.sums[m][n][2 * h] *= scale;
                    loop.sums[m][n][2 * h + 1] *= scale;
                }
            }
        }
    }
    if constexpr (WHICH == Kind::SOFTMAX) {
        if (p.bias != nullptr) {
            const T* const bias = static_cast<const T*>(p.bias) + (long long)blockIdx.z * p.columns + column0 + warp_column;
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                const int column = n * 8 + (lane & 3) * 2;
                const float left = widen(bias[column]), right = widen(bias[column + 1]);
#pragma unroll
                for (int m = 0; m < MT; ++m) {
#pragma unroll
                    for (int h = 0; h < 2; ++h) {
                        loop.sums[m][n][2 * h] += left;
                        loop.sums[m][n][2 * h + 1] += right;
                    }
                }
            }
        }
        static_assert(S::COLUMNS == SOFTMAX_SLOTS, "a warp has one head");
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                softmax_of_quad(p.groups, [&](int n, int i) -> float& { return loop.sums[m][n][2 * h + i]; });
            }
        }
    }
    each(part_of(group), 0, store);
    __syncwarp();
    last.store();
}

// bf16 has no tensor cores on sm_75.
template <typename T, typename S, Kind WHICH>
__device__ __forceinline__ void product_or_trap(const Problem& p) {
    if constexpr (S::IS_THERE && (ARCH >= 800 || __is_same(T, __half))) {
        product_body<T, S, WHICH>(p);
    } else {
        __trap();
    }
}

}  // namespace

#define ENTRY(NAME, T, S, WHICH)                                                                          \
    extern "C" __global__ void __launch_bounds__(S::THREADS, 1) NAME(const __grid_constant__ Problem p) { \
        product_or_trap<T, S, WHICH>(p);                                                                  \
    }

// Name ending, BM, BN, warps down, across, and that share a part; stages. build.rs finds the rows of these tables, and
// Rust launches by them: PRODUCT_TILE for problems that are steady, PRODUCT_ANY_TILE for all.
#define PRODUCT_TILE(ENDING, BM, BN, WM, WN, WK, STAGES)           \
    using Tile_##ENDING = Tile<BM, BN, WM, WN, WK, STAGES>;        \
    ENTRY(product_f16_##ENDING, half, Tile_##ENDING, Kind::STEADY) \
    ENTRY(product_bf16_##ENDING, __nv_bfloat16, Tile_##ENDING, Kind::STEADY)
#define PRODUCT_ANY_TILE(ENDING, BM, BN, WM, WN, WK, STAGES)           \
    using AnyTile_##ENDING = Tile<BM, BN, WM, WN, WK, STAGES>;         \
    ENTRY(product_any_f16_##ENDING, half, AnyTile_##ENDING, Kind::ANY) \
    ENTRY(product_any_bf16_##ENDING, __nv_bfloat16, AnyTile_##ENDING, Kind::ANY)

// For problems that are steady and end with SOFTMAX, of the tiles of the first table.
#define SOFTMAX_TILE(ENDING, BM, BN, WM, WN, WK, STAGES)                            \
    static_assert(__is_same(Tile_##ENDING, Tile<BM, BN, WM, WN, WK, STAGES>));      \
    ENTRY(product_softmax_f16_##ENDING, half, Tile_##ENDING, Kind::SOFTMAX)         \
    ENTRY(product_softmax_bf16_##ENDING, __nv_bfloat16, Tile_##ENDING, Kind::SOFTMAX)

PRODUCT_TILE(256x160, 256, 160, 4, 2, 1, 4)
PRODUCT_TILE(256x128, 256, 128, 4, 2, 1, 4)
PRODUCT_TILE(128x160, 128, 160, 2, 2, 2, 4)
PRODUCT_TILE(128x160_pair, 128, 160, 2, 2, 1, 3)
PRODUCT_TILE(128x128, 128, 128, 2, 2, 1, 3)
PRODUCT_TILE(64x160, 64, 160, 1, 2, 2, 4)
PRODUCT_TILE(64x160_short, 64, 160, 1, 2, 2, 3)
PRODUCT_TILE(64x80, 64, 80, 2, 1, 2, 5)
PRODUCT_TILE(64x64, 64, 64, 2, 2, 1, 4)
PRODUCT_ANY_TILE(128x160, 128, 160, 2, 4, 1, 4)
PRODUCT_ANY_TILE(128x128, 128, 128, 2, 4, 1, 3)
PRODUCT_ANY_TILE(64x80, 64, 80, 2, 2, 1, 4)
PRODUCT_ANY_TILE(128x16, 128, 16, 4, 1, 1, 4)
ENTRY(product_crossed_f16, half, AnyTile_128x128, Kind::CROSSED)
ENTRY(product_crossed_bf16, __nv_bfloat16, AnyTile_128x128, Kind::CROSSED)
SOFTMAX_TILE(128x160_pair, 128, 160, 2, 2, 1, 3)
SOFTMAX_TILE(64x160, 64, 160, 1, 2, 2, 4)
SOFTMAX_TILE(64x80, 64, 80, 2, 1, 2, 5)
