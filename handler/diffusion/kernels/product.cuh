// Products and convolutions: the problem that every form of the kernels solves, and where its left operand lies.
//
//     out[m][n] = ending(alpha[n] * (scale[m] * sum over k of A[m][k] * W[n][k] + bias[n])
//                        + table[row of step][n] + onto[m][n])
//
// where scale[m] is 1, unless rows of A are to be normalised first (row_norm.cuh).
//
// Sums are f32, and the result is rounded once. A's rows are the places of an NHWC map (implicit GEMM), the windows of
// side x side places around them one place after the other, each with its channels: k = (ky * side + kx) * C + c. A
// product is the case side 1. W's rows are alike, so a convolution's weights are OHWI. The channels may lie in two maps
// side by side.
//
// A window of 3 x 3 over a map in which every place is there twice, down and across (nearest neighbour), touches 2 x 2
// places of the map itself. So such a convolution is four of side 2, its phases, whose weights are sums: phase 2 * py + px
// makes the places (2 y + py, 2 x + px), and its windows begin py places lower and px further to the right.
#pragma once

#include "row_norm.cuh"

// What is done to a sum last.
constexpr int AS_IT_IS = 0;
// Columns c and C + c become column c: x * gelu(gate), as kernel `geglu` has it. W has 2 C rows, out C columns; without
// table, onto, moments and row_sums.
constexpr int GATED = 1;
// A softmax over each SOFTMAX_SLOTS columns (softmax.cuh), of which `groups` are counted; W's rows are keys of a prompt, scaled by
// log2(e), too. bias is [problems][columns]. Without table, onto, moments and row_sums; alpha is 1.
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
    // Of A's rows, the sums and sums of squares of each of `row_parts` parts, if they are to be normalised: [row_parts][sum_rows]; or null.
    // Then there are no partials. If all problems have more rows, the sums repeat.
    const float2* a_sums;
    // The same of what is stored, a part being as many columns as a kernel says: [parts][all_rows]; or null. Then there are no partials, and
    // rows are not those of phases.
    float2* row_sums;

    long long a_batch, w_batch, out_batch;  // elements from one problem to the next, of blockIdx.z

    int rows, columns, inner;             // M, N, K
    int a_row, more_row, w_row, out_row;  // elements from one row, or place, to the next
    int channels, others;                 // of a and of more: inner = side * side * (channels + others)
    int height, width;                    // of the map as it lies in memory
    int out_height, out_width;            // of out, or of one of its phases; their product is the rows of an image
    int side, stride;                     // side 1 to 3; side 1 and stride 1: row m of A is place m
    int pad_down, pad_across;             // zeros above and to the left; what is past the other edges is zero, too
    int phased;                           // whether the problems are four phases, and out's rows are those of all
    int first_tap, last_tap;              // bits of a window's first place and of its last one, see Row
    int back_across_map, back_along_k;    // how far it is from the last to the first: in places, and in W's elements
    int steps;                            // rows of the table
    int ending;                           // see above
    int depth;  // of k for each split, blockIdx.y: a multiple of the kernel's depth, or all of it
    int groups, chunks;  // of the moments; see SOFTMAX, too
    float alpha;      // of the first `scaled` columns; of the others it is 1
    int scaled;
    int wide;         // whether out is f32; then it is the scaled sums alone
    int crossed;      // whether W is [inner][columns], for plain A @ W
    int whole;        // whether every address, row and batch is a multiple of 8 elements
    int by_channels;  // the order along k, see Depth
    int row_parts;    // see a_sums
    int sum_rows;
    float eps;        // what is added to the variance of A's rows
    int all_rows;     // of all problems
    int nothing;      // so that the words are whole
};
static_assert(sizeof(Problem) == 12 * 8 + 3 * 8 + 38 * 4, "as in Rust");

__device__ __forceinline__ float alpha_of(const Problem& p, int column) { return column < p.scaled ? p.alpha : 1.0f; }

// What A's row of that number is multiplied by, over all problems.
__device__ __forceinline__ float scale_of(const Problem& p, int row) {
    return row_scale(p.a_sums, p.row_parts, p.sum_rows, row, p.inner, p.eps);
}

// Which phase this block makes. In the kernels for Hopper, blockIdx.z is a split instead.
__device__ __forceinline__ int phase_of(const Problem& p) { return p.phased ? int(blockIdx.z) : 0; }

// Zeros above, and to the left.
__device__ __forceinline__ int pad_down(const Problem& p, int phase) { return p.pad_down - (phase >> 1); }
__device__ __forceinline__ int pad_across(const Problem& p, int phase) { return p.pad_across - (phase & 1); }

// Where row m goes. Of image * height + y rows of a phase before it, out has four times as many places.
__device__ __forceinline__ long long out_row_of(const Problem& p, int m, int phase) {
    if (!p.phased) return m;
    return 4ll * m - 2 * (m % p.out_width) + (phase >> 1) * 2 * p.out_width + (phase & 1);
}

// Which bit of `taps` is that place of a window. Then lines of windows of 2 x 2 and 3 x 3 end at bits 2 and 5, or with the window.
__device__ __forceinline__ int tap_of(const Problem& p, int ky, int kx) { return (p.side == 2 ? 4 : 0) + ky * p.side + kx; }
constexpr unsigned LINE_ENDS = 1u << 2 | 1u << 5;

// Where one row of A lies.
struct Row {
    int place;      // of the window's first place in the map; may be before it
    unsigned taps;  // bit tap_of(ky, kx): that place is inside
};

__device__ __forceinline__ Row row_of(const Problem& p, int m, int phase) {
    if (m >= p.rows) return {0, 0u};
    if (p.side == 1 && p.stride == 1) return {m, 1u};
    const int area = p.out_height * p.out_width;
    const int image = m / area, rest = m - image * area;
    const int y_out = rest / p.out_width, x_out = rest - y_out * p.out_width;
    const int y = y_out * p.stride - pad_down(p, phase), x = x_out * p.stride - pad_across(p, phase);
    unsigned taps = 0, across = 0;  // bit k: column k of the window is inside
#pragma unroll
    for (int k = 0; k < 3; ++k) across |= unsigned(k < p.side && unsigned(x + k) < unsigned(p.width)) << k;
#pragma unroll
    for (int k = 0; k < 3; ++k) {
        if (k < p.side && unsigned(y + k) < unsigned(p.height)) taps |= across << tap_of(p, k, 0);
    }
    return {(image * p.height + y) * p.width + x, taps};
}

// Where eight channels of a window lie: which place of it, and which channel. It moves along k, STEP at a time, in one of
// two orders: place by place, or STEP channels of every place before the next ones (`by_channels`, if STEP divides both
// numbers of channels). Then A's rows are read again while they are near.
template <int STEP> struct Depth {
    int ky, kx, channel;
    int tap;  // as in Row, past the end 15
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
        at.ky = place / p.side;
        at.kx = place - at.ky * p.side;
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
        const int lines = kx * (p.side == 3 ? 11 : 32 >> (p.side - 1)) >> 5;
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
        tap = ky >= p.side || channel >= all ? 15 : tap_of(p, ky, kx);
        k = (ky * p.side + kx) * all + channel;
    }
};

// Whether a row has something there; elsewhere A is zero.
template <int STEP> __device__ __forceinline__ bool inside(const Row& row, const Depth<STEP>& at) { return (row.taps >> at.tap) & 1u; }

// Where it is, if it is inside.
template <typename T, int STEP>
__device__ __forceinline__ const T* address(const Problem& p, const T* a, const Row& row, const Depth<STEP>& at) {
    const int place = row.place + at.ky * p.width + at.kx;
    if (at.channel < p.channels) return a + (long long)place * p.a_row + at.channel;
    return static_cast<const T*>(p.more) + (long long)place * p.more_row + (at.channel - p.channels);
}
