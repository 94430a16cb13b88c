// Products and convolutions on Hopper (product_hopper.cu): how the copy engine fills the rings.
#pragma once

#include "hopper_tile.cuh"

// By one warp. All of its threads go through this, so that its numbers are computed once for all of them; the first acts.
template <typename S>
__device__ __forceinline__ void load(Early early, const Problem& p, const Tiling& t, const Tile& tile, const TensorMap& a,
                                     const TensorMap& more, const TensorMap& w, uint32_t ring,
                                     const Barriers<S>& barriers) {
    constexpr int BN = S::BN, MODE = S::MODE;
    const uint32_t ring_b = ring + S::A_STAGES * S::A_BYTES;
    const int taps = p.side * p.side;
    const int around = p.side - 1;
    const uint32_t patch_bytes =
        uint32_t(((PATCH << t.across) + around) * ((PATCH << t.down) + around) * (1 + t.images) * ROW);
    const uint32_t bytes_b = S::B_BYTES + (MODE == PATCHES ? 0 : S::A_BYTES);
    const bool leads = (threadIdx.x & 31) == 0;

    // What a step reads: channels of the map and of W, and the place of the window.
    struct At {
        int chunk, map_channel, w_channel, tap, ky, kx;
    };
    At at;
    at.chunk = tile.first / taps;
    const bool in_second = at.chunk >= t.first_steps;
    at.map_channel = (at.chunk - (in_second ? t.first_steps : 0)) * BK;
    at.w_channel = at.map_channel + (in_second ? p.channels : 0);
    at.tap = tile.first - at.chunk * taps;
    at.ky = at.tap / p.side;
    at.kx = at.tap - at.ky * p.side;
    const auto advance = [&](At& at) {
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
    };
    const auto load_b = [&](int stage, const At& at) {
        barrier_expect(barriers.full_b + 8 * stage, bytes_b);
        // Of rows there is one place, and W may have one for each problem.
        const int place = MODE == ROWS ? tile.problem : MODE == PATCHES ? tile.phase * taps + at.tap : at.tap;
#pragma unroll
        for (int from = 0; from < BN; from += S::W_BOX) {
            copy_box(ring_b + stage * S::B_BYTES + from * ROW, &w, barriers.full_b + 8 * stage, at.w_channel, place, tile.column + from);
        }
    };
    const auto load_a = [&](int stage, uint32_t barrier, const At& at) {
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
    };

    // W's rows are there before the kernel ahead has ended.
    const int ahead = min(S::B_STAGES, tile.count);
    At next = at;
    for (int i = 0; i < ahead; ++i) {
        if (leads) load_b(i, next);
        advance(next);
    }
    wait_for_last(early);
    int stage_a = 0, parity_a = 1, stage_b = 0, parity_b = 1;
    for (int i = 0; i < tile.count; ++i) {
        if (MODE == PATCHES && (i == 0 || at.tap == 0)) {
            barrier_wait(barriers.empty_a + 8 * stage_a, parity_a);
            if (leads) {
                barrier_expect(barriers.full_a + 8 * stage_a, patch_bytes);
                load_a(stage_a, barriers.full_a + 8 * stage_a, at);
            }
            stage_a ^= 1;
            parity_a ^= stage_a == 0;
        }
        if (i >= ahead) barrier_wait(barriers.empty_b + 8 * stage_b, parity_b);
        if (leads) {
            if (i >= ahead) load_b(stage_b, at);
            if (MODE != PATCHES) load_a(stage_b, barriers.full_b + 8 * stage_b, at);
        }
        if (++stage_b == S::B_STAGES) {
            stage_b = 0;
            parity_b ^= 1;
        }
        advance(at);
    }
}
