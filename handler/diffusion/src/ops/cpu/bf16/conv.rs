//! Convolutions as products without a copy for each weight's place (implicit GEMM).
//!
//! The map is rounded once, with two channels in each pair and zeros around it. Then the pairs that one place of the window reads at
//! neighbouring positions lie side by side, and a tile of them is read as it lies: 16 pairs of channels at 16 positions. Positions are
//! counted through the rows with the zeros between them, so that tiles are whole on narrow maps too; what is computed there is dropped.
//! With a stride, the map is split into one for each remainder of the places.

use super::{
    BLOCK, DEPTH, NEAR, PIECES, Part, SIDE, Tile, cut,
    instructions::{Block, Columns, Instructions, flat, flat_mut},
    linear::too_large,
};
use crate::ops::{Window, cpu::vectors::vectorised};
use candle_core::Result;
use rayon::prelude::*;
use std::cell::RefCell;

thread_local! {
    /// A map in bf16. Only the thread that calls a convolution has it.
    static MAP: RefCell<Vec<Tile>> = const { RefCell::new(Vec::new()) };
}

/// The weights of a convolution in bf16.
pub(crate) struct Filters {
    instructions: Instructions,
    /// For 16 outputs the tiles of all steps, then those of the next: place by place of the window, 32 channels at a time.
    tiles: Vec<Tile>,
    out: usize,
    channels: usize,
    window: Window,
}

/// How a map lies in memory.
#[derive(Clone, Copy)]
struct Map {
    /// Of the input.
    size: (usize, usize),
    /// Of the output.
    output: (usize, usize),
    window: Window,
    /// The length of a row with its zeros.
    width: usize,
    /// The pairs of one remainder of the places.
    plane: usize,
    /// From one pair of channels to the next.
    stride: usize,
}

impl Filters {
    /// Of `weight`, `[out, channels, side, side]`.
    pub(crate) fn new(instructions: Instructions, weight: &[f32], dims: (usize, usize), window: Window) -> Self {
        let (out, channels) = dims;
        let (taps, groups) = (window.side * window.side, channels.div_ceil(DEPTH));
        let steps = taps * groups;
        let mut tiles = vec![Tile::ZERO; out.div_ceil(SIDE) * steps];
        let blocks = tiles.par_chunks_mut(steps).zip(weight.par_chunks(SIDE * channels * taps));
        blocks.for_each(|(tiles, filters)| {
            let mut numbers = vec![0.0; channels];
            for (line, filter) in filters.chunks(channels * taps).enumerate() {
                for (tap, tiles) in tiles.chunks_mut(groups).enumerate() {
                    let weights = filter[tap..].iter().step_by(taps);
                    numbers.iter_mut().zip(weights).for_each(|(number, weight)| *number = *weight);
                    for (tile, numbers) in tiles.iter_mut().zip(numbers.chunks(DEPTH)) {
                        instructions.round(numbers, &mut tile.0[line]);
                    }
                }
            }
        });
        Self { instructions, tiles, out, channels, window }
    }

    /// Outputs and channels.
    pub(crate) fn dims(&self) -> (usize, usize) {
        (self.out, self.channels)
    }

    /// The convolution of `batch` maps plus a number for each output of each, `shifts`, plus `residual`.
    ///
    /// # Errors
    /// The map is too large for this machine's addresses.
    pub(crate) fn forward(
        &self,
        input: &[f32],
        [size, output]: [(usize, usize); 2],
        shifts: &[f32],
        residual: Option<&[f32]>,
        values: &mut [f32],
    ) -> Result<()> {
        let Self { out, channels, window, .. } = *self;
        let map = Map::new(size, output, window);
        let groups = channels.div_ceil(DEPTH);
        let of_item = groups * SIDE * map.stride;
        let batch = shifts.len() / out;
        // Taken, not borrowed: this thread may compute another convolution while it waits for the others.
        let mut buffer = MAP.take();
        // The last tiles reach over the end.
        let room = (batch * of_item + BLOCK + map.width * window.side).div_ceil(SIDE * SIDE);
        buffer.resize(buffer.len().max(room), Tile::ZERO);
        let pairs = flat_mut(&mut buffer);
        pairs.par_chunks_mut(map.stride).take(batch * groups * SIDE).enumerate().for_each(|(index, pairs)| {
            let (item, pair) = (index / (groups * SIDE), index % (groups * SIDE));
            let plane = size.0 * size.1;
            let channel = |channel: usize| {
                let there = (channel < channels).then(|| &input[(item * channels + channel) * plane..][..plane]);
                there.unwrap_or_default()
            };
            map.fill(self.instructions, channel(2 * pair), channel(2 * pair + 1), pairs);
        });
        let offsets = map.offsets(groups);
        let columns = Columns::new(flat(&buffer), &offsets, map.stride, SIDE).ok_or_else(too_large)?;

        let (height, width) = output;
        let wanted = (PIECES * rayon::current_num_threads()).div_ceil(batch);
        let near = (NEAR / (of_item / size.0.max(1) * size_of::<u32>()).max(1)).max(1);
        let rows = height.div_ceil(wanted).min(near).max(BLOCK.div_ceil(map.width)).min(height);
        let blocks = wanted.div_ceil(height.div_ceil(rows));
        let at_once = out.div_ceil(blocks).next_multiple_of(BLOCK);
        let parts = values.chunks_mut(out * height * width).enumerate().flat_map(|(item, values)| {
            cut(values, height * width, at_once, rows * width).into_iter().map(move |part| (item, part))
        });
        parts.collect::<Vec<_>>().into_par_iter().for_each(|(item, part)| {
            let shifts = &shifts[item * out + part.row..];
            let residual = residual.map(|residual| &residual[(item * out + part.row) * height * width + part.column..]);
            self.multiply(&columns, item * of_item, map, part, shifts, residual);
        });
        MAP.set(buffer);
        Ok(())
    }

    /// Some outputs of some rows.
    fn multiply(
        &self,
        columns: &Columns,
        item: usize,
        map: Map,
        part: Part<f32>,
        shifts: &[f32],
        residual: Option<&[f32]>,
    ) {
        let Part { row, column, mut lines } = part;
        let steps = self.window.side * self.window.side * self.channels.div_ceil(DEPTH);
        let (height, width) = map.output;
        let first = column / width * map.width;
        let (session, mut block) = (self.instructions.session(), Block::ZERO);
        let (count, positions) = (lines.len(), lines.first().map_or(0, |line| line.len() / width * map.width));
        let mut one = |from: usize, at: usize| {
            let lines = &mut lines[from..count.min(from + BLOCK)];
            let tiles = &self.tiles[(row + from) / SIDE * steps..];
            let lower = if lines.len() > SIDE { &tiles[steps..][..steps] } else { &[] };
            session.multiply([&tiles[..steps], lower], columns, item + first + at, &mut block);
            let plane = height * width;
            vectorised(
                #[inline(always)]
                || {
                    // The positions of one row of the output after the other.
                    let mut next = at;
                    while next < positions.min(at + BLOCK) {
                        let (down, right) = (next / map.width, next % map.width);
                        let sums = next - at..(next - right + map.width - at).min(BLOCK);
                        next = at + sums.end;
                        let there = width.saturating_sub(right).min(sums.len());
                        let to = down * width + right;
                        for (row, line) in lines.iter_mut().enumerate() {
                            let line = line.get_mut(to..).unwrap_or_default();
                            let shift = shifts[from + row];
                            for (value, sum) in line.iter_mut().zip(&block.0[row][sums.clone()][..there]) {
                                *value = *sum + shift;
                            }
                            if let Some(residual) = residual {
                                let residual = residual.get((from + row) * plane + to..).unwrap_or_default();
                                for (value, residual) in line.iter_mut().zip(residual).take(there) {
                                    *value += residual;
                                }
                            }
                        }
                    }
                },
            );
        };
        // The smaller factor is gone through again and again.
        if count * steps * DEPTH * size_of::<u16>() <= NEAR {
            for at in (0..positions).step_by(BLOCK) {
                (0..count).step_by(BLOCK).for_each(|from| one(from, at));
            }
        } else {
            for from in (0..count).step_by(BLOCK) {
                (0..positions).step_by(BLOCK).for_each(|at| one(from, at));
            }
        }
    }
}

impl Map {
    fn new(size: (usize, usize), output: (usize, usize), window: Window) -> Self {
        let beyond = (window.side - 1) / window.stride;
        let width = output.1 + beyond;
        let plane = (output.0 + beyond) * width;
        let all = window.stride * window.stride * plane;
        // An odd number of cache lines: the rows of a tile would share a few places of the cache otherwise.
        let stride = (all.div_ceil(SIDE) | 1) * SIDE;
        Self { size, output, window, width, plane, stride }
    }

    /// Where the tiles of each step are.
    fn offsets(&self, groups: usize) -> Vec<usize> {
        let Window { side, stride, .. } = self.window;
        let place = |tap: usize| {
            let (down, right) = (tap / side, tap % side);
            let phase = down % stride * stride + right % stride;
            phase * self.plane + down / stride * self.width + right / stride
        };
        let steps = |tap| (0..groups).map(move |group| group * SIDE * self.stride + place(tap));
        (0..side * side).flat_map(steps).collect()
    }

    /// Rounds two channels. One that is not there is zero.
    fn fill(&self, instructions: Instructions, first: &[f32], second: &[f32], pairs: &mut [u32]) {
        let Window { stride, padding, .. } = self.window;
        let (height, width) = self.size;
        if (stride, padding, self.width) == (1, 0, width) {
            instructions.interleave(first, second, &mut pairs[..self.plane]);
            return;
        }
        let mut picked = [vec![0.0; self.width], vec![0.0; self.width]];
        for (phase, pairs) in pairs.chunks_mut(self.plane).take(stride * stride).enumerate() {
            let (down, right) = (phase / stride, phase % stride);
            for (index, pairs) in pairs.chunks_mut(self.width).enumerate() {
                let y = (index * stride + down).wrapping_sub(padding);
                if y >= height {
                    pairs.fill(0);
                    continue;
                }
                let rows = [first, second].map(|map| map.get(y * width..(y + 1) * width).unwrap_or_default());
                if stride == 1 {
                    let there = width.min(self.width - padding);
                    pairs[..padding].fill(0);
                    pairs[padding + there..].fill(0);
                    instructions.interleave(rows[0], rows[1], &mut pairs[padding..padding + there]);
                } else {
                    for (picked, row) in picked.iter_mut().zip(rows) {
                        for (at, number) in picked.iter_mut().enumerate() {
                            let x = (at * stride + right).wrapping_sub(padding);
                            *number = row.get(x).copied().unwrap_or(0.0);
                        }
                    }
                    instructions.interleave(&picked[0], &picked[1], pairs);
                }
            }
        }
    }
}
