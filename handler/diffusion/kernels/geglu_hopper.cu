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
// multiply, 64 rows each; the third fills a ring of stages of 64 k. Blocks are persistent: they walk over the tiles,
// rows fastest, with the whole grid.
//
// Entries linear_geglu_T_BC (T: f16, bf16; block = (384, 1, 1)); dynamic shared memory: the table at the end.
// grid = (min(tiles, multiprocessors), 1, 1) with tiles = ceil(rows / 128) * (C / BC); any grid is right.
#include "common.cuh"
#include "hopper.cuh"

namespace {

RUST_CONSTANT(GEGLU_ROWS, 128);    // of a tile
RUST_CONSTANT(GEGLU_DEPTH, 64);    // k of a stage: 128 bytes, the width of the swizzle
RUST_CONSTANT(GEGLU_THREADS, 384);  // two multiplying warpgroups and one that loads
constexpr int BM = GEGLU_ROWS;
constexpr int BK = GEGLU_DEPTH;
constexpr int ROW = BK * 2;       // bytes of a tile's row in shared memory
constexpr int THREADS = GEGLU_THREADS;
constexpr int LEAD = 2;           // steps by which the first warpgroup starts ahead of the second
constexpr int NAMED_BARRIER = 1;  // for that start

template <int BC> struct Shape {
    static constexpr int A_BYTES = BM * ROW, HALF_BYTES = BC * ROW, STAGE = A_BYTES + 2 * HALF_BYTES;
    static constexpr int STAGES = 4;
    static constexpr int BYTES = 1024 + STAGES * STAGE + 16 * STAGES;  // alignment, ring, barriers
    static_assert(BC % 16 == 0 && STAGE % 1024 == 0 && HALF_BYTES % 1024 == 0);
};

// ---- copies into shared memory

// 16 bytes, or 16 zero bytes.
__device__ __forceinline__ void copy16(uint32_t to, const char* from, bool inside) {
    const int bytes = inside ? 16 : 0;
    asm volatile("cp.async.cg.shared.global.L2::128B [%0], [%1], 16, %2;" ::"r"(to), "l"(from), "r"(bytes) : "memory");
}

// ---- wgmma

// Names of operands 0-39, 40-79 and 80-127, and operands themselves.
#define NAMES_0                                                                                             \
    "%0, %1, %2, %3, %4, %5, %6, %7, %8, %9, %10, %11, %12, %13, %14, %15, %16, %17, %18, %19, %20, %21, "  \
    "%22, %23, %24, %25, %26, %27, %28, %29, %30, %31, %32, %33, %34, %35, %36, %37, %38, %39"
#define NAMES_40                                                                                            \
    ", %40, %41, %42, %43, %44, %45, %46, %47, %48, %49, %50, %51, %52, %53, %54, %55, %56, %57, %58, %59, " \
    "%60, %61, %62, %63, %64, %65, %66, %67, %68, %69, %70, %71, %72, %73, %74, %75, %76, %77, %78, %79"
#define NAMES_80                                                                                               \
    ", %80, %81, %82, %83, %84, %85, %86, %87, %88, %89, %90, %91, %92, %93, %94, %95, %96, %97, %98, %99, "    \
    "%100, %101, %102, %103, %104, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, "    \
    "%117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127"
#define SUMS_8(I)                                                                                                 \
    "+f"(d[I]), "+f"(d[I + 1]), "+f"(d[I + 2]), "+f"(d[I + 3]), "+f"(d[I + 4]), "+f"(d[I + 5]), "+f"(d[I + 6]),   \
        "+f"(d[I + 7])
#define SUMS_40(I) SUMS_8(I), SUMS_8(I + 8), SUMS_8(I + 16), SUMS_8(I + 24), SUMS_8(I + 32)
#define SUMS_48(I) SUMS_40(I), SUMS_8(I + 40)

// d = A B^T (+ d if add): A 64 x 16 and B N x 16, both with k contiguous. A, B, ADD: names of the last three operands.
#define WGMMA(N, TYPE, NAMES, A, B, ADD, ...)                                                                  \
    asm volatile("{\n.reg .pred p;\nsetp.ne.b32 p, " ADD ", 0;\nwgmma.mma_async.sync.aligned.m64n" N           \
                 "k16.f32." TYPE "." TYPE " {" NAMES "}, " A ", " B ", p, 1, 1, 0, 0;\n}\n"                    \
                 : __VA_ARGS__                                                                                 \
                 : "l"(a), "l"(b), "r"(add))

#define WGMMA_SIZES(TYPE)                                                                                      \
    if constexpr (N == 160) {                                                                                  \
        WGMMA("160", TYPE, NAMES_0 NAMES_40, "%80", "%81", "%82", SUMS_40(0), SUMS_40(40));                    \
    } else {                                                                                                   \
        static_assert(N == 256);                                                                               \
        WGMMA("256", TYPE, NAMES_0 NAMES_40 NAMES_80, "%128", "%129", "%130", SUMS_40(0), SUMS_40(40),         \
              SUMS_48(80));                                                                                    \
    }

template <int N> __device__ __forceinline__ void wgmma(float* d, uint64_t a, uint64_t b, int add, half) {
    WGMMA_SIZES("f16")
}
template <int N> __device__ __forceinline__ void wgmma(float* d, uint64_t a, uint64_t b, int add, __nv_bfloat16) {
    WGMMA_SIZES("bf16")
}

// ---- epilogue

// The exact GELU as max(x, 0) - |x| Phi(-|x|), Phi the normal distribution and log2 Phi(-a) a polynomial, fitted on
// [0, 5.75] and falling beyond. Error below 3e-7; for negative x above -5 also below 7e-5 of the value.
__device__ __forceinline__ float gelu(float x) {
    const float a = fabsf(x);
    float q = -1.21205449e-06f;
    q = fmaf(q, a, 5.13540581e-05f);
    q = fmaf(q, a, -0.000867751078f);
    q = fmaf(q, a, 0.00833118428f);
    q = fmaf(q, a, -0.0537343808f);
    q = fmaf(q, a, -0.458565533f);
    q = fmaf(q, a, -1.1512593f);
    q = fmaf(q, a, -0.999988019f);
    float tail;
    asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(tail) : "f"(q));
    return fmaf(-a, tail, fmaxf(x, 0.0f));
}

// Read where it stands, not moved by the compiler: ahead of the wait for the last products.
template <typename T> __device__ __forceinline__ unsigned load_pair(const T* from) {
    unsigned word;
    asm volatile("ld.global.nc.b32 %0, [%1];" : "=r"(word) : "l"(from));
    return word;
}

// Lane t of four neighbours holds word t of each of four vectors in w, and then the four words of vector t.
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

// ---- the kernel

template <typename T> struct Problem {
    const T* x;
    const T* w;
    const T* bias;
    T* out;
    int rows, K, C;
};

// A ring's place: stage and parity of its round.
template <int STAGES> struct Place {
    int stage = 0, parity = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// Fills stages with cp.async, 128 threads: each copies one of eight 16-byte pieces of every sixteenth row.
template <typename T, int BC>
__device__ __forceinline__ void load_by_threads(const Problem<T>& p, uint32_t ring, uint32_t full, uint32_t empty,
                                                int tiles, int row_tiles) {
    using S = Shape<BC>;
    const int thread = int(threadIdx.x) & 127, piece = thread & 7, first = thread >> 3;
    const uint32_t place = uint32_t(first * ROW + ((piece ^ (first & 7)) << 4));
    const long long pitch = (long long)p.K * 2, hop = 16 * pitch;
    Place<S::STAGES> at;
    for (int tile = int(blockIdx.x); tile < tiles; tile += int(gridDim.x)) {
        const int row = tile % row_tiles * BM + first, column = tile / row_tiles * BC + first;
        const char* x = reinterpret_cast<const char*>(p.x) + row * pitch + piece * 16;
        const char* value = reinterpret_cast<const char*>(p.w) + column * pitch + piece * 16;
        const long long to_gate = p.C * pitch;
        for (int k = 0; k < p.K; k += BK) {
            barrier_wait(empty + 8 * at.stage, at.parity ^ 1);
            uint32_t to = ring + at.stage * S::STAGE + place;
            const char* from = x;
#pragma unroll
            for (int i = 0; i < BM / 16; ++i, to += 16 * ROW, from += hop) copy16(to, from, row + 16 * i < p.rows);
            from = value;
#pragma unroll 1
            for (int half = 0; half < 2; ++half) {
#pragma unroll
                for (int i = 0; i < BC / 16; ++i, to += 16 * ROW, from += hop) copy16(to, from, true);
                from = value + to_gate;
            }
            asm volatile("cp.async.mbarrier.arrive.noinc.shared::cta.b64 [%0];" ::"r"(full + 8 * at.stage) : "memory");
            x += ROW;
            value += ROW;
            at.next();
        }
    }
    asm volatile("cp.async.wait_all;" ::: "memory");
}

// Gates 64 rows by BC columns of sums, and stores them. row, column: those of the thread's first sum.
template <typename T, int BC>
__device__ __forceinline__ void store_tile(const Problem<T>& p, const float (&sums)[BC], const unsigned (&left)[BC / 8],
                                           const unsigned (&right)[BC / 8], int row, int column) {
    constexpr int VECTORS = BC / 8;
    const int t = int(threadIdx.x) & 3;
    T* const out = p.out + (long long)row * p.C + column;
    const auto gated = [&](int vector, int half) {
        const float2 b = unpack2(left[vector], T()), c = unpack2(right[vector], T());
        const int i = 4 * vector + 2 * half, j = BC / 2 + i;
        return pack2((sums[i] + b.x) * gelu(sums[j] + c.x), (sums[i + 1] + b.y) * gelu(sums[j + 1] + c.y), T());
    };
#pragma unroll
    for (int v = 0; v + 4 <= VECTORS; v += 4) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            unsigned words[4] = {gated(v, half), gated(v + 1, half), gated(v + 2, half), gated(v + 3, half)};
            const uint4 vector = transpose4(words, t);
            if (row + 8 * half < p.rows) {
                *reinterpret_cast<uint4*>(out + (long long)(8 * half) * p.C + (v + t) * 8) = vector;
            }
        }
    }
#pragma unroll
    for (int v = VECTORS / 4 * 4; v < VECTORS; ++v) {
#pragma unroll
        for (int half = 0; half < 2; ++half) {
            const unsigned word = gated(v, half);
            if (row + 8 * half < p.rows) {
                *reinterpret_cast<unsigned*>(out + (long long)(8 * half) * p.C + v * 8 + 2 * t) = word;
            }
        }
    }
}

// Multiplies and stores the tiles' rows of one warpgroup. Its lead over the other lets one multiply while the other
// stores.
template <typename T, int BC>
__device__ __forceinline__ void multiply(const Problem<T>& p, uint32_t ring, uint32_t full, uint32_t empty, int tiles,
                                         int row_tiles) {
    using S = Shape<BC>;
    constexpr bool SPLIT = 2 * BC > 256;  // more columns than one wgmma has
    const int group = int(threadIdx.x) >> 7, lane = int(threadIdx.x) & 31, t = lane & 3;
    const int steps = p.K / BK, lead = min(LEAD, steps);
    const int my_row = group * 64 + ((int(threadIdx.x) >> 5) & 3) * 16 + (lane >> 2);
    const uint64_t a_0 = descriptor(ring + group * 64 * ROW), b_0 = descriptor(ring + S::A_BYTES);
    const auto release = [&](int stage) {
        if (lane == 0) barrier_arrive(empty + 8 * stage);
    };

    if (group == 1) asm volatile("bar.sync %0, 256;" ::"n"(NAMED_BARRIER) : "memory");
    bool ahead = group == 0;
    float sums[BC];  // values, then gates; d[4 j + i]: row + 8 (i / 2), column 8 j + 2 t + i % 2
    Place<S::STAGES> at;
    for (int tile = int(blockIdx.x); tile < tiles; tile += int(gridDim.x)) {
        const int row = tile % row_tiles * BM + my_row, column = tile / row_tiles * BC;
        int before = 0;
        for (int step = 0; step < steps; ++step) {
            barrier_wait(full + 8 * at.stage, at.parity);
            fence_async();
            const uint64_t hop = uint64_t(at.stage * (S::STAGE >> 4)), a = a_0 + hop, b = b_0 + hop;
            wgmma_fence();
#pragma unroll
            for (int k = 0; k < BK / 16; ++k) {
                const int add = k == 0 ? step : 1;
                if constexpr (SPLIT) {
                    wgmma<BC>(sums, a + 2 * k, b + 2 * k, add, T());
                    wgmma<BC>(sums + BC / 2, a + 2 * k, b + 2 * k + (S::HALF_BYTES >> 4), add, T());
                } else {
                    wgmma<2 * BC>(sums, a + 2 * k, b + 2 * k, add, T());
                }
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
        unsigned left[BC / 8], right[BC / 8];
        const T* const bias = p.bias + column + 2 * t;
#pragma unroll
        for (int v = 0; v < BC / 8; ++v) {
            left[v] = load_pair(bias + 8 * v);
            right[v] = load_pair(bias + p.C + 8 * v);
        }
        wgmma_wait<0>();
#pragma unroll
        for (int i = 0; i < BC; ++i) asm volatile("" : "+f"(sums[i])::"memory");
        release(before);
        store_tile<T, BC>(p, sums, left, right, row, column);
    }
    if (ahead) asm volatile("bar.arrive %0, 256;" ::"n"(NAMED_BARRIER) : "memory");  // no tile
}

template <typename T, int BC>
__device__ __forceinline__ void linear_geglu_body(Early early, const Problem<T>& p) {
    using S = Shape<BC>;
    extern __shared__ unsigned char shared[];
    const uint32_t ring = (uint32_t(__cvta_generic_to_shared(shared)) + 1023u) & ~1023u;
    const uint32_t full = ring + S::STAGES * S::STAGE, empty = full + 8 * S::STAGES;
    const int row_tiles = (p.rows + BM - 1) / BM, tiles = row_tiles * (p.C / BC);

    let_next_start(early);
    if (threadIdx.x == 0) {
        for (int i = 0; i < S::STAGES; ++i) {
            barrier_init(full + 8 * i, 128);
            barrier_init(empty + 8 * i, 8);  // the multiplying warps
        }
        asm volatile("fence.mbarrier_init.release.cluster;\nfence.proxy.async.shared::cta;" ::: "memory");
    }
    __syncthreads();
    wait_for_last(early);
    if (threadIdx.x >= 256) {
        asm volatile("setmaxnreg.dec.sync.aligned.u32 40;");
        load_by_threads<T, BC>(p, ring, full, empty, tiles, row_tiles);
    } else {
        asm volatile("setmaxnreg.inc.sync.aligned.u32 232;");
        multiply<T, BC>(p, ring, full, empty, tiles, row_tiles);
    }
}

}  // namespace

STARTS_EARLY(linear_geglu)

#define ENTRY(NAME, T, BC)                                                            \
    extern "C" __global__ void __launch_bounds__(THREADS, 1)                          \
        NAME(const T* x, const T* w, const T* bias, T* out, int rows, int K, int C) { \
        const Early early{};                                                          \
        linear_geglu_body<T, BC>(early, {x, w, bias, out, rows, K, C});               \
    }

// Name ending, BC, dynamic shared bytes. build.rs finds the rows of this table, and Rust launches by them.
#define GEGLU_TILE(ENDING, BC, SHARED)               \
    static_assert(Shape<BC>::BYTES <= SHARED);       \
    ENTRY(linear_geglu_f16_##ENDING, half, BC)       \
    ENTRY(linear_geglu_bf16_##ENDING, __nv_bfloat16, BC)

GEGLU_TILE(128, 128, 197760)
GEGLU_TILE(160, 160, 230528)
