//! Attention with scores and values as products in bf16, and the softmax between them in f32. Tile by tile as in the form for f32: Dao
//! et al., "FlashAttention: fast and memory-efficient exact attention with IO-awareness", 2022.

use super::{
    BLOCK, DEPTH, PIECES, SIDE, Tile,
    instructions::{Block, Columns, Instructions, flat, flat_mut},
    linear::too_large,
};
use crate::ops::cpu::{
    flash::Sizes,
    vectors::{self, Kernel, exp2_of_negative},
};
use candle_core::Result;
use half::bf16;
use pulp::Simd;
use rayon::prelude::*;
use std::cell::RefCell;

/// Keys whose scores are computed before the softmax: 32 KiB.
const TILE: usize = 256;

/// The rows of the operands.
pub(in crate::ops::cpu) enum Queries<'a> {
    F32(&'a [f32]),
    Bf16(&'a [bf16]),
}

#[derive(Default)]
struct Scratch {
    queries: Vec<Tile>,
    scores: Vec<Block>,
    shares: Vec<Tile>,
    mixed: Vec<Block>,
}

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// Keys and values in the order of the products. Only the thread that calls an attention has them.
    static PACKED: RefCell<[Vec<Tile>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
}

/// What all parts of an attention share.
struct Shape {
    instructions: Instructions,
    sizes: Sizes,
    /// Channels of a head.
    width: usize,
    /// Steps along the channels of a head.
    steps: usize,
    /// Blocks of 32 keys.
    blocks: usize,
    /// Where the tiles of 32 keys and their scores begin, and those of 32 values for one tile of keys.
    of_keys: Vec<usize>,
    of_values: Vec<usize>,
}

/// `out` is `[items, tokens, channels]` as the queries are, `k` and `v` are `[items, others, channels]`.
///
/// # Errors
/// They are too large for this machine's addresses.
pub(in crate::ops::cpu) fn attention(
    instructions: Instructions,
    out: &mut [f32],
    q: Queries,
    [k, v]: [&[bf16]; 2],
    sizes: Sizes,
) -> Result<()> {
    let Sizes { items, tokens, others, channels, heads } = sizes;
    let width = channels / heads;
    let (steps, blocks) = (width.div_ceil(DEPTH), others.div_ceil(BLOCK));
    let shape = Shape {
        instructions,
        sizes,
        width,
        steps,
        blocks,
        of_keys: (0..steps).map(|step| step * SIDE * SIDE).collect(),
        of_values: (0..TILE / BLOCK).map(|block| block * SIDE * steps * DEPTH).collect(),
    };
    // Both have 16 pairs of 32 columns for each step and each block of keys.
    let of_head = 2 * steps * blocks;
    // Taken, not borrowed: this thread may compute another attention while it waits for the others.
    let mut packed = PACKED.take();
    for packed in &mut packed {
        // The last tile of keys may reach over the end.
        packed.resize(packed.len().max(items * heads * of_head + 2 * steps * TILE / BLOCK), Tile::ZERO);
    }
    let [keys, values] = &mut packed;
    let parts = keys.par_chunks_mut(of_head).zip(values.par_chunks_mut(of_head)).take(items * heads);
    parts.enumerate().for_each(|(index, (keys, values))| {
        let from = index / heads * others * channels + index % heads * width;
        shape.pack_keys(keys, &k[from..]);
        shape.pack_values(flat_mut(values), &v[from..]);
    });
    let keys = Columns::new(flat(keys), &shape.of_keys, SIDE, steps * SIDE * SIDE).ok_or_else(too_large)?;
    let mut of_values = Vec::new();
    for count in 1..=TILE / BLOCK {
        let columns = Columns::new(flat(values), &shape.of_values[..count], steps * DEPTH, SIDE);
        of_values.push(columns.ok_or_else(too_large)?);
    }
    let wanted = (PIECES * rayon::current_num_threads()).div_ceil(items);
    let at_once = tokens.div_ceil(wanted).next_multiple_of(BLOCK);
    let parts = out.chunks_mut(tokens * channels).enumerate().flat_map(|(item, out)| {
        let pieces = out.chunks_mut(at_once * channels).enumerate();
        pieces.map(move |(piece, out)| (item, piece * at_once, out))
    });
    parts.collect::<Vec<_>>().into_par_iter().for_each(|(item, first, out)| {
        SCRATCH.with_borrow_mut(|scratch| {
            for head in 0..heads {
                for (block, out) in out.chunks_mut(BLOCK * channels).enumerate() {
                    let row = (item * tokens + first + block * BLOCK) * channels + head * width;
                    shape.queries(&mut scratch.queries, &q, row, out.len() / channels);
                    let at = (item * heads + head) * of_head * SIDE * SIDE;
                    shape.attend(&keys, &of_values, at, scratch, &mut out[head * width..]);
                }
            }
        });
    });
    PACKED.set(packed);
    Ok(())
}

/// Two numbers as a pair. One that is not there is zero.
fn pair(row: &[bf16], at: usize) -> u32 {
    let bits = |at| row.get(at).map_or(0, |number: &bf16| u32::from(number.to_bits()));
    bits(at) | bits(at + 1) << 16
}

impl Shape {
    /// Panels of 16 keys: in each a tile for each step, whose rows are pairs of channels.
    fn pack_keys(&self, packed: &mut [Tile], keys: &[bf16]) {
        let Sizes { others, channels, .. } = self.sizes;
        for (panel, packed) in packed.chunks_mut(self.steps).enumerate() {
            for column in 0..SIDE {
                let key = panel * SIDE + column;
                let row = if key < others { &keys[key * channels..][..self.width] } else { &[] };
                for (step, tile) in packed.iter_mut().enumerate() {
                    for (line, to) in tile.0.iter_mut().enumerate() {
                        to[column] = pair(row, step * DEPTH + 2 * line);
                    }
                }
            }
        }
    }

    /// Pairs of values, channel by channel.
    fn pack_values(&self, packed: &mut [u32], values: &[bf16]) {
        let Sizes { others, channels, .. } = self.sizes;
        for (index, packed) in packed.chunks_mut(self.steps * DEPTH).enumerate() {
            let row = |value: usize| if value < others { &values[value * channels..][..self.width] } else { &[][..] };
            let (first, second) = (row(2 * index), row(2 * index + 1));
            packed.fill(0);
            packed.iter_mut().zip(first).for_each(|(to, number)| *to = u32::from(number.to_bits()));
            packed.iter_mut().zip(second).for_each(|(to, number)| *to |= u32::from(number.to_bits()) << 16);
        }
    }

    /// Up to 32 queries as tiles: the steps of 16 of them, then those of the others.
    fn queries(&self, tiles: &mut Vec<Tile>, q: &Queries, from: usize, count: usize) {
        tiles.resize(2 * self.steps, Tile::ZERO);
        for query in 0..count {
            let at = from + query * self.sizes.channels;
            let tiles = &mut tiles[query / SIDE * self.steps..][..self.steps];
            for (step, tile) in tiles.iter_mut().enumerate() {
                let there = (self.width - step * DEPTH).min(DEPTH);
                let to = &mut tile.0[query % SIDE];
                match q {
                    Queries::F32(q) => self.instructions.round(&q[at + step * DEPTH..][..there], to),
                    Queries::Bf16(q) => {
                        let row = &q[at + step * DEPTH..][..there];
                        to.iter_mut().enumerate().for_each(|(index, to)| *to = pair(row, 2 * index));
                    }
                }
            }
        }
    }

    /// One head for up to 32 queries. `out` begins at its first channel.
    fn attend(&self, keys: &Columns, of_values: &[Columns], at: usize, scratch: &mut Scratch, out: &mut [f32]) {
        let Scratch { queries, scores, shares, mixed } = scratch;
        let (steps, width) = (self.steps, self.width);
        let of_block = 2 * steps * SIDE * SIDE;
        scores.resize_with(TILE / BLOCK, || Block::ZERO);
        shares.resize(2 * TILE / BLOCK, Tile::ZERO);
        mixed.resize_with(steps + 1, || Block::ZERO);
        let [mixed @ .., product] = &mut mixed[..] else { return };
        mixed.iter_mut().for_each(|mixed| *mixed = Block::ZERO);
        let mut rows = Rows { most: [f32::NEG_INFINITY; BLOCK], sums: [0.0; BLOCK], fade: [0.0; BLOCK] };
        let factor = (width as f32).powf(-0.5) * std::f32::consts::LOG2_E;
        let session = self.instructions.session();
        let (upper, lower) = queries.split_at(steps);
        for first in (0..self.blocks).step_by(TILE / BLOCK) {
            let count = (self.blocks - first).min(TILE / BLOCK);
            let scores = &mut scores[..count];
            for (block, scores) in scores.iter_mut().enumerate() {
                session.multiply([upper, lower], keys, at + (first + block) * of_block, scores);
            }
            // What is after the last key.
            let there = self.sizes.others - (first + count - 1) * BLOCK;
            if let (Some(last), true) = (scores.last_mut(), there < BLOCK) {
                last.0.iter_mut().for_each(|row| row[there..].fill(f32::NEG_INFINITY));
            }
            vectors::run(Softmax { scores, rows: &mut rows, factor });
            for (block, scores) in scores.iter().enumerate() {
                for (row, scores) in scores.0.iter().enumerate() {
                    self.instructions.round(scores, &mut shares[row / SIDE * count + block].0[row % SIDE]);
                }
            }
            let (upper, lower) = shares[..2 * count].split_at(count);
            for (step, mixed) in mixed.iter_mut().enumerate() {
                let at = at + first * of_block + step * DEPTH;
                session.multiply([upper, lower], &of_values[count - 1], at, product);
                vectors::run(Fade { mixed, product, fade: &rows.fade });
            }
        }
        for (query, out) in out.chunks_mut(self.sizes.channels).enumerate() {
            let share = 1.0 / rows.sums[query];
            for (mixed, out) in mixed.iter().zip(out[..width].chunks_mut(BLOCK)) {
                out.iter_mut().zip(&mixed.0[query]).for_each(|(out, mixed)| *out = mixed * share);
            }
        }
    }
}

/// The softmax of 32 queries so far.
struct Rows {
    /// The highest score, times the factor.
    most: [f32; BLOCK],
    sums: [f32; BLOCK],
    /// What the sums before this tile of keys are to be multiplied with.
    fade: [f32; BLOCK],
}

/// Turns scores into powers of two below the highest score.
struct Softmax<'a> {
    scores: &'a mut [Block],
    rows: &'a mut Rows,
    factor: f32,
}

impl Kernel for Softmax<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const WIDE: usize>(self, simd: S) {
        let Self { scores, rows, factor } = self;
        let (factors, mut totals) = (simd.splat_f32s(factor), [0.0; BLOCK]);
        for (row, all) in totals.iter_mut().enumerate() {
            let mut highest = simd.splat_f32s(f32::NEG_INFINITY);
            for block in &*scores {
                for part in S::as_simd_f32s(&block.0[row]).0 {
                    highest = simd.max_f32s(highest, *part);
                }
            }
            let most = rows.most[row].max(simd.reduce_max_f32s(highest) * factor);
            rows.fade[row] = rows.most[row] - most;
            rows.most[row] = most;
            let (mosts, mut total) = (simd.splat_f32s(-most), simd.splat_f32s(0.0));
            for block in &mut *scores {
                for part in S::as_mut_simd_f32s(&mut block.0[row]).0 {
                    *part = exp2_of_negative(simd, simd.mul_add_e_f32s(*part, factors, mosts));
                    total = simd.add_f32s(total, *part);
                }
            }
            *all = simd.reduce_sum_f32s(total);
        }
        let sums = S::as_mut_simd_f32s(&mut rows.sums).0.iter_mut().zip(S::as_simd_f32s(&totals).0);
        for (fade, (sum, total)) in S::as_mut_simd_f32s(&mut rows.fade).0.iter_mut().zip(sums) {
            *fade = exp2_of_negative(simd, *fade);
            *sum = simd.mul_add_e_f32s(*sum, *fade, *total);
        }
    }
}

/// `mixed = mixed * fade + product`, with a factor for each row.
struct Fade<'a> {
    mixed: &'a mut Block,
    product: &'a Block,
    fade: &'a [f32; BLOCK],
}

impl Kernel for Fade<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const WIDE: usize>(self, simd: S) {
        for row in 0..BLOCK {
            let fade = simd.splat_f32s(self.fade[row]);
            let mixed = S::as_mut_simd_f32s(&mut self.mixed.0[row]).0;
            for (mixed, product) in mixed.iter_mut().zip(S::as_simd_f32s(&self.product.0[row]).0) {
                *mixed = simd.mul_add_e_f32s(*mixed, fade, *product);
            }
        }
    }
}
