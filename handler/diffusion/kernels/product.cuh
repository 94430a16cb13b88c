// Products and convolutions: the problem that every form of the kernels solves, and where its left operand lies.
//
//     out[m][n] = ending(alpha * sum over k of A[m][k] * W[n][k] + bias[n] + table[row of step][n] + onto[m][n])
//
// Sums are f32, and the result is rounded once. A's rows are the places of an NHWC map (implicit GEMM), the windows of
// side x side places around them one place after the other, each with its channels: k = (ky * side + kx) * C + c. A
// product is the case side 1. W's rows are alike, so a convolution's weights are OHWI. The channels may lie in two maps
// side by side, and the map may be read as if every place were there twice, down and across (nearest neighbour).
#pragma once

#include "common.cuh"

// What is done to a sum last.
constexpr int AS_IT_IS = 0;
// Columns c and C + c become column c: x * gelu(gate), as kernel `geglu` has it. W has 2 C rows, out C columns; without
// table, onto and moments.
constexpr int GATED = 1;
// A softmax over each SOFTMAX_SLOTS columns (softmax.cuh), of which `groups` are counted; W's rows are keys of a prompt, scaled by
// log2(e), too. Without bias, table, onto and moments; alpha is 1.
constexpr int SOFTMAX = 2;

// Passed by value. Rust has it field by field (gpu/product/problem.rs): addresses, then 64 bits, then 32 bits. Elements
// are T except where a type says otherwise; addresses of T are multiples of 16 bytes, and so are rows and batches, where
// a kernel does not say that it takes any.
struct Problem {
    const void* a;      // [rows][a_row], or a map [images][height][width][a_row], of which `channels` are read
    const void* more;   // a second map of the same places with the channels from `channels` on, or null
    const void* w;      // [columns][w_row], of which `inner` are read
    const void* bias;   // [columns], or null
    const void* table;  // [steps][columns], or null
    const int* step;    // which row of the table; read if there is a table
    const void* onto;   // as out, or null; may be out
    void* out;          // [rows][out_row]
    // Split along k: sums of split s go to partials[s][rows][columns], and nothing else is done; or null.
    float* partials;
    // Mean and sum of squared deviations of what is stored, as kernels/norm.cu has them: [image][groups][chunks]; or
    // null. A chunk is as many rows as a kernel says.
    float2* moments;

    long long a_batch, w_batch, out_batch;  // elements from one problem to the next, of blockIdx.z

    int rows, columns, inner;             // M, N, K
    int a_row, more_row, w_row, out_row;  // elements from one row, or place, to the next
    int channels, others;                 // of a and of more: inner = side * side * (channels + others)
    int height, width;                    // of the map as it lies in memory
    int out_height, out_width;            // of out; their product is the rows of an image
    int side, stride;                     // side 1 or 3; side 1 and stride 1: row m of A is place m
    int pad_down, pad_across;             // zeros above and to the left; what is past the other edges is zero, too
    int doubled;                          // whether the map is read as one of 2 height x 2 width
    int steps;                            // rows of the table
    int ending;                           // see above
    int depth;  // of k for each split, blockIdx.y: a multiple of the kernel's depth, or all of it
    int groups, chunks;  // of the moments; see SOFTMAX, too
    float alpha;
    int wide;         // whether out is f32; then it is the scaled sums alone
    int crossed;      // whether W is [inner][columns], for plain A @ W
    int whole;        // whether every address, row and batch is a multiple of 8 elements
    int by_channels;  // the order along k, see Depth
};
static_assert(sizeof(Problem) == 10 * 8 + 3 * 8 + 28 * 4, "as in Rust");

// Where one row of A lies.
struct Row {
    int place;      // of the window's first place in the map; may be before it
    unsigned taps;  // bit ky * 3 + kx: that place is inside. Bits 16 and 17: parity of the first place, if doubled
};

__device__ __forceinline__ Row row_of(const Problem& p, int m) {
    if (m >= p.rows) return {0, 0u};
    if (p.side == 1 && p.stride == 1 && !p.doubled) return {m, 1u};
    const int area = p.out_height * p.out_width;
    const int image = m / area, rest = m - image * area;
    const int y_out = rest / p.out_width, x_out = rest - y_out * p.out_width;
    const int y = y_out * p.stride - p.pad_down, x = x_out * p.stride - p.pad_across;
    const int height = p.height << p.doubled, width = p.width << p.doubled;
    unsigned down = 0, across = 0;  // bit k: row, or column, k of the window is inside
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        down |= unsigned(k < p.side && unsigned(y + k) < unsigned(height)) << k;
        across |= unsigned(k < p.side && unsigned(x + k) < unsigned(width)) << k;
    }
    // Copies of `across` where `down` has a bit.
    unsigned taps = across * ((down & 1u) | (down & 2u) << 2 | (down & 4u) << 4);
    if (p.doubled) taps |= unsigned(y & 1) << 16 | unsigned(x & 1) << 17;
    // An arithmetic shift rounds down, also before the map.
    return {(image * p.height + (y >> p.doubled)) * p.width + (x >> p.doubled), taps};
}

// Where eight channels of a window lie: which place of it, and which channel. It moves along k, STEP at a time, in one of
// two orders: place by place, or STEP channels of every place before the next ones (`by_channels`, if STEP divides both
// numbers of channels). Then A's rows are read again while they are near.
template <int STEP> struct Depth {
    int ky, kx, channel;
    int tap;  // ky * 3 + kx, past the end 15
    int k;
    int places, channels;  // how far a step goes

    // `from` is a multiple of STEP, `lane` of 8 and less than STEP.
    __device__ __forceinline__ static Depth of(const Problem& p, int from, int lane) {
        const int all = p.channels + p.others, area = p.side * p.side;
        Depth at;
        int place;
        if (p.by_channels) {
            const int step = from / STEP, block = step / area;
            place = step - block * area;
            at.channel = block * STEP + lane;
            at.places = 1;
            at.channels = 0;
        } else {
            place = (from + lane) / all;
            at.channel = from + lane - place * all;
            at.places = STEP / all;
            at.channels = STEP - at.places * all;
        }
        at.ky = p.side == 1 ? place : place / 3;
        at.kx = p.side == 1 ? 0 : place - at.ky * 3;
        at.settle(p);
        return at;
    }

    // Without a branch.
    __device__ __forceinline__ void advance(const Problem& p) {
        const int all = p.channels + p.others;
        channel += channels;
        const bool over = channel >= all;
        channel -= over ? all : 0;
        kx += places + int(over);
        // kx / side: it is less than 16.
        const int lines = p.side == 1 ? kx : kx * 11 >> 5;
        kx -= lines * p.side;
        ky += lines;
        const bool around = p.by_channels && ky >= p.side;
        ky = around ? 0 : ky;
        channel += around ? STEP : 0;
        settle(p);
    }

   private:
    __device__ __forceinline__ void settle(const Problem& p) {
        const int all = p.channels + p.others;
        tap = ky >= p.side || channel >= all ? 15 : ky * 3 + kx;
        k = (ky * p.side + kx) * all + channel;
    }
};

// Whether a row has something there; elsewhere A is zero.
template <int STEP> __device__ __forceinline__ bool inside(const Row& row, const Depth<STEP>& at) { return (row.taps >> at.tap) & 1u; }

// Where it is, if it is inside.
template <typename T, int STEP>
__device__ __forceinline__ const T* address(const Problem& p, const T* a, const Row& row, const Depth<STEP>& at) {
    // What is read as twice as large has each place at two numbers.
    const int down = (int(row.taps >> 16 & 1u) + at.ky) >> p.doubled;
    const int across = (int(row.taps >> 17 & 1u) + at.kx) >> p.doubled;
    const int place = row.place + down * p.width + across;
    if (at.channel < p.channels) return a + (long long)place * p.a_row + at.channel;
    return static_cast<const T*>(p.more) + (long long)place * p.more_row + (at.channel - p.channels);
}
