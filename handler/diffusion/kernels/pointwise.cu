// Elementwise kernels, the way into and out of the U-Net's layout, and the merge of low-rank updates.
//
// Launch rule unless said otherwise: block = (256, 1, 1), grid = (ceil(units / 256), 1, 1) with the kernel's units; any
// grid and block is right, for threads walk over the units with the whole grid. No dynamic shared memory. Base
// addresses are multiples of 16 bytes. Activations are NHWC, C a multiple of 8. geglu, silu, quick_gelu, add and
// repeated start early (see common.cuh).
#include <string.h>

#include "common.cuh"

__device__ __forceinline__ long long first_unit() { return (long long)blockIdx.x * blockDim.x + threadIdx.x; }
__device__ __forceinline__ long long unit_stride() { return (long long)gridDim.x * blockDim.x; }

// Quotient of unit numbers; division of 32 bits is several times faster, and nearly always enough.
__device__ __forceinline__ long long quotient(long long unit, int by) {
    return unit >> 32 ? unit / by : (long long)(unsigned(unit) / unsigned(by));
}

// geglu: out[row][c] = xs[row][c] * gelu(xs[row][C + c]), with the exact (erf) GELU (Hendrycks, Gimpel 2016; Shazeer
// 2020, "GLU variants improve transformer"). Units: rows * C / 8, two to a thread: grid = (ceil(units / 512), 1, 1).
template <typename T>
__device__ __forceinline__ void geglu_body(Early early, const T* xs, T* out, long long rows, int C) {
    constexpr int N = 2;
    let_next_start(early);
    const int vectors = C / 8;
    const long long units = rows * vectors, stride = unit_stride();
    wait_for_last(early);
    for (long long unit = first_unit(); unit < units; unit += N * stride) {
        Pack<T> left[N], right[N];
#pragma unroll
        for (int u = 0; u < N; ++u) {
            left[u] = right[u] = Pack<T>{};
            if (unit + u * stride >= units) break;
            // Unit `unit` is the unit-th vector of out, and as many more rows of C are before it in xs.
            const long long row = quotient(unit + u * stride, vectors);
            const T* from = xs + (unit + u * stride) * 8 + row * C;
            left[u] = load8(from);
            right[u] = load8(from + C);
        }
#pragma unroll
        for (int u = 0; u < N; ++u) {
            if (unit + u * stride >= units) break;
            float x[8], gate[8];
            unpack8(left[u], x);
            unpack8(right[u], gate);
#pragma unroll
            for (int c = 0; c < 8; ++c) x[c] = gated<T>(x[c], gate[c]);
            store8(out + (unit + u * stride) * 8, pack8<T>(x));
        }
    }
}

// silu: out = x / (1 + exp(-x)). count is a multiple of 8; units: count / 8. out may be xs.
template <typename T> __device__ __forceinline__ void silu_body(Early early, const T* xs, T* out, long long count) {
    let_next_start(early);
    wait_for_last(early);
    for (long long unit = first_unit(); unit < count / 8; unit += unit_stride()) {
        float x[8];
        unpack8(load8(xs + unit * 8), x);
#pragma unroll
        for (int c = 0; c < 8; ++c) x[c] = sigmoid_unit<T>(x[c], 1.0f);
        store8(out + unit * 8, pack8<T>(x));
    }
}

// quick_gelu: out = x / (1 + exp(-1.702 x)), CLIP's activation. Otherwise as silu.
template <typename T>
__device__ __forceinline__ void quick_gelu_body(Early early, const T* xs, T* out, long long count) {
    let_next_start(early);
    wait_for_last(early);
    for (long long unit = first_unit(); unit < count / 8; unit += unit_stride()) {
        float x[8];
        unpack8(load8(xs + unit * 8), x);
#pragma unroll
        for (int c = 0; c < 8; ++c) x[c] = sigmoid_unit<T>(x[c], 1.702f);
        store8(out + unit * 8, pack8<T>(x));
    }
}

// add: out = a + b. count is a multiple of 8; units: count / 8. out may be a or b.
template <typename T>
__device__ __forceinline__ void add_body(Early early, const T* a, const T* b, T* out, long long count) {
    let_next_start(early);
    wait_for_last(early);
    for (long long unit = first_unit(); unit < count / 8; unit += unit_stride()) {
        const Pack<T> left = load8(a + unit * 8), right = load8(b + unit * 8);
        float x[8], y[8];
        unpack8(left, x);
        unpack8(right, y);
#pragma unroll
        for (int c = 0; c < 8; ++c) x[c] += y[c];
        store8(out + unit * 8, pack8<T>(x));
    }
}

// repeated: all of xs `times` times, one after another. count is a multiple of 8; units: count / 8.
template <typename T>
__device__ __forceinline__ void repeated_body(Early early, const T* xs, T* out, long long count, int times) {
    let_next_start(early);
    wait_for_last(early);
    for (long long unit = first_unit(); unit < count / 8; unit += unit_stride()) {
        const Pack<T> pack = load8(xs + unit * 8);
        for (int copy = 0; copy < times; ++copy) store8(out + copy * count + unit * 8, pack);
    }
}

// upsample_nearest: xs [batch, h, w, C] to out [batch, H, W, C], source row
// min(h - 1, floor(row * h / H)) in f32, columns alike. grid = (ceil(H * W * C / 8 / 256), batch, 1).
// It neither starts early nor lets the next kernel: that reads weights which the one ahead of this has made.
template <typename T>
__device__ __forceinline__ void upsample_nearest_body(const T* xs, T* out, int h, int w, int H, int W, int C) {
    const int vectors = C / 8;
    const long long units = (long long)H * W * vectors;
    const T* from = xs + (long long)blockIdx.y * h * w * C;
    T* to = out + (long long)blockIdx.y * units * 8;
    for (long long unit = first_unit(); unit < units; unit += unit_stride()) {
        const long long pixel = quotient(unit, vectors);
        const int vector = int(unit - pixel * vectors);
        const int row = int(quotient(pixel, W)), column = int(pixel - (long long)row * W);
        const int y = min(h - 1, int(floorf(float(row) * float(h) / float(H))));
        const int x = min(w - 1, int(floorf(float(column) * float(w) / float(W))));
        store8(to + unit * 8, load8(from + ((long long)y * w + x) * C + vector * 8));
    }
}

// enter: latents [n, c, hw] (f32, NCHW, c <= 8) times scale to out [copies * n, hw, 8], channels past c
// zero; image i of every copy is latent i. Units: n * hw.
template <typename T>
__device__ __forceinline__ void enter_body(const float* latents, T* out, int n, int c, int hw, int copies,
                                           float scale) {
    const long long units = (long long)n * hw;
    for (long long unit = first_unit(); unit < units; unit += unit_stride()) {
        const long long image = quotient(unit, hw), pixel = unit - image * hw;
        float x[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] = i < c ? latents[(image * c + i) * hw + pixel] * scale : 0.0f;
        const Pack<T> pack = pack8<T>(x);
        for (int copy = 0; copy < copies; ++copy) store8(out + (copy * units + unit) * 8, pack);
    }
}

// leave_noise: xs [copies * n, hw, 8] to out [n, c, hw] (f32, NCHW, c <= 8). copies 2: u + guidance * (p - u), u the
// first n images and p the others (Ho, Salimans 2022, "Classifier-free diffusion guidance"), guidance one f32 in device
// memory; copies 1: the values alone (guidance may be null). Units: n * hw.
template <typename T>
__device__ __forceinline__ void leave_noise_body(const T* xs, float* out, const float* guidance, int n, int c, int hw,
                                                 int copies) {
    const long long units = (long long)n * hw;
    const float scale = copies == 2 ? *guidance : 0.0f;
    for (long long unit = first_unit(); unit < units; unit += unit_stride()) {
        const long long image = quotient(unit, hw), pixel = unit - image * hw;
        float x[8];
        unpack8(load8(xs + unit * 8), x);
        if (copies == 2) {
            float p[8];
            unpack8(load8(xs + (units + unit) * 8), p);
#pragma unroll
            for (int i = 0; i < 8; ++i) x[i] = x[i] + scale * (p[i] - x[i]);
        }
#pragma unroll
        for (int i = 0; i < 8; ++i) {
            if (i < c) out[(image * c + i) * hw + pixel] = x[i];
        }
    }
}

// leave_pixels: xs [hw, 8] to out [hw, 3] bytes: clamp(x / 2 + 1/2, 0, 1) * 255, ties to even. Units: ceil(hw / 4).
template <typename T>
__device__ __forceinline__ void leave_pixels_body(const T* xs, unsigned char* out, long long hw) {
    const long long units = (hw + 3) / 4;
    for (long long unit = first_unit(); unit < units; unit += unit_stride()) {
        const int pixels = int(min(4LL, hw - unit * 4));
        unsigned word[3] = {0u, 0u, 0u};  // twelve bytes, the first lowest
#pragma unroll
        for (int i = 0; i < 4; ++i) {
            if (i >= pixels) break;
            float x[8];
            unpack8(load8(xs + (unit * 4 + i) * 8), x);
#pragma unroll
            for (int c = 0; c < 3; ++c) {
                const float level = fminf(fmaxf(x[c] * 0.5f + 0.5f, 0.0f), 1.0f) * 255.0f;
                word[(i * 3 + c) / 4] |= unsigned(__float2int_rn(level)) << (8 * ((i * 3 + c) % 4));
            }
        }
        if (pixels == 4 && reinterpret_cast<unsigned long long>(out) % 4 == 0) {
#pragma unroll
            for (int i = 0; i < 3; ++i) reinterpret_cast<unsigned*>(out)[unit * 3 + i] = word[i];
        } else {
#pragma unroll
            for (int i = 0; i < 12; ++i) {
                if (i < pixels * 3) out[unit * 12 + i] = static_cast<unsigned char>(word[i / 4] >> (8 * (i % 4)));
            }
        }
    }
}

template <int BYTES> struct Four;
template <> struct Four<2> {
    using Word = uint2;
};
template <> struct Four<4> {
    using Word = uint4;
};

// Four elements at an address that is a multiple of their size.
template <typename T> __device__ __forceinline__ void load4(const T* from, T (&x)[4]) {
    using Word = typename Four<sizeof(T)>::Word;
    const Word word = *reinterpret_cast<const Word*>(from);
    memcpy(x, &word, sizeof(word));
}
template <typename T> __device__ __forceinline__ void store4(T* to, const T (&x)[4]) {
    typename Four<sizeof(T)>::Word word;
    memcpy(&word, x, sizeof(word));
    *reinterpret_cast<typename Four<sizeof(T)>::Word*>(to) = word;
}

RUST_CONSTANT(MERGE_TILE, 64);

// merge_low_rank: out = base + scale * (up x down) (Hu et al. 2021, "LoRA"); base and out [rows, columns], up
// [rows, rank] and down [rank, columns] f32, any sizes. out may be base.
// block = (256, 1, 1) exactly, grid = (ceil(columns / MERGE_TILE), ceil(rows / MERGE_TILE), 1), 4 x 4 to a thread.
template <typename T>
__device__ __forceinline__ void merge_low_rank_body(const T* base, T* out, const float* up, const float* down, int rows,
                                                    int columns, int rank, float scale) {
    constexpr int TILE = MERGE_TILE, DEPTH = 16, EACH = 4;
    __shared__ __align__(16) float left[DEPTH][TILE + 4];  // left[k][row]
    __shared__ __align__(16) float right[DEPTH][TILE];     // right[k][column]
    const int thread = int(threadIdx.x);
    const int row_0 = int(blockIdx.y) * TILE, column_0 = int(blockIdx.x) * TILE;
    const int my_row = thread / 16 * EACH, my_column = thread % 16 * EACH;

    const auto aligned = [](const void* at) {
        return reinterpret_cast<unsigned long long>(at) % (EACH * sizeof(T)) == 0;
    };
    const bool whole = columns % EACH == 0 && aligned(base) && aligned(out);  // four outputs in one access
    T held[EACH][EACH];
    float sum[EACH][EACH] = {};
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int row = row_0 + my_row + i, column = column_0 + my_column;
        const T* from = base + (long long)row * columns + column;
        if (whole && row < rows && column < columns) {
            load4(from, held[i]);
        } else {
#pragma unroll
            for (int j = 0; j < EACH; ++j) held[i][j] = row < rows && column + j < columns ? from[j] : narrow<T>(0.0f);
        }
    }
    for (int k_0 = 0; k_0 < rank; k_0 += DEPTH) {
#pragma unroll
        for (int i = 0; i < TILE * DEPTH / 256; ++i) {
            const int cell = thread + i * 256;
            const int row = cell / DEPTH, k = cell % DEPTH;
            const bool inside = row_0 + row < rows && k_0 + k < rank;
            left[k][row] = inside ? up[(long long)(row_0 + row) * rank + k_0 + k] : 0.0f;
            const int depth = cell / TILE, column = cell % TILE;
            const bool within = column_0 + column < columns && k_0 + depth < rank;
            right[depth][column] = within ? down[(long long)(k_0 + depth) * columns + column_0 + column] : 0.0f;
        }
        __syncthreads();
#pragma unroll 4
        for (int k = 0; k < DEPTH; ++k) {
            const float4 a = *reinterpret_cast<const float4*>(&left[k][my_row]);
            const float4 b = *reinterpret_cast<const float4*>(&right[k][my_column]);
            const float x[EACH] = {a.x, a.y, a.z, a.w}, y[EACH] = {b.x, b.y, b.z, b.w};
#pragma unroll
            for (int i = 0; i < EACH; ++i) {
#pragma unroll
                for (int j = 0; j < EACH; ++j) sum[i][j] = fmaf(x[i], y[j], sum[i][j]);
            }
        }
        __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < EACH; ++i) {
        const int row = row_0 + my_row + i, column = column_0 + my_column;
        T* to = out + (long long)row * columns + column;
#pragma unroll
        for (int j = 0; j < EACH; ++j) held[i][j] = narrow<T>(fmaf(scale, sum[i][j], widen(held[i][j])));
        if (whole && row < rows && column < columns) {
            store4(to, held[i]);
        } else {
#pragma unroll
            for (int j = 0; j < EACH; ++j) {
                if (row < rows && column + j < columns) to[j] = held[i][j];
            }
        }
    }
}

EXPORT_EARLY(geglu, (256, 1), (const T* xs, T* out, long long rows, int C), (early, xs, out, rows, C))
EXPORT_EARLY(silu, (256, 1), (const T* xs, T* out, long long count), (early, xs, out, count))
EXPORT_EARLY(quick_gelu, (256, 1), (const T* xs, T* out, long long count), (early, xs, out, count))
EXPORT_EARLY(add, (256, 1), (const T* a, const T* b, T* out, long long count), (early, a, b, out, count))
EXPORT_EARLY(repeated, (256, 1), (const T* xs, T* out, long long count, int times), (early, xs, out, count, times))
EXPORT(upsample_nearest, (256, 1), (const T* xs, T* out, int h, int w, int H, int W, int C), (xs, out, h, w, H, W, C))
EXPORT(enter, (256, 1), (const float* latents, T* out, int n, int c, int hw, int copies, float scale),
       (latents, out, n, c, hw, copies, scale))
EXPORT(leave_noise, (256, 1),
       (const T* xs, float* out, const float* guidance, int n, int c, int hw, int copies),
       (xs, out, guidance, n, c, hw, copies))
EXPORT(leave_pixels, (256, 1), (const T* xs, unsigned char* out, long long hw), (xs, out, hw))
EXPORT(merge_low_rank, (256, 2),
       (const T* base, T* out, const float* up, const float* down, int rows, int columns, int rank, float scale),
       (base, out, up, down, rows, columns, rank, scale))
