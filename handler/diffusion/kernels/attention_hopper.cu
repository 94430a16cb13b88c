// Fused attention by wgmma, f16 and bf16, for Hopper (sm_90a only).
//
// The forward pass of FlashAttention (Dao et al. 2022), non-causal, arranged after FlashAttention-3 (Shah et al.
// 2024): one warpgroup copies tiles of K and V by cp.async into a ring of stages, warpgroups of 64 query rows multiply.
// In each, Q K^T of a tile and P V of the tile before are under way together, and P V goes on during the softmax; the
// products of one warpgroup hide behind the exponentials of the others. Statistics in f32, in base 2. The running
// maximum is only raised when a score passes it by more than 2^8, as in attention.cu. Where D leaves room (40), a
// column of ones behind V makes the row sums.
//
// q(b, t, h, d) = q[b * q_batch + t * q_row + h * D + d], and likewise k and v (kv_row, kv_batch), out (out_row,
// out_batch). Strides in elements; pointers, rows and batches aligned to 16 bytes; others >= 1; scale > 0.
// grid = (ceil(tokens / BM), heads, batch), block = (threads); names, threads, BM and dynamic shared bytes are in the
// table at the end (ATTENTION_HOPPER_TILE). The dynamic shared memory must be allowed first.

#include "common.cuh"
#include "hopper.cuh"

namespace {

constexpr float LOG2_E = 1.4426950408889634f;
/// How far (in powers of two) a score may pass the running maximum before that is raised.
constexpr float SLACK = 8.0f;
/// Bytes of a row of a block of 64 columns in shared memory: the width of the swizzle.
constexpr int ROW = 128;
constexpr int START_BARRIER = 1, MERGE_BARRIER = 2, LOAD_BARRIER = 3;

__host__ __device__ constexpr int smaller(int a, int b) { return a < b ? a : b; }

/// Sizes of one kernel: head size D, WM warpgroups over the rows, WK over the tiles of BN keys, STAGES of the ring.
template <int D_, int WM_, int WK_, int BN_, int STAGES_> struct Shape {
    static constexpr int D = D_, WM = WM_, WK = WK_, BN = BN_, STAGES = STAGES_;
    static constexpr int BM = 64 * WM, GROUPS = WM * WK, WORKERS = GROUPS * 128, THREADS = WORKERS + 128;
    static constexpr int CHUNKS = D / 8;                // 16-byte chunks of a row
    static constexpr int PIECE = CHUNKS & 8 ? 8 : 4;    // of which copied together, and the rest together
    static constexpr bool ONES = D % 16 != 0;           // a chunk of padding in K, of a one and zeros in V
    static constexpr int WIDTH = ONES ? D + 8 : D;      // columns of the operands
    static constexpr int BLOCKS = (WIDTH + 63) / 64;    // of 64 columns, each [rows][128 bytes], swizzled
    static constexpr int K_BLOCK = BN * ROW, K_BYTES = BLOCKS * K_BLOCK, STAGE = 2 * K_BYTES;
    static constexpr int Q_BLOCK = 64 * ROW, Q_BYTES = BLOCKS * Q_BLOCK;
    static constexpr int SUMS = WIDTH / 2;              // registers of a thread for the output
    static constexpr int LAG = smaller(3, STAGES - 1 - WK);  // tiles under way while the next are asked for
    // Registers of a thread: as launched (512 for the threads of a lane, in steps of 8), and after they are shared out.
    static constexpr int START = 512 / (GROUPS + 1) / 8 * 8, LOAD = 32;
    static constexpr int WORK = smaller((START * (GROUPS + 1) - LOAD) / GROUPS / 8 * 8, 240);
    static constexpr int PART = SUMS + 4;               // values of a thread to merge
    static constexpr int RING = STAGES * STAGE;
    static constexpr int BYTES = 1024 + WM * Q_BYTES + RING + 16 * STAGES;
    static constexpr int REST = CHUNKS > PIECE ? CHUNKS - PIECE : 1;
    static_assert(CHUNKS >= PIECE && (REST & (REST - 1)) == 0, "pieces");
    static_assert(128 / REST >= BN || BN % (128 / REST) == 0, "pieces");
    static_assert(D % 8 == 0 && WIDTH % 16 == 0 && BN % 16 == 0 && BN % (128 / PIECE) == 0 && LAG >= 1, "sizes");
    static_assert((WK - 1) * WM * PART * 512 <= RING && BYTES <= 232448, "shared memory");
};

template <int ID, int COUNT> __device__ __forceinline__ void named_sync() {
    asm volatile("bar.sync %0, %1;" ::"n"(ID), "n"(COUNT) : "memory");
}
template <int ID, int COUNT> __device__ __forceinline__ void named_arrive() {
    asm volatile("bar.arrive %0, %1;" ::"n"(ID), "n"(COUNT) : "memory");
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

/// 16 bytes from global to shared memory, of which the first `bytes` are read and the rest are zeros.
__device__ __forceinline__ void copy_chunk(uint32_t to, const void* from, int bytes) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}
__device__ __forceinline__ void copy_chunk(uint32_t to, const void* from) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to), "l"(from) : "memory");
}
template <int PENDING> __device__ __forceinline__ void wait_copies() {
    asm volatile("cp.async.wait_group %0;" ::"n"(PENDING) : "memory");
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

#define NAMES_24                                                                                          \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, " \
    "%22, %23"
#define NAMES_32 NAMES_24 ", %24, %25, %26, %27, %28, %29, %30, %31"
#define NAMES_40 NAMES_32 ", %32, %33, %34, %35, %36, %37, %38, %39"
#define SUMS_8(I)                                                                                                \
    "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3]), "+f"(d[I + 4]), "+f"(d[I + 5]), "+f"(d[I + 6]),  \
        "+f"(d[I + 7])
#define SUMS_24 SUMS_8(0), SUMS_8(8), SUMS_8(16)
#define SUMS_32 SUMS_24, SUMS_8(24)
#define SUMS_40 SUMS_32, SUMS_8(32)

// d = A B^T, or d += A B^T if ADD is 1: A 64 x 16 and B N x 16 in shared memory, both with k contiguous.
#define SCORES(N, TYPE, NAMES, A, B, ADD, ...)                                                                \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" N          \
                 "k16.f32." TYPE "." TYPE " {" NAMES "}, " A ", " B ", p, 1, 1, 0, 0;\n}\n"                   \
                 : __VA_ARGS__                                                                                \
                 : "l"(a), "l"(b), "n"(FIRST ? 0 : 1))

// d += A B: A 64 x 16 in registers, B 16 x N in shared memory with n contiguous.
#define VALUES(N, TYPE, NAMES, A0, A1, A2, A3, B, ...)                                                            \
    asm volatile("wgmma.mma_async.sync.aligned.m64n" N "k16.f32." TYPE "." TYPE " {" NAMES "}, {" A0 ", " A1 ", " \
                 A2 ", " A3 "}, " B ", 1, 1, 1, 1;\n"                                                             \
                 : __VA_ARGS__                                                                                    \
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "l"(b))

#define WGMMA_OF(T, TYPE)                                                                                         \
    template <bool FIRST> __device__ __forceinline__ void scores(float (&d)[24], uint64_t a, uint64_t b, T) {     \
        SCORES("48", TYPE, NAMES_24, "%24", "%25", "%26", SUMS_24);                                               \
    }                                                                                                             \
    template <bool FIRST> __device__ __forceinline__ void scores(float (&d)[32], uint64_t a, uint64_t b, T) {     \
        SCORES("64", TYPE, NAMES_32, "%32", "%33", "%34", SUMS_32);                                               \
    }                                                                                                             \
    __device__ __forceinline__ void values(float (&d)[24], const uint32_t* a, uint64_t b, T) {                    \
        VALUES("48", TYPE, NAMES_24, "%24", "%25", "%26", "%27", "%28", SUMS_24);                                 \
    }                                                                                                             \
    __device__ __forceinline__ void values(float (&d)[32], const uint32_t* a, uint64_t b, T) {                    \
        VALUES("64", TYPE, NAMES_32, "%32", "%33", "%34", "%35", "%36", SUMS_32);                                 \
    }                                                                                                             \
    __device__ __forceinline__ void values(float (&d)[40], const uint32_t* a, uint64_t b, T) {                    \
        VALUES("80", TYPE, NAMES_40, "%40", "%41", "%42", "%43", "%44", SUMS_40);                                 \
    }
WGMMA_OF(half, "f16")
WGMMA_OF(__nv_bfloat16, "bf16")

// ---- exponentials

__device__ __forceinline__ float exp2_special(float x) {
    float y;
    asm volatile("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
    return y;
}

// ---- the kernel

template <typename T> struct Problem {
    const T* q;
    const T* k;
    const T* v;
    T* out;
    int tokens, others, q_row, kv_row, out_row;
    float factor;  // scale * log2(e)
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

/// Copies PIECE chunks from the FIRST on of each row of a tile of K and of V, PIECE neighbouring threads a row.
template <typename S, int FIRST, int PIECE>
__device__ __forceinline__ void copy_pieces(const char* k, const char* v, uint32_t to, int pitch, int left) {
    constexpr int STEP = 128 / PIECE;  // rows a step; a multiple of 8, so the swizzle stays
    const int thread = int(threadIdx.x) & 127, row = thread / PIECE, chunk = FIRST + thread % PIECE;
    const long long offset = (long long)row * pitch + chunk * 16, hop = (long long)STEP * pitch;
    to += place_of(row, chunk, S::K_BLOCK);
    if (STEP > S::BN && row >= S::BN) return;
    if (left >= S::BN) {
        k += offset;
        v += offset;
#pragma unroll
        for (int i = 0; i * STEP < S::BN; ++i, to += STEP * ROW, k += hop, v += hop) {
            copy_chunk(to, k);
            copy_chunk(to + S::K_BYTES, v);
        }
    } else {
#pragma unroll 1
        for (int i = 0; i * STEP < S::BN; ++i, to += STEP * ROW) {
            const bool inside = i * STEP + row < left;
            const long long from = inside ? offset + i * hop : 0;
            copy_chunk(to, k + from, inside ? 16 : 0);
            copy_chunk(to + S::K_BYTES, v + from, inside ? 16 : 0);
        }
    }
}

/// One warpgroup: fills the ring with the tiles of K and V.
template <typename S, typename T>
__device__ __forceinline__ void load_tiles(const Problem<T>& p, uint32_t ring, uint32_t full, uint32_t empty,
                                           int tiles) {
    const char* k = reinterpret_cast<const char*>(p.k);
    const char* v = reinterpret_cast<const char*>(p.v);
    const int pitch = p.kv_row * 2;
    const auto announce = [&](int stage) {
        fence_async();
        __syncwarp();
        if ((threadIdx.x & 31) == 0) barrier_arrive(full + 8 * stage);
    };
    Place<S::STAGES> at;
    int ready = 0;  // the stage to be announced next
    int left = p.others;
#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile, left -= S::BN) {
        barrier_wait(empty + 8 * at.stage, at.parity ^ 1);
        const uint32_t to = ring + at.stage * S::STAGE;
        copy_pieces<S, 0, S::PIECE>(k, v, to, pitch, left);
        if constexpr (S::PIECE < S::CHUNKS) {
            copy_pieces<S, S::PIECE, S::REST>(k, v, to, pitch, left);
        }
        asm volatile("cp.async.commit_group;" ::: "memory");
        k += (long long)S::BN * pitch;
        v += (long long)S::BN * pitch;
        at.move(1);
        if (tile >= S::LAG) {
            wait_copies<S::LAG>();
            announce(ready);
            if (++ready == S::STAGES) ready = 0;
        }
    }
    wait_copies<0>();
#pragma unroll 1
    for (int i = smaller(S::LAG, tiles); i > 0; --i) {
        announce(ready);
        if (++ready == S::STAGES) ready = 0;
    }
}

/// All multiplying threads: Q into shared memory, and what pads K and V.
template <typename S, typename T>
__device__ __forceinline__ void prepare(Early early, const Problem<T>& p, uint32_t q_shared, uint32_t ring) {
    if constexpr (S::ONES) {
        const uint4 zeros = make_uint4(0, 0, 0, 0), one = make_uint4(pack2(1.0f, 0.0f, T()), 0, 0, 0);
        for (int i = int(threadIdx.x); i < S::STAGES * S::BN; i += S::WORKERS) {
            const int stage = i / S::BN, row = i - stage * S::BN;
            const uint32_t to = ring + stage * S::STAGE + place_of(row, S::CHUNKS, S::K_BLOCK);
            store_shared(to, zeros);
            store_shared(to + S::K_BYTES, one);
        }
    }
    wait_for_last(early);
    constexpr int ALL = S::WIDTH / 8;
    const int row0 = int(blockIdx.x) * S::BM;
#pragma unroll 2
    for (int i = int(threadIdx.x); i < S::BM * ALL; i += S::WORKERS) {
        const int row = i / ALL, chunk = i - row * ALL;
        uint4 x = make_uint4(0, 0, 0, 0);
        if (row0 + row < p.tokens && chunk < S::CHUNKS) {
            x = *reinterpret_cast<const uint4*>(p.q + (long long)(row0 + row) * p.q_row + chunk * 8);
        }
        store_shared(q_shared + (row >> 6) * S::Q_BYTES + place_of(row & 63, chunk, S::Q_BLOCK), x);
    }
}

/// What one warpgroup holds: lane 4 g + t of warp w has rows 16 w + g (r = 0) and 16 w + g + 8 (r = 1), columns
/// 8 j + 2 t and the next, at [4 j + 2 r] and [4 j + 2 r + 1].
template <typename S> struct State {
    float out[S::SUMS];
    float top[2];  // running maximum of the scores times factor
    float sum[2];  // this lane's part of the row sums, without ONES
};

/// Scores to probabilities, in place. Returns whether the sums so far are to be scaled, by `shrink`.
template <typename S, int N>
__device__ __forceinline__ bool softmax(float (&s)[N], State<S>& state, float factor, int left, float (&shrink)[2]) {
    if (left < S::BN) {
        const int mine = left - (int(threadIdx.x) & 3) * 2;
#pragma unroll
        for (int i = 0; i < N; ++i) {
            if ((i >> 2) * 8 + (i & 1) >= mine) s[i] = -INFINITY;
        }
    }
    float most[2];
    bool raise = false;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float x = fmaxf(s[2 * r], s[2 * r + 1]), y = fmaxf(s[2 * r + 4], s[2 * r + 5]);
#pragma unroll
        for (int i = 8; i < N; i += 8) {
            x = fmaxf(x, fmaxf(s[i + 2 * r], s[i + 2 * r + 1]));
            y = fmaxf(y, fmaxf(s[i + 2 * r + 4], s[i + 2 * r + 5]));
        }
        most[r] = fmaxf(x, y);
        raise |= fmaf(most[r], factor, -state.top[r]) > SLACK;
    }
    raise = __any_sync(0xffffffffu, raise);
    if (raise) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float x = most[r];
            x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
            x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
            x = fmaxf(state.top[r], x * factor);
            shrink[r] = exp2_special(state.top[r] - x);
            state.top[r] = x;
            if constexpr (!S::ONES) state.sum[r] *= shrink[r];
        }
    }
#pragma unroll
    for (int i = 0; i < N; ++i) {
        const int r = (i >> 1) & 1;
        s[i] = exp2_special(fmaf(s[i], factor, -state.top[r]));
        if constexpr (!S::ONES) state.sum[r] += s[i];
    }
    return raise;
}

/// Scores of one tile, begun.
template <typename S, typename T, int N>
__device__ __forceinline__ void begin_scores(float (&s)[N], uint64_t q, uint64_t k) {
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

/// The tiles of one warpgroup.
template <typename S, typename T>
__device__ __forceinline__ void multiply(const Problem<T>& p, State<S>& state, uint32_t q_shared, uint32_t ring,
                                         uint32_t full, uint32_t empty, int first, int tiles) {
    const bool speaks = (threadIdx.x & 31) == 0;
    const uint64_t q = descriptor(q_shared, 16), k = descriptor(ring, 16),
                   v = descriptor(ring + S::K_BYTES, S::K_BLOCK);
    float s[S::BN / 2];
    uint32_t prob[S::BN / 4];
    float shrink[2] = {1.0f, 1.0f};
    const auto pack = [&]() {
#pragma unroll
        for (int i = 0; i < S::BN / 4; ++i) prob[i] = pack2(s[2 * i], s[2 * i + 1], T());
    };

    Place<S::STAGES> at;
    at.move(first);
    int left = p.others - first * S::BN;
    barrier_wait(full + 8 * at.stage, at.parity);
    wgmma_fence();
    begin_scores<S, T>(s, q, k + at.stage * (S::STAGE >> 4));
    wgmma_wait<0>();
    settle(s);
    softmax<S>(s, state, p.factor, left, shrink);
    pack();
    int before = at.stage;
#pragma unroll 1
    for (int tile = first + S::WK; tile < tiles; tile += S::WK) {
        at.move(S::WK);
        left -= S::WK * S::BN;
        barrier_wait(full + 8 * at.stage, at.parity);
        wgmma_fence();
        begin_scores<S, T>(s, q, k + at.stage * (S::STAGE >> 4));
        begin_values<S, T>(state, prob, v + before * (S::STAGE >> 4));
        wgmma_wait<1>();
        settle(s);
        const bool raise = softmax<S>(s, state, p.factor, left, shrink);
        // The wait stands twice, so that it is not moved ahead of the exponentials.
        if (raise) {
            wgmma_wait<0>();
            settle(state.out);
#pragma unroll
            for (int i = 0; i < S::SUMS; ++i) state.out[i] *= shrink[(i >> 1) & 1];
        }
        wgmma_wait<0>();
        settle(state.out);
        settle(s);
        if (speaks) barrier_arrive(empty + 8 * before);
        before = at.stage;
        pack();
    }
    wgmma_fence();
    begin_values<S, T>(state, prob, v + before * (S::STAGE >> 4));
    wgmma_wait<0>();
    settle(state.out);
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
            keep[r] = exp2_special(state.top[r] - x);
            add[r] = exp2_special(top - x);
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

/// Divides by the row sums and writes whole chunks, by way of the rows that Q had in shared memory.
template <typename S, typename T>
__device__ __forceinline__ void finish(const Problem<T>& p, const State<S>& state, uint32_t rows, int row0) {
    const int lane = int(threadIdx.x) & 31, group = lane >> 2, t = lane & 3;
#pragma unroll
    for (int r = 0; r < 2; ++r) {
        float total;
        if constexpr (S::ONES) {
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
            *reinterpret_cast<uint4*>(p.out + (long long)(row0 + row) * p.out_row + chunk * 8) =
                load_shared(rows + place_of(row, chunk, S::Q_BLOCK));
        }
    }
}

template <typename S, typename T>
__device__ __forceinline__ void attention_hopper_body(Early early, const Problem<T>& p) {
    extern __shared__ unsigned char shared[];
    const uint32_t q_shared = (uint32_t(__cvta_generic_to_shared(shared)) + 1023u) & ~1023u;
    const uint32_t ring = q_shared + S::WM * S::Q_BYTES;
    const uint32_t full = ring + S::RING, empty = full + 8 * S::STAGES;
    const int tiles = (p.others + S::BN - 1) / S::BN;
    const int warp = __shfl_sync(0xffffffffu, int(threadIdx.x) >> 5, 0);

    let_next_start(early);
    if (warp >= S::GROUPS * 4) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(S::LOAD));
        if (threadIdx.x == S::WORKERS) {
            for (int i = 0; i < S::STAGES; ++i) {
                barrier_init(full + 8 * i, 4);           // the warps that load
                barrier_init(empty + 8 * i, S::WM * 4);  // the warps that share a tile
            }
            asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
        }
        named_sync<LOAD_BARRIER, 128>();
        named_arrive<START_BARRIER, S::THREADS>();
        wait_for_last(early);
        load_tiles<S>(p, ring, full, empty, tiles);
        return;
    }
    asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(S::WORK));
    prepare<S>(early, p, q_shared, ring);
    fence_async();
    named_sync<START_BARRIER, S::THREADS>();

    const int group = warp >> 2, over_rows = group % S::WM, over_keys = group / S::WM;
    const uint32_t my_q = q_shared + over_rows * S::Q_BYTES;
    State<S> state;
#pragma unroll
    for (int i = 0; i < S::SUMS; ++i) state.out[i] = 0.0f;
    state.top[0] = state.top[1] = -1e30f;
    state.sum[0] = state.sum[1] = 0.0f;
    if (over_keys < tiles) multiply<S>(p, state, my_q, ring, full, empty, over_keys, tiles);

    // From here on nothing is read by wgmma.
    named_sync<MERGE_BARRIER, S::WORKERS>();
    if constexpr (S::WK > 1) {
        merge(state, ring, over_rows, over_keys);
        if (over_keys > 0) return;
    }
    const int warp_row = (warp & 3) * 16;
    finish<S>(p, state, my_q + warp_row * ROW, int(blockIdx.x) * S::BM + over_rows * 64 + warp_row);
}

}  // namespace

STARTS_EARLY(attention_hopper)

#define ENTRY(NAME, T, D, WM, WK, BN, STAGES)                                                         \
    extern "C" __global__ void __launch_bounds__((WM) * (WK) * 128 + 128, 1)                                   \
        NAME(const T* q, const T* k, const T* v, T* out, int tokens, int others, int heads, int q_row, int kv_row,  \
             int out_row, long long q_batch, long long kv_batch, long long out_batch, float scale) {                \
        (void)heads;                                                                                                \
        const long long head = (long long)blockIdx.y * (D), batch = blockIdx.z;                                     \
        const Problem<T> p = {q + batch * q_batch + head,   k + batch * kv_batch + head,                            \
                              v + batch * kv_batch + head,  out + batch * out_batch + head,                         \
                              tokens, others, q_row, kv_row, out_row, scale * LOG2_E};                              \
        const Early early{};                                                                                        \
        attention_hopper_body<Shape<D, WM, WK, BN, STAGES>>(early, p);                                              \
    }

// Name ending, head size, threads, BM (64 for each warpgroup over rows), dynamic shared bytes; warpgroups over rows and over
// keys, keys per tile, stages. build.rs finds the rows of this table, and Rust launches by them.
#define ATTENTION_HOPPER_TILE(ENDING, D, THREADS_, QUERIES, SHARED, WM, WK, BN, STAGES)                         \
    static_assert(Shape<D, WM, WK, BN, STAGES>::THREADS == THREADS_ &&                                          \
                  Shape<D, WM, WK, BN, STAGES>::BM == QUERIES && Shape<D, WM, WK, BN, STAGES>::BYTES == SHARED); \
    ENTRY(attention_hopper_f16_##ENDING, half, D, WM, WK, BN, STAGES)                                           \
    ENTRY(attention_hopper_bf16_##ENDING, __nv_bfloat16, D, WM, WK, BN, STAGES)

ATTENTION_HOPPER_TILE(40, 40, 640, 256, 164992, 4, 1, 64, 8)
ATTENTION_HOPPER_TILE(40_small, 40, 640, 128, 148608, 2, 2, 64, 8)
ATTENTION_HOPPER_TILE(64, 64, 640, 256, 164992, 4, 1, 64, 8)
ATTENTION_HOPPER_TILE(80, 80, 640, 256, 214112, 4, 1, 48, 6)
ATTENTION_HOPPER_TILE(80_small, 80, 640, 128, 230528, 2, 2, 48, 8)
