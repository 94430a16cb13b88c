// Products and convolutions on Hopper (product_hopper.cu): how the copy engine fills the rings.
#pragma once

#include "hopper_tile.cuh"

// What fills the rings, a step after the other. A whole warp goes through it, so that its numbers are computed once for all of
// its threads; the first acts.
template <typename S> struct Loader {
    static constexpr int BN = S::BN, MODE = S::MODE;

    // What a step reads: channels of the map and of W, and the place of the window.
    struct At {
        int chunk, map_channel, w_channel, tap, ky, kx;
    };

    const Problem& p;
    const Tiling& t;
    const Tile& tile;
    const TensorMap &a, &more, &w;
    const Barriers<S>& barriers;
    const uint32_t ring, ring_b;
    const int taps, ahead;  // places of a window, and steps whose W is asked for at the beginning
    const bool leads;
    At at;
    int step = 0, stage_a = 0, parity_a = 1, stage_b = 0, parity_b = 1;

    __device__ __forceinline__ Loader(const Problem& p, const Tiling& t, const Tile& tile, const TensorMap& a, const TensorMap& more,
                                      const TensorMap& w, uint32_t ring, const Barriers<S>& barriers)
        : p(p), t(t), tile(tile), a(a), more(more), w(w), barriers(barriers), ring(ring), ring_b(ring + S::A_STAGES * S::A_BYTES),
          taps(p.side * p.side), ahead(min(S::B_STAGES, tile.count)), leads((threadIdx.x & 31) == 0) {
        at.chunk = tile.first / taps;
        const bool in_second = at.chunk >= t.first_steps;
        at.map_channel = (at.chunk - (in_second ? t.first_steps : 0)) * BK;
        at.w_channel = at.map_channel + (in_second ? p.channels : 0);
        at.tap = tile.first - at.chunk * taps;
        at.ky = at.tap / p.side;
        at.kx = at.tap - at.ky * p.side;
    }

    __device__ __forceinline__ void advance(At& at) const {
        ++at.tap;
        if (MODE == WINDOWS && ++at.kx == p.side) {
            at.kx = 0;
            ++at.ky;
        }
        if (at.tap == taps) {
            at.tap = at.ky = at.kx = 0;
            at.map_channel += BK;
            at.w_channel += BK;
            if (++at.chunk == t.first_steps) {
                at.map_channel = 0;
                at.w_channel = p.channels;
            }
        }
    }

    __device__ __forceinline__ void load_b(int stage, const At& at) const {
        barrier_expect(barriers.full_b + 8 * stage, uint32_t(S::B_BYTES + (MODE == PATCHES ? 0 : S::A_BYTES)));
        // Of rows there is one place, and W may have one for each problem.
        const int place = MODE == ROWS ? tile.problem : MODE == PATCHES ? tile.phase * taps + at.tap : at.tap;
        copy_box(ring_b + stage * S::B_BYTES, &w, barriers.full_b + 8 * stage, at.w_channel, place, tile.column);
    }

    __device__ __forceinline__ void load_a(int stage, uint32_t barrier) const {
        const uint32_t to = ring + stage * S::A_BYTES;
        const TensorMap* map = at.chunk < t.first_steps ? &a : &more;
        if (MODE == ROWS) {
            copy_box(to, map, barrier, at.map_channel, tile.row, 0, 0);
        } else if (MODE == WINDOWS) {
            const int x = tile.x * p.stride + at.kx - p.pad_across, y = tile.y * p.stride + at.ky - p.pad_down;
            const int next = PATCH * p.stride;
            copy_box(to, map, barrier, at.map_channel, x, y, tile.image);
            copy_box(to + PLACES * ROW, map, barrier, at.map_channel, x + t.across * next, y + t.down * next,
                     tile.image + t.images);
        } else {
            const int x = tile.x - pad_across(p, tile.phase), y = tile.y - pad_down(p, tile.phase);
            copy_box(to, map, barrier, at.map_channel, x, y, tile.image);
        }
    }

    // W's rows of the first steps, which are there before the kernel ahead has ended.
    __device__ __forceinline__ void begin() const {
        At next = at;
        for (int i = 0; i < ahead; ++i) {
            if (leads) load_b(i, next);
            advance(next);
        }
    }

    // The next step, as soon as its stages are free; begin and the wait for the kernel ahead come before.
    __device__ __forceinline__ void next() {
        if (MODE == PATCHES && (step == 0 || at.tap == 0)) {
            barrier_wait(barriers.empty_a + 8 * stage_a, parity_a);
            if (leads) {
                const int around = p.side - 1;
                const int places = ((PATCH << t.across) + around) * ((PATCH << t.down) + around) * (1 + t.images);
                barrier_expect(barriers.full_a + 8 * stage_a, uint32_t(places * ROW));
                load_a(stage_a, barriers.full_a + 8 * stage_a);
            }
            stage_a ^= 1;
            parity_a ^= stage_a == 0;
        }
        if (step >= ahead) barrier_wait(barriers.empty_b + 8 * stage_b, parity_b);
        if (leads) {
            if (step >= ahead) load_b(stage_b, at);
            if (MODE != PATCHES) load_a(stage_b, barriers.full_b + 8 * stage_b);
        }
        if (++stage_b == S::B_STAGES) {
            stage_b = 0;
            parity_b ^= 1;
        }
        advance(at);
        ++step;
    }
};
