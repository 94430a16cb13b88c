// Group and layer normalisation, and the epilogues that measure what they normalise.
//
// Activations are NHWC: xs[image][row][channel], a row being one pixel or token. C, Ca and Cb are multiples of 8 and
// every base address a multiple of 16 bytes. groups divides C; C / groups is any number.
//
// Launch rule of after_conv, join, moments and group_norm, with V = C / 8 vectors (C <= 4096; C = Ca + Cb for join):
//     lanes = max(1, 256 / V)                    rows that a block has in hand at once
//     block = (lanes * V rounded up to a multiple of 32, 1, 1)
//     grid  = (chunks, batch, 1)                 after_conv, join, moments: any chunks >= 1
//     grid  = (blocks, batch, 1)                 group_norm: any blocks >= 1, such as
//                                                ceil(rows_per_image / (4 * lanes))
// No dynamic shared memory. A good number of chunks leaves about four rows to a thread and two blocks to a
// multiprocessor: clamp(ceil(rows_per_image / (4 * lanes)), 1, max(1, 2 * multiprocessors / batch)).
//
// Scratch: partials has batch * chunks * groups float2. counters has batch unsigned, zero before the first launch;
// every launch leaves them zero. stats has batch * groups float2 (mean, biased variance). Sums run in a fixed order, so
// equal inputs and launch shapes give equal bits.
#include "common.cuh"

constexpr int LARGEST_BLOCK = 512;
constexpr int MEMBERS = 8;  // threads that reduce one group together

struct Span {
    int begin, end;
};

// Rows of an image that chunk number `chunk` covers; empty for chunks past the end.
__device__ __forceinline__ Span chunk_rows(int chunk, int chunks, int rows) {
    const int each = (rows + chunks - 1) / chunks;
    const int begin = min(chunk * each, rows);
    return {begin, min(begin + each, rows)};
}

// Sum over the 8 consecutive threads of a group's members, the same bits in each.
__device__ __forceinline__ float sum_members(float x) {
    const unsigned mask = 0xffu << (threadIdx.x & 24u);
#pragma unroll
    for (int offset = MEMBERS / 2; offset > 0; offset /= 2) x += __shfl_xor_sync(mask, x, offset, MEMBERS);
    return x;
}

// Sums of eight channels over the rows of one thread, of values shifted by each channel's first one: this keeps
// sum-of-squares variance accurate (Chan, Golub, LeVeque 1983, "Algorithms for computing the sample variance").
struct Sums {
    float shift[8], sum[8], square[8];
    int count;

    __device__ __forceinline__ void add(const float (&x)[8]) {
        if (count == 0) {
#pragma unroll
            for (int c = 0; c < 8; ++c) {
                shift[c] = x[c];
                sum[c] = 0.0f;
                square[c] = 0.0f;
            }
        }
#pragma unroll
        for (int c = 0; c < 8; ++c) {
            const float d = x[c] - shift[c];
            sum[c] += d;
            square[c] = fmaf(d, d, square[c]);
        }
        ++count;
    }

    // Mean and sum of squared deviations of channel c.
    __device__ __forceinline__ float2 moments(int c) const {
        if (count == 0) return make_float2(0.0f, 0.0f);
        const float mean = sum[c] / float(count);
        return make_float2(shift[c] + mean, fmaxf(square[c] - sum[c] * mean, 0.0f));
    }
};

// Merges the sums of a block's threads into partials, and in the image's last block all chunks into stats.
// Means merge by weights, squared deviations with the spread of the means added (Chan, Golub, LeVeque 1979).
// Every thread of the block calls this; those with lane >= lanes own nothing.
__device__ __forceinline__ void finish(const Sums& sums, int lane, int lanes, Span rows, float2* partials,
                                       unsigned* counters, float2* stats, int rows_per_image, int C, int groups,
                                       int chunks) {
    // cell (c, thread): channel 8 * (thread % V) + c over the rows of one thread; the odd pitch spreads the banks
    __shared__ float2 cells[8 * (LARGEST_BLOCK + 1)];
    __shared__ bool last;
    const int pitch = int(blockDim.x) + 1;
    const int thread = int(threadIdx.x);
    const int vectors = C / 8, channels = C / groups;
    const int image = int(blockIdx.y), chunk = int(blockIdx.x);
    if (lane < lanes) {
#pragma unroll
        for (int c = 0; c < 8; ++c) cells[c * pitch + thread] = sums.moments(c);
    }
    __syncthreads();

    const int member = thread % MEMBERS, stride = int(blockDim.x) / MEMBERS;
    const int height = rows.end - rows.begin;
    const int each = height / lanes, more = height % lanes;  // lane l has each + (l < more) rows
    for (int group = thread / MEMBERS; group < groups; group += stride) {
        const int first = group * channels;
        float total = 0.0f;
        for (int l = 0; l < lanes; ++l) {
            const float weight = float(each + (l < more ? 1 : 0));
            for (int c = first + member; c < first + channels; c += MEMBERS) {
                total += weight * cells[(c % 8) * pitch + l * vectors + c / 8].x;
            }
        }
        const float mean = height == 0 ? 0.0f : sum_members(total) / (float(height) * float(channels));
        float spread = 0.0f;
        for (int l = 0; l < lanes; ++l) {
            const float weight = float(each + (l < more ? 1 : 0));
            for (int c = first + member; c < first + channels; c += MEMBERS) {
                const float2 cell = cells[(c % 8) * pitch + l * vectors + c / 8];
                spread += cell.y + weight * (cell.x - mean) * (cell.x - mean);
            }
        }
        spread = sum_members(spread);
        if (member == 0) partials[(size_t(image) * chunks + chunk) * groups + group] = make_float2(mean, spread);
    }

    __threadfence();
    __syncthreads();
    // atomicInc wraps to 0 at the last block, ready for the next launch
    if (thread == 0) last = atomicInc(&counters[image], unsigned(chunks - 1)) == unsigned(chunks - 1);
    __syncthreads();
    if (!last) return;
    __threadfence();
    for (int group = thread / MEMBERS; group < groups; group += stride) {
        const float2* parts = partials + size_t(image) * chunks * groups + group;
        float total = 0.0f;
#pragma unroll 4
        for (int k = member; k < chunks; k += MEMBERS) {
            const Span part = chunk_rows(k, chunks, rows_per_image);
            total += float(part.end - part.begin) * __ldcg(parts + size_t(k) * groups).x;
        }
        const float mean = sum_members(total) / float(rows_per_image);
        float spread = 0.0f;
#pragma unroll 4
        for (int k = member; k < chunks; k += MEMBERS) {
            const Span part = chunk_rows(k, chunks, rows_per_image);
            const float2 moment = __ldcg(parts + size_t(k) * groups);
            const float d = moment.x - mean;
            spread += moment.y + float(part.end - part.begin) * float(channels) * d * d;
        }
        spread = sum_members(spread);
        if (member == 0) {
            stats[size_t(image) * groups + group] =
                make_float2(mean, spread / (float(rows_per_image) * float(channels)));
        }
    }
}

// after_conv: in place xs = xs + bias[c] + table[*step][c] + onto, with bias, table (rows of C) and onto (the shape of
// xs) each left out when null; then the moments of the stored values. Without stats the sum alone.
template <typename T>
__device__ __forceinline__ void after_conv_body(T* xs, const T* bias, const T* table, const int* step, const T* onto,
                                                float2* partials, unsigned* counters, float2* stats,
                                                int rows_per_image, int C, int groups, int chunks) {
    constexpr int AT_ONCE = sizeof(T) == 4 ? 2 : 4;
    const int vectors = C / 8, lanes = int(blockDim.x) / vectors;
    const int lane = int(threadIdx.x) / vectors, vector = int(threadIdx.x) % vectors;
    const Span rows = chunk_rows(blockIdx.x, chunks, rows_per_image);
    Sums sums;
    sums.count = 0;
    if (lane < lanes) {
        float base[8] = {};
        if (bias != nullptr) unpack8(load8(bias + vector * 8), base);
        if (table != nullptr) {
            float x[8];
            unpack8(load8(table + size_t(*step) * C + vector * 8), x);
#pragma unroll
            for (int c = 0; c < 8; ++c) base[c] += x[c];
        }
        const size_t offset = size_t(blockIdx.y) * rows_per_image * C + vector * 8;
        for (int row = rows.begin + lane; row < rows.end; row += lanes * AT_ONCE) {
            Pack<T> x[AT_ONCE] = {}, y[AT_ONCE] = {};
#pragma unroll
            for (int u = 0; u < AT_ONCE; ++u) {
                const size_t at = offset + size_t(row + u * lanes) * C;
                if (row + u * lanes < rows.end) {
                    x[u] = load8(xs + at);
                    if (onto != nullptr) y[u] = load8(onto + at);
                }
            }
#pragma unroll
            for (int u = 0; u < AT_ONCE; ++u) {
                if (row + u * lanes >= rows.end) break;
                float value[8], other[8];
                unpack8(x[u], value);
                unpack8(y[u], other);
#pragma unroll
                for (int c = 0; c < 8; ++c) value[c] += base[c] + other[c];
                const Pack<T> pack = pack8<T>(value);
                store8(xs + offset + size_t(row + u * lanes) * C, pack);
                if (stats != nullptr) {
                    unpack8(pack, value);
                    sums.add(value);
                }
            }
        }
    }
    if (stats != nullptr) {
        finish(sums, lane, lanes, rows, partials, counters, stats, rows_per_image, C, groups, chunks);
    }
}

// Reads the rows of one chunk from `from` (`pitch` elements a row), copies them to `to` (C a row) unless null, and
// measures them. Both start at the thread's channels in the image's first row.
template <typename T>
__device__ __forceinline__ void copy_rows(const T* from, int pitch, T* to, int C, Span rows, int lane, int lanes,
                                          bool measure, Sums& sums) {
    constexpr int AT_ONCE = sizeof(T) == 4 ? 2 : 4;
    for (int row = rows.begin + lane; row < rows.end; row += lanes * AT_ONCE) {
        Pack<T> x[AT_ONCE] = {};
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u) {
            if (row + u * lanes < rows.end) x[u] = load8(from + size_t(row + u * lanes) * pitch);
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u) {
            if (row + u * lanes >= rows.end) break;
            if (to != nullptr) store8(to + size_t(row + u * lanes) * C, x[u]);
            if (measure) {
                float value[8];
                unpack8(x[u], value);
                sums.add(value);
            }
        }
    }
}

// join: out[image][row] = a[image][row] (Ca channels) followed by b[image][row] (Cb channels), and the moments of out.
// Without stats the join alone.
template <typename T>
__device__ __forceinline__ void join_body(const T* a, const T* b, T* out, float2* partials, unsigned* counters,
                                          float2* stats, int rows_per_image, int Ca, int Cb, int groups, int chunks) {
    const int C = Ca + Cb, vectors = C / 8, lanes = int(blockDim.x) / vectors;
    const int lane = int(threadIdx.x) / vectors, vector = int(threadIdx.x) % vectors;
    const Span rows = chunk_rows(blockIdx.x, chunks, rows_per_image);
    const size_t first = size_t(blockIdx.y) * rows_per_image;
    Sums sums;
    sums.count = 0;
    if (lane < lanes) {
        const bool left = vector * 8 < Ca;
        const int pitch = left ? Ca : Cb;
        const T* from = left ? a + first * Ca + vector * 8 : b + first * Cb + (vector * 8 - Ca);
        copy_rows(from, pitch, out + first * C + vector * 8, C, rows, lane, lanes, stats != nullptr, sums);
    }
    if (stats != nullptr) {
        finish(sums, lane, lanes, rows, partials, counters, stats, rows_per_image, C, groups, chunks);
    }
}

// moments: the mean and variance of each image's groups.
template <typename T>
__device__ __forceinline__ void moments_body(const T* xs, float2* partials, unsigned* counters, float2* stats,
                                             int rows_per_image, int C, int groups, int chunks) {
    const int vectors = C / 8, lanes = int(blockDim.x) / vectors;
    const int lane = int(threadIdx.x) / vectors, vector = int(threadIdx.x) % vectors;
    const Span rows = chunk_rows(blockIdx.x, chunks, rows_per_image);
    Sums sums;
    sums.count = 0;
    if (lane < lanes) {
        const T* from = xs + size_t(blockIdx.y) * rows_per_image * C + vector * 8;
        copy_rows<T>(from, C, nullptr, C, rows, lane, lanes, true, sums);
    }
    finish(sums, lane, lanes, rows, partials, counters, stats, rows_per_image, C, groups, chunks);
}

// group_norm: out = (x - mean) / sqrt(variance + eps) * weight[c] + bias[c] with the moments of the image's group
// (Wu, He 2018, "Group normalization"), then x / (1 + exp(-x)) if silu. out may be xs.
template <typename T>
__device__ __forceinline__ void group_norm_body(const T* xs, const float2* stats, const T* weight, const T* bias,
                                                T* out, int rows_per_image, int C, int groups, float eps, int silu) {
    constexpr int AT_ONCE = sizeof(T) == 4 ? 2 : 4;
    const int vectors = C / 8, lanes = int(blockDim.x) / vectors, channels = C / groups;
    const int lane = int(threadIdx.x) / vectors, vector = int(threadIdx.x) % vectors;
    const int stride = int(gridDim.x) * lanes;
    if (lane >= lanes) return;
    float mean[8], scale[8], shift[8];
    unpack8(load8(weight + vector * 8), scale);
    unpack8(load8(bias + vector * 8), shift);
#pragma unroll
    for (int c = 0; c < 8; ++c) {
        const float2 moment = stats[size_t(blockIdx.y) * groups + (vector * 8 + c) / channels];
        mean[c] = moment.x;
        scale[c] *= 1.0f / sqrtf(moment.y + eps);
    }
    const size_t offset = size_t(blockIdx.y) * rows_per_image * C + vector * 8;
    for (int row = int(blockIdx.x) * lanes + lane; row < rows_per_image; row += stride * AT_ONCE) {
        Pack<T> x[AT_ONCE] = {};
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u) {
            if (row + u * stride < rows_per_image) x[u] = load8(xs + offset + size_t(row + u * stride) * C);
        }
#pragma unroll
        for (int u = 0; u < AT_ONCE; ++u) {
            if (row + u * stride >= rows_per_image) break;
            float value[8];
            unpack8(x[u], value);
#pragma unroll
            for (int c = 0; c < 8; ++c) value[c] = fmaf(value[c] - mean[c], scale[c], shift[c]);
            if (silu) {
#pragma unroll
                for (int c = 0; c < 8; ++c) value[c] = sigmoid_unit<T>(value[c], 1.0f);
            }
            store8(out + offset + size_t(row + u * stride) * C, pack8<T>(value));
        }
    }
}

// WIDTH neighbouring threads hold one row, HELD vectors of eight each, and walk over the rows with the whole grid.
template <typename T, int WIDTH, int HELD>
__device__ __forceinline__ void layer_norm_rows(const T* xs, const T* weight, const T* bias, T* out, int rows, int C,
                                                float eps) {
    const int place = int(threadIdx.x) % WIDTH, vectors = C / 8;
    const unsigned mask = (0xffffffffu >> (32 - WIDTH)) << (threadIdx.x & 31u & ~unsigned(WIDTH - 1));
    const int each = int(blockDim.x) / WIDTH;
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
            float x[8];
            unpack8(held[i], x);
#pragma unroll
            for (int c = 0; c < 8; ++c) spread = fmaf(x[c] - mean, x[c] - mean, spread);
        }
#pragma unroll
        for (int offset = WIDTH / 2; offset > 0; offset /= 2) spread += __shfl_xor_sync(mask, spread, offset, WIDTH);
        const float inverse = 1.0f / sqrtf(spread / float(C) + eps);
#pragma unroll
        for (int i = 0; i < HELD; ++i) {
            const int vector = i * WIDTH + place;
            if (vector >= vectors) break;
            float x[8], scale[8], shift[8];
            unpack8(held[i], x);
            unpack8(load8(weight + vector * 8), scale);
            unpack8(load8(bias + vector * 8), shift);
#pragma unroll
            for (int c = 0; c < 8; ++c) x[c] = fmaf((x[c] - mean) * inverse, scale[c], shift[c]);
            store8(out + row * C + vector * 8, pack8<T>(x));
        }
    }
}

// layer_norm: each row of C <= 2048 channels to mean 0 and variance 1, times weight, plus bias (Ba, Kiros, Hinton 2016,
// "Layer normalization"). out may be xs.
//
// Launch rule: block = (256, 1, 1); a row takes `width` threads: 8 for C <= 320, 16 for C <= 640, else 32;
// grid = (ceil(rows * width / 256), 1, 1). Any grid and any block that is a multiple of 32 up to 256 is right.
template <typename T>
__device__ __forceinline__ void layer_norm_body(const T* xs, const T* weight, const T* bias, T* out, int rows, int C,
                                                float eps) {
    if (C <= 320) {
        layer_norm_rows<T, 8, 5>(xs, weight, bias, out, rows, C, eps);
    } else if (C <= 640) {
        layer_norm_rows<T, 16, 5>(xs, weight, bias, out, rows, C, eps);
    } else if (C <= 768) {
        layer_norm_rows<T, 32, 3>(xs, weight, bias, out, rows, C, eps);
    } else if (C <= 1280) {
        layer_norm_rows<T, 32, 5>(xs, weight, bias, out, rows, C, eps);
    } else {
        layer_norm_rows<T, 32, 8>(xs, weight, bias, out, rows, C, eps);
    }
}

EXPORT(after_conv, (LARGEST_BLOCK, 1),
       (T * xs, const T* bias, const T* table, const int* step, const T* onto, float2* partials, unsigned* counters,
        float2* stats, int rows_per_image, int C, int groups, int chunks),
       (xs, bias, table, step, onto, partials, counters, stats, rows_per_image, C, groups, chunks))
EXPORT(join, (LARGEST_BLOCK, 1),
       (const T* a, const T* b, T* out, float2* partials, unsigned* counters, float2* stats, int rows_per_image, int Ca,
        int Cb, int groups, int chunks),
       (a, b, out, partials, counters, stats, rows_per_image, Ca, Cb, groups, chunks))
EXPORT(moments, (LARGEST_BLOCK, 1),
       (const T* xs, float2* partials, unsigned* counters, float2* stats, int rows_per_image, int C, int groups,
        int chunks),
       (xs, partials, counters, stats, rows_per_image, C, groups, chunks))
EXPORT(group_norm, (LARGEST_BLOCK, 1),
       (const T* xs, const float2* stats, const T* weight, const T* bias, T* out, int rows_per_image, int C, int groups,
        float eps, int silu),
       (xs, stats, weight, bias, out, rows_per_image, C, groups, eps, silu))
EXPORT(layer_norm, (256, 1),
       (const T* xs, const T* weight, const T* bias, T* out, int rows, int C, float eps),
       (xs, weight, bias, out, rows, C, eps))
