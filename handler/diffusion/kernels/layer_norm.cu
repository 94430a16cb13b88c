// Layer normalisation, and how its weight and bias become part of the layer behind it.
//
// xs[row][channel], C a multiple of 8 and every base address a multiple of 16 bytes. It starts early (see common.cuh): bias
// and weight are read before the kernel ahead has ended, so it must not be the one that writes them.
#include "row_norm.cuh"

// Channels up to which 8 and 16 threads share a row of layer_norm, and the most channels that 32 can hold.
RUST_CONSTANT(ROW_OF_8, 320);
RUST_CONSTANT(ROW_OF_16, 640);
RUST_CONSTANT(ROW_OF_32, 2048);
RUST_CONSTANT(LAYER_NORM_BLOCKS, 4);  // of 128 threads, for which a multiprocessor has the registers

// WIDTH neighbouring threads hold one row, HELD vectors of eight each, and walk over the rows with the whole grid.
template <typename T, int WIDTH, int HELD>
__device__ __forceinline__ void layer_norm_rows(Early early, const T* xs, const T* weight, const T* bias, T* out,
                                                int rows, int C, float eps) {
    constexpr int KEPT = sizeof(T) == 4 || HELD > 5 ? 1 : HELD;  // weights and biases, while they fit into registers
    const int place = int(threadIdx.x) % WIDTH, vectors = C / 8;
    const unsigned mask = (0xffffffffu >> (32 - WIDTH)) << (threadIdx.x & 31u & ~unsigned(WIDTH - 1));
    const int each = int(blockDim.x) / WIDTH;
    Pack<T> scales[KEPT], shifts[KEPT];
    if (KEPT == HELD) {
#pragma unroll
        for (int i = 0; i < KEPT; ++i) {
            const int vector = i * WIDTH + place;
            const bool there = vector < vectors && weight != nullptr;
            scales[i] = there ? load8(weight + vector * 8) : Pack<T>{};
            shifts[i] = there ? load8(bias + vector * 8) : Pack<T>{};
        }
    }
    wait_for_last(early);
    for (long long row = (long long)blockIdx.x * each + threadIdx.x / WIDTH; row < rows;
         row += (long long)gridDim.x * each) {
        const T* from = xs + row * C;
        Pack<T> held[HELD];
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const int vector = i * WIDTH + place;
            held[i] = vector < vectors ? load8(from + vector * 8) : Pack<T>{};
        }
        float sum = 0.0f;
#pragma unroll
        for (int i = 0; i < HELD; ++i) {  // what lies past the row is zero
            float x[8];
            unpack8(held[i], x);
            sum += ((x[0] + x[1]) + (x[2] + x[3])) + ((x[4] + x[5]) + (x[6] + x[7]));
        }
#pragma unroll
        for (int offset = WIDTH / 2; offset > 0; offset /= 2) sum += __shfl_xor_sync(mask, sum, offset, WIDTH);
        const float mean = sum / float(C);
        float spread = 0.0f;
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            if (i * WIDTH + place >= vectors) break;
            float x[8], part = 0.0f;
            unpack8(held[i], x);
#pragma unroll
            for (int c = 0; c < 8; ++c) part = fmaf(x[c] - mean, x[c] - mean, part);
            spread += part;
        }
#pragma unroll
        for (int offset = WIDTH / 2; offset > 0; offset /= 2) spread += __shfl_xor_sync(mask, spread, offset, WIDTH);
        const float inverse = 1.0f / sqrtf(spread / float(C) + eps);
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const int vector = i * WIDTH + place;
            if (vector >= vectors) break;
            float x[8];
            unpack8(held[i], x);
#pragma unroll
            for (int c = 0; c < 8; ++c) x[c] = (x[c] - mean) * inverse;
            if (weight != nullptr) {
                float scale[8], shift[8];
                unpack8(KEPT == HELD ? scales[i % KEPT] : load8(weight + vector * 8), scale);
                unpack8(KEPT == HELD ? shifts[i % KEPT] : load8(bias + vector * 8), shift);
#pragma unroll
                for (int c = 0; c < 8; ++c) x[c] = fmaf(x[c], scale[c], shift[c]);
            }
            store8(out + row * C + vector * 8, pack8<T>(x));
        }
    }
}

// layer_norm: each row of C <= ROW_OF_32 channels to mean 0 and variance 1, times weight, plus bias (Ba, Kiros, Hinton
// 2016, "Layer normalization"), if there are both. out may be xs.
//
// Launch rule: a row takes `width` threads: 8 up to ROW_OF_8 channels, 16 up to ROW_OF_16, else 32. block = (128, 1, 1),
// or 64 for few rows; grid = (ceil(rows * width / block), 1, 1), but no more than LAYER_NORM_BLOCKS to a multiprocessor, which
// run at once. Any grid and any block that is a multiple of 32 up to 128 is right.
template <typename T>
__device__ __forceinline__ void layer_norm_body(Early early, const T* xs, const T* weight, const T* bias, T* out,
                                                int rows, int C, float eps) {
    let_next_start(early);
    if (C <= ROW_OF_8) {
        layer_norm_rows<T, 8, 5>(early, xs, weight, bias, out, rows, C, eps);
    } else if (C <= ROW_OF_16) {
        layer_norm_rows<T, 16, 5>(early, xs, weight, bias, out, rows, C, eps);
    } else if (C <= 768) {
        layer_norm_rows<T, 32, 3>(early, xs, weight, bias, out, rows, C, eps);
    } else if (C <= 1280) {
        layer_norm_rows<T, 32, 5>(early, xs, weight, bias, out, rows, C, eps);
    } else {
        layer_norm_rows<T, 32, 8>(early, xs, weight, bias, out, rows, C, eps);
    }
}

EXPORT_EARLY(layer_norm, (128, LAYER_NORM_BLOCKS),
       (const T* xs, const T* weight, const T* bias, T* out, int rows, int C, float eps),
       (early, xs, weight, bias, out, rows, C, eps))

// fold_layer_norm: makes W' of row_norm.cuh in place of w [rows][C], and out[row] = bias[row] + beta . w[row], bias [rows] or null. C is a
// multiple of 8. block = (32 * FOLD_ROWS, 1, 1), grid = (ceil(rows / FOLD_ROWS), 1, 1): a warp has a row.
RUST_CONSTANT(FOLD_ROWS, 8);
template <typename T>
__device__ __forceinline__ void fold_layer_norm_body(T* w, const T* gamma, const T* beta, const T* bias, T* out, int rows, int C) {
    const int row = int(blockIdx.x) * FOLD_ROWS + int(threadIdx.x) / 32, lane = int(threadIdx.x) & 31;
    if (row >= rows) return;
    T* const mine = w + (long long)row * C;
    const auto over_all = [](float sum) {
#pragma unroll
        for (int offset = 16; offset > 0; offset /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, offset);
        return sum;
    };
    float sum = 0.0f, shift = 0.0f;
    for (int k = lane * 8; k < C; k += 256) {
        float x[8], scale[8], more[8];
        unpack8(load8(mine + k), x);
        unpack8(load8(gamma + k), scale);
        unpack8(load8(beta + k), more);
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            sum = fmaf(x[i], scale[i], sum);
            shift = fmaf(x[i], more[i], shift);
        }
    }
    const float mean = over_all(sum) / float(C);
    shift = over_all(shift);
    for (int k = lane * 8; k < C; k += 256) {
        float x[8], scale[8];
        unpack8(load8(mine + k), x);
        unpack8(load8(gamma + k), scale);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = fmaf(x[i], scale[i], -mean);
        store8(mine + k, pack8<T>(x));
    }
    if (lane == 0) out[row] = narrow<T>(shift + (bias == nullptr ? 0.0f : widen(bias[row])));
}

EXPORT(fold_layer_norm, (32 * FOLD_ROWS, 1), (T* w, const T* gamma, const T* beta, const T* bias, T* out, int rows, int C),
       (w, gamma, beta, bias, out, rows, C))
