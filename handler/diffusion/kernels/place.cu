// Weights, as they lie in a file, into the model's element type and layout.
//
// place_S_T (S and T each f16, bf16 or f32): source rows [inner_in, area] of S, a convolution's filters
// [out, in, kernel height * kernel width], become target rows [area, inner_out] of T from row first_row on, channels
// past inner_in zero:
//     target[((first_row + r) * area + a) * inner_out + i] = source[(r * inner_in + i) * area + a]
// With area 1 and inner_in == inner_out this is a converting copy, by vectors where the addresses allow it.
// If `phased`, area is 9, a filter of 3 x 3, and target rows are the four phases of product.cuh: [4 phases, 4, inner_out]. Weights
// that meet at one place of the map are added in f32, and rounded once.
//
// filters_of_phases_T is the way back, to target rows [9, inner]: see below.
//
// Launch rule of place: block = (256, 1, 1), grid = (clamp(ceil(rows * inner_out / 256), 1, 4096), 1, 1), a quarter of that
// for a copy; any grid and block is right. No dynamic shared memory. The source needs only the alignment of S.
#include "common.cuh"

template <typename S, typename T>
__device__ __forceinline__ void copy(const S* source, T* target, long long count, long long start, long long stride) {
    const auto aligned = [](const void* at) { return reinterpret_cast<unsigned long long>(at) % 16 == 0; };
    long long done = 0;
    if (aligned(source) && aligned(target)) {
        done = count / 8 * 8;
#pragma unroll 2
        for (long long unit = start; unit < count / 8; unit += stride) {
            float x[8];
            unpack8(load8(source + unit * 8), x);
            store8(target + unit * 8, pack8<T>(x));
        }
    }
    for (long long i = done + start; i < count; i += stride) target[i] = narrow<T>(widen(source[i]));
}

template <typename S, typename T, int AREA>
__device__ __forceinline__ void arrange(const S* source, T* target, long long rows, int inner_in, int any_area,
                                        int inner_out, long long start, long long stride) {
    // one channel of one row to a thread: it reads area neighbours; at each step the warp writes neighbours
    const int area = AREA > 0 ? AREA : any_area;
    for (long long unit = start; unit < rows * inner_out; unit += stride) {
        const long long row = unit >> 32 ? unit / inner_out : (long long)(unsigned(unit) / unsigned(inner_out));
        const int i = int(unit - row * inner_out);
        const S* from = source + (row * inner_in + i) * area;
        T* to = target + row * area * inner_out + i;
        if (AREA > 0) {
            float x[AREA > 0 ? AREA : 1];
#pragma unroll
            for (int a = 0; a < AREA; ++a) x[a] = i < inner_in ? widen(from[a]) : 0.0f;
#pragma unroll
            for (int a = 0; a < AREA; ++a) to[(long long)a * inner_out] = narrow<T>(x[a]);
        } else {
            for (int a = 0; a < area; ++a) {
                to[(long long)a * inner_out] = narrow<T>(i < inner_in ? widen(from[a]) : 0.0f);
            }
        }
    }
}

// A line of three, or a filter's three lines: what phase `phase` has at its first and second place.
__device__ __forceinline__ float of_line(const float (&x)[3], int phase, int place) {
    if (phase == 0) return place == 0 ? x[0] : x[1] + x[2];
    return place == 0 ? x[0] + x[1] : x[2];
}

template <typename S, typename T>
__device__ __forceinline__ void arrange_phases(const S* source, T* target, long long rows, int inner_in, int inner_out,
                                               long long start, long long stride) {
    for (long long unit = start; unit < rows * inner_out; unit += stride) {
        const long long row = unit / inner_out;
        const int i = int(unit - row * inner_out);
        const S* from = source + (row * inner_in + i) * 9;
        T* to = target + row * 16 * inner_out + i;
        float x[3][3];
#pragma unroll
        for (int a = 0; a < 9; ++a) x[a / 3][a % 3] = i < inner_in ? widen(from[a]) : 0.0f;
#pragma unroll
        for (int a = 0; a < 16; ++a) {
            float lines[3];
#pragma unroll
            for (int y = 0; y < 3; ++y) lines[y] = of_line(x[y], a >> 2 & 1, a & 1);
            to[(long long)a * inner_out] = narrow<T>(of_line(lines, a >> 3, a >> 1 & 1));
        }
    }
}

template <typename S, typename T>
__device__ __forceinline__ void place(const S* source, T* target, long long first_row, long long rows, int inner_in,
                                      int area, int inner_out, int phased) {
    const long long start = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long stride = (long long)gridDim.x * blockDim.x;
    target += first_row * (phased ? 16 : area) * inner_out;
    if (phased) {
        arrange_phases(source, target, rows, inner_in, inner_out, start, stride);
    } else if (area == 1 && inner_in == inner_out) {
        copy(source, target, rows * inner_out, start, stride);
    } else if (area == 9) {
        arrange<S, T, 9>(source, target, rows, inner_in, area, inner_out, start, stride);
    } else {
        arrange<S, T, 0>(source, target, rows, inner_in, area, inner_out, start, stride);
    }
}

#define PLACE(NAME, S, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) NAME(const S* source, T* target, long long first_row,         \
                                                           long long rows, int inner_in, int area, int inner_out,   \
                                                           int phased) {                                            \
        place<S, T>(source, target, first_row, rows, inner_in, area, inner_out, phased);                            \
    }
PLACE(place_f16_f16, half, half)
PLACE(place_f16_bf16, half, __nv_bfloat16)
PLACE(place_f16_f32, half, float)
PLACE(place_bf16_f16, __nv_bfloat16, half)
PLACE(place_bf16_bf16, __nv_bfloat16, __nv_bfloat16)
PLACE(place_bf16_f32, __nv_bfloat16, float)
PLACE(place_f32_f16, float, half)
PLACE(place_f32_bf16, float, __nv_bfloat16)
PLACE(place_f32_f32, float, float)

// Filters of 3 x 3 from their phases, [rows, 16, inner] to [rows, 9, inner]. A middle weight is in two sums, each with one that
// is there alone: the mean of both differences, as each sum was rounded. grid = (ceil(rows * inner / 8 / 256), 1, 1).
template <typename T>
__device__ __forceinline__ void filters_of_phases_body(const T* source, T* target, long long rows, int inner) {
    const int vectors = inner / 8;
    const long long unit = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    if (unit >= rows * vectors) return;
    const long long row = unit / vectors;
    const int i = int(unit - row * vectors) * 8;
    const T* from = source + row * 16 * inner + i;
    T* to = target + row * 9 * inner + i;
    // Of each phase down: the lines across, of which there are three for two places each.
    float x[2][2][3][8];
#pragma unroll
    for (int py = 0; py < 2; ++py) {
#pragma unroll
        for (int ty = 0; ty < 2; ++ty) {
            float y[4][8];  // px * 2 + tx
#pragma unroll
            for (int a = 0; a < 4; ++a) unpack8(load8(from + (py * 8 + (a >> 1) * 4 + ty * 2 + (a & 1)) * inner), y[a]);
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                x[py][ty][0][c] = y[0][c];
                x[py][ty][1][c] = 0.5f * ((y[1][c] - y[3][c]) + (y[2][c] - y[0][c]));
                x[py][ty][2][c] = y[3][c];
            }
        }
    }
#pragma unroll
    for (int kx = 0; kx < 3; ++kx) {
        float middle[8];
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            middle[c] = 0.5f * ((x[0][1][kx][c] - x[1][1][kx][c]) + (x[1][0][kx][c] - x[0][0][kx][c]));
        }
        store8(to + kx * inner, pack8<T>(x[0][0][kx]));
        store8(to + (3 + kx) * inner, pack8<T>(middle));
        store8(to + (6 + kx) * inner, pack8<T>(x[1][1][kx]));
    }
}

EXPORT(filters_of_phases, (256, 1), (const T* source, T* target, long long rows, int inner), (source, target, rows, inner))
