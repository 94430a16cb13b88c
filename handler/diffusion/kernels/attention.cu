// Attention kernels: fused attention for f16 and bf16, and a row softmax for the unfused path.
//
// Fused: the forward pass of FlashAttention-2 (Dao 2023). Tensor-core products with f32 sums
// (mma.m16n8k16), K and V tiles of 64 keys double-buffered in shared memory by cp.async (sm_75: one buffer, plain
// loads). Softmax statistics in f32, in base 2. The running maximum is only raised when a score passes it by more
// than 2^8 (the result is the same, since the sum is scaled alike; probabilities before division stay <= 256).
//
// q(b, t, h, d) = q[b * q_batch + t * q_row + h * D + d], and likewise k and v (kv_row, kv_batch), out (out_row,
// out_batch). Strides in elements; pointers, rows and batches aligned to 16 bytes; others >= 1. factor > 0: what scores are
// multiplied by for a softmax in base 2. CAUSAL: a token sees only itself and those before it; then there are as many others.
// grid = (ceil(tokens / BM), heads, batch), block = (threads); names, threads, BM and dynamic shared bytes are in the
// tables at the end (ATTENTION_TILE, CAUSAL_TILE).
//
// The bf16 kernels trap below sm_80.

#include "attention.cuh"

namespace {

constexpr float LOG2_E = 1.4426950408889634f;
/// Keys per tile in shared memory.
constexpr int BN = 64;
/// Keys per softmax step of one warp.
constexpr int STEP = 32;
constexpr int STAGES = ARCH >= 800 ? 2 : 1;
constexpr int STATIC_LIMIT = 48 * 1024;
/// Shared memory that a block may have where it is least: compute capability 8.6, 8.9 and 12.0.
constexpr int LEAST_SHARED = 99 * 1024;

constexpr int larger(int a, int b) { return a > b ? a : b; }

/// Sizes of one kernel: head size D, MT tiles of 16 rows per warp, WM warps over the rows, WK (1 or 2) over the keys.
template <int D, int MT, int WM, int WK>
struct Shape {
    static constexpr int THREADS = WM * WK * 32;
    static constexpr int BM = WM * MT * 16;
    /// 16-byte chunks per row of a head.
    static constexpr int CHUNKS = D / 8;
    /// Bytes per row in shared memory: an odd number of chunks, so that 8 rows fall on different banks.
    static constexpr int STRIDE = (CHUNKS | 1) * 16;
    static constexpr int TILE = BN * STRIDE;
    /// Bytes for the partial results of the second half of the keys.
    static constexpr int MERGE = WK == 2 ? WM * 32 * (MT * CHUNKS * 4 + MT * 4) * 4 : 0;
    static constexpr int BYTES = larger(larger(STAGES * 2 * TILE, MERGE), BM * STRIDE);
    static constexpr int DYNAMIC_BYTES = BYTES <= STATIC_LIMIT ? 0 : BYTES;
    static_assert(BYTES <= LEAST_SHARED, "shared memory");
};

template <int BYTES>
__device__ __forceinline__ unsigned char* shared_buffer() {
    if constexpr (BYTES <= STATIC_LIMIT) {
        __shared__ __align__(128) unsigned char buffer[BYTES];
        return buffer;
    } else {
        extern __shared__ __align__(128) unsigned char dynamic_buffer[];
        return dynamic_buffer;
    }
}

/// Copies `left` rows (at most BN; the rest zeros) of K and of V to shared memory, V behind K.
template <typename S, typename T>
__device__ __forceinline__ void copy_tile(uint32_t to, const T* k, const T* v, int row_stride, int left) {
    constexpr int COUNT = BN * S::CHUNKS;
#pragma unroll
    for (int base = 0; base < COUNT; base += S::THREADS) {
        const int chunk = base + static_cast<int>(threadIdx.x);
        if (COUNT % S::THREADS != 0 && base + S::THREADS > COUNT && chunk >= COUNT) break;
        const int row = chunk / S::CHUNKS;
        const int column = chunk - row * S::CHUNKS;
        const bool valid = row < left;
        const int offset = valid ? row * row_stride + column * 8 : 0;
        const uint32_t place = to + row * S::STRIDE + column * 16;
        copy_chunk(place, k + offset, valid);
        copy_chunk(place + S::TILE, v + offset, valid);
    }
}

template <typename T>
__device__ __forceinline__ uint32_t load_pair(const T* q, bool valid) {
    return valid ? __ldg(reinterpret_cast<const unsigned int*>(q)) : 0u;
}

template <typename T, int D, int MT, int WM, int WK, bool CAUSAL>
__device__ __forceinline__ void attention_body(Early early, const T* q, const T* k, const T* v, T* out, int tokens, int others,
                                          int q_row, int kv_row, int out_row, long long q_batch, long long kv_batch,
                                          long long out_batch, float factor) {
    using S = Shape<D, MT, WM, WK>;
    using E = Element<T>;
    static_assert(D % 8 == 0 && STEP == 32 && BN % (STEP * WK) == 0, "sizes");
    constexpr int KT = D / 16;            // steps of 16 along the head in Q K^T
    constexpr bool TAIL = D % 16 != 0;    // and one of 8
    constexpr int NT = D / 8;             // column tiles of the output
    constexpr int NS = STEP / 8;          // column tiles of the scores
    // Whether a score that passes the running maximum is seen by its probability, when these are packed in pairs: half as many
    // comparisons, and scores are made again where it happens. With larger heads it takes longer (measured on an H200).
    constexpr bool LATE = ARCH >= 800 && D < 64;
    const int lane = threadIdx.x & 31;
    const int warp = threadIdx.x >> 5;
    const int warp_row = warp % WM;
    const int warp_key = warp / WM;
    const int group = lane >> 2;          // row within a fragment
    const int pair = (lane & 3) * 2;      // first column within a fragment

    unsigned char* buffer = shared_buffer<S::BYTES>();
    const uint32_t shared = shared_address(buffer);
    const long long head = static_cast<long long>(blockIdx.y) * D;
    k += blockIdx.z * kv_batch + head;
    v += blockIdx.z * kv_batch + head;
    const int tiles = (others + BN - 1) / BN;
    let_next_start(early);
    wait_for_last(early);
    if constexpr (STAGES == 2) {
        copy_tile<S>(shared, k, v, kv_row, others);
        commit_copies();
    }

    // Q fragments, kept in registers.
    const int row0 = blockIdx.x * S::BM + warp_row * MT * 16;
    uint32_t qf[MT][KT][4];
    uint32_t qt[MT][2];
#pragma unroll
    for (int m = 0; m < MT; ++m) {
        const int low = row0 + m * 16 + group;
        const int high = low + 8;
        const T* from = q + blockIdx.z * q_batch + head + pair;
        const T* from_low = from + static_cast<long long>(low) * q_row;
        const T* from_high = from + static_cast<long long>(high) * q_row;
#pragma unroll
        for (int i = 0; i < KT; ++i) {
            qf[m][i][0] = load_pair(from_low + i * 16, low < tokens);
            qf[m][i][1] = load_pair(from_high + i * 16, high < tokens);
            qf[m][i][2] = load_pair(from_low + i * 16 + 8, low < tokens);
            qf[m][i][3] = load_pair(from_high + i * 16 + 8, high < tokens);
        }
        if constexpr (TAIL) {
            qt[m][0] = load_pair(from_low + KT * 16, low < tokens);
            qt[m][1] = load_pair(from_high + KT * 16, high < tokens);
        }
    }

    float o[MT][NT][4];
    float top[MT][2];    // running maximum of the scores, times factor
    float sum[MT][2];    // this lane's part of the row sums
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int n = 0; n < NT; ++n) {
#pragma unroll
            for (int i = 0; i < 4; ++i) o[m][n][i] = 0.0f;
        }
        top[m][0] = top[m][1] = -1e30f;
        sum[m][0] = sum[m][1] = 0.0f;
    }

    // Where this lane's ldmatrix rows start: K two by two tiles (keys, head), V likewise, and 32 keys of one chunk.
    const uint32_t k_lane = ((lane >> 4) * 8 + (lane & 7)) * S::STRIDE + ((lane >> 3) & 1) * 16;
    const uint32_t v_lane = S::TILE + (lane & 15) * S::STRIDE + (lane >> 4) * 16;
    const uint32_t tail_lane = lane * S::STRIDE + (S::CHUNKS - 1) * 16;

#pragma unroll 1
    for (int tile = 0; tile < tiles; ++tile) {
        uint32_t stage = shared;
        if constexpr (STAGES == 2) {
            wait_copies();
            __syncthreads();
            if (tile + 1 < tiles) {
                const long long next = static_cast<long long>(tile + 1) * BN;
                copy_tile<S>(shared + ((tile + 1) & 1) * 2 * S::TILE, k + next * kv_row, v + next * kv_row, kv_row,
                             others - (tile + 1) * BN);
                commit_copies();
            }
            stage += (tile & 1) * 2 * S::TILE;
        } else {
            const long long from = static_cast<long long>(tile) * BN;
            __syncthreads();
            copy_tile<S>(shared, k + from * kv_row, v + from * kv_row, kv_row, others - tile * BN);
            __syncthreads();
        }

#pragma unroll 1
        for (int step = warp_key; step < BN / STEP; step += WK) {
            const int key0 = tile * BN + step * STEP;
            if (key0 >= others) break;
            const uint32_t place = stage + step * (STEP * S::STRIDE);

            // Scores: Q K^T.
            float s[MT][NS][4];
            const auto make_scores = [&]() {
#pragma unroll
                for (int m = 0; m < MT; ++m) {
#pragma unroll
                    for (int n = 0; n < NS; ++n) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) s[m][n][i] = 0.0f;
                    }
                }
#pragma unroll
                for (int i = 0; i < KT; ++i) {
                    uint32_t b[NS / 2][4];
#pragma unroll
                    for (int n = 0; n < NS / 2; ++n) {
                        load_matrices(b[n], place + k_lane + n * (16 * S::STRIDE) + i * 32);
                    }
#pragma unroll
                    for (int n = 0; n < NS; ++n) {
#pragma unroll
                        for (int m = 0; m < MT; ++m) {
                            E::mma16(s[m][n], qf[m][i], b[n / 2][(n & 1) * 2], b[n / 2][(n & 1) * 2 + 1]);
                        }
                    }
                }
                if constexpr (TAIL) {
                    uint32_t b[4];
                    load_matrices(b, place + tail_lane);
#pragma unroll
                    for (int n = 0; n < NS; ++n) {
#pragma unroll
                        for (int m = 0; m < MT; ++m) E::mma8(s[m][n], qt[m][0], qt[m][1], b[n]);
                    }
                }
                if (CAUSAL || key0 + STEP > others) {
#pragma unroll
                    for (int m = 0; m < MT; ++m) {
#pragma unroll
                        for (int i = 0; i < 4; ++i) {
                            const int row = row0 + m * 16 + group + (i >> 1) * 8;
                            const int left = (CAUSAL ? min(others, row + 1) : others) - key0 - pair;
#pragma unroll
                            for (int n = 0; n < NS; ++n) {
                                if (n * 8 + (i & 1) >= left) s[m][n][i] = -INFINITY;
                            }
                        }
                    }
                }
            };
            make_scores();

            // Probabilities, as the left operand of the second product, and their sums.
            uint32_t p[MT][STEP / 16][4];
            float more[MT][2];
            const auto make_probabilities = [&]() {
#pragma unroll
                for (int m = 0; m < MT; ++m) more[m][0] = more[m][1] = 0.0f;
#pragma unroll
                for (int n = 0; n < NS; ++n) {
#pragma unroll
                    for (int m = 0; m < MT; ++m) {
#pragma unroll
                        for (int r = 0; r < 2; ++r) {
                            const float x = exp2_approx(fmaf(s[m][n][r * 2], factor, -top[m][r]));
                            const float y = exp2_approx(fmaf(s[m][n][r * 2 + 1], factor, -top[m][r]));
                            more[m][r] += x;
                            more[m][r] += y;
                            p[m][n / 2][(n & 1) * 2 + r] = E::pack(x, y);
                        }
                    }
                }
            };
            float most[MT][2];
            const auto find_most = [&]() {
#pragma unroll
                for (int m = 0; m < MT; ++m) {
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        float x = s[m][0][r * 2];
#pragma unroll
                        for (int n = 0; n < NS; ++n) x = fmaxf(x, fmaxf(s[m][n][r * 2], s[m][n][r * 2 + 1]));
                        most[m][r] = x;
                    }
                }
            };

            // Raise the running maximum where a score passes it by far, and scale what was summed so far.
            bool raise = false;
            if constexpr (LATE) {
                make_probabilities();
                raise = pass_most<T, MT * STEP / 4>(&p[0][0][0]);
            } else {
                find_most();
#pragma unroll
                for (int m = 0; m < MT; ++m) {
#pragma unroll
                    for (int r = 0; r < 2; ++r) raise |= fmaf(most[m][r], factor, -top[m][r]) > SLACK;
                }
                raise = __any_sync(0xffffffffu, raise);
            }
            if (raise) {
                if constexpr (LATE) {
                    make_scores();
                    find_most();
                }
#pragma unroll
                for (int m = 0; m < MT; ++m) {
#pragma unroll
                    for (int r = 0; r < 2; ++r) {
                        float x = most[m][r];
                        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 1));
                        x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, 2));
                        x = fmaxf(top[m][r], x * factor);
                        const float shrink = exp2_approx(top[m][r] - x);
                        top[m][r] = x;
                        sum[m][r] *= shrink;
#pragma unroll
                        for (int n = 0; n < NT; ++n) {
                            o[m][n][r * 2] *= shrink;
                            o[m][n][r * 2 + 1] *= shrink;
                        }
                    }
                }
                if constexpr (LATE) make_probabilities();
            }
            if constexpr (!LATE) make_probabilities();
#pragma unroll
            for (int m = 0; m < MT; ++m) {
                sum[m][0] += more[m][0];
                sum[m][1] += more[m][1];
            }

            // Output: P V.
            uint32_t last[4];
            if constexpr (TAIL) load_matrices_transposed(last, place + S::TILE + tail_lane);
#pragma unroll
            for (int i = 0; i < STEP / 16; ++i) {
#pragma unroll
                for (int n = 0; n < NT / 2; ++n) {
                    uint32_t b[4];
                    load_matrices_transposed(b, place + v_lane + i * (16 * S::STRIDE) + n * 32);
#pragma unroll
                    for (int m = 0; m < MT; ++m) {
                        E::mma16(o[m][n * 2], p[m][i], b[0], b[1]);
                        E::mma16(o[m][n * 2 + 1], p[m][i], b[2], b[3]);
                    }
                }
                if constexpr (TAIL) {
#pragma unroll
                    for (int m = 0; m < MT; ++m) E::mma16(o[m][NT - 1], p[m][i], last[i * 2], last[i * 2 + 1]);
                }
            }
        }
    }
    __syncthreads();

    // The two halves of the keys become one: the same lane of the partner warp holds the same elements.
    if constexpr (WK == 2) {
        constexpr int VALUES = MT * NT * 4 + MT * 4;
        float* part = reinterpret_cast<float*>(buffer) + warp_row * VALUES * 32 + lane;
        if (warp_key == 1) {
#pragma unroll
            for (int m = 0; m < MT; ++m) {
#pragma unroll
                for (int n = 0; n < NT; ++n) {
#pragma unroll
                    for (int i = 0; i < 4; ++i) part[((m * NT + n) * 4 + i) * 32] = o[m][n][i];
                }
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    part[(MT * NT * 4 + m * 4 + r) * 32] = top[m][r];
                    part[(MT * NT * 4 + m * 4 + 2 + r) * 32] = sum[m][r];
                }
            }
        }
        __syncthreads();
        if (warp_key == 0) {
#pragma unroll
            for (int m = 0; m < MT; ++m) {
#pragma unroll
                for (int r = 0; r < 2; ++r) {
                    const float other_top = part[(MT * NT * 4 + m * 4 + r) * 32];
                    const float other_sum = part[(MT * NT * 4 + m * 4 + 2 + r) * 32];
                    const float x = fmaxf(top[m][r], other_top);
                    const float mine = exp2_approx(top[m][r] - x);
                    const float theirs = exp2_approx(other_top - x);
                    sum[m][r] = sum[m][r] * mine + other_sum * theirs;
#pragma unroll
                    for (int n = 0; n < NT; ++n) {
#pragma unroll
                        for (int i = r * 2; i < r * 2 + 2; ++i) {
                            o[m][n][i] = o[m][n][i] * mine + part[((m * NT + n) * 4 + i) * 32] * theirs;
                        }
                    }
                }
            }
        }
        __syncthreads();
        if (warp_key == 1) return;
    }

    // Divide by the row sums and write whole chunks, by way of this warp's part of shared memory.
    unsigned char* rows = buffer + warp_row * MT * 16 * S::STRIDE;
#pragma unroll
    for (int m = 0; m < MT; ++m) {
#pragma unroll
        for (int r = 0; r < 2; ++r) {
            float total = sum[m][r];
            total += __shfl_xor_sync(0xffffffffu, total, 1);
            total += __shfl_xor_sync(0xffffffffu, total, 2);
            const float inverse = __fdividef(1.0f, total);  // total >= 1
            unsigned char* to = rows + (m * 16 + r * 8 + group) * S::STRIDE + pair * 2;
#pragma unroll
            for (int n = 0; n < NT; ++n) {
                *reinterpret_cast<uint32_t*>(to + n * 16) =
                    E::pack(o[m][n][r * 2] * inverse, o[m][n][r * 2 + 1] * inverse);
            }
        }
    }
    __syncwarp();
    out += blockIdx.z * out_batch + head;
#pragma unroll
    for (int chunk = lane; chunk < MT * 16 * S::CHUNKS; chunk += 32) {
        const int row = chunk / S::CHUNKS;
        const int column = chunk - row * S::CHUNKS;
        if (row0 + row < tokens) {
            *reinterpret_cast<uint4*>(out + static_cast<long long>(row0 + row) * out_row + column * 8) =
                *reinterpret_cast<const uint4*>(rows + row * S::STRIDE + column * 16);
        }
    }
}

__device__ __forceinline__ void store_value(float* out, float x) { *out = x; }
__device__ __forceinline__ void store_value(__half* out, float x) { *out = __float2half_rn(x); }
__device__ __forceinline__ void store_value(__nv_bfloat16* out, float x) { *out = __float2bfloat16_rn(x); }

__device__ __forceinline__ void store_four(float* out, float4 x) { *reinterpret_cast<float4*>(out) = x; }
template <typename T>
__device__ __forceinline__ void store_four(T* out, float4 x) {
    *reinterpret_cast<uint2*>(out) = make_uint2(Element<T>::pack(x.x, x.y), Element<T>::pack(x.z, x.w));
}

RUST_CONSTANT(SOFTMAX_THREADS, 256);

/// Maximum (or sum) over the block of 256 threads; `scratch` holds 8 values and is free again afterwards.
template <bool MAXIMUM>
__device__ __forceinline__ float reduce(float x, float* scratch) {
#pragma unroll
    for (int step = 16; step > 0; step >>= 1) {
        const float y = __shfl_xor_sync(0xffffffffu, x, step);
        x = MAXIMUM ? fmaxf(x, y) : x + y;
    }
    if ((threadIdx.x & 31) == 0) scratch[threadIdx.x >> 5] = x;
    __syncthreads();
    x = scratch[0];
#pragma unroll
    for (int i = 1; i < SOFTMAX_THREADS / 32; ++i) x = MAXIMUM ? fmaxf(x, scratch[i]) : x + scratch[i];
    __syncthreads();
    return x;
}

/// Softmax of one row of f32 scores; columns past `visible` get probability 0. May run in place when T is f32.
template <typename T>
__device__ __forceinline__ void softmax_row(const float* scores, T* out, int columns, int causal, int rows_per_head) {
    __shared__ float scratch[SOFTMAX_THREADS / 32];
    const int thread = threadIdx.x;
    scores += static_cast<long long>(blockIdx.x) * columns;
    out += static_cast<long long>(blockIdx.x) * columns;
    int visible = columns;
    if (causal != 0) visible = min(columns, static_cast<int>(blockIdx.x % rows_per_head) + 1);
    // Four columns at a time where rows are aligned for it.
    const bool aligned = columns % 4 == 0 && (reinterpret_cast<uintptr_t>(scores) & 15) == 0 &&
                         (reinterpret_cast<uintptr_t>(out) & (4 * sizeof(T) - 1)) == 0;
    const int wide = aligned ? visible & ~3 : 0;

    float most = -INFINITY;
    for (int i = thread * 4; i < wide; i += SOFTMAX_THREADS * 4) {
        const float4 x = *reinterpret_cast<const float4*>(scores + i);
        most = fmaxf(most, fmaxf(fmaxf(x.x, x.y), fmaxf(x.z, x.w)));
    }
    for (int i = wide + thread; i < visible; i += SOFTMAX_THREADS) most = fmaxf(most, scores[i]);
    most = reduce<true>(most, scratch);

    float sum = 0.0f;
    for (int i = thread * 4; i < wide; i += SOFTMAX_THREADS * 4) {
        const float4 x = *reinterpret_cast<const float4*>(scores + i);
        sum += exp2_approx((x.x - most) * LOG2_E) + exp2_approx((x.y - most) * LOG2_E);
        sum += exp2_approx((x.z - most) * LOG2_E) + exp2_approx((x.w - most) * LOG2_E);
    }
    for (int i = wide + thread; i < visible; i += SOFTMAX_THREADS) sum += exp2_approx((scores[i] - most) * LOG2_E);
    const float inverse = 1.0f / reduce<false>(sum, scratch);

    for (int i = thread * 4; i < wide; i += SOFTMAX_THREADS * 4) {
        float4 x = *reinterpret_cast<const float4*>(scores + i);
        x.x = exp2_approx((x.x - most) * LOG2_E) * inverse;
        x.y = exp2_approx((x.y - most) * LOG2_E) * inverse;
        x.z = exp2_approx((x.z - most) * LOG2_E) * inverse;
        x.w = exp2_approx((x.w - most) * LOG2_E) * inverse;
        store_four(out + i, x);
    }
    for (int i = wide + thread; i < columns; i += SOFTMAX_THREADS) {
        store_value(out + i, i < visible ? exp2_approx((scores[i] - most) * LOG2_E) * inverse : 0.0f);
    }
}

}  // namespace

STARTS_EARLY(attention)

#define ATTENTION_KERNEL(NAME, T, D, MT, WM, WK, CAUSAL, BLOCKS)                                                      \
    extern "C" __global__ void __launch_bounds__((WM) * (WK) * 32, BLOCKS)                                            \
        NAME(const T* q, const T* k, const T* v, T* out, int tokens, int others, int heads, int q_row, int kv_row,    \
             int out_row, long long q_batch, long long kv_batch, long long out_batch, float factor) {                 \
        (void)heads;                                                                                                  \
        const Early early{};                                                                                          \
        attention_body<T, D, MT, WM, WK, CAUSAL>(early, q, k, v, out, tokens, others, q_row, kv_row, out_row,         \
                                                 q_batch, kv_batch, out_batch, factor);                               \
    }

#if ARCH == 0 || ARCH >= 800
#define BF16_KERNEL(NAME, ...) ATTENTION_KERNEL(NAME, __nv_bfloat16, __VA_ARGS__)
#else
#define BF16_KERNEL(NAME, ...)                                                                                        \
    extern "C" __global__ void NAME(const __nv_bfloat16*, const __nv_bfloat16*, const __nv_bfloat16*, __nv_bfloat16*, \
                                    int, int, int, int, int, int, long long, long long, long long, float) {           \
        __trap();                                                                                                     \
    }
#endif

#define ATTENTION_KERNELS(ENDING, D, THREADS_, QUERIES, SHARED, MT, WM, WK, CAUSAL, BLOCKS)                           \
    static_assert(Shape<D, MT, WM, WK>::THREADS == THREADS_ && Shape<D, MT, WM, WK>::BM == QUERIES &&                 \
                  Shape<D, MT, WM, WK>::DYNAMIC_BYTES == (ARCH >= 800 ? SHARED : 0));                                 \
    ATTENTION_KERNEL(attention_f16_##ENDING, __half, D, MT, WM, WK, CAUSAL, BLOCKS)                                   \
    BF16_KERNEL(attention_bf16_##ENDING, D, MT, WM, WK, CAUSAL, BLOCKS)

// Name ending, head size, threads, BM, dynamic shared bytes (none below sm_80); row tiles per warp, warps over rows, warps
// over keys, blocks per multiprocessor aimed at. build.rs finds the rows of these tables, and Rust launches by them: for each
// head size the kernel for many tokens comes first.
#define ATTENTION_TILE(ENDING, D, THREADS_, QUERIES, SHARED, MT, WM, WK, BLOCKS)                                      \
    ATTENTION_KERNELS(ENDING, D, THREADS_, QUERIES, SHARED, MT, WM, WK, false, BLOCKS)
// The same where a token sees only itself and those before it.
#define CAUSAL_TILE(ENDING, D, THREADS_, QUERIES, SHARED, MT, WM, WK, BLOCKS)                                         \
    ATTENTION_KERNELS(ENDING, D, THREADS_, QUERIES, SHARED, MT, WM, WK, true, BLOCKS)

ATTENTION_TILE(40_large, 40, 256, 256, 0, 2, 8, 1, ARCH >= 800 ? 2 : 1)
ATTENTION_TILE(40, 40, 128, 128, 0, 2, 4, 1, ARCH >= 800 ? 4 : 3)
ATTENTION_TILE(40_small, 40, 128, 64, 0, 1, 4, 1, 6)
ATTENTION_TILE(64, 64, 128, 128, 0, 2, 4, 1, ARCH >= 900 ? 3 : 2)
ATTENTION_TILE(64_small, 64, 128, 64, 0, 1, 4, 1, 4)
ATTENTION_TILE(80, 80, 256, 128, 0, 2, 4, 2, 1)
ATTENTION_TILE(80_small, 80, 128, 64, 0, 1, 4, 1, 4)
ATTENTION_TILE(128, 128, 128, 64, 69632, 1, 4, 1, 2)
ATTENTION_TILE(128_small, 128, 128, 32, 69632, 1, 2, 2, 2)
ATTENTION_TILE(160, 160, 128, 64, 86016, 1, 4, 1, 2)
ATTENTION_TILE(160_small, 160, 128, 32, 86016, 1, 2, 2, 2)
CAUSAL_TILE(64_causal, 64, 64, 32, 0, 1, 2, 1, 4)

#define SOFTMAX_KERNEL(NAME, T)                                                                                       \
    extern "C" __global__ void __launch_bounds__(SOFTMAX_THREADS)                                                     \
        NAME(const float* scores, T* out, int columns, int causal, int rows_per_head) {                               \
        softmax_row<T>(scores, out, columns, causal, rows_per_head);                                                  \
    }

SOFTMAX_KERNEL(softmax_f16, __half)
SOFTMAX_KERNEL(softmax_bf16, __nv_bfloat16)
SOFTMAX_KERNEL(softmax_f32, float)
