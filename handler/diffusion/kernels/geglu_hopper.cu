// A linear layer followed by the gated GELU, in one kernel of wgmma (sm_90a only):
//
//   out[r][c] = (x[r] . w[c] + bias[c]) * gelu(x[r] . w[C + c] + bias[C + c]),    r < rows, c < C
//
// with the exact (erf) GELU (Hendrycks, Gimpel 2016; Shazeer 2020, "GLU variants improve transformer"). x [rows, K],
// w [2C, K], bias [2C] and out [rows, C] are f16 or bf16, row-major; sums and the GELU are in f32, and a value is
// rounded once. K is a multiple of 64, C of the tile's columns (128 or 160); any number of rows from 1. Base
// addresses are multiples of 16 bytes.
//
// A block makes a tile of 128 rows by BC columns: the BC rows of w's value half and the BC matching rows of its gate
// half are the two parts of one B operand, so a thread holds value and gate of the same element. Two warpgroups
// multiply, 64 rows each; a thread of the third has the copy engine fill a ring of stages of 64 k, and its other warps fetch
// the biases of the next tile and make the scales of its rows. Blocks are persistent:
// they walk over the tiles, rows fastest, with the whole grid.
//
// Entries linear_geglu_T_BC (T: f16, bf16; block = (WIDE_THREADS, 1, 1)); dynamic shared memory: the table at the end.
// grid = (min(tiles, multiprocessors), 1, 1) with tiles = ceil(rows / 128) * (C / BC); any grid is right. Boxes of x are 128
// rows of 64 k, boxes of w are BC.
#include "hopper_wide.cuh"

namespace {

constexpr int LEAD = 2;           // steps by which the first warpgroup starts ahead of the second
constexpr int NAMED_BARRIER = 1;  // for that start

template <int BC> struct Shape {
    static constexpr int A_BYTES = BM * ROW, HALF_BYTES = BC * ROW, STAGE = A_BYTES + 2 * HALF_BYTES;
    static constexpr int STAGES = 4;
    // Alignment, ring, barriers, scales of rows, and the biases of two tiles, in pairs.
    static constexpr int BYTES = 1024 + STAGES * STAGE + 16 * STAGES + Scales::BYTES + 2 * BC * 4;
    static_assert(BC % 16 == 0 && STAGE % 1024 == 0 && HALF_BYTES % 1024 == 0);
};

// By one thread. The rows of w are there before the kernel ahead has ended, those of x are not.
template <typename T, int BC>
__device__ __forceinline__ void load(Early early, const TensorMap& x, const TensorMap& w, const Wide<T>& p, uint32_t ring,
                                     uint32_t full, uint32_t empty, int row_tiles) {
    using S = Shape<BC>;
    Place<S::STAGES> at;
    for (int tile = int(blockIdx.x); tile < p.tiles; tile += int(gridDim.x)) {
        const int row = tile % row_tiles * BM, column = tile / row_tiles * BC;
        for (int k = 0; k < p.inner; k += BK) {
            const uint32_t to = ring + at.stage * S::STAGE, barrier = full + 8 * at.stage;
            barrier_wait(empty + 8 * at.stage, at.parity ^ 1);
            barrier_expect(barrier, S::STAGE);
            copy_box(to + S::A_BYTES, &w, barrier, k, 0, column);
            copy_box(to + S::A_BYTES + S::HALF_BYTES, &w, barrier, k, 0, p.columns + column);
            if (k == 0 && tile == int(blockIdx.x)) wait_for_last(early);
            copy_box(to, &x, barrier, k, 0, row);
            at.next();
        }
    }
}

// Gates 64 rows by BC columns of sums, and stores them. row, column: those of the thread's first sum.
template <typename T, int BC>
__device__ __forceinline__ void store_tile(const Wide<T>& p, const float (&sums)[BC], const unsigned* biases, float2 scales, int row,
                                           int column) {
    constexpr int VECTORS = BC / 8;
    const int t = int(threadIdx.x) & 3;
    T* const out = p.out + (long long)row * p.columns + column;
    const auto gated = [&](int vector, int half) {
        const float2 b = unpack2(biases[4 * vector + t], T()), c = unpack2(biases[BC / 2 + 4 * vector + t], T());
        const int i = 4 * vector + 2 * half, j = BC / 2 + i;
        const float scale = half == 0 ? scales.x : scales.y;
        return pack2(fmaf(sums[i], scale, b.x) * gelu(fmaf(sums[j], scale, c.x)),
                     fmaf(sums[i + 1], scale, b.y) * gelu(fmaf(sums[j + 1], scale, c.y)), T());
    };
#pragma unroll
    for (int v = 0; v + 4 <= VECTORS; v += 4) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            unsigned words[4] = {gated(v, half), gated(v + 1, half), gated(v + 2, half), gated(v + 3, half)};
            const uint4 vector = transpose4(words, t);
            if (row + 8 * half < p.rows) {
                *reinterpret_cast<uint4*>(out + (long long)(8 * half) * p.columns + (v + t) * 8) = vector;
            }
        }
    }
#pragma unroll
    for (int v = VECTORS / 4 * 4; v < VECTORS; ++v) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const unsigned word = gated(v, half);
            if (row + 8 * half < p.rows) {
                *reinterpret_cast<unsigned*>(out + (long long)(8 * half) * p.columns + v * 8 + 2 * t) = word;
            }
        }
    }
}

// Multiplies and stores the tiles' rows of one warpgroup. Its lead over the other lets one multiply while the other
// stores.
template <typename T, int BC>
__device__ __forceinline__ void multiply(const Wide<T>& p, uint32_t ring, uint32_t full, uint32_t empty,
                                         const Scales& scales, const unsigned* biases, int row_tiles) {
    using S = Shape<BC>;
    const int group = int(threadIdx.x) >> 7, lane = int(threadIdx.x) & 31;
    const int steps = p.inner / BK, lead = min(LEAD, steps);
    const int my_row = group * 64 + ((int(threadIdx.x) >> 5) & 3) * 16 + (lane >> 2);
    const uint64_t a_0 = descriptor(ring + group * 64 * ROW), b_0 = descriptor(ring + S::A_BYTES);
    const auto release = [&](int stage) {
        if (lane == 0) barrier_arrive(empty + 8 * stage);
    };

    if (group == 1) asm volatile("bar.sync %0, 256;" ::"n"(NAMED_BARRIER) : "memory");
    bool ahead = group == 0;
    float sums[BC];  // values, then gates; d[4 j + i]: row + 8 (i / 2), column 8 j + 2 t + i % 2
    Place<S::STAGES> at;
    int turn = 0;
    for (int tile = int(blockIdx.x); tile < p.tiles; tile += int(gridDim.x)) {
        const int row = tile % row_tiles * BM + my_row, column = tile / row_tiles * BC;
        int before = 0;
        const unsigned* const mine = biases + (turn & 1) * BC;
        const float2 both = scales.take(my_row, turn++);
        for (int step = 0; step < steps; ++step) {
            barrier_wait(full + 8 * at.stage, at.parity);
            const uint64_t hop = uint64_t(at.stage * (S::STAGE >> 4)), a = a_0 + hop, b = b_0 + hop;
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < BK / 16; ++k) {
                const int add = k == 0 ? step : 1;
                wgmma<BC>(sums, a + 2 * k, b + 2 * k, add, T());
                wgmma<BC>(sums + BC / 2, a + 2 * k, b + 2 * k + (S::HALF_BYTES >> 4), add, T());
            }
            wgmma_commit();
            if (ahead && step == lead - 1) {
                asm volatile("bar.arrive %0, 256;" ::"n"(NAMED_BARRIER) : "memory");
                ahead = false;
            }
            if (step > 0) {
                wgmma_wait<1>();
                release(before);
            }
            before = at.stage;
            at.next();
        }
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < BC; ++i) asm volatile("" : "+f"(sums[i])::"memory");
        release(before);
        store_tile<T, BC>(p, sums, mine, both, row, column);
    }
    if (ahead) asm volatile("bar.arrive %0, 256;" ::"n"(NAMED_BARRIER) : "memory");  // no tile
}

template <typename T, int BC>
__device__ __forceinline__ void linear_geglu_body(const TensorMap& x, const TensorMap& w, const Wide<T>& p) {
    using S = Shape<BC>;
    const Early early{};
    extern __shared__ unsigned char shared[];
    const uint32_t start = uint32_t(__cvta_generic_to_shared(shared)), ring = (start + 1023u) & ~1023u;
    const uint32_t full = ring + S::STAGES * S::STAGE, empty = full + 8 * S::STAGES, scales_at = empty + 8 * S::STAGES;
    const Scales scales(shared + (scales_at - start), scales_at);
    unsigned* const biases = reinterpret_cast<unsigned*>(shared + (scales_at - start) + Scales::BYTES);
    const int row_tiles = (p.rows + BM - 1) / BM;

    let_next_start(early);
    if (threadIdx.x == 0) {
        ring_init(full, empty, S::STAGES);
        scales.init();
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
    }
    __syncthreads();
    if (threadIdx.x >= CONSUMERS) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        if (threadIdx.x == CONSUMERS) load<T, BC>(early, x, w, p, ring, full, empty, row_tiles);
        if (Scales::maker() >= 0) {
            wait_for_last(early);
            int turn = 0;
            for (int tile = int(blockIdx.x); tile < p.tiles; tile += int(gridDim.x), ++turn) {
                const int mine = Scales::maker(), next = mine + Scales::MAKERS;
                const T* const bias = p.bias + tile / row_tiles * BC;
                const auto pair = [&](int i) { return load_pair(i < BC / 2 ? bias + 2 * i : bias + p.columns + 2 * i - BC); };
                const unsigned first = pair(mine), second = next < BC ? pair(next) : 0u;
                scales.make<8>(p, tile % row_tiles * BM, turn, [&] {
                    unsigned* const to = biases + (turn & 1) * BC;
                    to[mine] = first;
                    if (next < BC) to[next] = second;
                });
            }
        }
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        wait_for_last(early);
        multiply<T, BC>(p, ring, full, empty, scales, biases, row_tiles);
    }
}

}  // namespace

STARTS_EARLY(linear_geglu)

#define ENTRY(NAME, T, BC)                                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                                          \
        NAME(const __grid_constant__ TensorMap x, const __grid_constant__ TensorMap w,                \
             const __grid_constant__ Wide<T> p) {                                                     \
        linear_geglu_body<T, BC>(x, w, p);                                                            \
    }

// Name ending, BC, dynamic shared bytes. build.rs finds the rows of this table, and Rust launches by them.
#define GEGLU_TILE(ENDING, BC, SHARED)               \
    static_assert(Shape<BC>::BYTES <= SHARED);       \
    ENTRY(linear_geglu_f16_##ENDING, half, BC)       \
    ENTRY(linear_geglu_bf16_##ENDING, __nv_bfloat16, BC)

GEGLU_TILE(128, 128, 199296)
GEGLU_TILE(160, 160, 232320)
