// Products and convolutions without tensor cores, see product.cuh: f32, bf16 on sm_75, and every shape that the tiles of
// product.cu do not take.
//
// A block of 256 threads has a tile of 128 x 64 of out, and a thread 8 x 4 of it: rows 8 i .. 8 i + 7, columns
// 4 j .. 4 j + 3. A and W come to shared memory in f32, 16 of k at a time; the next are loaded beside the products.
//
// grid = (ceil(rows / PLAIN_ROWS) * ceil(columns / PLAIN_COLUMNS), splits, problems), block = (PLAIN_THREADS). If not
// `whole`, side is 1, there is one map, and any size and address of whole elements will do. It measures nothing:
// `moments` is not used.
#include "product.cuh"

RUST_CONSTANT(PLAIN_ROWS, 128);
RUST_CONSTANT(PLAIN_COLUMNS, 64);
RUST_CONSTANT(PLAIN_DEPTH, 16);
RUST_CONSTANT(PLAIN_THREADS, 256);

namespace {

constexpr int BM = PLAIN_ROWS, BN = PLAIN_COLUMNS, BK = PLAIN_DEPTH;
constexpr int TM = 8, TN = 4;

// Up to eight elements; those from `count` on are zero.
template <typename T>
__device__ __forceinline__ void load(float (&x)[8], const T* from, int count, bool whole) {
    if (whole && count >= 8) {
        unpack8(load8(from), x);
    } else {
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = i < count ? widen(from[i]) : 0.0f;
    }
}

}  // namespace

template <typename T> __device__ __forceinline__ void product_plain_body(const Problem& p) {
    __shared__ __align__(16) float left[BK][BM + 4];   // left[k][row]
    __shared__ __align__(16) float right[BK][BN + 4];  // right[k][column]
    const int thread = int(threadIdx.x);
    const int across = (p.columns + BN - 1) / BN;
    const int tile_row = int(blockIdx.x) / across;
    const int row0 = tile_row * BM, column0 = (int(blockIdx.x) - tile_row * across) * BN;
    const int from = int(blockIdx.y) * p.depth, to = min(p.inner, from + p.depth);
    const T* const a = static_cast<const T*>(p.a) + blockIdx.z * p.a_batch;
    const T* const w = static_cast<const T*>(p.w) + blockIdx.z * p.w_batch;
    const bool is_gated = p.ending == GATED;
    const int width = is_gated ? p.columns / 2 : p.columns;

    // This thread's chunk of A, and of W if it has one.
    const int my_row = thread / 2, my_k = thread % 2 * 8;
    const int phase = phase_of(p);
    const Row row = row_of(p, row0 + my_row, phase);
    Depth<BK> at = Depth<BK>::of(p, from, my_k);
    const bool loads_w = thread < BN * 2;
    int line = column0 + my_row;  // row of W
    bool has_line = line < p.columns;
    if (is_gated) line = line / 2 + line % 2 * width;
    const int crossed_k = thread / 8, crossed_column = thread % 8 * 8;

    float x[8], y[8];
    int k = from;
    const auto fetch = [&]() {
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = y[i] = 0.0f;
        const int count = at.tap == 15 ? 0 : p.channels + p.others - at.channel;
        if (count > 0 && inside(row, at)) load(x, address(p, a, row, at), count, p.whole != 0);
        if (loads_w) {
            if (p.crossed) {
                const int depth = k + crossed_k, column = column0 + crossed_column;
                if (depth < to) {
                    load(y, w + (long long)depth * p.w_row + column, p.columns - column, p.whole != 0);
                }
            } else if (has_line && count > 0) {
                load(y, w + (long long)line * p.w_row + at.k, count, p.whole != 0);
            }
        }
        at.advance(p);
        k += BK;
    };

    float sums[TM][TN] = {};
    const int i0 = thread / 16 * TM, j0 = thread % 16 * TN;
    fetch();
    while (true) {
#pragma unroll
        for (int i = 0; i < 8; ++i) left[my_k + i][my_row] = x[i];
        if (loads_w) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                if (p.crossed) {
                    right[crossed_k][crossed_column + i] = y[i];
                } else {
                    right[my_k + i][my_row] = y[i];
                }
            }
        }
        __syncthreads();
        const bool more = k < to;
        if (more) fetch();
#pragma unroll 4
        for (int depth = 0; depth < BK; ++depth) {
            float u[TM], v[TN];
#pragma unroll
            for (int i = 0; i < TM; i += 4) {
                const float4 four = *reinterpret_cast<const float4*>(&left[depth][i0 + i]);
                u[i] = four.x;
                u[i + 1] = four.y;
                u[i + 2] = four.z;
                u[i + 3] = four.w;
            }
            const float4 four = *reinterpret_cast<const float4*>(&right[depth][j0]);
            v[0] = four.x;
            v[1] = four.y;
            v[2] = four.z;
            v[3] = four.w;
#pragma unroll
            for (int i = 0; i < TM; ++i) {
#pragma unroll
                for (int j = 0; j < TN; ++j) sums[i][j] = fmaf(u[i], v[j], sums[i][j]);
            }
        }
        if (!more) break;
        __syncthreads();
    }

    const int at_step = p.table != nullptr ? row_of_step(p.step, p.steps) : 0;
    const T* const bias = static_cast<const T*>(p.bias);
    const long long batch = blockIdx.z * p.out_batch;
#pragma unroll
    for (int i = 0; i < TM; ++i) {
        const int r = row0 + i0 + i;
        if (r >= p.rows) break;
        const long long place = batch + out_row_of(p, r, phase) * p.out_row;
#pragma unroll
        for (int j = 0; j < TN; ++j) {
            const int c = column0 + j0 + j;
            if (c >= p.columns) break;
            float sum = sums[i][j];
            if (p.partials != nullptr) {
                p.partials[((long long)blockIdx.y * p.rows + r) * p.columns + c] = sum;
                continue;
            }
            if (is_gated) {
                // Every other column is the gate of the one before.
                if (j % 2 != 0) continue;
                float gate = sums[i][j + 1];
                if (bias != nullptr) {
                    sum += widen(bias[c / 2]);
                    gate += widen(bias[width + c / 2]);
                }
                static_cast<T*>(p.out)[place + c / 2] = narrow<T>(gated<T>(sum, gate));
                continue;
            }
            const float alpha = alpha_of(p, c);
            sum *= alpha;
            if (p.wide) {
                static_cast<float*>(p.out)[place + c] = sum;
                continue;
            }
            if (bias != nullptr) sum = fmaf(alpha, widen(bias[c]), sum);
            if (p.table != nullptr) sum += widen(static_cast<const T*>(p.table)[(long long)at_step * p.columns + c]);
            if (p.onto != nullptr) sum += widen(static_cast<const T*>(p.onto)[place + c]);
            static_cast<T*>(p.out)[place + c] = narrow<T>(sum);
        }
    }
}

EXPORT(product_plain, (PLAIN_THREADS, 2), (const __grid_constant__ Problem p), (p))
