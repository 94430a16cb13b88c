// The loop along k of product.cu: copies to a ring in shared memory, fragments from there, and their products.
#pragma once

#include "product_source.cuh"

// 16 bytes, as the chunk says.
__device__ __forceinline__ void copy(uint32_t to, const Chunk& chunk) {
#if ARCH >= 800
    asm volatile(
        "{\n.reg .pred p, q;\nsetp.eq.u32 p, %2, 0;\nsetp.ne.u32 q, %3, 0;\n"
        "@q cp.async.cg.shared.global [%0], [%1], 16, p;\n}" ::"r"(to),
        "l"(__cvta_generic_to_global(chunk.from)), "r"(chunk.bits), "r"(unsigned(chunk.more))
        : "memory");
#endif
}

template <typename T, typename S, typename Source, bool CROSSED> struct Loop {
    using E = Element<T>;
    static constexpr int MT = S::MT, NT = S::NT, COPIES = S::COPIES;
    // Two tiles of columns are loaded, and multiplied, together; a last one alone if NT is odd.
    static constexpr int PAIRS = (NT + 1) / 2;
    // Of 16 of k, in a step, for each warp.
    static constexpr int QUARTERS = 4 / S::WK;
    // So many pairs of products take as long as a fragment needs from shared memory. Measured.
    static constexpr int ENOUGH = MT < 4 || (S::THREADS > 128 && PAIRS > 3) ? 2 : 1;
    static constexpr int EARLY = PAIRS < ENOUGH ? PAIRS : ENOUGH;
    // Copies of a step go out in so many parts, over so many pairs. Fewer parts are fewer instructions, but let fragments
    // wait.
    static constexpr int BURSTS = 2, SPREAD = S::STAGES >= 4 ? QUARTERS * PAIRS : PAIRS;
    static_assert(!CROSSED || (S::BN % 64 == 0 && NT % 2 == 0 && BK % S::AT_ONCE == 0), "sizes");
    static_assert(S::WK <= 2 && (S::STAGES == 1 || S::STAGES >= 3), "see below");

    Source& source;
    uint32_t shared;  // the ring
    uint32_t mine;    // where this thread's first chunk goes; the next ones are whole groups of eight rows further
    // Where this lane's ldmatrix rows start, for the first 16 of this warp's k: of the rows that it ends with, of the
    // others, and of W.
    uint32_t a_lane, a_other, w_lane;
    int warp_column;
    int group;  // of the warps that share a part
    float sums[MT][NT][4];  // the rows that it ends with come first
    uint32_t a[2][MT][4], w[QUARTERS * PAIRS][4];

    __device__ __forceinline__ Loop(Source& source, uint32_t shared, int warp_row, int warp_column, int group)
        : source(source), shared(shared), warp_column(warp_column), group(group) {
        const int lane = int(threadIdx.x) & 31;
        mine = place_of(int(threadIdx.x) / 8, int(threadIdx.x) % 8);
        const uint32_t first = group * QUARTERS << 5;
        a_lane = place_of(warp_row + group * S::LAST_ROWS + (lane & 15), lane >> 4) ^ first;
        a_other = place_of(warp_row + (S::WK - 1 - group) * S::LAST_ROWS + (lane & 15), lane >> 4) ^ first;
        w_lane = (S::BM * ROW + place_of(warp_column + (lane >> 4) * 8 + (lane & 7), lane >> 3 & 1)) ^ first;
        asm volatile("" : "+r"(a_lane), "+r"(a_other), "+r"(w_lane));  // or they are computed anew before each use
    }

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int m = 0; m < MT; ++m) {
#pragma unroll
            for (int n = 0; n < NT; ++n) {
#pragma unroll
                for (int i = 0; i < 4; ++i) sums[m][n][i] = 0.0f;
            }
        }
    }

    // Chunks FIRST .. LAST - 1 of a step, in turn.
    template <int FIRST, int LAST> __device__ __forceinline__ void copies(uint32_t stage) {
        const uint32_t to = stage + mine;
#pragma unroll
        for (int i = FIRST; i < LAST; ++i) {
            const int row = i < S::A_ROUNDS ? i * S::AT_ONCE : S::BM + (i - S::A_ROUNDS) * S::AT_ONCE;
            copy(to + row * ROW, source.chunk(i));
        }
    }
    // Those that go out at that pair of a step, counted from its barrier.
    template <int BURST = 0> __device__ __forceinline__ void copies_at(uint32_t stage, int pair) {
        if (pair == BURST * SPREAD / BURSTS) copies<BURST * COPIES / BURSTS, (BURST + 1) * COPIES / BURSTS>(stage);
        if constexpr (BURST + 1 < BURSTS) copies_at<BURST + 1>(stage, pair);
    }

    // Fragments of quarter `step` of this warp's k. The next quarter is two chunks further, under the swizzle.
    __device__ __forceinline__ void fetch_a(uint32_t stage, int step, int to, int m) {
        const uint32_t from = m < S::LAST_MT ? a_lane : a_other;
        load_matrices(a[to][m], stage + (from ^ (step << 5)) + m % S::LAST_MT * 16 * ROW);
    }
    __device__ __forceinline__ void fetch_w(uint32_t stage, int step, int pair) {
        uint32_t(&to)[4] = w[step * PAIRS + pair];
        if constexpr (CROSSED) {
            const int lane = int(threadIdx.x) & 31;
            const int k = (group * QUARTERS + step) * 16 + (lane & 15);
            const int chunk = warp_column / 8 + 2 * pair + (lane >> 4);
            load_matrices_transposed(to, stage + S::BM * ROW + place_of(chunk / 8 * BK + k, chunk % 8));
        } else {
            const uint32_t from = stage + (w_lane ^ (step << 5)) + pair * 16 * ROW;
            if (2 * pair + 1 < NT) {
                load_matrices(to, from);
            } else {
                uint32_t two[2];
                load_two_matrices(two, from);
                to[0] = two[0];
                to[1] = two[1];
            }
        }
    }
    __device__ __forceinline__ void multiply(int step, int pair) {
        const uint32_t(&b)[4] = w[step * PAIRS + pair];
#pragma unroll
        for (int h = 0; h < 2; ++h) {
            const int n = 2 * pair + h;
            if (n >= NT) break;
#pragma unroll
            for (int m = 0; m < MT; ++m) E::mma16(sums[m][n], a[step & 1][m], b[2 * h], b[2 * h + 1]);
        }
    }

    // Each pair of columns is loaded EARLY pairs ahead of its products, and A about a quarter ahead. At the last quarter
    // of a step the next step's stage must be there; every warp has then read all of the stage before this one, where
    // what is copied goes from then on.
    // `beside` is done while the first copies are under way.
    template <typename Beside> __device__ __forceinline__ void run(int steps, Beside beside) {
        constexpr uint32_t END = S::STAGES * S::STAGE;
        constexpr int AHEAD = S::STAGES - 2;
        uint32_t read = 0, write = 0;
#pragma unroll 1
        for (int i = 0; i < AHEAD; ++i) {
            copies<0, COPIES>(shared + write);
            commit_copies();
            source.advance(i + 1 < steps);
            write += S::STAGE;
        }
#pragma unroll
        for (int pair = 0; pair < PAIRS; ++pair) copies_at(shared + write, pair);
        beside();
        clear();
        wait_copies<AHEAD - 1>();
        __syncthreads();
#pragma unroll
        for (int m = 0; m < MT; ++m) fetch_a(shared, 0, 0, m);
#pragma unroll
        for (int pair = 0; pair < EARLY; ++pair) fetch_w(shared, 0, pair);
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            const uint32_t next = read + S::STAGE == END ? 0 : read + S::STAGE;
#pragma unroll
            for (int quarter = 0; quarter < QUARTERS; ++quarter) {
                const bool last = quarter == QUARTERS - 1;
                if (last) {
                    commit_copies();
                    wait_copies<AHEAD - 1>();
                    __syncthreads();
                    source.advance(step + AHEAD + 1 < steps);
                    write = write + S::STAGE == END ? 0 : write + S::STAGE;
                }
                const uint32_t then = shared + (last ? next : read);
                const int of = last ? 0 : quarter + 1;
#pragma unroll
                for (int pair = 0; pair < PAIRS; ++pair) {
                    if (pair + EARLY < PAIRS) {
                        fetch_w(shared + read, quarter, pair + EARLY);
                    } else {
                        fetch_w(then, of, pair + EARLY - PAIRS);
                    }
#pragma unroll
                    for (int m = 0; m < MT; ++m) {
                        if (m % PAIRS == pair) fetch_a(then, of, of & 1, m);
                    }
                    copies_at(shared + write, last ? pair : PAIRS + quarter * PAIRS + pair);
                    multiply(quarter, pair);
                }
            }
            read = next;
        }
    }

    // With one stage, and registers ahead of it.
    __device__ __forceinline__ void run_plain(unsigned char* buffer, int steps) {
        const auto products = [&]() {
#pragma unroll
            for (int quarter = 0; quarter < 4; ++quarter) {
#pragma unroll
                for (int m = 0; m < MT; ++m) fetch_a(shared, quarter, quarter & 1, m);
#pragma unroll
                for (int pair = 0; pair < PAIRS; ++pair) {
                    fetch_w(shared, quarter, pair);
                    multiply(quarter, pair);
                }
            }
        };
        clear();
#pragma unroll 1
        for (int step = 0; step < steps; ++step) {
            uint4 held[COPIES];
#pragma unroll
            for (int i = 0; i < COPIES; ++i) {
                const Chunk chunk = source.chunk(i);
                held[i] = make_uint4(0, 0, 0, 0);
                if (chunk.bits != 0u) held[i] = *static_cast<const uint4*>(chunk.from);
            }
            source.advance(step + 1 < steps);
            // The products of the step before, beside these loads.
            if (step > 0) products();
            __syncthreads();
#pragma unroll
            for (int i = 0; i < COPIES; ++i) {
                const int row = i < S::A_ROUNDS ? i * S::AT_ONCE : S::BM + (i - S::A_ROUNDS) * S::AT_ONCE;
                *reinterpret_cast<uint4*>(buffer + mine + row * ROW) = held[i];
            }
            __syncthreads();
        }
        products();
    }
};
