//! Attention without a matrix of all scores: Dao et al., "FlashAttention: fast and memory-efficient exact attention with IO-awareness",
//! 2022. The scores of some queries and a tile of keys stay in the nearest cache, and softmax is done tile by tile.
//!
//! A vector holds different queries. So maxima and sums are taken without crossing lanes, and keys and values are read as single numbers.

use super::vectors::{self, Kernel, aligned, exp2_of_negative, multiply};
use pulp::Simd;
use rayon::prelude::*;
use std::cell::RefCell;

/// Keys of a tile, a multiple of the rows of all blocks. Its scores are 8 KiB with AVX2 and 23 KiB with AVX-512.
const TILE: usize = 120;
/// The most blocks of queries that a thread takes through the keys together, so that a tile of keys is read once for all of them.
const BLOCKS: usize = 4;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Keys and values in the order of the products. Only the thread that calls an attention has them.
    static PACKED: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// Sizes of an attention.
#[derive(Clone, Copy)]
pub(super) struct Sizes {
    pub(super) items: usize,
    pub(super) tokens: usize,
    /// Keys and values of each item.
    pub(super) others: usize,
    pub(super) channels: usize,
    pub(super) heads: usize,
}

impl Sizes {
    fn width(self) -> usize {
        self.channels / self.heads
    }
}

/// `out` and `q` are `[items, tokens, channels]`, `k` and `v` are `[items, others, channels]`.
pub(super) fn attention(out: &mut [f32], q: &[f32], k: &[f32], v: &[f32], sizes: Sizes) {
    let Sizes { items, tokens, others, channels, heads } = sizes;
    let (rows, across) = vectors::block();
    let width = sizes.width();
    let (of_keys, of_values) = (others.next_multiple_of(rows) * width, width.next_multiple_of(rows) * others);
    // Taken, not borrowed: this thread may compute another attention while it waits for the others.
    let mut packed = PACKED.take();
    let [keys, values] = &mut packed;
    keys.resize(keys.len().max(items * heads * of_keys), 0.0);
    values.resize(values.len().max(items * heads * of_values), 0.0);
    let parts = keys.par_chunks_mut(of_keys).zip(values.par_chunks_mut(of_values)).take(items * heads);
    parts.enumerate().for_each(|(index, (keys, values))| {
        let from = index / heads * others * channels + index % heads * width;
        pack_keys(keys, &k[from..], sizes, rows);
        pack_values(values, &v[from..], sizes, rows);
    });
    let blocks = tokens.div_ceil(across);
    let at_once = (blocks * items).div_ceil(4 * rayon::current_num_threads()).clamp(1, BLOCKS.min(blocks)) * across;
    let pieces = tokens.div_ceil(at_once);
    let items = out.chunks_mut(tokens * channels).zip(q.chunks(tokens * channels));
    let parts = items.flat_map(|(out, q)| out.chunks_mut(at_once * channels).zip(q.chunks(at_once * channels)));
    parts.collect::<Vec<_>>().into_par_iter().enumerate().for_each(|(index, (out, q))| {
        let first = index / pieces * heads;
        SCRATCH.with_borrow_mut(|scratch| {
            for head in 0..heads {
                let keys = &keys[(first + head) * of_keys..][..of_keys];
                let values = &values[(first + head) * of_values..][..of_values];
                vectors::run(Head { out, q, keys, values, from: head * width, sizes, scratch });
            }
        });
    });
    PACKED.set(packed);
}

/// `[others / rows][width][rows]`, with zeros after the last key.
fn pack_keys(packed: &mut [f32], keys: &[f32], sizes: Sizes, rows: usize) {
    let width = sizes.width();
    for (block, packed) in packed.chunks_mut(rows * width).enumerate() {
        for row in 0..rows {
            let key = block * rows + row;
            let there = if key < sizes.others { &keys[key * sizes.channels..][..width] } else { &[] };
            for (at, to) in packed[row..].iter_mut().step_by(rows).enumerate() {
                *to = there.get(at).copied().unwrap_or(0.0);
            }
        }
    }
}

/// `[width / rows][others][rows]`, with zeros after the last channel.
fn pack_values(packed: &mut [f32], values: &[f32], sizes: Sizes, rows: usize) {
    let width = sizes.width();
    for (block, packed) in packed.chunks_mut(rows * sizes.others).enumerate() {
        let first = block * rows;
        let count = rows.min(width - first);
        for (key, to) in packed.chunks_mut(rows).enumerate() {
            to[..count].copy_from_slice(&values[key * sizes.channels + first..][..count]);
            to[count..].fill(0.0);
        }
    }
}

/// One head for some queries of one item.
struct Head<'a> {
    /// The rows of the queries, with all channels.
    out: &'a mut [f32],
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    /// The head's first channel.
    from: usize,
    sizes: Sizes,
    scratch: &'a mut Vec<f32>,
}

/// What is known of the queries of a block after some keys, `[..][across]`.
struct State<'a, V, const WIDE: usize> {
    queries: &'a [[V; WIDE]],
    mixed: &'a mut [[V; WIDE]],
    most: &'a mut [V; WIDE],
    sums: &'a mut [V; WIDE],
}

impl Kernel for Head<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const WIDE: usize>(self, simd: S) {
        let Sizes { channels, others, .. } = self.sizes;
        let (width, across) = (self.sizes.width(), WIDE * S::F32_LANES);
        let padded = width.next_multiple_of(ROWS);
        let blocks = (self.out.len() / channels).div_ceil(across);
        // Queries, mixed values, maximum and sum.
        let of_block = (width + padded + 2) * across;
        let scratch = aligned(self.scratch, blocks * of_block + TILE * across);
        let (states, scores) = scratch.split_at_mut(blocks * of_block);
        let factor = (width as f32).powf(-0.5) * std::f32::consts::LOG2_E;
        for (state, q) in states.chunks_mut(of_block).zip(self.q.chunks(across * channels)) {
            let (queries, rest) = state.split_at_mut(width * across);
            let (rest, sums) = rest.split_at_mut((padded + 1) * across);
            let (mixed, most) = rest.split_at_mut(padded * across);
            mixed.fill(0.0);
            most.fill(f32::NEG_INFINITY);
            sums.fill(0.0);
            queries.fill(0.0);
            for (query, q) in q.chunks(channels).enumerate() {
                let to = queries[query..].iter_mut().step_by(across);
                to.zip(&q[self.from..][..width]).for_each(|(to, q)| *to = q * factor);
            }
        }
        let (keys, _) = self.keys.as_chunks::<ROWS>();
        let (values, _) = self.values.as_chunks::<ROWS>();
        let scores = S::as_mut_simd_f32s(scores).0.as_chunks_mut::<WIDE>().0;
        for first in (0..others).step_by(TILE) {
            let count = TILE.min(others - first);
            for state in states.chunks_mut(of_block) {
                let state = S::as_mut_simd_f32s(state).0.as_chunks_mut::<WIDE>().0;
                let (queries, rest) = state.split_at_mut(width);
                let (mixed, rest) = rest.split_at_mut(padded);
                let [most, sums] = rest else { return };
                let state = State { queries, mixed, most, sums };
                let keys = &keys[first / ROWS * width..];
                tile::<S, ROWS, WIDE>(simd, state, keys, values, first..first + count, others, &mut scores[..count]);
            }
        }
        for (state, out) in states.chunks(of_block).zip(self.out.chunks_mut(across * channels)) {
            let (mixed, sums) = (&state[width * across..], &state[of_block - across..]);
            for (query, out) in out.chunks_mut(channels).enumerate() {
                let share = 1.0 / sums[query];
                let mixed = mixed[query..].iter().step_by(across);
                out[self.from..][..width].iter_mut().zip(mixed).for_each(|(out, mixed)| *out = mixed * share);
            }
        }
    }
}

/// Takes a block of queries through a tile of keys.
#[inline(always)]
fn tile<S: Simd, const ROWS: usize, const WIDE: usize>(
    simd: S,
    state: State<S::f32s, WIDE>,
    keys: &[[f32; ROWS]],
    values: &[[f32; ROWS]],
    tile: std::ops::Range<usize>,
    others: usize,
    scores: &mut [[S::f32s; WIDE]],
) {
    let State { queries, mixed, most, sums } = state;
    let zero = simd.splat_f32s(0.0);
    let mut highest = *most;
    for (keys, scores) in keys.chunks_exact(queries.len()).zip(scores.chunks_mut(ROWS)) {
        let products = multiply(simd, [[zero; WIDE]; ROWS], keys, queries);
        for (scores, products) in scores.iter_mut().zip(products) {
            *scores = products;
            for (highest, product) in highest.iter_mut().zip(products) {
                *highest = simd.max_f32s(*highest, product);
            }
        }
    }
    let mut fade = [zero; WIDE];
    for at in 0..WIDE {
        fade[at] = exp2_of_negative(simd, simd.sub_f32s(most[at], highest[at]));
        sums[at] = simd.mul_f32s(sums[at], fade[at]);
    }
    *most = highest;
    let mut total = *sums;
    for scores in &mut *scores {
        for at in 0..WIDE {
            scores[at] = exp2_of_negative(simd, simd.sub_f32s(scores[at], highest[at]));
            total[at] = simd.add_f32s(total[at], scores[at]);
        }
    }
    *sums = total;
    for (mixed, values) in mixed.as_chunks_mut::<ROWS>().0.iter_mut().zip(values.chunks_exact(others)) {
        let mut faded = *mixed;
        for row in &mut faded {
            for at in 0..WIDE {
                row[at] = simd.mul_f32s(row[at], fade[at]);
            }
        }
        *mixed = multiply(simd, faded, &values[tile.clone()], scores);
    }
}
