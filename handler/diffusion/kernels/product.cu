// Products and convolutions on tensor cores by mma.sync (f16 from sm_75 on, bf16 from sm_80 on), see product.cuh.
//
// A block has a tile of BM x BN of out, its WM x WN warps a part of it each. A and W come through a ring in shared
// memory, 64 of k at a time, by cp.async (sm_75: one buffer, and registers ahead of it). Chunks of 16 bytes are swizzled
// so that neither copies nor ldmatrix meet in a bank. Fragments of the next 16 of k are loaded beside the products of
// the last. Dynamic shared memory is a ring of stages (sm_75: one), or what the sums take, if that is more: Rust computes it (gpu/product/plan.rs).
//
// grid = (ceil(rows / BM) * ceil(columns / BN), splits, problems), block = (threads); the tables at the end have names,
// threads and tiles. All rows, batches and addresses are multiples of 16 bytes (`whole`), inner of
// 8. A chunk of moments has BM / WM rows, which must divide an image's, and columns / groups must divide BN / WN.
//
// The bf16 kernels trap below sm_80.
#include "mma.cuh"
#include "product.cuh"

namespace {

constexpr int BK = 64;
constexpr int ROW = BK * 2;  // bytes of a row of a tile
constexpr unsigned WARP = 0xffffffffu;

template <int BM_, int BN_, int WM, int WN, int STAGES_> struct Tile {
    static constexpr int BM = BM_, BN = BN_, THREADS = WM * WN * 32;
    static constexpr int STAGES = ARCH >= 800 ? STAGES_ : 1;
    // Of a warp.
    static constexpr int ROWS = BM / WM, COLUMNS = BN / WN, MT = ROWS / 16, NT = COLUMNS / 8;
    static constexpr int STAGE = (BM + BN) * ROW;
    // A warp's sums go through shared memory; fragments of eight rows at this pitch, in numbers, fall on different banks.
    static constexpr int PITCH = (COLUMNS + 7) / 16 * 16 + 8;
    // Rows that all threads copy at once, a chunk each.
    static constexpr int AT_ONCE = THREADS / 8;
    static constexpr int A_ROUNDS = BM / AT_ONCE, W_ROUNDS = BN / AT_ONCE;
    static_assert(BM % AT_ONCE == 0 && BN % AT_ONCE == 0 && ROWS % 16 == 0 && COLUMNS % 8 == 0, "sizes");
};

// What a warp does with its part of ROWS x COLUMNS once the sums lie in `staging`. A lane has eight columns of every
// LANE_ROWS-th row.
template <typename T, typename S> struct Last {
    static constexpr int CHUNKS = S::COLUMNS / 8, LANE_ROWS = 32 / CHUNKS;
    static constexpr int ROUNDS = (S::ROWS + LANE_ROWS - 1) / LANE_ROWS;

    const Problem& p;
    float* staging;
    int lane, chunk, first, row0, column;  // this lane's first row of the part, that of the part, and this lane's column
    bool busy;
    float base[8];  // what every row gets; of the gated GELU half is for the gates

    __device__ __forceinline__ Last(const Problem& p, float* staging, int row0, int column0)
        : p(p), staging(staging), lane(int(threadIdx.x) & 31), row0(row0) {
        first = lane / CHUNKS;
        chunk = lane - first * CHUNKS;
        column = column0 + chunk * 8;
        busy = first < LANE_ROWS && column < p.columns;
    }

    // Reads what every row gets.
    __device__ __forceinline__ void prepare() {
#pragma unroll
        for (int i = 0; i < 8; ++i) base[i] = 0.0f;
        if (!busy || p.partials != nullptr) return;
        if (p.ending == GATED) {
            if (p.bias == nullptr) return;
            const T* const left = static_cast<const T*>(p.bias) + column / 2;
            const T* const right = left + p.columns / 2;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                base[2 * i] = widen(left[i]);
                base[2 * i + 1] = widen(right[i]);
            }
            return;
        }
        if (p.bias != nullptr) plus(base, load8(static_cast<const T*>(p.bias) + column));
        if (p.table != nullptr) {
            const long long at = (long long)row_of_step(p.step, p.steps) * p.columns + column;
            plus(base, load8(static_cast<const T*>(p.table) + at));
        }
    }

    __device__ __forceinline__ static void plus(float (&x)[8], const Pack<T>& more) {
        float y[8];
        unpack8(more, y);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] += y[i];
    }

    __device__ __forceinline__ bool has(int round) const {
        const int r = first + round * LANE_ROWS;
        return busy && (ROUNDS * LANE_ROWS == S::ROWS || r < S::ROWS) && row0 + r < p.rows;
    }

    __device__ __forceinline__ void read(float (&x)[8], int round) const {
        int r = first + round * LANE_ROWS;
        if (round == ROUNDS - 1) r = min(r, S::ROWS - 1);
        const float4* const from = reinterpret_cast<const float4*>(staging + r * S::PITCH + chunk * 8);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float4 four = from[i];
            x[4 * i] = four.x;
            x[4 * i + 1] = four.y;
            x[4 * i + 2] = four.z;
            x[4 * i + 3] = four.w;
        }
    }

    __device__ __forceinline__ void store() {
        const int row = row0 + first;
        if (p.partials != nullptr) {
            float* to = p.partials + ((long long)blockIdx.y * p.rows + row) * p.columns + column;
            store_floats(to, LANE_ROWS * p.columns, 1.0f);
        } else if (p.wide) {
            float* to = static_cast<float*>(p.out) + blockIdx.z * p.out_batch + (long long)row * p.out_row + column;
            store_floats(to, LANE_ROWS * p.out_row, p.alpha);
        } else if (p.ending == GATED) {
            store_gated(static_cast<T*>(p.out) + blockIdx.z * p.out_batch + (long long)row * p.out_row + column / 2);
        } else {
            store_plain(blockIdx.z * p.out_batch + (long long)row * p.out_row + column);
        }
    }

   private:
    __device__ __forceinline__ void store_floats(float* to, int step, float alpha) const {
#pragma unroll 4
        for (int round = 0; round < ROUNDS; ++round, to += step) {
            if (!has(round)) continue;
            float x[8];
            read(x, round);
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] *= alpha;
            store8(to, pack8<float>(x));
        }
    }

    __device__ __forceinline__ void store_gated(T* to) const {
#pragma unroll 2
        for (int round = 0; round < ROUNDS; ++round, to += LANE_ROWS * p.out_row) {
            if (!has(round)) continue;
            float x[8];
            read(x, round);
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = gated<T>(x[2 * i] + base[2 * i], x[2 * i + 1] + base[2 * i + 1]);
            *reinterpret_cast<uint2*>(to) = make_uint2(pack2(x[0], x[1], T()), pack2(x[2], x[3], T()));
        }
    }

    __device__ __forceinline__ void store_plain(long long place) {
        const int step = LANE_ROWS * p.out_row;
        T* const to = static_cast<T*>(p.out) + place;
        Pack<T> onto[ROUNDS];  // all under way together
        if (p.onto != nullptr) {
            const T* const from = static_cast<const T*>(p.onto) + place;
#pragma unroll
            for (int round = 0; round < ROUNDS; ++round) {
                onto[round] = Pack<T>{};
                if (has(round)) onto[round] = load8(from + (long long)round * step);
            }
        }
        const bool measures = p.moments != nullptr && row0 < p.rows;
        // Around each column's first number.
        float shift[8], sum[8], square[8];
#pragma unroll
        for (int round = 0; round < ROUNDS; ++round) {
            float x[8];
            read(x, round);
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] = fmaf(p.alpha, x[i], base[i]);
            if (p.onto != nullptr) plus(x, onto[round]);
            const Pack<T> pack = pack8<T>(x);
            if (has(round)) store8(to + (long long)round * step, pack);
            if (!measures) continue;
            unpack8(pack, x);
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                if (round == 0) {
                    shift[i] = __shfl_sync(WARP, x[i], chunk);
                    sum[i] = square[i] = 0.0f;
                }
                const float d = has(round) ? x[i] - shift[i] : 0.0f;
                sum[i] += d;
                square[i] = fmaf(d, d, square[i]);
            }
        }
        if (measures) measure(shift, sum, square);
    }

    // The moments of the part, a chunk of rows of whole groups: of each column, then those of a group's columns merged
    // (Chan, Golub, LeVeque 1979).
    __device__ __forceinline__ void measure(const float (&shift)[8], const float (&sum)[8], const float (&square)[8]) {
        float2* const cells = reinterpret_cast<float2*>(staging);
        float2* const moments = cells + LANE_ROWS * S::COLUMNS;
        float* const shifts = reinterpret_cast<float*>(moments + S::COLUMNS);
        __syncwarp();
        if (first < LANE_ROWS) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                cells[first * S::COLUMNS + chunk * 8 + i] = make_float2(sum[i], square[i]);
                if (first == 0) shifts[chunk * 8 + i] = shift[i];
            }
        }
        __syncwarp();
        for (int c = lane; c < S::COLUMNS; c += 32) {
            float total = 0.0f, squares = 0.0f;
#pragma unroll
            for (int i = 0; i < LANE_ROWS; ++i) {
                total += cells[i * S::COLUMNS + c].x;
                squares += cells[i * S::COLUMNS + c].y;
            }
            const float mean = total / float(S::ROWS);
            moments[c] = make_float2(shifts[c] + mean, squares - total * mean);
        }
        __syncwarp();
        const int column0 = column - chunk * 8;
        const int channels = p.columns / p.groups, area = p.out_height * p.out_width;
        const int image = row0 / area, chunk_of_rows = (row0 - image * area) / S::ROWS;
        for (int group = lane; group * channels < S::COLUMNS; group += 32) {
            if (column0 + group * channels >= p.columns) break;
            const float2* const mine = moments + group * channels;
            const float around = mine[0].x;
            float total = 0.0f, spread = 0.0f;
#pragma unroll 2
            for (int c = 0; c < channels; ++c) {
                const float d = mine[c].x - around;
                total += d;
                spread += fmaf(float(S::ROWS) * d, d, mine[c].y);
            }
            const float mean = total / float(channels);
            p.moments[((long long)image * p.groups + column0 / channels + group) * p.chunks + chunk_of_rows] =
                make_float2(around + mean, fmaxf(spread - float(S::ROWS) * total * mean, 0.0f));
        }
    }
};

// Where this thread's chunks of A and W come from. What is asked for each chunk has no branches, so that it can be done
// between the products.
template <typename T, typename S, bool CROSSED> struct Source {
    const Problem& p;
    int row0;               // this thread's first row of A
    const T* a[S::A_ROUNDS];  // the first place of each row's window, in the map of this step
    Row rows[S::A_ROUNDS];
    Depth<BK> at;
    bool second;            // whether that is the second map
    unsigned tap;           // a bit, or none past the end
    int offset;             // of this step's place and channel, in elements
    int odd_down, odd_across;  // what a row of an odd number, or column, adds in this step, if doubled
    const T* w;
    int w_step;             // from a row of W to the next
    unsigned lines;         // bit i: row i of W is there
    int k;                  // crossed: of this step

    __device__ __forceinline__ Source(const Problem& p, int tile_row, int column0, int from)
        : p(p), row0(tile_row + int(threadIdx.x) / 8), at(Depth<BK>::of(p, from, int(threadIdx.x) % 8 * 8)) {
        const int first = int(threadIdx.x) / 8;
#pragma unroll
        for (int i = 0; i < S::A_ROUNDS; ++i) rows[i] = row_of(p, row0 + i * S::AT_ONCE);
        second = at.channel >= p.channels && p.more != nullptr;
        point();
        w = static_cast<const T*>(p.w) + blockIdx.z * p.w_batch;
        int line = column0 + first, limit = p.columns, next = S::AT_ONCE;
        k = from;
        if constexpr (CROSSED) {
            // The tile's rows are 64 of k for each 64 columns, and this thread's chunks lie along the columns.
            line = column0 + int(threadIdx.x) % 8 * 8;
            w += (long long)(from + first) * p.w_row + line;
        } else if (p.ending == GATED) {
            // Row 2 c of a tile is of column c, row 2 c + 1 of its gate.
            line /= 2;
            limit /= 2;
            next /= 2;
            w += (long long)(line + first % 2 * limit) * p.w_row;
        } else {
            w += (long long)line * p.w_row;
        }
        w_step = next * p.w_row;
        lines = 0;
#pragma unroll
        for (int i = 0; i < S::W_ROUNDS; ++i) {
            const int of = CROSSED ? line + i * S::AT_ONCE / BK * 64 : line + i * next;
            lines |= unsigned(of < limit) << i;
        }
        settle();
    }

    __device__ __forceinline__ const T* a_at(int i, bool more, bool& valid) const {
        valid = more && (rows[i].taps & tap) != 0u;
        const int down = rows[i].taps & 1u << 16 ? odd_down : 0, across = rows[i].taps & 1u << 17 ? odd_across : 0;
        return a[i] + (offset + down + across);
    }
    __device__ __forceinline__ const T* w_at(int i, bool more, bool& valid) const {
        if constexpr (CROSSED) {
            const int below = i * S::AT_ONCE % BK, right = i * S::AT_ONCE / BK * 64;
            valid = more && k + int(threadIdx.x) / 8 + below < p.inner && (lines >> i & 1u) != 0u;
            return w + (below * p.w_row + right);
        } else {
            valid = more && tap != 0u && (lines >> i & 1u) != 0u;
            return w + (i * w_step + at.k);
        }
    }

    __device__ __forceinline__ void advance() {
        at.advance(p);
        if constexpr (CROSSED) {
            k += BK;
            w += (long long)BK * p.w_row;
        }
        if (p.more != nullptr && (at.channel >= p.channels) != second) {
            second = !second;
            point();
        }
        settle();
    }

   private:
    __device__ __forceinline__ void point() {
        const T* const map = static_cast<const T*>(second ? p.more : p.a) + blockIdx.z * p.a_batch;
        const int pitch = second ? p.more_row : p.a_row;
#pragma unroll
        for (int i = 0; i < S::A_ROUNDS; ++i) a[i] = map + (long long)rows[i].place * pitch;
    }
    __device__ __forceinline__ void settle() {
        const int pitch = second ? p.more_row : p.a_row, line = p.width * pitch;
        tap = at.tap == 15 ? 0u : 1u << at.tap;
        offset = (at.ky >> p.doubled) * line + (at.kx >> p.doubled) * pitch + at.channel - (second ? p.channels : 0);
        // Of places 0, 1, 2 from an even one, the last is another in memory; from an odd one, the second is, too.
        odd_down = at.ky == 1 ? line : 0;
        odd_across = at.kx == 1 ? pitch : 0;
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

    // Half of a step's chunks; nothing but zeros if there is no such step.
    const auto copy = [&](int stage, int part, bool more) {
        const uint32_t base = shared + stage * S::STAGE + mine;
        constexpr int ALL = S::A_ROUNDS + S::W_ROUNDS;
#pragma unroll
        for (int i = part * ALL / 2; i < (part + 1) * ALL / 2; ++i) {
            bool valid;
            if (i < S::A_ROUNDS) {
                const T* const at = source.a_at(i, more, valid);
                copy_chunk<true>(base + i * S::AT_ONCE * ROW, at, valid);
            } else {
                const T* const at = source.w_at(i - S::A_ROUNDS, more, valid);
                copy_chunk(base + (S::BM + (i - S::A_ROUNDS) * S::AT_ONCE) * ROW, at, valid);
            }
        }
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
    uint32_t a_lane = place_of(warp_row + (lane & 15), lane >> 4);
    uint32_t w_lane = S::BM * ROW + place_of(warp_column + (lane >> 4) * 8 + (lane & 7), lane >> 3 & 1);
    asm volatile("" : "+r"(a_lane), "+r"(w_lane));  // or they are computed anew before each use
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

    float* const staging = reinterpret_cast<float*>(buffer) + warp * S::ROWS * S::PITCH;
    Last<T, S> last(p, staging, row0 + warp_row, column0 + warp_column);
    constexpr bool IS_WIDE = MT * NT >= 32;  // then there are no registers for it yet
    if (!IS_WIDE) last.prepare();

    if constexpr (ARCH >= 800) {
#pragma unroll
        for (int i = 0; i < S::STAGES - 1; ++i) {
#pragma unroll
            for (int part = 0; part < 2; ++part) copy(i, part, i < steps);
            commit_copies();
            source.advance();
        }
        wait_copies<S::STAGES - 2>();
        __syncthreads();
        fetch(0, 0, 0);
        int stage = 0, ahead = S::STAGES - 1;
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            const bool more = step + S::STAGES - 1 < steps;
#pragma unroll
            for (int quarter = 0; quarter < 4; ++quarter) {
                if (quarter == 3) {
                    commit_copies();
                    wait_copies<S::STAGES - 2>();
                    __syncthreads();
                    stage = stage + 1 == S::STAGES ? 0 : stage + 1;
                }
                fetch(stage, (quarter + 1) & 3, (quarter + 1) & 1);
                // To the stage of the last step: every warp has read it.
                if (quarter < 2) copy(ahead, quarter, more);
                if (quarter == 2) source.advance();
                multiply(quarter & 1);
            }
            ahead = ahead + 1 == S::STAGES ? 0 : ahead + 1;
        }
        wait_copies<0>();
    } else {
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            uint4 held[S::A_ROUNDS + S::W_ROUNDS];
#pragma unroll
            for (int i = 0; i < S::A_ROUNDS + S::W_ROUNDS; ++i) {
                bool valid;
                const T* const at =
                    i < S::A_ROUNDS ? source.a_at(i, true, valid) : source.w_at(i - S::A_ROUNDS, true, valid);
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
    float* const place = last.staging + (lane >> 2) * S::PITCH + (lane & 3) * 2;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int h = 0; h < 2; ++h) {
                *reinterpret_cast<float2*>(place + (m * 16 + h * 8) * S::PITCH + n * 8) =
                    make_float2(sums[m][n][2 * h], sums[m][n][2 * h + 1]);
            }
        }
    }
    __syncwarp();
    if (IS_WIDE) last.prepare();
    last.store();
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

// Name ending, BM, BN, warps down and across, stages. build.rs finds the rows of this table, and
// Rust launches by them.
#define PRODUCT_TILE(ENDING, BM, BN, WM, WN, STAGES)        \
    using Tile_##ENDING = Tile<BM, BN, WM, WN, STAGES>;     \
    ENTRY(product_f16_##ENDING, half, Tile_##ENDING, false) \
    ENTRY(product_bf16_##ENDING, __nv_bfloat16, Tile_##ENDING, false)

PRODUCT_TILE(128x160, 128, 160, 2, 4, 4)
PRODUCT_TILE(64x160, 64, 160, 1, 4, 3)
PRODUCT_TILE(256x128, 256, 128, 4, 2, 3)
PRODUCT_TILE(128x128, 128, 128, 2, 4, 3)
PRODUCT_TILE(64x80, 64, 80, 2, 2, 4)
PRODUCT_TILE(64x64, 64, 64, 2, 2, 4)
PRODUCT_TILE(128x16, 128, 16, 4, 1, 4)
ENTRY(product_crossed_f16, half, Tile_128x128, true)
ENTRY(product_crossed_bf16, __nv_bfloat16, Tile_128x128, true)
