// What product.cu does with its sums: the ending of product.cuh, and the moments.
#pragma once

#include "product_tile.cuh"
#include "row_sums.cuh"

// What a warp does with its part of LAST_ROWS x COLUMNS once the sums lie in `staging`. A lane has eight columns of
// every LANE_ROWS-th row.
template <typename T, typename S> struct Last {
    static constexpr int CHUNKS = S::COLUMNS / 8, LANE_ROWS = 32 / CHUNKS;
    static constexpr int ROUNDS = (S::LAST_ROWS + LANE_ROWS - 1) / LANE_ROWS;
    static constexpr int UNDER_WAY = 4;  // rows of what is added, at once

    const Problem& p;
    float* staging;
    int lane, chunk;
    int first, row0, column;   // this lane's first row of the part, the part's first, and this lane's first column
    int limit;                 // rows of the part, none for a lane without columns
    float base[8];             // what every row gets; of the gated GELU half is for the gates
    Pack<T> added[UNDER_WAY];  // what the first rows get

    __device__ __forceinline__ Last(const Problem& p, float* staging, int row0, int column0)
        : p(p), staging(staging), lane(int(threadIdx.x) & 31), row0(row0) {
        first = lane / CHUNKS;
        chunk = lane - first * CHUNKS;
        column = column0 + chunk * 8;
        limit = first < LANE_ROWS && column < p.columns ? min(S::LAST_ROWS, p.rows - row0) : 0;
    }

    // Of this lane's first row.
    __device__ __forceinline__ long long place() const {
        return blockIdx.z * p.out_batch + (long long)(row0 + first) * p.out_row + column;
    }

    // Of a phase, and of the lane's row in that round.
    __device__ __forceinline__ T* phased_place(int round) const {
        const long long row = out_row_of(p, row0 + first + round * LANE_ROWS, phase_of(p));
        return static_cast<T*>(p.out) + (row * p.out_row + column);
    }

    // Reads what every row gets, and the first of what is added.
    __device__ __forceinline__ void prepare() {
#pragma unroll
        for (int i = 0; i < 8; ++i) base[i] = 0.0f;
#pragma unroll
        for (int i = 0; i < UNDER_WAY; ++i) added[i] = Pack<T>{};
        if (limit <= first || p.partials != nullptr || p.ending == SOFTMAX) return;
        if (p.ending == GATED) {
            if (p.bias == nullptr) return;
            const T* const left = static_cast<const T*>(p.bias) + column / 2;
            const T* const right = left + p.columns / 2;
#pragma unroll
            for (int i = 0; i < 4; ++i) {
                base[2 * i] = widen(left[i]);
                base[2 * i + 1] = widen(right[i]);
            }
            return;
        }
        if (p.bias != nullptr) plus(base, load8(static_cast<const T*>(p.bias) + column));
        const float alpha = alpha_of(p, column);
#pragma unroll
        for (int i = 0; i < 8; ++i) base[i] *= alpha;
        if (p.table != nullptr) {
            const long long at = (long long)row_of_step(p.step, p.steps) * p.columns + column;
            plus(base, load8(static_cast<const T*>(p.table) + at));
        }
        if (p.onto != nullptr && !p.wide) load_onto(added, static_cast<const T*>(p.onto) + place(), 0);
    }
    // A bias is used once, so it is in no cache by then.
    __device__ __forceinline__ void expect() const {
        if (limit > first && p.bias != nullptr) {
            const int at = p.ending == GATED ? column / 2 : column;
            const size_t from = __cvta_generic_to_global(static_cast<const T*>(p.bias) + at);
            asm volatile("prefetch.global.L2 [%0];" ::"l"(from));
        }
    }

    __device__ __forceinline__ static void plus(float (&x)[8], const Pack<T>& more) {
        float y[8];
        unpack8(more, y);
#pragma unroll
        for (int i = 0; i < 8; ++i) x[i] += y[i];
    }

    // Whether this lane has a row in that round.
    __device__ __forceinline__ bool has(int round) const { return first + round * LANE_ROWS < limit; }

    __device__ __forceinline__ void read(float (&x)[8], int round) const {
        const float* const from = staging + (first + round * LANE_ROWS) * S::PITCH + chunk * 4;
#pragma unroll
        for (int i = 0; i < 2; ++i) {
            const float4 four = *reinterpret_cast<const float4*>(from + i * S::HALF);
            x[4 * i] = four.x;
            x[4 * i + 1] = four.y;
            x[4 * i + 2] = four.z;
            x[4 * i + 3] = four.w;
        }
    }

    __device__ __forceinline__ void store() {
        if (p.partials != nullptr) {
            store_floats(p.partials + (long long)blockIdx.y * p.rows * p.columns, p.columns, 1.0f);
        } else if (p.wide) {
            store_floats(static_cast<float*>(p.out) + blockIdx.z * p.out_batch, p.out_row, p.alpha);
        } else if (p.ending == GATED) {
            const long long row = row0 + first;
            store_gated(static_cast<T*>(p.out) + blockIdx.z * p.out_batch + row * p.out_row + column / 2);
        } else {
            store_plain(place());
        }
    }

   private:
    // Loops are not unrolled more than their loads need: what runs once comes from memory, instruction by instruction.

    // Neighbouring lanes write neighbouring numbers: halves of what memory takes at once would be written one by one.
    __device__ __forceinline__ void store_floats(float* to, int pitch, float alpha) const {
        constexpr int FOURS = S::COLUMNS / 4;
        const int column0 = column - chunk * 8;
        to += (long long)row0 * pitch + column0;
#pragma unroll 2
        for (int i = lane; i < S::LAST_ROWS * FOURS; i += 32) {
            const int row = i / FOURS, four = i - row * FOURS;
            float4 x = *reinterpret_cast<const float4*>(staging + row * S::PITCH + four % 2 * S::HALF + four / 2 * 4);
            x.x *= alpha;
            x.y *= alpha;
            x.z *= alpha;
            x.w *= alpha;
            if (row0 + row < p.rows && column0 + four * 4 < p.columns) {
                *reinterpret_cast<float4*>(to + (long long)row * pitch + four * 4) = x;
            }
        }
    }

    __device__ __forceinline__ void store_gated(T* to) const {
#pragma unroll 2
        for (int round = 0; round < ROUNDS; ++round, to += LANE_ROWS * p.out_row) {
            if (!has(round)) continue;
            float x[8];
            read(x, round);
#pragma unroll
            for (int i = 0; i < 4; ++i) x[i] = gated<T>(x[2 * i] + base[2 * i], x[2 * i + 1] + base[2 * i + 1]);
            *reinterpret_cast<uint2*>(to) = make_uint2(pack2(x[0], x[1], T()), pack2(x[2], x[3], T()));
        }
    }

    // What is added, of UNDER_WAY rounds.
    __device__ __forceinline__ void load_onto(Pack<T> (&onto)[UNDER_WAY], const T* from, int start) const {
        const int step = LANE_ROWS * p.out_row;
#pragma unroll
        for (int i = 0; i < UNDER_WAY; ++i, from += step) {
            if (has(start + i)) onto[i] = load8(from);
        }
    }

    __device__ __forceinline__ void store_plain(long long place) {
        const int step = LANE_ROWS * p.out_row;
        const float alpha = alpha_of(p, column);
        T* to = static_cast<T*>(p.out) + place;
        const T* from = static_cast<const T*>(p.onto) + place;
        const bool measures = p.moments != nullptr && row0 < p.rows;
        // Around each column's first number.
        float shift[8], sum[8], square[8];
#pragma unroll
        for (int i = 0; i < 8; ++i) shift[i] = sum[i] = square[i] = 0.0f;
#pragma unroll 1
        for (int start = 0; start < ROUNDS; start += UNDER_WAY) {
            Pack<T> next[UNDER_WAY] = {};
            from += UNDER_WAY * step;
            if (p.onto != nullptr) load_onto(next, from, start + UNDER_WAY);
#pragma unroll
            for (int at = 0; at < UNDER_WAY; ++at, to += step) {
                const int round = start + at;
                const bool is_there = has(round);
                Pack<T> pack{};
                if (is_there) {
                    float x[8];
                    read(x, round);
#pragma unroll
                    for (int i = 0; i < 8; ++i) x[i] = fmaf(alpha, x[i], base[i]);
                    plus(x, added[at]);
                    pack = pack8<T>(x);
                    store8(p.phased ? phased_place(round) : to, pack);
                    if (p.row_sums != nullptr) keep(pack, round);
                }
                if (!measures) continue;
                float x[8];
                unpack8(pack, x);
                if (round == 0) {
#pragma unroll
                    for (int i = 0; i < 8; ++i) shift[i] = __shfl_sync(WARP, x[i], chunk);
                }
#pragma unroll
                for (int i = 0; i < 8; ++i) {
                    const float d = is_there ? x[i] - shift[i] : 0.0f;
                    sum[i] += d;
                    square[i] = fmaf(d, d, square[i]);
                }
            }
#pragma unroll
            for (int i = 0; i < UNDER_WAY; ++i) added[i] = next[i];
        }
        if (p.row_sums != nullptr) store_row_sums();
        if (measures) measure(shift, sum, square);
    }

    // What is stored lies in place of the sums that this lane has read: rows of f16 or bf16.
    __device__ __forceinline__ void keep(const Pack<T>& pack, int round) const {
        *reinterpret_cast<uint4*>(staging + (first + round * LANE_ROWS) * S::PITCH + chunk * 4) = pack.word[0];
    }

    // Of those rows.
    __device__ __forceinline__ void store_row_sums() const {
        const int column0 = column - chunk * 8;
        const long long all = (long long)gridDim.z * p.rows;
        float2* const to = p.row_sums + (column0 / S::COLUMNS * all + (long long)blockIdx.z * p.rows + row0);
        __syncwarp();
        if (column0 < p.columns) {
#pragma unroll 1
            for (int first = 0; first < S::LAST_ROWS; first += 16) {
                sum_up_rows<T, S::COLUMNS>(shared_address(staging + first * S::PITCH), S::PITCH * 4, [&](int row, float2 sums) {
                    if (row0 + first + row < p.rows) to[first + row] = sums;
                });
            }
        }
        __syncwarp();
    }

    // The moments of the part, a chunk of rows of whole groups: of each column, then those of a group's columns merged
    // (Chan, Golub, LeVeque 1979).
    __device__ __forceinline__ void measure(const float (&shift)[8], const float (&sum)[8], const float (&square)[8]) {
        float2* const cells = reinterpret_cast<float2*>(staging);
        float2* const moments = cells + LANE_ROWS * S::COLUMNS;
        float* const shifts = reinterpret_cast<float*>(moments + S::COLUMNS);
        __syncwarp();
        if (first < LANE_ROWS) {
#pragma unroll
            for (int i = 0; i < 8; ++i) {
                cells[first * S::COLUMNS + chunk * 8 + i] = make_float2(sum[i], square[i]);
                if (first == 0) shifts[chunk * 8 + i] = shift[i];
            }
        }
        __syncwarp();
        for (int c = lane; c < S::COLUMNS; c += 32) {
            float total = 0.0f, squares = 0.0f;
#pragma unroll
            for (int i = 0; i < LANE_ROWS; ++i) {
                total += cells[i * S::COLUMNS + c].x;
                squares += cells[i * S::COLUMNS + c].y;
            }
            const float mean = total / float(S::LAST_ROWS);
            moments[c] = make_float2(shifts[c] + mean, squares - total * mean);
        }
        __syncwarp();
        const int column0 = column - chunk * 8;
        const int channels = p.columns / p.groups, area = p.out_height * p.out_width;
        const int image = row0 / area;
        const int chunk_of_rows = phase_of(p) * (p.chunks / 4) + (row0 - image * area) / S::LAST_ROWS;
        for (int group = lane; group * channels < S::COLUMNS; group += 32) {
            if (column0 + group * channels >= p.columns) break;
            const float2* const mine = moments + group * channels;
            const float around = mine[0].x;
            float total = 0.0f, spread = 0.0f;
#pragma unroll 1
            for (int c = 0; c < channels; ++c) {
                const float d = mine[c].x - around;
                total += d;
                spread += fmaf(float(S::LAST_ROWS) * d, d, mine[c].y);
            }
            const float mean = total / float(channels);
            p.moments[((long long)image * p.groups + column0 / channels + group) * p.chunks + chunk_of_rows] =
                make_float2(around + mean, fmaxf(spread - float(S::LAST_ROWS) * total * mean, 0.0f));
        }
    }
};
