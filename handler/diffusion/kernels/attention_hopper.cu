// Fused attention by wgmma, f16 and bf16, for Hopper (sm_90a only).
//
// The forward pass of FlashAttention (Dao et al. 2022), non-causal, arranged after FlashAttention-3 (Shah et al.
// 2024): one warp has the copy engine fill a ring of stages with tiles of K and V, warpgroups of 64 query rows multiply.
// In each, Q K^T of a tile and P V of the tile before are under way together; the products of one warpgroup hide behind
// the exponentials of the others. Statistics in f32, in base 2. The running maximum is only raised when a score passes it
// by more than 2^8, as in attention.cu. That is seen by the probabilities, once they are packed in pairs; then the warp
// makes the scores of the tile again, by mma.sync.
//
// Where D leaves room (40), a chunk of eight columns behind the operands saves work for each score: -maximum behind Q and a
// constant behind K, so that Q K^T is what the exponential needs, and ones behind V, which make the row sums. The copy engine
// leaves zeros there, and other warps write the constants over them. Queries are then in registers, and
// multiplied by `factor` before the product: a caller who has done it says 1, and they are not rounded again.
//
// q is [batch, heads, tokens, D] to the copy engine, at any multiple of 16 bytes from head to head and so on, and so are k and v
// with `others` tokens. Boxes have 64 columns, of q 64 tokens and else BN; what is outside of an array is zero. out(b, t, h, d) =
// out[b * out_batch + t * out_row + h * D + d], rows and batches aligned to 16 bytes. tokens, others >= 1. factor > 0: what scores
// are multiplied by for a softmax in base 2.
// An item is BM queries of a head of an image: items = ceil(tokens / BM) * heads * batch. grid = (items), or, if ENDLESS, any;
// block = (threads); names, threads, BM, BN and dynamic shared bytes are in the table at the end (ATTENTION_HOPPER_TILE). The
// dynamic shared memory must be allowed first.

#include "attention.cuh"
#include "hopper.cuh"
#include "hopper_copy.cuh"

namespace {

/// The constant behind K. The maximum is so many times two numbers of f16 behind Q, which reach far enough then.
constexpr float UNIT = 64.0f;
/// Bytes of a row of a block of 64 columns in shared memory: the width of the swizzle.
constexpr int ROW = 128;
constexpr int MERGE_BARRIER = 1;
constexpr int BOX = 64;  // columns, and queries, of what the copy engine copies at once
constexpr int PADDERS = 3;  // warps of the loading warpgroup beside the one that loads

__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

/// Sizes of one kernel: head size D, WM warpgroups over the rows, WK over the tiles of BN keys, STAGES of the ring.
template <int D_, int WM_, int WK_, int BN_, int STAGES_> struct Shape {
    static constexpr int D = D_, WM = WM_, WK = WK_, BN = BN_, STAGES = STAGES_;
    static constexpr int BM = 64 * WM, GROUPS = WM * WK, WORKERS = GROUPS * 128, THREADS = WORKERS + 128;
    static constexpr int CHUNKS = D / 8;                // 16-byte chunks of a row
    static constexpr bool PADDED = D % 16 != 0;         // by a chunk of columns: see above
    // Whether a block makes one item after the other: the loading warp goes on to the next, with its queries, which leave their
    // place in shared memory once they are in registers.
    static constexpr bool ENDLESS = PADDED && WK == 1;
    static constexpr int WIDTH = PADDED ? D + 8 : D;    // columns of the operands
    static constexpr int BLOCKS = (WIDTH + 63) / 64;    // of 64 columns, each [rows][128 bytes], swizzled
    static constexpr int K_BLOCK = BN * ROW, K_BYTES = BLOCKS * K_BLOCK, STAGE = 2 * K_BYTES;
    static constexpr int Q_BLOCK = 64 * ROW, Q_BYTES = BLOCKS * Q_BLOCK;
    static constexpr int SUMS = WIDTH / 2;              // registers of a thread for the output
    // Registers of a thread: as launched (512 for the threads of a lane, in steps of 8), and after they are shared out.
    static constexpr int START = 512 / (GROUPS + 1) / 8 * 8, LOAD = 24;
    static constexpr int WORK = smaller((START * (GROUPS + 1) - LOAD) / GROUPS / 8 * 8, 240);
    static constexpr int PART = SUMS + 4;               // values of a thread to merge
    static constexpr int RING = STAGES * STAGE;
    static constexpr int ROWS_BYTES = ENDLESS ? WM * Q_BYTES : 0;  // of results, which else take the queries' place
    static constexpr int BYTES = 1024 + WM * Q_BYTES + ROWS_BYTES + RING + 24 * STAGES + 16;
    static_assert(D % 8 == 0 && WIDTH % 16 == 0 && BN % (PADDED ? 32 : 16) == 0, "sizes");
    static_assert((WK - 1) * WM * PART * 512 <= RING && BYTES <= 232448, "shared memory");
};

template <int ID, int COUNT> __device__ __forceinline__ void named_sync() {
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(COUNT) : "memory");
}

// ---- shared memory

__device__ __forceinline__ void store_shared(uint32_t to, uint4 x) {
    asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(to), "r"(x.x), "r"(x.y), "r"(x.z), "r"(x.w)
                 : "memory");
}
__device__ __forceinline__ void store_shared(uint32_t to, uint32_t x) {
    asm volatile("st.shared.b32 [%0], %1;" ::"r"(to), "r"(x) : "memory");
}
__device__ __forceinline__ uint4 load_shared(uint32_t from) {
    uint4 x;
    asm volatile("ld.shared.v4.b32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
                 : "r"(from)
                 : "memory");
    return x;
}
__device__ __forceinline__ void store_shared(uint32_t to, float x) {
    asm volatile("st.shared.f32 [%0], %1;" ::"r"(to), "f"(x) : "memory");
}
__device__ __forceinline__ float load_shared_float(uint32_t from) {
    float x;
    asm volatile("ld.shared.f32 %0, [%1];" : "=f"(x) : "r"(from) : "memory");
    return x;
}

/// Where a chunk of a row lies: 8 rows of 128 bytes are 1024 bytes, aligned so; chunk c of row r at place c ^ (r % 8).
__device__ __forceinline__ uint32_t place_of(int row, int chunk, int block_bytes) {
    return uint32_t((chunk >> 3) * block_bytes + row * ROW + (((chunk ^ row) & 7) << 4));
}

// ---- wgmma

/// Keeps the compiler from moving uses of products ahead of the wait for them.
template <int N> __device__ __forceinline__ void settle(float (&x)[N]) {
#pragma unroll
    for (int i = 0; i < N; ++i) asm volatile("" : "+f"(x[i])::"memory");
}

#define NAMES_16 "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15"
#define NAMES_24 NAMES_16 ", %16, %17, %18, %19, %20, %21, %22, %23"
#define NAMES_32 NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_40 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_80                                                                                                 \
    NAMES_40 ", %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, " \
    "%59, %60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define SUMS_8(I)                                                                                                \
    "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3]), "+f"(d[I + 4]), "+f"(d[I + 5]), "+f"(d[I + 6]),  \
        "+f"(d[I + 7])
#define SUMS_16 SUMS_8(0), SUMS_8(8)
#define SUMS_24 SUMS_16, SUMS_8(16)
#define SUMS_32 SUMS_24, SUMS_8(24)
#define SUMS_40 SUMS_32, SUMS_8(32)
#define SUMS_80 SUMS_40, SUMS_8(40), SUMS_8(48), SUMS_8(56), SUMS_8(64), SUMS_8(72)

// d = A B^T, or d += A B^T if ADD is 1: A 64 x 16 and B N x 16 in shared memory, both with k contiguous.
#define SCORES(N, TYPE, NAMES, A, B, ADD, ...)                                                                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" N          \
                 "k16.f32." TYPE "." TYPE " {" NAMES "}, " A ", " B ", p, 1, 1, 0, 0;\n}\n"                   \
                 : __VA_ARGS__                                                                                \
                 : "l"(a), "l"(b), "n"(FIRST ? 0 : 1))

// The same with A in registers.
#define SCORES_OF_REGISTERS(N, TYPE, NAMES, A0, A1, A2, A3, B, ADD, ...)                                           \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" N               \
                 "k16.f32." TYPE "." TYPE " {" NAMES "}, {" A0 ", " A1 ", " A2 ", " A3 "}, " B ", p, 1, 1, 0;\n}\n"\
                 : __VA_ARGS__                                                                                     \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b), "n"(FIRST ? 0 : 1))

// d += A B: A 64 x 16 in registers, B 16 x N in shared memory with n contiguous.
#define VALUES(N, TYPE, NAMES, A0, A1, A2, A3, B, ...)                                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" NAMES "}, {" A0 ", " A1 ", " \
                 A2 ", " A3 "}, " B ", 1, 1, 1, 1;\n"                                                             \
                 : __VA_ARGS__                                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define WGMMA_OF(T, TYPE)                                                                                         \
    template <bool FIRST> __device__ __forceinline__ void scores(float (&d)[16], uint64_t a, uint64_t b, T) {     \
        SCORES("32", TYPE, NAMES_16, "%16", "%17", "%18", SUMS_16);                                               \
    }                                                                                                             \
    template <bool FIRST> __device__ __forceinline__ void scores(float (&d)[24], uint64_t a, uint64_t b, T) {     \
        SCORES("48", TYPE, NAMES_24, "%24", "%25", "%26", SUMS_24);                                               \
    }                                                                                                             \
    template <bool FIRST> __device__ __forceinline__ void scores(float (&d)[32], uint64_t a, uint64_t b, T) {     \
        SCORES("64", TYPE, NAMES_32, "%32", "%33", "%34", SUMS_32);                                               \
    }                                                                                                             \
    template <bool FIRST>                                                                                         \
    __device__ __forceinline__ void scores(float (&d)[32], const uint32_t* a, uint64_t b, T) {                    \
        SCORES_OF_REGISTERS("64", TYPE, NAMES_32, "%32", "%33", "%34", "%35", "%36", "%37", SUMS_32);             \
    }                                                                                                             \
    __device__ __forceinline__ void values(float (&d)[24], const uint32_t* a, uint64_t b, T) {                    \
        VALUES("48", TYPE, NAMES_24, "%24", "%25", "%26", "%27", "%28", SUMS_24);                                 \
    }                                                                                                             \
    __device__ __forceinline__ void values(float (&d)[32], const uint32_t* a, uint64_t b, T) {                    \
        VALUES("64", TYPE, NAMES_32, "%32", "%33", "%34", "%35", "%36", SUMS_32);                                 \
    }                                                                                                             \
    __device__ __forceinline__ void values(float (&d)[40], const uint32_t* a, uint64_t b, T) {                    \
        VALUES("80", TYPE, NAMES_40, "%40", "%41", "%42", "%43", "%44", SUMS_40);                                 \
    }                                                                                                             \
    __device__ __forceinline__ void values(float (&d)[80], const uint32_t* a, uint64_t b, T) {                    \
        VALUES("160", TYPE, NAMES_80, "%80", "%81", "%82", "%83", "%84", SUMS_80);                                \
    }
WGMMA_OF(half, "f16")
WGMMA_OF(__nv_bfloat16, "bf16")

// ---- the kernel

template <typename T> struct Problem {
    T* out;
    long long out_batch;
    int tokens, others, heads, items, out_row;
    float factor;  // scale * log2(e)
};

/// What is made at a time: some queries of a head of an image.
struct Item {
    int row0, head, batch;

    template <typename T, typename S> __device__ __forceinline__ static Item of(const Problem<T>& p, int index) {
        const int blocks = (p.tokens + S::BM - 1) / S::BM, over = index / blocks, batch = over / p.heads;
        return {(index - over * blocks) * S::BM, over - batch * p.heads, batch};
    }
};

/// Addresses of the barriers: stages are full; they are empty; if PADDED, they have come and lack their constants; queries have come;
/// they are in registers.
template <typename S> struct Barriers {
    uint32_t full, empty, come, q_full, q_empty;

    __device__ __forceinline__ explicit Barriers(uint32_t start)
        : full(start), empty(full + 8 * S::STAGES), come(S::PADDED ? empty + 8 * S::STAGES : full), q_full(empty + 16 * S::STAGES),
          q_empty(q_full + 8) {}
};

/// A place in the ring: stage and parity of its round.
template <int STAGES> struct Place {
    int stage = 0, parity = 0;
    __device__ __forceinline__ void move(int by) {
        stage += by;
        if (stage >= STAGES) {
            stage -= STAGES;
            parity ^= 1;
        }
    }
};

/// One warp: has the ring filled with the tiles of K and V, after the queries.
template <typename S, typename T>
__device__ __forceinline__ void load_tiles(const Problem<T>& p, const TensorMap& q, const TensorMap& k, const TensorMap& v,
                                           uint32_t q_shared, uint32_t ring, const Barriers<S>& barriers, int tiles) {
    const bool leads = (threadIdx.x & 31) == 0;
    Place<S::STAGES> at;
    int q_parity = 1;
#pragma unroll 1
    for (int index = int(blockIdx.x); index < p.items; index += int(gridDim.x)) {
        const Item item = Item::of<T, S>(p, index);
        barrier_wait(barriers.q_empty, q_parity);
        q_parity ^= 1;
        if (leads) {
            barrier_expect(barriers.q_full, S::WM * S::Q_BYTES);
#pragma unroll
            for (int i = 0; i < S::WM * S::BLOCKS; ++i) {
                copy_box(q_shared + i * S::Q_BLOCK, &q, barriers.q_full, i % S::BLOCKS * BOX, item.row0 + i / S::BLOCKS * BOX, item.head,
                         item.batch);
            }
        }
#pragma unroll 1
        for (int tile = 0; tile < tiles; ++tile) {
            barrier_wait(barriers.empty + 8 * at.stage, at.parity ^ 1);
            if (leads) {
                const uint32_t to = ring + at.stage * S::STAGE, barrier = barriers.come + 8 * at.stage;
                barrier_expect(barrier, S::STAGE);
#pragma unroll
                for (int block = 0; block < S::BLOCKS; ++block) {
                    copy_box(to + block * S::K_BLOCK, &k, barrier, block * BOX, tile * S::BN, item.head, item.batch);
                    copy_box(to + S::K_BYTES + block * S::K_BLOCK, &v, barrier, block * BOX, tile * S::BN, item.head, item.batch);
                }
            }
            at.move(1);
        }
    }
}

/// Some more warps, if PADDED: write the constants behind K and V, every PADDERS-th tile each.
template <typename S, typename T>
__device__ __forceinline__ void pad_tiles(const Problem<T>& p, uint32_t ring, const Barriers<S>& barriers, int tiles, int which) {
    const int lane = int(threadIdx.x) & 31;
    const uint4 units = make_uint4(pack2(UNIT, UNIT, T()), 0, 0, 0), one = make_uint4(pack2(1.0f, 0.0f, T()), 0, 0, 0);
    const int items = (p.items - int(blockIdx.x) + int(gridDim.x) - 1) / int(gridDim.x);
    Place<S::STAGES> at;
    at.move(which);
#pragma unroll 1
    for (int left = items * tiles - which; left > 0; left -= PADDERS) {
        barrier_wait(barriers.come + 8 * at.stage, at.parity);
        const uint32_t to = ring + at.stage * S::STAGE;
#pragma unroll
        for (int row = 0; row < S::BN; row += 32) {
            store_shared(to + place_of(row + lane, S::CHUNKS, S::K_BLOCK), units);
            store_shared(to + S::K_BYTES + place_of(row + lane, S::CHUNKS, S::K_BLOCK), one);
        }
        fence_async();
        __syncwarp();
        if (lane == 0) barrier_arrive(barriers.full + 8 * at.stage);
        at.move(PADDERS);
    }
}

/// What one warpgroup holds: lane 4 g + t of warp w has rows 16 w + g (r = 0) and 16 w + g + 8 (r = 1), columns
/// 8 j + 2 t and the next, at [4 j + 2 r] and [4 j + 2 r + 1].
template <typename S> struct State {
    uint32_t q[S::PADDED ? S::WIDTH / 4 : 1];  // if PADDED, the queries: four words of each 16 columns
    float out[S::SUMS];
    float top[2];  // what is subtracted from the scores times factor: about their maximum so far
    float sum[2];  // this lane's part of the row sums, unless PADDED
};

/// The keys that a last tile does not have.
template <typename S, int N> __device__ __forceinline__ void mask(float (&s)[N], int left) {
    if (left >= S::BN) return;
    const int mine = left - (int(threadIdx.x) & 3) * 2;
#pragma unroll
    for (int i = 0; i < N; ++i) {
        if ((i >> 2) * 8 + (i & 1) >= mine) s[i] = -INFINITY;
    }
}

/// Scores become what they are above `top`. If PADDED the product has done it.
template <typename S, int N>
__device__ __forceinline__ void subtract_top(float (&s)[N], const State<S>& state, float factor) {
    if constexpr (!S::PADDED) {
#pragma unroll
        for (int i = 0; i < N; ++i) s[i] = fmaf(s[i], factor, -state.top[(i >> 1) & 1]);
    }
}

/// `top` becomes the scores' maximum, if that is above it or they are the first; s, which is above the old one, becomes
/// probabilities. What was summed so far is to be multiplied by `shrink`.
template <typename S, typename T, int N>
__device__ __forceinline__ void raise(float (&s)[N], State<S>& state, bool first, float (&shrink)[2]) {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float most = s[2 * r];
#pragma unroll
        for (int i = 0; i < N; i += 4) most = fmaxf(most, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
        most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
        float top = first ? most : state.top[r] + fmaxf(most, 0.0f);
        if constexpr (S::PADDED) {
            // As two numbers of T, which Q has behind its columns.
            const float units = top * (1.0f / UNIT);
            const float high = unpack2(pack2(units, 0.0f, T()), T()).x;
            const uint32_t pair = pack2(-high, high - units, T());
            const float2 both = unpack2(pair, T());
            top = -UNIT * (both.x + both.y);
            if ((threadIdx.x & 3) == 0) state.q[S::WIDTH / 4 - 2 + r] = pair;
        }
        const float by = top - state.top[r];
        state.top[r] = top;
        shrink[r] = exp2_approx(-by);
#pragma unroll
        for (int i = 0; i < N; i += 4) {
            s[i + 2 * r] = exp2_approx(s[i + 2 * r] - by);
            s[i + 2 * r + 1] = exp2_approx(s[i + 2 * r + 1] - by);
        }
    }
}

/// Scores of this warp's 16 rows and one tile, anew and by this warp alone.
template <typename S, typename T, int N>
__device__ __forceinline__ void scores_again(float (&s)[N], const State<S>& state, uint32_t q, uint32_t k) {
    const int lane = int(threadIdx.x) & 31;
#pragma unroll
    for (int i = 0; i < N; ++i) s[i] = 0.0f;
    constexpr int UNROLLED = S::PADDED ? S::WIDTH / 16 : 1;
#pragma unroll UNROLLED
    for (int chunk = 0; chunk < S::WIDTH / 8; chunk += 2) {
        uint32_t a[4], b[4];
        if constexpr (S::PADDED) {
#pragma unroll
            for (int i = 0; i < 4; ++i) a[i] = state.q[2 * chunk + i];
        } else {
            load_matrices(a, q + place_of(lane & 15, chunk + (lane >> 4), S::Q_BLOCK));
        }
#pragma unroll
        for (int i = 0; i < S::BN / 16; ++i) {
            load_matrices(b, k + place_of(16 * i + (lane >> 4) * 8 + (lane & 7), chunk + ((lane >> 3) & 1), S::K_BLOCK));
            Element<T>::mma16(*reinterpret_cast<float(*)[4]>(s + 8 * i), a, b[0], b[1]);
            Element<T>::mma16(*reinterpret_cast<float(*)[4]>(s + 8 * i + 4), a, b[2], b[3]);
        }
    }
}

/// Scores of one tile, begun.
template <typename S, typename T, int N>
__device__ __forceinline__ void begin_scores(float (&s)[N], const State<S>& state, uint64_t q, uint64_t k) {
    if constexpr (S::PADDED) {
        scores<true>(s, state.q, k, T());
#pragma unroll
        for (int i = 1; i < S::WIDTH / 16; ++i) scores<false>(s, state.q + 4 * i, k + i * 2, T());
        wgmma_commit();
        return;
    }
    scores<true>(s, q, k, T());
#pragma unroll
    for (int i = 1; i < S::WIDTH / 16; ++i) {
        scores<false>(s, q + (i >> 2) * (S::Q_BLOCK >> 4) + (i & 3) * 2, k + (i >> 2) * (S::K_BLOCK >> 4) + (i & 3) * 2,
                      T());
    }
    wgmma_commit();
}

/// Probabilities times the values of one tile, begun.
template <typename S, typename T>
__device__ __forceinline__ void begin_values(State<S>& state, const uint32_t (&prob)[S::BN / 4], uint64_t v) {
#pragma unroll
    for (int i = 0; i < S::BN / 16; ++i) values(state.out, prob + 4 * i, v + i * (16 * ROW >> 4), T());
    wgmma_commit();
}

/// The tiles of one warpgroup, of which the first is in the ring `at` its place, or will be.
template <typename S, typename T>
__device__ __forceinline__ void multiply(const Problem<T>& p, State<S>& state, uint32_t q_shared, uint32_t ring,
                                         const Barriers<S>& barriers, Place<S::STAGES>& at, int q_parity, int first, int tiles) {
    const bool speaks = (threadIdx.x & 31) == 0;
    const uint64_t q = descriptor(q_shared, 16), k = descriptor(ring, 16),
                   v = descriptor(ring + S::K_BYTES, S::K_BLOCK);
    const uint32_t my_q = q_shared + ((threadIdx.x >> 5) & 3) * 16 * ROW;
    float s[S::BN / 2];
    uint32_t prob[S::BN / 4];
    float shrink[2];
    const auto pack = [&]() {
#pragma unroll
        for (int i = 0; i < S::BN / 4; ++i) prob[i] = pack2(s[2 * i], s[2 * i + 1], T());
    };
    const auto add_sums = [&]() {
        if constexpr (!S::PADDED) {
#pragma unroll
            for (int i = 0; i < S::BN / 2; ++i) state.sum[(i >> 1) & 1] += s[i];
        }
    };

    int left = p.others - first * S::BN;
    barrier_wait(barriers.q_full, q_parity);
    if constexpr (S::PADDED) {
#pragma unroll
        for (int i = 0; i < S::WIDTH / 16; ++i) {
            const int lane = int(threadIdx.x) & 31;
            load_matrices(*reinterpret_cast<uint32_t(*)[4]>(state.q + 4 * i),
                          my_q + place_of(lane & 15, 2 * i + (lane >> 4), S::Q_BLOCK));
        }
        if (p.factor != 1.0f) {
#pragma unroll
            for (int i = 0; i < S::WIDTH / 4; ++i) {
                const float2 two = unpack2(state.q[i], T());
                state.q[i] = pack2(two.x * p.factor, two.y * p.factor, T());
            }
        }
        __syncwarp();
        if (speaks) barrier_arrive(barriers.q_empty);
    }
    barrier_wait(barriers.full + 8 * at.stage, at.parity);
    wgmma_fence();
    begin_scores<S, T>(s, state, q, k + at.stage * (S::STAGE >> 4));
    wgmma_wait<0>();
    settle(s);
    mask<S>(s, left);
    subtract_top(s, state, p.factor);
    raise<S, T>(s, state, true, shrink);
    pack();
    add_sums();
    int before = at.stage;
#pragma unroll 1
    for (int tile = first + S::WK; tile < tiles; tile += S::WK) {
        at.move(S::WK);
        left -= S::WK * S::BN;
        barrier_wait(barriers.full + 8 * at.stage, at.parity);
        wgmma_fence();
        begin_scores<S, T>(s, state, q, k + at.stage * (S::STAGE >> 4));
        begin_values<S, T>(state, prob, v + before * (S::STAGE >> 4));
        wgmma_wait<0>();
        settle(s);
        settle(state.out);
        mask<S>(s, left);
        subtract_top(s, state, p.factor);
#pragma unroll
        for (int i = 0; i < S::BN / 2; ++i) s[i] = exp2_approx(s[i]);
        if (speaks) barrier_arrive(barriers.empty + 8 * before);
        before = at.stage;
        pack();
        if (pass_most<T, S::BN / 4>(prob)) {
            scores_again<S, T>(s, state, my_q, ring + at.stage * S::STAGE);
            mask<S>(s, left);
            subtract_top(s, state, p.factor);
            raise<S, T>(s, state, false, shrink);
            pack();
#pragma unroll
            for (int i = 0; i < S::SUMS; ++i) state.out[i] *= shrink[(i >> 1) & 1];
#pragma unroll
            for (int r = 0; r < 2; ++r) state.sum[r] *= shrink[r];
        }
        add_sums();
    }
    wgmma_fence();
    begin_values<S, T>(state, prob, v + before * (S::STAGE >> 4));
    wgmma_wait<0>();
    settle(state.out);
    if (speaks) barrier_arrive(barriers.empty + 8 * before);
}

/// The parts of the keys become one, in the first warpgroup of those that share rows.
template <typename S>
__device__ __forceinline__ void merge(State<S>& state, uint32_t scratch, int over_rows, int over_keys) {
    const uint32_t mine = scratch + over_rows * (S::PART * 512) + (threadIdx.x & 127) * 4;
    constexpr int PART_BYTES = S::WM * S::PART * 512;
    if (over_keys > 0) {
        const uint32_t to = mine + (over_keys - 1) * PART_BYTES;
#pragma unroll
        for (int i = 0; i < S::SUMS; ++i) store_shared(to + i * 512, state.out[i]);
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            store_shared(to + (S::SUMS + r) * 512, state.top[r]);
            store_shared(to + (S::SUMS + 2 + r) * 512, state.sum[r]);
        }
    }
    named_sync<MERGE_BARRIER, S::WORKERS>();
    if (over_keys > 0) return;
#pragma unroll 1
    for (int part = 0; part < S::WK - 1; ++part) {
        const uint32_t from = mine + part * PART_BYTES;
        float keep[2], add[2];
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            const float top = load_shared_float(from + (S::SUMS + r) * 512);
            const float x = fmaxf(state.top[r], top);
            keep[r] = exp2_approx(state.top[r] - x);
            add[r] = exp2_approx(top - x);
            state.top[r] = x;
            state.sum[r] = state.sum[r] * keep[r] + load_shared_float(from + (S::SUMS + 2 + r) * 512) * add[r];
        }
#pragma unroll
        for (int i = 0; i < S::SUMS; ++i) {
            const int r = (i >> 1) & 1;
            state.out[i] = state.out[i] * keep[r] + load_shared_float(from + i * 512) * add[r];
        }
    }
}

/// Divides by the row sums and writes whole chunks, by way of `rows` in shared memory. row0: the warp's first.
template <typename S, typename T>
__device__ __forceinline__ void finish(const Problem<T>& p, const Item& item, const State<S>& state, uint32_t rows, int row0) {
    T* const out = p.out + item.batch * p.out_batch + item.head * S::D;
    const int lane = int(threadIdx.x) & 31, group = lane >> 2, t = lane & 3;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float total;
        if constexpr (S::PADDED) {
            total = __shfl_sync(0xffffffffu, state.out[S::D / 2 + 2 * r], lane & ~3);
        } else {
            total = state.sum[r];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
        }
        const float inverse = __fdividef(1.0f, total);
#pragma unroll
        for (int j = 0; j < S::CHUNKS; ++j) {
            store_shared(rows + place_of(group + 8 * r, j, S::Q_BLOCK) + 4 * t,
                         pack2(state.out[4 * j + 2 * r] * inverse, state.out[4 * j + 2 * r + 1] * inverse, T()));
        }
    }
    __syncwarp();
#pragma unroll
    for (int i = lane; i < 16 * S::CHUNKS; i += 32) {
        const int row = i / S::CHUNKS, chunk = i - row * S::CHUNKS;
        if (row0 + row < p.tokens) {
            *reinterpret_cast<uint4*>(out + (long long)(row0 + row) * p.out_row + chunk * 8) =
                load_shared(rows + place_of(row, chunk, S::Q_BLOCK));
        }
    }
}

template <typename S, typename T>
__device__ __forceinline__ void attention_hopper_body(Early early, const TensorMap& q, const TensorMap& k, const TensorMap& v,
                                                      const Problem<T>& p) {
    extern __shared__ unsigned char shared[];
    const uint32_t q_shared = (uint32_t(__cvta_generic_to_shared(shared)) + 1023u) & ~1023u;
    const uint32_t rows = S::ENDLESS ? q_shared + S::WM * S::Q_BYTES : q_shared;
    const uint32_t ring = q_shared + S::WM * S::Q_BYTES + S::ROWS_BYTES;
    const Barriers<S> barriers(ring + S::RING);
    const int tiles = (p.others + S::BN - 1) / S::BN;
    const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 5, 0);

    let_next_start(early);
    if (threadIdx.x == S::WORKERS) {
        for (int i = 0; i < S::STAGES; ++i) {
            barrier_init(barriers.full + 8 * i, 1);
            barrier_init(barriers.empty + 8 * i, S::WM * 4);  // the warps that share a tile
            if (S::PADDED) barrier_init(barriers.come + 8 * i, 1);
        }
        barrier_init(barriers.q_full, 1);
        barrier_init(barriers.q_empty, S::GROUPS * 4);
        asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        fetch_map(&q);
        fetch_map(&k);
        fetch_map(&v);
    }
    __syncthreads();
    wait_for_last(early);
    if (warp >= S::GROUPS * 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(S::LOAD));
        if (warp == S::GROUPS * 4) load_tiles<S>(p, q, k, v, q_shared, ring, barriers, tiles);
        if constexpr (S::PADDED) {
            if (warp > S::GROUPS * 4) pad_tiles<S>(p, ring, barriers, tiles, warp - S::GROUPS * 4 - 1);
        }
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(S::WORK));

    const int group = warp >> 2, over_rows = group % S::WM, over_keys = group / S::WM;
    const uint32_t my_q = q_shared + over_rows * S::Q_BYTES;
    const int warp_row = (warp & 3) * 16, my_row = over_rows * 64 + warp_row;
    const uint32_t my_rows = rows + over_rows * S::Q_BYTES + warp_row * ROW;
    Place<S::STAGES> at;
    at.move(over_keys);
    int q_parity = 0;
#pragma unroll 1
    for (int index = int(blockIdx.x); index < p.items; index += int(gridDim.x)) {
        State<S> state;
#pragma unroll
        for (int i = 0; i < S::SUMS; ++i) state.out[i] = 0.0f;
        state.top[0] = state.top[1] = 0.0f;
        state.sum[0] = state.sum[1] = 0.0f;
        if (over_keys < tiles) {
            multiply<S>(p, state, my_q, ring, barriers, at, q_parity, over_keys, tiles);
        } else {
            state.top[0] = state.top[1] = -1e30f;  // nothing to merge
        }
        if constexpr (!S::ENDLESS) {
            named_sync<MERGE_BARRIER, S::WORKERS>();  // from here on nothing is read by wgmma
            if constexpr (S::WK > 1) {
                merge(state, ring, over_rows, over_keys);
                if (over_keys > 0) return;
            }
        }
        const Item item = Item::of<T, S>(p, index);
        finish<S>(p, item, state, my_rows, item.row0 + my_row);
        if constexpr (!S::ENDLESS) return;
        at.move(1);
        q_parity ^= 1;
        __syncwarp();
    }
}

}  // namespace

STARTS_EARLY(attention_hopper)

#define ENTRY(NAME, T, D, WM, WK, BN, STAGES)                                                       \
    extern "C" __global__ void __launch_bounds__((WM) * (WK) * 128 + 128, 1)                        \
        NAME(const __grid_constant__ TensorMap q, const __grid_constant__ TensorMap k,              \
             const __grid_constant__ TensorMap v, const __grid_constant__ Problem<T> p) {           \
        const Early early{};                                                                        \
        attention_hopper_body<Shape<D, WM, WK, BN, STAGES>>(early, q, k, v, p);                     \
    }

// Name ending, head size, threads, BM (64 for each warpgroup over rows), dynamic shared bytes, BN, whether ENDLESS; warpgroups
// over rows and over keys, stages. build.rs finds the rows of this table, and Rust launches by them.
#define ATTENTION_HOPPER_TILE(ENDING, D, THREADS_, QUERIES, SHARED, BN, ENDLESS_, WM, WK, STAGES)           \
    static_assert(Shape<D, WM, WK, BN, STAGES>::THREADS == THREADS_ &&                                      \
                  Shape<D, WM, WK, BN, STAGES>::BM == QUERIES && Shape<D, WM, WK, BN, STAGES>::BYTES == SHARED &&\
                  Shape<D, WM, WK, BN, STAGES>::ENDLESS == bool(ENDLESS_));                                 \
    ENTRY(attention_hopper_f16_##ENDING, half, D, WM, WK, BN, STAGES)                                       \
    ENTRY(attention_hopper_bf16_##ENDING, __nv_bfloat16, D, WM, WK, BN, STAGES)

ATTENTION_HOPPER_TILE(40, 40, 640, 256, 197840, 64, 1, 4, 1, 8)
ATTENTION_HOPPER_TILE(40_small, 40, 640, 128, 148688, 64, 0, 2, 2, 8)
ATTENTION_HOPPER_TILE(64, 64, 640, 256, 165072, 64, 0, 4, 1, 8)
ATTENTION_HOPPER_TILE(80, 80, 640, 256, 214176, 48, 0, 4, 1, 6)
ATTENTION_HOPPER_TILE(80_small, 80, 640, 128, 230608, 48, 0, 2, 2, 8)
ATTENTION_HOPPER_TILE(160, 160, 512, 64, 173216, 32, 0, 1, 3, 6)
