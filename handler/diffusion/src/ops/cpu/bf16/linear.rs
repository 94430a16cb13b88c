//! Linear layers.

use super::{
    BLOCK, DEPTH, NEAR, PIECES, Part, SIDE, Tile, cut,
    instructions::{Block, Columns, Instructions, flat},
};
use crate::ops::cpu::vectors::vectorised;
use candle_core::{Error, Result};
use half::bf16;
use rayon::prelude::*;
use std::cell::RefCell;

thread_local! {
    /// The rows of a piece.
    static ROWS: RefCell<Vec<Tile>> = const { RefCell::new(Vec::new()) };
}

/// The weights of a linear layer in bf16.
pub(crate) struct Matrix {
    instructions: Instructions,
    /// Panels of 16 outputs, an even number of them. In each there is a tile for each step along the depth, whose rows are pairs of
    /// inputs.
    panels: Vec<Tile>,
    /// Where in a panel the tile of each step is.
    offsets: Vec<usize>,
    out: usize,
    depth: usize,
}

impl Matrix {
    /// Of `weight`, `[out, depth]`.
    pub(crate) fn new(instructions: Instructions, weight: &[f32], out: usize, depth: usize) -> Self {
        let steps = depth.div_ceil(DEPTH);
        let mut panels = vec![Tile::ZERO; out.next_multiple_of(BLOCK) / SIDE * steps];
        let panel_rows = panels.par_chunks_mut(steps).zip(weight.par_chunks(SIDE * depth));
        panel_rows.for_each(|(panel, rows)| {
            let mut pairs = vec![0; steps * SIDE];
            for (column, row) in rows.chunks(depth).enumerate() {
                instructions.round(row, &mut pairs);
                for (tile, pairs) in panel.iter_mut().zip(pairs.chunks(SIDE)) {
                    for (line, pair) in tile.0.iter_mut().zip(pairs) {
                        line[column] = *pair;
                    }
                }
            }
        });
        let offsets = (0..steps).map(|step| step * SIDE * SIDE).collect();
        Self { instructions, panels, offsets, out, depth }
    }

    pub(crate) fn dims(&self) -> (usize, usize) {
        (self.out, self.depth)
    }

    /// `values = input @ weight^T + bias + residual`, row by row.
    ///
    /// # Errors
    /// The layer is too large for this machine's addresses.
    pub(crate) fn forward<T: Number>(
        &self,
        input: &[f32],
        bias: Option<&[f32]>,
        residual: Option<&[f32]>,
        values: &mut [T],
    ) -> Result<()> {
        let Self { out, depth, .. } = *self;
        let (count, steps) = (input.len() / depth, self.offsets.len());
        let panel = steps * SIDE * SIDE;
        let columns = Columns::new(flat(&self.panels), &self.offsets, SIDE, panel).ok_or_else(too_large)?;
        let wanted = PIECES * rayon::current_num_threads();
        let near = (NEAR / (steps * DEPTH * size_of::<u16>())).max(1);
        let rows = near.min(count.div_ceil(wanted)).next_multiple_of(BLOCK);
        let across = out.div_ceil(wanted.div_ceil(count.div_ceil(rows))).next_multiple_of(BLOCK);
        let parts = cut(values, out, rows, across);
        parts.into_par_iter().for_each(|part| {
            ROWS.with_borrow_mut(|tiles| {
                let lines = part.lines.len();
                self.pack(&input[part.row * depth..][..lines * depth], tiles);
                let residual = residual.map(|residual| &residual[part.row * out..]);
                self.multiply(tiles, &columns, part, bias, residual);
            });
        });
        Ok(())
    }

    /// The rows as tiles: for 16 rows those of all steps, then those of the next.
    fn pack(&self, input: &[f32], tiles: &mut Vec<Tile>) {
        let (depth, steps) = (self.depth, self.offsets.len());
        let lines = input.len() / depth;
        tiles.resize(tiles.len().max(lines.div_ceil(SIDE) * steps), Tile::ZERO);
        for (tiles, rows) in tiles.chunks_mut(steps).zip(input.chunks(SIDE * depth)) {
            for (line, row) in rows.chunks(depth).enumerate() {
                for (tile, part) in tiles.iter_mut().zip(row.chunks(DEPTH)) {
                    self.instructions.round(part, &mut tile.0[line]);
                }
            }
        }
    }

    fn multiply<T: Number>(
        &self,
        tiles: &[Tile],
        columns: &Columns,
        part: Part<T>,
        bias: Option<&[f32]>,
        residual: Option<&[f32]>,
    ) {
        let Part { column, mut lines, .. } = part;
        let (out, steps) = (self.out, self.offsets.len());
        let (session, mut block) = (self.instructions.session(), Block::ZERO);
        let wide = lines.first().map_or(0, |line| line.len());
        for from in (0..wide).step_by(BLOCK) {
            let count = BLOCK.min(wide - from);
            let bias = bias.map(|bias| &bias[column + from..][..count]);
            for (index, lines) in lines.chunks_mut(BLOCK).enumerate() {
                let first = index * 2 * steps;
                let upper = &tiles[first..][..steps];
                let lower = if lines.len() > SIDE { &tiles[first + steps..][..steps] } else { &[] };
                session.multiply([upper, lower], columns, (column + from) / SIDE * steps * SIDE * SIDE, &mut block);
                vectorised(
                    #[inline(always)]
                    || {
                        for (row, (line, sums)) in lines.iter_mut().zip(&mut block.0).enumerate() {
                            if let Some(bias) = bias {
                                for (sum, bias) in sums.iter_mut().zip(bias) {
                                    *sum += bias;
                                }
                            }
                            if let Some(residual) = residual {
                                let residual = &residual[(index * BLOCK + row) * out + column + from..][..count];
                                for (sum, residual) in sums.iter_mut().zip(residual) {
                                    *sum += residual;
                                }
                            }
                            for (value, sum) in line[from..][..count].iter_mut().zip(sums) {
                                *value = T::of(*sum);
                            }
                        }
                    },
                );
            }
        }
    }
}

/// What sums are kept as.
pub(crate) trait Number: Copy + Send + Sync + Default {
    /// The nearest.
    fn of(sum: f32) -> Self;
}

impl Number for f32 {
    #[inline(always)]
    fn of(sum: f32) -> Self {
        sum
    }
}

impl Number for bf16 {
    /// In operations that a compiler can vectorise.
    #[inline(always)]
    fn of(sum: f32) -> Self {
        let bits = sum.to_bits();
        let near = bits.wrapping_add(0x7FFF + (bits >> 16 & 1)) >> 16;
        Self::from_bits(if sum.is_nan() { 0x7FC0 } else { near as u16 })
    }
}

pub(super) fn too_large() -> Error {
    Error::Msg("a product larger than this machine's addresses".into()).bt()
}
