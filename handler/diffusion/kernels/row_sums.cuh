// Sums and sums of squares of rows of f16 or bf16 in shared memory, for the layer norm of what is stored (row_norm.cuh), by tensor cores: a
// product with ones, and the diagonal of the product with itself. Products are exact, sums are f32.
#pragma once

#include "mma.cuh"

// Of 16 rows of WIDTH numbers, `pitch` bytes apart, by a warp; all are multiples of 16 bytes, WIDTH of 8. store(row, sums) is called once for
// each row, by some lane. Of the last 16 numbers eight more may be read, but do not count.
template <typename T, int WIDTH, typename Store>
__device__ __forceinline__ void sum_up_rows(uint32_t rows, uint32_t pitch, Store store) {
    static_assert(WIDTH % 8 == 0, "whole fragments");
    using E = Element<T>;
    const int lane = int(threadIdx.x) & 31, row = lane >> 2;
    const uint32_t from = rows + (lane & 15) * pitch + (lane >> 4) * 16, ones = E::pack(1.0f, 1.0f);
    float sums[4] = {}, upper[4] = {}, lower[4] = {};
    uint32_t a[4];
    // What runs once comes from memory, instruction by instruction: no more of them than the loads need.
#pragma unroll 2
    for (int k = 0; k < WIDTH / 16; ++k) {
        load_matrices(a, from + k * 32);
        E::mma16(sums, a, ones, ones);
        E::mma16(upper, a, a[0], a[2]);
        E::mma16(lower, a, a[1], a[3]);
    }
    if (WIDTH % 16 != 0) {
        load_matrices(a, from + WIDTH / 16 * 32);
        E::mma8(sums, a[0], a[1], ones);
        E::mma8(upper, a[0], a[1], a[0]);
        E::mma8(lower, a[0], a[1], a[1]);
    }
    // Columns 2 (lane % 4) and the next one of rows `row` and `row` + 8 of each product.
    if ((lane & 3) == row >> 1) {
        store(row, make_float2(sums[0], row & 1 ? upper[1] : upper[0]));
        store(row + 8, make_float2(sums[2], row & 1 ? lower[3] : lower[2]));
    }
}
