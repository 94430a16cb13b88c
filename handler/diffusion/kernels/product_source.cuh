// Where a thread's chunks of A and W come from, step by step along k: row threadIdx.x / 8 of a tile and every
// AT_ONCE-th after it, chunk threadIdx.x % 8.
#pragma once

#include "product_tile.cuh"

// A chunk to be copied: nothing if not `more`, zeros if `bits` has none.
struct Chunk {
    const void* from;
    bool more;
    unsigned bits;
};

// For problems that are `steady`: next rows of A are next places of the map, or the stride is 1 and both maps have the
// same size; each step is 64 channels of one place of the window, and of one of the two maps; and the tile has no columns
// past the last one. What is left to do between the products is then little: every instruction there takes time from
// them, as they need most of what the registers can deliver.
template <typename T, typename S> struct Steady {
    const Problem& p;
    const char *a, *w;           // of this step, for the first row
    unsigned a_step, w_step;     // bytes from a row to the next
    unsigned taps[S::A_ROUNDS];  // as in Row
    unsigned tap;                // a bit, for this step's place of the window
    int channel;                 // of the step's first
    int row;                     // place of the first one's window
    bool more;

    // `rows` has room for BM numbers.
    __device__ __forceinline__ Steady(const Problem& p, int tile_row, int column0, int from, unsigned* rows)
        : p(p), more(true) {
        const int phase = phase_of(p);
        for (int i = int(threadIdx.x); i < S::BM; i += S::THREADS) rows[i] = row_of(p, tile_row + i, phase).taps;
        row = tile_row + int(threadIdx.x) / 8 - pad_down(p, phase) * p.width - pad_across(p, phase);
        const int first = int(threadIdx.x) / 8, lane = int(threadIdx.x) % 8 * 8;
        const int step = from / BK, area = p.side * p.side, block = step / area, place = step - block * area;
        const int ky = place / p.side, kx = place - ky * p.side;
        channel = block * BK;
        tap = 1u << tap_of(p, ky, kx);
        const bool second = channel >= p.channels;
        start(second);
        const int pitch = second ? p.more_row : p.a_row;
        a += ((long long)(ky * p.width + kx) * pitch + (channel - (second ? p.channels : 0))) * int(sizeof(T));
        const bool is_gated = p.ending == GATED;
        // Row 2 c of a tile is then of column c, row 2 c + 1 of its gate.
        const int line = column0 + first, line_of = is_gated ? line / 2 + line % 2 * (p.columns / 2) : line;
        const T* const at = static_cast<const T*>(p.w) + blockIdx.z * p.w_batch + (long long)line_of * p.w_row;
        w = reinterpret_cast<const char*>(at + (place * (p.channels + p.others) + channel + lane));
        w_step = (is_gated ? S::AT_ONCE / 2 : S::AT_ONCE) * p.w_row * unsigned(sizeof(T));
        __syncthreads();
#pragma unroll
        for (int i = 0; i < S::A_ROUNDS; ++i) taps[i] = rows[first + i * S::AT_ONCE];
    }

    __device__ __forceinline__ Chunk chunk(int i) {
        if (i < S::A_ROUNDS) return {along(a, a_step, i), more, taps[i] & tap};
        return {along(w, w_step, i - S::A_ROUNDS), more, 1u};
    }

    // To the next step, if there is one.
    __device__ __forceinline__ void advance(bool is_more) {
        more = is_more;
        const int pitch = int(a_step / S::AT_ONCE);
        if (tap == unsigned(p.last_tap)) {
            tap = unsigned(p.first_tap);
            channel += BK;
            if (channel == p.channels) {
                start(true);
            } else {
                a += BK * int(sizeof(T)) - p.back_across_map * pitch;
            }
            w += (BK - p.back_along_k) * int(sizeof(T));
        } else {
            a += tap & LINE_ENDS ? (p.width - p.side + 1) * pitch : pitch;
            w += (p.channels + p.others) * int(sizeof(T));
            tap <<= 1;
        }
    }

   private:
    // At the first place of the window, and the first channels of that map.
    __device__ __forceinline__ void start(bool second) {
        const T* const map = static_cast<const T*>(second ? p.more : p.a) + blockIdx.z * p.a_batch;
        const int pitch = second ? p.more_row : p.a_row;
        a = reinterpret_cast<const char*>(map + ((long long)row * pitch + int(threadIdx.x) % 8 * 8));
        a_step = S::AT_ONCE * pitch * unsigned(sizeof(T));
    }
    // In one instruction.
    __device__ __forceinline__ static const void* along(const char* from, unsigned step, int i) {
        if (i == 0) return from;
        unsigned long long at;
        asm("mad.wide.u32 %0, %1, %2, %3;" : "=l"(at) : "r"(step), "r"(i), "l"(from));
        return reinterpret_cast<const void*>(at);
    }
};

// For all others, and for W as [inner][columns] if CROSSED.
template <typename T, typename S, bool CROSSED> struct Any {
    const Problem& p;
    // This thread's rows of A: where their windows begin, in places of the map, and their taps, as in Row.
    int places[S::A_ROUNDS];
    unsigned taps[S::A_ROUNDS];
    Depth<BK> at;
    const T* a;           // this step's place and channel
    int pitch;            // of the map of this step
    unsigned tap;         // a bit, or none past the end
    const T *w, *w_next;  // the first row, and the one that is asked for next
    int w_step;           // from one to the next
    unsigned lines;       // bit i: row i of W is there
    int k;                // crossed: of this step
    bool more;

    __device__ __forceinline__ Any(const Problem& p, int tile_row, int column0, int from, unsigned* rows)
        : p(p), at(Depth<BK>::of(p, from, int(threadIdx.x) % 8 * 8)) {
        int2* const table = reinterpret_cast<int2*>(rows);
        const int phase = phase_of(p);
        for (int i = int(threadIdx.x); i < S::BM; i += S::THREADS) {
            const Row row = row_of(p, tile_row + i, phase);
            table[i] = make_int2(row.place, int(row.taps));
        }
        const int first = int(threadIdx.x) / 8;
        w = static_cast<const T*>(p.w) + blockIdx.z * p.w_batch;
        int line = column0 + first, limit = p.columns, next = S::AT_ONCE;
        k = from;
        if constexpr (CROSSED) {
            // The tile's rows are 64 of k for each 64 columns, and this thread's chunks lie along the columns.
            line = column0 + int(threadIdx.x) % 8 * 8;
            w += (long long)(from + first) * p.w_row + line;
        } else if (p.ending == GATED) {
            // Row 2 c of a tile is of column c, row 2 c + 1 of its gate.
            line /= 2;
            limit /= 2;
            next /= 2;
            w += (long long)(line + first % 2 * limit) * p.w_row;
        } else {
            w += (long long)line * p.w_row;
        }
        w_step = next * p.w_row;
        lines = 0;
#pragma unroll
        for (int i = 0; i < S::W_ROUNDS; ++i) {
            const int of = CROSSED ? line + i * S::AT_ONCE / BK * 64 : line + i * next;
            lines |= unsigned(of < limit) << i;
        }
        settle(true);
        __syncthreads();
#pragma unroll
        for (int i = 0; i < S::A_ROUNDS; ++i) {
            const int2 row = table[first + i * S::AT_ONCE];
            places[i] = row.x;
            taps[i] = unsigned(row.y);
        }
    }

    // They are asked for in turn.
    __device__ __forceinline__ Chunk chunk(int i) {
        if (i < S::A_ROUNDS) {
            return {a + (long long)places[i] * pitch, more, taps[i] & tap};
        }
        i -= S::A_ROUNDS;
        const unsigned there = more && (lines >> i & 1u) != 0u ? 1u : 0u;
        if constexpr (CROSSED) {
            const int below = i * S::AT_ONCE % BK, right = i * S::AT_ONCE / BK * 64;
            const bool inside = k + int(threadIdx.x) / 8 + below < p.inner;
            return {w + (below * p.w_row + right), more, inside ? there : 0u};
        } else {
            const T* const from = w_next;
            w_next += w_step;
            asm volatile("" : "+l"(w_next));  // or there are registers for all of them
            return {from, more, tap != 0u ? there : 0u};
        }
    }

    __device__ __forceinline__ void advance(bool is_more) {
        at.advance(p);
        if constexpr (CROSSED) {
            k += BK;
            w += (long long)BK * p.w_row;
        }
        settle(is_more);
    }

   private:
    __device__ __forceinline__ void settle(bool is_more) {
        more = is_more;
        const bool second = at.channel >= p.channels && p.more != nullptr;
        const T* const map = static_cast<const T*>(second ? p.more : p.a) + blockIdx.z * p.a_batch;
        pitch = second ? p.more_row : p.a_row;
        const int places = at.ky * p.width + at.kx;
        a = map + ((long long)places * pitch + (at.channel - (second ? p.channels : 0)));
        tap = at.tap == 15 ? 0u : 1u << at.tap;
        w_next = w + at.k;
        asm volatile("" : "+l"(w_next));
    }
};
