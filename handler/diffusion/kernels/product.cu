// Products and convolutions on tensor cores by mma.sync (f16 from sm_75 on, bf16 from sm_80 on), see product.cuh.
//
// A block has a tile of BM x BN of out, its WM x WN warps a part of it each. A and W come through a ring in shared
// memory, 64 of k at a time, by cp.async (sm_75: one buffer, and registers ahead of it). Chunks of 16 bytes are swizzled
// so that neither copies nor ldmatrix meet in a bank. Fragments of the next 16 of k are loaded beside the products of
// the last.
//
// grid = (ceil(rows / BM) * ceil(columns / BN), splits, problems), block = (threads); the tables at the end have names,
// threads, tiles and dynamic shared memory. All rows, batches and addresses are multiples of 16 bytes (`whole`), inner of
// 8. A chunk of moments has BM / WM rows, which must divide an image's, and columns / groups must divide BN / WN.
//
// The bf16 kernels trap below sm_80.
#include "mma.cuh"
#include "product.cuh"

namespace {

constexpr int BK = 64;
constexpr int ROW = BK * 2;  // bytes of a row of a tile
constexpr int LEAST_SHARED = 99 * 1024;
constexpr unsigned WARP = 0xffffffffu;

constexpr int larger(int a, int b) { return a > b ? a : b; }

template <int BM_, int BN_, int WM, int WN, int STAGES_> struct Tile {
    static constexpr int BM = BM_, BN = BN_, THREADS = WM * WN * 32;
    static constexpr int STAGES = ARCH >= 800 ? STAGES_ : 1;
    // Of a warp.
    static constexpr int ROWS = BM / WM, COLUMNS = BN / WN, MT = ROWS / 16, NT = COLUMNS / 8;
    static constexpr int STAGE = (BM + BN) * ROW;
    // A warp's sums go through shared memory so many rows at a time; fragments of eight rows at this pitch, in numbers,
    // fall on different banks.
    static constexpr int PART = ROWS < 32 ? ROWS : 32, PITCH = (COLUMNS + 7) / 16 * 16 + 8;
    static constexpr int BYTES = larger(STAGES_ * STAGE, WM * WN * PART * PITCH * 4);
    // Rows that all threads copy at once, a chunk each.
    static constexpr int AT_ONCE = THREADS / 8;
    static constexpr int A_ROUNDS = BM / AT_ONCE, W_ROUNDS = BN / AT_ONCE;
    static_assert(BM % AT_ONCE == 0 && BN % AT_ONCE == 0 && ROWS % 16 == 0 && COLUMNS % 8 == 0, "sizes");
};

// What a warp does with its part once the sums are there, some rows at a time. Those of `row0` on, at most PART, lie in
// `staging`; lanes take eight columns of a row each. It leaves there what it has stored, if that is to be measured.
template <typename T, typename S>
__device__ __forceinline__ void store(const Problem& p, float* staging, int row0, int column0) {
    constexpr int CHUNKS = S::COLUMNS / 8;
    const int at_step = p.table != nullptr ? row_of_step(p.step, p.steps) : 0;
    const T* const bias = static_cast<const T*>(p.bias);
    const bool is_gated = p.ending == GATED;
    const int width = is_gated ? p.columns / 2 : p.columns;
#pragma unroll 1
    for (int unit = int(threadIdx.x) & 31; unit < S::PART * CHUNKS; unit += 32) {
        const int r = unit / CHUNKS, chunk = unit - r * CHUNKS;
        const int row = row0 + r, column = column0 + chunk * 8;
        if (row >= p.rows || column >= p.columns) continue;
        float* const from = staging + r * S::PITCH + chunk * 8;
        float x[8];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float4 four = reinterpret_cast<const float4*>(from)[i];
            x[4 * i] = four.x;
            x[4 * i + 1] = four.y;
            x[4 * i + 2] = four.z;
            x[4 * i + 3] = four.w;
        }
        if (p.partials != nullptr) {
            const long long split = blockIdx.y;
            store8(p.partials + (split * p.rows + row) * p.columns + column, pack8<float>(x));
            continue;
        }
        const long long place = blockIdx.z * p.out_batch + (long long)row * p.out_row;
        if (is_gated) {
            // Four columns, each beside its gate.
            const int c = column / 2;
            if (bias != nullptr) {
#pragma unroll
                for (int i = 0; i < 4; ++i) {
                    x[2 * i] += widen(bias[c + i]);
                    x[2 * i + 1] += widen(bias[width + c + i]);
                }
            }
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = gated<T>(x[2 * i], x[2 * i + 1]);
            *reinterpret_cast<uint2*>(static_cast<T*>(p.out) + place + c) =
                make_uint2(pack2(x[0], x[1], T()), pack2(x[2], x[3], T()));
            continue;
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] *= p.alpha;
        if (p.wide) {
            store8(static_cast<float*>(p.out) + place + column, pack8<float>(x));
            continue;
        }
        const auto plus = [&](const T* at) {
            float y[8];
            unpack8(load8(at), y);
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] += y[i];
        };
        if (bias != nullptr) plus(bias + column);
        if (p.table != nullptr) plus(static_cast<const T*>(p.table) + (long long)at_step * p.columns + column);
        if (p.onto != nullptr) plus(static_cast<const T*>(p.onto) + place + column);
        if (p.ending != AS_IT_IS) {
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] = ended<T>(x[i], p.ending);
        }
        const Pack<T> pack = pack8<T>(x);
        store8(static_cast<T*>(p.out) + place + column, pack);
        if (p.moments != nullptr) {
            unpack8(pack, x);
            store8(from, pack8<float>(x));
        }
    }
}

// Sums of a lane's columns over the rows so far, around each one's first number.
template <typename S> struct Columns {
    static constexpr int EACH = (S::COLUMNS + 31) / 32;
    float shift[EACH], sum[EACH], square[EACH];

    __device__ __forceinline__ void add(const float* staging, bool first) {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int column = (int(threadIdx.x) & 31) + 32 * i;
            if (column >= S::COLUMNS) continue;
            if (first) {
                shift[i] = staging[column];
                sum[i] = square[i] = 0.0f;
            }
#pragma unroll 8
            for (int r = 0; r < S::PART; ++r) {
                const float d = staging[r * S::PITCH + column] - shift[i];
                sum[i] += d;
                square[i] = fmaf(d, d, square[i]);
            }
        }
    }

    // The moments of a chunk: a group's columns merged (Chan, Golub, LeVeque 1979).
    __device__ __forceinline__ void merge(const Problem& p, float2* cells, int row, int column0) const {
#pragma unroll
        for (int i = 0; i < EACH; ++i) {
            const int column = (int(threadIdx.x) & 31) + 32 * i;
            const float mean = sum[i] / float(S::ROWS);
            if (column < S::COLUMNS) cells[column] = make_float2(shift[i] + mean, square[i] - sum[i] * mean);
        }
        __syncwarp();
        const int channels = p.columns / p.groups, area = p.out_height * p.out_width;
        const int image = row / area, chunk = (row - image * area) / S::ROWS;
        for (int group = int(threadIdx.x) & 31; group * channels < S::COLUMNS; group += 32) {
            if (column0 + group * channels >= p.columns) break;
            const float2* const mine = cells + group * channels;
            const float shift = mine[0].x;
            float total = 0.0f, spread = 0.0f;
            for (int c = 0; c < channels; ++c) {
                const float d = mine[c].x - shift;
                total += d;
                spread += fmaf(float(S::ROWS) * d, d, mine[c].y);
            }
            const float mean = total / float(channels);
            p.moments[((long long)image * p.groups + column0 / channels + group) * p.chunks + chunk] =
                make_float2(shift + mean, fmaxf(spread - float(S::ROWS) * total * mean, 0.0f));
        }
    }
};

// Where this thread's chunks of A and W come from.
template <typename T, typename S, bool CROSSED> struct Source {
    const Problem& p;
    Row rows[S::A_ROUNDS];
    Depth<BK> at;
    const T *a, *w;
    int line, limit, step;  // W: this thread's first row, how many there are, and how far the next one of it is
    int k;                  // crossed: of this step

    __device__ __forceinline__ Source(const Problem& p, int row0, int column0, int from)
        : p(p), at(Depth<BK>::of(p, from, int(threadIdx.x) % 8 * 8)) {
        const int first = int(threadIdx.x) / 8;
        const int batch = int(blockIdx.z);
#pragma unroll
        for (int i = 0; i < S::A_ROUNDS; ++i) rows[i] = row_of(p, row0 + first + i * S::AT_ONCE);
        a = static_cast<const T*>(p.a) + batch * p.a_batch;
        w = static_cast<const T*>(p.w) + batch * p.w_batch;
        line = column0 + first;
        limit = p.columns;
        step = S::AT_ONCE;
        k = from;
        if constexpr (CROSSED) {
            // The tile's rows are 64 of k for each 64 columns, and this thread's chunks lie along the columns.
            line = column0 + int(threadIdx.x) % 8 * 8;
            w += (long long)first * p.w_row + line;
        } else if (p.ending == GATED) {
            // Row 2 c of a tile is of column c, row 2 c + 1 of its gate.
            line /= 2;
            limit /= 2;
            step /= 2;
            w += (long long)(line + first % 2 * limit) * p.w_row;
        } else {
            w += (long long)line * p.w_row;
        }
    }

    __device__ __forceinline__ const T* a_at(int i, bool& valid) const {
        valid = inside(rows[i], at);
        return valid ? address(p, a, rows[i], at) : a;
    }
    __device__ __forceinline__ const T* w_at(int i, bool& valid) const {
        if constexpr (CROSSED) {
            const int below = i * S::AT_ONCE % BK, right = i * S::AT_ONCE / BK * 64;
            valid = k + int(threadIdx.x) / 8 + below < p.inner && line + right < limit;
            return valid ? w + (long long)(k + below) * p.w_row + right : static_cast<const T*>(p.w);
        }
        valid = at.tap != 15 && line + i * step < limit;
        return valid ? w + (long long)(i * step) * p.w_row + at.k : static_cast<const T*>(p.w);
    }
    __device__ __forceinline__ void advance() {
        at.advance(p);
        k += BK;
    }
};

// Byte of chunk `chunk` of row `row` in a tile.
__device__ __forceinline__ int place_of(int row, int chunk) { return row * ROW + ((chunk ^ (row & 7)) << 4); }

template <typename T, typename S, bool CROSSED>
__device__ __forceinline__ void product_body(const Problem& p) {
    using E = Element<T>;
    constexpr int MT = S::MT, NT = S::NT;
    static_assert(!CROSSED || (S::BN % 64 == 0 && NT % 2 == 0 && BK % S::AT_ONCE == 0), "sizes");
    extern __shared__ __align__(128) unsigned char buffer[];
    const uint32_t shared = shared_address(buffer);
    const int lane = int(threadIdx.x) & 31, warp = int(threadIdx.x) >> 5;
    constexpr int WM = S::BM / S::ROWS;
    const int warp_row = warp % WM * S::ROWS, warp_column = warp / WM * S::COLUMNS;
    const int across = (p.columns + S::BN - 1) / S::BN;
    const int tile_row = int(blockIdx.x) / across, tile_column = int(blockIdx.x) - tile_row * across;
    const int row0 = tile_row * S::BM, column0 = tile_column * S::BN;
    const int from = int(blockIdx.y) * p.depth, to = min(p.inner, from + p.depth);
    const int steps = (to - from + BK - 1) / BK;

    Source<T, S, CROSSED> source(p, row0, column0, from);
    // Where this thread's first chunk goes; the next ones are whole groups of eight rows further.
    const uint32_t mine = place_of(int(threadIdx.x) / 8, int(threadIdx.x) % 8);

    const auto copy = [&](int stage) {
        const uint32_t base = shared + stage * S::STAGE + mine;
#pragma unroll
        for (int i = 0; i < S::A_ROUNDS; ++i) {
            bool valid;
            const T* const at = source.a_at(i, valid);
            copy_chunk<true>(base + i * S::AT_ONCE * ROW, at, valid);
        }
#pragma unroll
        for (int i = 0; i < S::W_ROUNDS; ++i) {
            bool valid;
            const T* const at = source.w_at(i, valid);
            copy_chunk(base + (S::BM + i * S::AT_ONCE) * ROW, at, valid);
        }
        source.advance();
    };

    float sums[MT][NT][4];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
        }
    }

    // Where this lane's ldmatrix rows start.
    const uint32_t a_lane = place_of(warp_row + (lane & 15), lane >> 4);
    const uint32_t w_lane = S::BM * ROW + place_of(warp_column + (lane >> 4) * 8 + (lane & 7), lane >> 3 & 1);
    uint32_t a[2][MT][4], w[2][NT][2];
    const auto fetch = [&](int stage, int step, int to) {
        const uint32_t base = shared + stage * S::STAGE;
        // Two chunks further, under the swizzle.
        const uint32_t a_from = base + (a_lane ^ (step << 5)), w_from = base + (w_lane ^ (step << 5));
#pragma unroll
        for (int m = 0; m < MT; ++m) load_matrices(a[to][m], a_from + m * 16 * ROW);
#pragma unroll
        for (int n = 0; n + 1 < NT; n += 2) {
            uint32_t both[4];
            if constexpr (CROSSED) {
                const int k = step * 16 + (lane & 15), chunk = warp_column / 8 + n + (lane >> 4);
                load_matrices_transposed(both, base + S::BM * ROW + place_of(chunk / 8 * BK + k, chunk % 8));
            } else {
                load_matrices(both, w_from + n * 8 * ROW);
            }
            w[to][n][0] = both[0];
            w[to][n][1] = both[1];
            w[to][n + 1][0] = both[2];
            w[to][n + 1][1] = both[3];
        }
        if constexpr (NT % 2 != 0) load_two_matrices(w[to][NT - 1], w_from + (NT - 1) * 8 * ROW);
    };
    const auto multiply = [&](int of) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int m = 0; m < MT; ++m) E::mma16(sums[m][n], a[of][m], w[of][n][0], w[of][n][1]);
        }
    };

    if constexpr (ARCH >= 800) {
#pragma unroll
        for (int i = 0; i < S::STAGES - 1; ++i) {
            if (i < steps) copy(i);
            commit_copies();
        }
        wait_copies<S::STAGES - 2>();
        __syncthreads();
        fetch(0, 0, 0);
        int stage = 0, ahead = S::STAGES - 1;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
#pragma unroll
            for (int quarter = 0; quarter < 4; ++quarter) {
                if (quarter == 3) {
                    wait_copies<S::STAGES - 2>();
                    __syncthreads();
                    stage = stage + 1 == S::STAGES ? 0 : stage + 1;
                }
                fetch(stage, (quarter + 1) & 3, (quarter + 1) & 1);
                if (quarter == 0) {
                    // The stage of the last step: every warp has read it.
                    if (step + S::STAGES - 1 < steps) copy(ahead);
                    commit_copies();
                    ahead = ahead + 1 == S::STAGES ? 0 : ahead + 1;
                }
                multiply(quarter & 1);
            }
        }
        wait_copies<0>();
    } else {
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            uint4 held[S::A_ROUNDS + S::W_ROUNDS];
#pragma unroll
            for (int i = 0; i < S::A_ROUNDS + S::W_ROUNDS; ++i) {
                bool valid;
                const T* const at = i < S::A_ROUNDS ? source.a_at(i, valid) : source.w_at(i - S::A_ROUNDS, valid);
                held[i] = valid ? *reinterpret_cast<const uint4*>(at) : make_uint4(0, 0, 0, 0);
            }
            source.advance();
            if (step > 0) {
                // The products of the step before, beside these loads.
#pragma unroll
                for (int quarter = 0; quarter < 4; ++quarter) {
                    fetch(0, quarter, 0);
                    multiply(0);
                }
                __syncthreads();
            }
#pragma unroll
            for (int i = 0; i < S::A_ROUNDS + S::W_ROUNDS; ++i) {
                const int row = i < S::A_ROUNDS ? i * S::AT_ONCE : S::BM + (i - S::A_ROUNDS) * S::AT_ONCE;
                *reinterpret_cast<uint4*>(buffer + mine + row * ROW) = held[i];
            }
            __syncthreads();
        }
#pragma unroll
        for (int quarter = 0; quarter < 4; ++quarter) {
            fetch(0, quarter, 0);
            multiply(0);
        }
    }

    __syncthreads();  // the ring is read
    float* const staging = reinterpret_cast<float*>(buffer) + warp * S::PART * S::PITCH;
    const int row = row0 + warp_row, column = column0 + warp_column;
    const bool measures = p.moments != nullptr && row < p.rows;
    Columns<S> columns;
#pragma unroll
    for (int part = 0; part < MT; part += S::PART / 16) {
        float* const to = staging + (lane >> 2) * S::PITCH + (lane & 3) * 2;
        __syncwarp();
#pragma unroll
        for (int m = 0; m < S::PART / 16; ++m) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int h = 0; h < 2; ++h) {
                    *reinterpret_cast<float2*>(to + (m * 16 + h * 8) * S::PITCH + n * 8) =
                        make_float2(sums[part + m][n][2 * h], sums[part + m][n][2 * h + 1]);
                }
            }
        }
        __syncwarp();
        store<T, S>(p, staging, row + part * 16, column);
        if (measures) {
            __syncwarp();
            columns.add(staging, part == 0);
        }
    }
    if (measures) {
        __syncwarp();
        columns.merge(p, reinterpret_cast<float2*>(staging), row, column);
    }
}

// bf16 has no tensor cores on sm_75.
template <typename T, typename S, bool CROSSED>
__device__ __forceinline__ void product_or_trap(const Problem& p) {
    if constexpr (ARCH >= 800 || sizeof(T) != 2 || __is_same(T, __half)) {
        product_body<T, S, CROSSED>(p);
    } else {
        __trap();
    }
}

}  // namespace

#define ENTRY(NAME, T, S, CROSSED)                                                                        \
    extern "C" __global__ void __launch_bounds__(S::THREADS, 1) NAME(const __grid_constant__ Problem p) { \
        product_or_trap<T, S, CROSSED>(p);                                                                \
    }

// Name ending, BM, BN, warps down and across, stages, dynamic shared bytes. build.rs finds the rows of this table, and
// Rust launches by them.
#define PRODUCT_TILE(ENDING, BM, BN, WM, WN, STAGES, SHARED)                 \
    using Tile_##ENDING = Tile<BM, BN, WM, WN, STAGES>;                      \
    static_assert(Tile_##ENDING::BYTES <= SHARED && SHARED <= LEAST_SHARED); \
    ENTRY(product_f16_##ENDING, half, Tile_##ENDING, false)                  \
    ENTRY(product_bf16_##ENDING, __nv_bfloat16, Tile_##ENDING, false)

PRODUCT_TILE(128x160, 128, 160, 2, 4, 2, 73728)
PRODUCT_TILE(128x160b, 128, 160, 2, 2, 2, 73728)
PRODUCT_TILE(128x128, 128, 128, 2, 2, 3, 98304)
PRODUCT_TILE(64x160, 64, 160, 2, 2, 3, 86016)
PRODUCT_TILE(64x80, 64, 80, 2, 2, 4, 73728)
PRODUCT_TILE(128x16, 128, 16, 4, 1, 4, 73728)
ENTRY(product_crossed_f16, half, Tile_128x128, true)
ENTRY(product_crossed_bf16, __nv_bfloat16, Tile_128x128, true)
