// Weights, as they lie in a file, into the model's element type and layout.
//
// place_S_T (S and T each f16, bf16 or f32): source rows [inner_in, area] of S, a convolution's filters
// [out, in, kernel height * kernel width], become target rows [area, inner_out] of T from row first_row on, channels
// past inner_in zero:
//     target[((first_row + r) * area + a) * inner_out + i] = source[(r * inner_in + i) * area + a]
// With area 1 and inner_in == inner_out this is a converting copy, by vectors where the addresses allow it.
//
// Launch rule: block = (256, 1, 1), grid = (clamp(ceil(rows * inner_out / 256), 1, 4096), 1, 1), a quarter of that
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

template <typename S, typename T>
__device__ __forceinline__ void place(const S* source, T* target, long long first_row, long long rows, int inner_in,
                                      int area, int inner_out) {
    const long long start = (long long)blockIdx.x * blockDim.x + threadIdx.x;
    const long long stride = (long long)gridDim.x * blockDim.x;
    target += first_row * area * inner_out;
    if (area == 1 && inner_in == inner_out) {
        copy(source, target, rows * inner_out, start, stride);
    } else if (area == 9) {
        arrange<S, T, 9>(source, target, rows, inner_in, area, inner_out, start, stride);
    } else {
        arrange<S, T, 0>(source, target, rows, inner_in, area, inner_out, start, stride);
    }
}

#define PLACE(NAME, S, T)                                                                                           \
    extern "C" __global__ void __launch_bounds__(256) NAME(const S* source, T* target, long long first_row,         \
                                                           long long rows, int inner_in, int area, int inner_out) { \
        place<S, T>(source, target, first_row, rows, inner_in, area, inner_out);                                    \
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
