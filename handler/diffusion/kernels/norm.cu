// Group normalisation, and the epilogues that measure what it normalises.
//
// Activations are NHWC: xs[image][row][channel], a row being one pixel or token. C is a multiple of 8 and every base
// address one of 16 bytes. groups divides C; C / groups is any number.
//
// A map is one array of C channels, or two side by side: its first `border` channels are in `xs`, the others in `more`,
// each array dense. border is a multiple of 8, or C if `more` is null.
//
// after_split and moments leave the moments of each chunk of rows in `partials`, and group_norm merges them: no
// block waits for another. partials[image][group][chunk] is float2 (mean, sum of squared deviations); chunk k covers
// the rows from k * height to min((k + 1) * height, rows_per_image). Sums run in a fixed order, so equal inputs and
// launch shapes give equal bits.
//
// Launch rule of after_split, moments and group_norm: a block has 8 * vectors channels, its slice, and block / vectors
// rows in hand at once.
//     slice = 8 * vectors  divides C, is a multiple of C / groups, at most 2560 and at most LARGEST_TABLE groups
//     block = (a multiple of 32, at least vectors, at most LARGEST_BLOCK, but at most LARGEST_NARROW_BLOCK if
//             C / groups is below 7 and not 4; 1; 1)
//     grid  = (chunks, C / slice, batch)  all but group_norm: any height >= 1, chunks = ceil(rows / height)
//     grid  = (blocks, C / slice, batch)  group_norm: any blocks >= 1; vectors and block need not be those of before
// If partials is null, after_split measures nothing and takes any slice; groups is not used. No dynamic shared
// memory. Slices of a multiple of 32 bytes are best, two to four blocks to a multiprocessor, and four rows to a thread.
//
// All start early (see common.cuh). bias, weight and *step are read before
// the kernel ahead has ended, so it must not be the one that writes them.
#include "common.cuh"

RUST_CONSTANT(LARGEST_BLOCK, 320);
RUST_CONSTANT(LARGEST_NARROW_BLOCK, 64);  // of groups of few channels, of which a thread has more cells
RUST_CONSTANT(LARGEST_TABLE, 128);        // groups of a slice
constexpr int CELLS = LARGEST_BLOCK * 3;  // two of a thread, and what the odd pitch leaves unused
constexpr unsigned WARP = 0xffffffffu;

// Rows that a thread has in flight.
template <typename T> constexpr int AT_ONCE = sizeof(T) == 4 ? 2 : 4;

// a / b for 0 <= a < 2^20 and b > 0, quickly: (a + 1/2) / b is at least 1 / (2 b) away from a whole number, more than
// the rounding.
__device__ __forceinline__ int quotient(int a, int b) { return int(__fdividef(float(a) + 0.5f, float(b))); }

// What a thread works at: 8 channels of every lanes-th row. Threads with lane >= lanes have nothing.
struct Place {
    int vectors, lanes, lane, vector;
    int channel;  // the first of its 8, counted in all C

    __device__ __forceinline__ explicit Place(int vectors) : vectors(vectors) {
        lanes = quotient(int(blockDim.x), vectors);
        lane = quotient(int(threadIdx.x), vectors);
        vector = int(threadIdx.x) - lane * vectors;
        channel = (int(blockIdx.y) * vectors + vector) * 8;
    }
    __device__ __forceinline__ bool busy() const { return lane < lanes; }
};

// Whether 8 channels from a multiple of 8 on lie in two groups at most.
__device__ __forceinline__ bool wide(int channels) { return channels >= 7 || channels == 4; }

__device__ __forceinline__ float sum_warp(float x) {
#pragma unroll
    for (int offset = 16; offset > 0; offset /= 2) x += __shfl_xor_sync(WARP, x, offset, 32);
    return x;
}

// Sums of eight channels over the rows of one thread, of values shifted by one of them: this keeps sum-of-squares
// variance accurate (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance"). The channels of a
// group share a shift: the first `split` channels are of one group and the others of the next; split 0: each its own.
struct Sums {
    float shift[8], sum[8], square[8];
    int count, split;

    __device__ __forceinline__ explicit Sums(int split) : count(0), split(split) {}

    __device__ __forceinline__ void start(const float (&x)[8]) {
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            shift[c] = split == 0 ? x[c] : c < split ? x[0] : x[7];
            sum[c] = 0.0f;
            square[c] = 0.0f;
        }
    }

    __device__ __forceinline__ void add(const float (&x)[8]) {
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            const float d = x[c] - shift[c];
            sum[c] += d;
            square[c] = fmaf(d, d, square[c]);
        }
        ++count;
    }

    // Mean and sum of squared deviations of the channels from `from` to `to`.
    __device__ __forceinline__ float2 moments(float shift, int from, int to) const {
        float total = 0.0f, squares = 0.0f;
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            total += c >= from && c < to ? sum[c] : 0.0f;
            squares += c >= from && c < to ? square[c] : 0.0f;
        }
        const float mean = __fdividef(total, float(count * (to - from)));
        return make_float2(shift + mean, fmaxf(squares - total * mean, 0.0f));
    }
};

// How a thread's 8 channels split into groups, as Sums wants it.
__device__ __forceinline__ int split_at(const Place& place, int channels) {
    return wide(channels) ? min((quotient(place.channel, channels) + 1) * channels - place.channel, 8) : 0;
}

// Merges the sums of a block's threads into the moments of its chunk. A cell is what a thread has of one group: its
// shift is near the group's mean, so all are summed around the first one's. Every thread of the block calls this.
__device__ __forceinline__ void finish(const Sums& sums, const Place& place, float2* partials, int rows, int channels,
                                       int groups) {
    __shared__ float2 cells[CELLS];  // cell (slot, vector, lane); the odd pitch spreads the banks
    __shared__ float counts[LARGEST_BLOCK];
    const int pitch = place.lanes | 1, step = place.vectors * pitch;
    if (place.busy()) {
        float2* const mine = cells + place.vector * pitch + place.lane;
        if (place.vector == 0) counts[place.lane] = float(sums.count);
        if (sums.count == 0) {
            for (int slot = 0; slot < (sums.split == 0 ? 8 : 2); ++slot) mine[slot * step] = make_float2(0.0f, 0.0f);
        } else if (sums.split == 0) {
#pragma unroll
            for (int c = 0; c < 8; ++c) mine[c * step] = sums.moments(sums.shift[c], c, c + 1);
        } else {
            mine[0] = sums.moments(sums.shift[0], 0, sums.split);
            if (sums.split < 8) mine[step] = sums.moments(sums.shift[7], sums.split, 8);
        }
    }
    __syncthreads();

    const int member = int(threadIdx.x) % 32;
    const int slice = place.vectors * 8, first = quotient(int(blockIdx.y) * slice, channels);
    const int width = wide(channels) ? 8 : 1;  // channels that a cell may have
    for (int group = int(threadIdx.x) / 32; group * channels < slice; group += int(blockDim.x) / 32) {
        const int begin = group * channels, end = begin + channels;
        const int start = begin & ~(width - 1);
        const auto column = [&](int channel) {
            const int slot = width == 1 ? channel % 8 : channel < begin ? 1 : 0;
            return cells + slot * step + channel / 8 * pitch;
        };
        const float shift = column(start)[0].x;
        float total = 0.0f, spread = 0.0f;
        for (int lane = member; lane < place.lanes; lane += 32) {
            const float count = counts[lane];
            for (int channel = start; channel < end; channel += width) {
                const float2 cell = column(channel)[lane];
                const float d = cell.x - shift;
                const float weighted = count * float(min(channel + width, end) - max(channel, begin)) * d;
                total += weighted;
                spread += fmaf(weighted, d, cell.y);
            }
        }
        total = sum_warp(total);
        spread = sum_warp(spread);
        if (member == 0) {
            const float mean = total / (float(rows) * float(channels));
            partials[(size_t(blockIdx.z) * groups + first + group) * gridDim.x + blockIdx.x] =
                make_float2(shift + mean, fmaxf(spread - total * mean, 0.0f));
        }
    }
}

// after_split: out = the sum of the splits' partial sums[split][row][c] + bias[c] + table[*step][c] + onto, each of the
// last three left out when null; and the moments of the stored values. What a product split along k leaves to do, see
// product.cuh. out may be onto.
template <typename T>
__device__ __forceinline__ void after_split_body(Early early, const float* sums, int splits, T* out, const T* bias,
                                                 const T* table, const int* step, int steps, const T* onto,
                                                 float2* partials, int rows_per_image, int C, int groups, int vectors,
                                                 int height) {
    let_next_start(early);
    const Place place(vectors);
    int row = int(blockIdx.x) * height + place.lane;
    const int end = min((int(blockIdx.x) + 1) * height, rows_per_image);
    const int rows = end - int(blockIdx.x) * height;
    const size_t offset = size_t(blockIdx.z) * rows_per_image * C + place.channel;
    const size_t apart = size_t(gridDim.z) * rows_per_image * C;
    float base[8] = {};
    const auto plus = [](float (&x)[8], const T* from) {
        float y[8];
        unpack8(load8(from), y);
#pragma unroll
        for (int c = 0; c < 8; ++c) x[c] += y[c];
    };
    if (place.busy() && bias != nullptr) plus(base, bias + place.channel);
    if (!place.busy()) row = end;
    wait_for_last(early);
    if (place.busy() && table != nullptr) plus(base, table + size_t(row_of_step(step, steps)) * C + place.channel);
    const int channels = quotient(C, groups);
    Sums measured(split_at(place, channels));
    for (; row < end; row += place.lanes) {
        const size_t at = offset + size_t(row) * C;
        float value[8] = {};
#pragma unroll 4
        for (int split = 0; split < splits; ++split) {
            float part[8];
            unpack8(load8(sums + split * apart + at), part);
#pragma unroll
            for (int c = 0; c < 8; ++c) value[c] += part[c];
        }
#pragma unroll
        for (int c = 0; c < 8; ++c) value[c] += base[c];
        if (onto != nullptr) plus(value, onto + at);
        const Pack<T> pack = pack8<T>(value);
        store8(out + at, pack);
        unpack8(pack, value);
        if (measured.count == 0) measured.start(value);
        measured.add(value);
    }
    if (partials != nullptr) finish(measured, place, partials, rows, channels, groups);
}

// Where a thread's channels begin in its image, and how far the next row is.
template <typename T> struct Rows {
    const T* from;
    int pitch;

    __device__ __forceinline__ Rows(const Place& place, const T* xs, const T* more, int rows_per_image, int C,
                                    int border) {
        const bool left = place.channel < border;
        pitch = left ? border : C - border;
        from = left ? xs + place.channel : more + (place.channel - border);
        from += size_t(blockIdx.z) * rows_per_image * pitch;
    }
    __device__ __forceinline__ const T* operator[](int row) const { return from + size_t(row) * pitch; }
};

// moments: those of each image's groups, chunk by chunk.
template <typename T>
__device__ __forceinline__ void moments_body(Early early, const T* xs, const T* more, float2* partials,
                                             int rows_per_image, int C, int border, int groups, int vectors,
                                             int height) {
    constexpr int N = AT_ONCE<T>;
    let_next_start(early);
    const Place place(vectors);
    const Rows<T> source(place, xs, more, rows_per_image, C, border);
    int row = int(blockIdx.x) * height + place.lane;
    const int end = min((int(blockIdx.x) + 1) * height, rows_per_image);
    const int rows = end - int(blockIdx.x) * height;
    if (!place.busy()) row = end;
    wait_for_last(early);
    Pack<T> x[N];
    const auto fetch = [&]() {
#pragma unroll
        for (int u = 0; u < N; ++u) {
            x[u] = Pack<T>{};
            if (row + u * place.lanes < end) x[u] = load8(source[row + u * place.lanes]);
        }
    };
    fetch();
    const int channels = quotient(C, groups);
    Sums sums(split_at(place, channels));
    while (row < end) {
#pragma unroll
        for (int u = 0; u < N; ++u) {
            if (row + u * place.lanes >= end) break;
            float value[8];
            unpack8(x[u], value);
            if (u == 0 && sums.count == 0) sums.start(value);
            sums.add(value);
        }
        row += N * place.lanes;
        fetch();
    }
    finish(sums, place, partials, rows, channels, groups);
}

// merge_moments: those of CHUNKS_MERGED chunks of `count` numbers each become those of one (Chan, Golub, LeVeque 1979), which makes
// merged[image][group][chunk] of `partials`, whose chunks are a multiple of CHUNKS_MERGED. A warp makes one of `all`, so block = (a
// multiple of 32; 1; 1). Starts early.
RUST_CONSTANT(CHUNKS_MERGED, 64);
RUST_CONSTANT(MERGE_THREADS, 128);

__device__ __forceinline__ void merge_moments_body(Early early, const float2* partials, float2* merged, int all, float count) {
    static_assert(CHUNKS_MERGED == 64, "two to a lane");
    let_next_start(early);
    const int one = (int(blockIdx.x) * int(blockDim.x) + int(threadIdx.x)) / 32, lane = int(threadIdx.x) % 32;
    wait_for_last(early);
    if (one >= all) return;
    const float2* const mine = partials + size_t(one) * CHUNKS_MERGED + lane;
    const float2 a = mine[0], b = mine[32];
    const float shift = __shfl_sync(WARP, a.x, 0), first = a.x - shift, second = b.x - shift;
    const float total = sum_warp(first + second);
    const float spread = sum_warp(fmaf(count * first, first, fmaf(count * second, second, a.y + b.y)));
    const float mean = total / float(CHUNKS_MERGED);
    if (lane == 0) merged[one] = make_float2(shift + mean, fmaxf(spread - count * total * mean, 0.0f));
}

// What was measured of `all` channels from `first` on: partials[image][unit][chunk], a unit being a group that group_norm
// normalises, or a part of one.
struct Measured {
    const float2* partials;
    int first, all;
    int channels;  // of a unit
    int chunks, height;
};

// Merges the moments of a slice's groups (Chan, Golub, LeVeque 1979) into mean and 1 / sqrt(variance + eps). A group is
// made of whole units of `left`, then of `right`; few have both.
__device__ __forceinline__ void merge(const Measured& left, const Measured& right, float2* table, int rows_per_image,
                                      int slice, int channels, float eps) {
    constexpr int N = 4;
    const int member = int(threadIdx.x) % 32;
    for (int group = int(threadIdx.x) / 32; group * channels < slice; group += int(blockDim.x) / 32) {
        const int begin = int(blockIdx.y) * slice + group * channels, end = begin + channels;
        float shift = 0.0f, total = 0.0f, spread = 0.0f;
        // The channels from `from` to `to`. Their units' partials follow one another.
        const auto add = [&](const Measured& side, int from, int to, bool is_first) {
            if (from >= to) return;
            const int unit = quotient(from - side.first, side.channels);
            const int all = quotient(to - from, side.channels) * side.chunks;
            const size_t image = size_t(blockIdx.z) * quotient(side.all, side.channels);
            const float2* const parts = side.partials + (image + unit) * side.chunks;
            if (is_first) shift = parts[0].x;
#pragma unroll 1
            for (int k = member; k < all; k += 32 * N) {
                float2 part[N];
#pragma unroll
                for (int u = 0; u < N; ++u) part[u] = k + 32 * u < all ? parts[k + 32 * u] : make_float2(0.0f, 0.0f);
#pragma unroll
                for (int u = 0; u < N; ++u) {
                    const int chunk = k + 32 * u - quotient(k + 32 * u, side.chunks) * side.chunks;
                    const int rows = min(side.height, rows_per_image - chunk * side.height);
                    const float count = k + 32 * u < all ? float(rows) * float(side.channels) : 0.0f;
                    const float d = part[u].x - shift;
                    total = fmaf(count, d, total);
                    spread += fmaf(count * d, d, part[u].y);
                }
            }
        };
        add(left, begin, min(end, right.first), true);
        add(right, max(begin, right.first), end, begin >= right.first);
        total = sum_warp(total);
        spread = sum_warp(spread);
        if (member == 0) {
            const float all = float(rows_per_image) * float(channels);
            const float mean = total / all;
            table[group] = make_float2(shift + mean, 1.0f / sqrtf(fmaxf(spread - total * mean, 0.0f) / all + eps));
        }
    }
}

// group_norm: out = (x - mean) / sqrt(variance + eps) * weight[c] + bias[c] with the biased moments of the image's group
// (Wu, He 2018, "Group normalization"), then x / (1 + exp(-x)) if silu. Chunks and heights are those of the kernels that
// left the partials: of all channels, or `left` of some and `right` of those after them. The channels of their units
// divide C / groups and what is left of them. out may be xs if that is all.
template <typename T>
__device__ __forceinline__ void group_norm_body(Early early, const T* xs, const T* more, const Measured& left,
                                                const Measured& right, const T* weight, const T* bias, T* out,
                                                int rows_per_image, int C, int border, int groups, int vectors,
                                                float eps, int silu) {
    constexpr int N = AT_ONCE<T> / 2;  // and as many on their way
    __shared__ float2 table[LARGEST_TABLE];
    let_next_start(early);
    const Place place(vectors);
    const int stride = int(gridDim.x) * place.lanes;
    const int end = place.busy() ? rows_per_image : 0;
    const Rows<T> source(place, xs, more, rows_per_image, C, border);
    int row = int(blockIdx.x) * place.lanes + place.lane;
    Pack<T> scales = {}, shifts = {};
    if (place.busy()) {
        scales = load8(weight + place.channel);
        shifts = load8(bias + place.channel);
    }
    const int channels = quotient(C, groups);
    wait_for_last(early);

    Pack<T> x[N];
    const T* from = source[row];
    const long long step = (long long)stride * source.pitch;
    const auto fetch = [&](int row) {
#pragma unroll
        for (int u = 0; u < N; ++u) {
            x[u] = Pack<T>{};
            if (row + u * stride < end) x[u] = load8(from + u * step);
        }
        from += N * step;
    };
    fetch(row);
    merge(left, right, table, rows_per_image, vectors * 8, channels, eps);
    int group = quotient(place.vector * 8, channels), within = place.vector * 8 - group * channels;
    __syncthreads();
    T* const to = out + size_t(blockIdx.z) * rows_per_image * C + place.channel;
    float scale[8], shift[8];
    unpack8(scales, scale);
    unpack8(shifts, shift);
    if (place.busy()) {
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            const float2 moment = table[group];
            scale[c] *= moment.y;
            shift[c] = fmaf(-moment.x, scale[c], shift[c]);
            if (++within == channels) {
                within = 0;
                ++group;
            }
        }
    }
    while (row < end) {
        Pack<T> now[N];
#pragma unroll
        for (int u = 0; u < N; ++u) now[u] = x[u];
        fetch(row + N * stride);
#pragma unroll
        for (int u = 0; u < N; ++u) {
            if (row + u * stride >= end) break;
            float value[8];
            unpack8(now[u], value);
#pragma unroll
            for (int c = 0; c < 8; ++c) value[c] = fmaf(value[c], scale[c], shift[c]);
            if (silu) {
#pragma unroll
                for (int c = 0; c < 8; ++c) value[c] = sigmoid_unit<T>(value[c], 1.0f);
            }
            store8(to + size_t(row + u * stride) * C, pack8<T>(value));
        }
        row += N * stride;
    }
}

EXPORT_EARLY(after_split, (LARGEST_BLOCK, 2),
       (const float* sums, int splits, T* out, const T* bias, const T* table, const int* step, int steps,
        const T* onto, float2* partials, int rows_per_image, int C, int groups, int vectors, int height),
       (early, sums, splits, out, bias, table, step, steps, onto, partials, rows_per_image, C, groups, vectors,
        height))
EXPORT_EARLY(moments, (LARGEST_BLOCK, 3),
       (const T* xs, const T* more, float2* partials, int rows_per_image, int C, int border, int groups, int vectors,
        int height),
       (early, xs, more, partials, rows_per_image, C, border, groups, vectors, height))
STARTS_EARLY(merge_moments)
extern "C" __global__ void __launch_bounds__(MERGE_THREADS)
    merge_moments_f32(const float2* partials, float2* merged, int all, float count) {
    const Early early{};
    merge_moments_body(early, partials, merged, all, count);
}
EXPORT_EARLY(group_norm, (LARGEST_BLOCK, 3),
       (const T* xs, const T* more, const float2* partials, const float2* others, const T* weight, const T* bias, T* out,
        int rows_per_image, int C, int border, int groups, int measured, int unit, int chunks, int height, int other_unit,
        int other_chunks, int other_height, int vectors, float eps, int silu),
       (early, xs, more, Measured{partials, 0, measured, unit, chunks, height},
        Measured{others, measured, C - measured, other_unit, other_chunks, other_height}, weight, bias, out,
        rows_per_image, C, border, groups, vectors, eps, silu))
