// Products of many columns on Hopper (panel_hopper.cu, geglu_hopper.cu): what both need, and the gate.
#pragma once

#include "hopper.cuh"
#include "row_norm.cuh"
#include "wgmma.cuh"

RUST_CONSTANT(WIDE_ROWS, 128);     // of a tile
RUST_CONSTANT(WIDE_DEPTH, 64);     // k of a stage: 128 bytes, the width of the swizzle
RUST_CONSTANT(WIDE_THREADS, 384);  // two multiplying warpgroups, and one of which a thread has the copy engine load
constexpr int BM = WIDE_ROWS;
constexpr int BK = WIDE_DEPTH;
constexpr int ROW = BK * 2;  // bytes of a tile's row in shared memory
constexpr int THREADS = WIDE_THREADS;
constexpr int CONSUMERS = 256;
constexpr int MOST_SHARED = 232448;

// x [rows, inner] times w [columns or 2 columns, inner], which the copy engine knows, to out [rows, columns]. With a_sums, rows of x are
// normalised first, as in product.cuh, and there is a bias.
template <typename T> struct Wide {
    const T* bias;  // of all columns of w, or null
    T* out;
    const float2* a_sums;  // [row_parts][sum_rows], or null
    int rows, inner, columns;
    int tiles;
    float alpha;  // of the first `scaled` columns, if they are not gated
    int scaled;
    int row_parts, sum_rows;
    float eps;
    int nothing;  // so that the words are whole
};

// What the rows of a tile, or of a panel, are multiplied by: three warps that do nothing else make them, while the tile before is being
// multiplied. It is 1 without a_sums.
struct Scales {
    static constexpr int BYTES = BM * 4 + 16;
    static constexpr int MAKERS = 96;
    float* values;
    uint32_t full, empty;

    // BYTES of shared memory, from a multiple of 8 on.
    __device__ __forceinline__ Scales(unsigned char* at, uint32_t address)
        : values(reinterpret_cast<float*>(at + 16)), full(address), empty(address + 8) {}

    __device__ __forceinline__ void init() const {
        barrier_init(full, MAKERS / 32);
        barrier_init(empty, CONSUMERS / 32);
    }

    // Which of the makers a thread is, or less than 0.
    __device__ __forceinline__ static int maker() { return int(threadIdx.x) - (THREADS - MAKERS); }

    // Of the rows from `row0` on, by the makers, which ask for so many parts of a row together; `turn` counts from 0. With them goes what
    // `store` stores once every thread that multiplies has done so with the tile before the last one.
    template <int AT_ONCE, typename T, typename Store>
    __device__ __forceinline__ void make(const Wide<T>& p, int row0, int turn, Store store) const {
        const int mine = maker();
        float scales[2];
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const int row = row0 + mine + i * MAKERS;
            const bool there = p.a_sums != nullptr && row < p.rows && mine + i * MAKERS < BM;
            scales[i] = 1.0f;
            if (there) scales[i] = row_scale<AT_ONCE>(p.a_sums, p.row_parts, p.sum_rows, row, p.inner, p.eps);
        }
        barrier_wait(empty, (turn & 1) ^ 1);
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            if (mine + i * MAKERS < BM) values[mine + i * MAKERS] = scales[i];
        }
        store();
        __syncwarp();
        if ((threadIdx.x & 31) == 0) barrier_arrive(full);
    }

    // Those of two rows, of which the second is eight below the first, by a thread that multiplies.
    __device__ __forceinline__ float2 take(int row, int turn) const {
        barrier_wait(full, turn & 1);
        const float2 both = make_float2(values[row], values[row + 8]);
        __syncwarp();
        if ((threadIdx.x & 31) == 0) barrier_arrive(empty);
        return both;
    }
};

// A place in a ring: the stage, and the parity of its round.
template <int STAGES> struct Place {
    int stage = 0, parity = 0;
    __device__ __forceinline__ void next() {
        if (++stage == STAGES) {
            stage = 0;
            parity ^= 1;
        }
    }
};

// Barriers of a ring: one arrival says that a stage is full, one of each multiplying warp that it is empty.
__device__ __forceinline__ void ring_init(uint32_t full, uint32_t empty, int stages) {
    for (int i = 0; i < stages; ++i) {
        barrier_init(full + 8 * i, 1);
        barrier_init(empty + 8 * i, CONSUMERS / 32);
    }
}

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
