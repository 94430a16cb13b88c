// The softmax that ends a product with the keys of a prompt (cross-attention, see product.cuh): by heads of SOFTMAX_SLOTS
// columns, of which the first `counted` are keys. The others become zero.
#pragma once

#include "common.cuh"

RUST_CONSTANT(SOFTMAX_SLOTS, 80);

// Scores of one row and one head, base 2, become their shares. They lie in the four lanes of a quad, as tensor cores leave
// sums: at(n, i) is column 8 n + 2 (lane % 4) + i.
template <typename At> __device__ __forceinline__ void softmax_of_quad(int counted, At at) {
    constexpr int VECTORS = SOFTMAX_SLOTS / 8;
    const int column = (int(threadIdx.x) & 3) * 2;
    float most = -INFINITY, sum = 0.0f;
#pragma unroll
    for (int n = 0; n < VECTORS; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float& score = at(n, i);
            if (8 * n + column + i >= counted) score = -INFINITY;
            most = fmaxf(most, score);
        }
    }
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
    most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2));
#pragma unroll
    for (int n = 0; n < VECTORS; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            float& score = at(n, i);
            asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(score) : "f"(score - most));
            sum += score;
        }
    }
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const float inverse = 1.0f / sum;
#pragma unroll
    for (int n = 0; n < VECTORS; ++n) {
#pragma unroll
        for (int i = 0; i < 2; ++i) at(n, i) *= inverse;
    }
}
