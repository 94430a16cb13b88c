// The layer norm of a product's left operand (Ba, Kiros, Hinton 2016, "Layer normalization"), without a pass of its own.
//
// A layer norm with weight g and bias b, and then a product with W, is
//
//     (x - mean) / deviation * g . W[n] + b . W[n]  =  x . W'[n] / deviation + b . W[n],    W'[n][k] = W[n][k] * g[k] - c[n]
//
// where c[n] is the mean of W[n][k] * g[k] over k: as W'[n] adds up to nothing, it takes no notice of a row's mean. So W' is stored instead
// of W, and b . W[n] with the bias (layer_norm.cu). What is left to do is to multiply each sum by its row's scale. That comes from the
// sums of the rows, which the product before takes along.
#pragma once

#include "common.cuh"

// 1 / deviation of a row of so many channels, of which the sums and sums of squares of its parts are in sums[parts][rows]. If there are
// fewer rows, they repeat. AT_ONCE parts are asked for together.
template <int AT_ONCE = 8>
__device__ __forceinline__ float row_scale(const float2* sums, int parts, int rows, int row, int channels, float eps) {
    while (row >= rows) row -= rows;
    sums += row;
    float sum = 0.0f, squares = 0.0f;
#pragma unroll 1
    for (int first = 0; first < parts; first += AT_ONCE, sums += (long long)AT_ONCE * rows) {
        float2 of[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            of[i] = first + i < parts ? sums[(long long)i * rows] : make_float2(0.0f, 0.0f);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; ++i) {
            sum += of[i].x;
            squares += of[i].y;
        }
    }
    const float each = __fdividef(1.0f, float(channels)), mean = sum * each;
    return rsqrtf(fmaxf(fmaf(squares, each, -mean * mean), 0.0f) + eps);
}
