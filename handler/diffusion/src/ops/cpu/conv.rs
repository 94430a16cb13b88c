//! Convolution: the windows of some rows of the picture as columns of a matrix, times the weights.
//!
//! Chellapilla et al., "High performance convolutional neural networks for document processing", 2006; here in pieces that
//! stay in the cache, one thread to a piece. Large maps with few channels go by [`winograd`] instead.

use super::{
    super::Window,
    Strides, matmul, room, tensor, vectorised, view,
    winograd::{self, Kernels},
};
use candle_core::{Result, Tensor};
use rayon::prelude::*;
use std::cell::RefCell;

/// Elements of a piece's matrix: 512 KiB.
const PIECE: usize = 128 << 10;

thread_local! {
    static ROOM: RefCell<[Vec<f32>; 2]> = const { RefCell::new([const { Vec::new() }; 2]) };
}

/// What is added to the sums.
#[derive(Clone, Copy)]
pub(super) struct After<'a> {
    /// `[out]`
    pub(super) bias: &'a Tensor,
    /// `[batch, out]`, or `[1, out]` for all.
    pub(super) shift: Option<&'a Tensor>,
    /// As the output.
    pub(super) onto: Option<&'a Tensor>,
}

/// Sizes of one convolution.
pub(super) struct Sizes {
    pub(super) channels: usize,
    pub(super) out: usize,
    side: usize,
    /// Height and width of the input.
    pub(super) input: (usize, usize),
    /// Height and width of the output.
    pub(super) output: (usize, usize),
    window: Window,
}

/// Input `[batch, in, height, width]`, weight `[out, in, side, side]`. `kernels` are the weights as Winograd's algorithm has them, if
/// the window allows it.
pub(super) fn conv(
    xs: &Tensor,
    weight: &Tensor,
    window: Window,
    kernels: Option<&Kernels>,
    after: After,
) -> Result<Tensor> {
    let (batch, channels, height, width) = xs.dims4()?;
    let (out, _, side, _) = weight.dims4()?;
    let reach = |length: usize| (length + 2 * window.padding - side) / window.stride + 1;
    let output = (reach(height), reach(width));
    let sizes = Sizes { channels, out, side, input: (height, width), output, window };
    let kernels = kernels.filter(|_| winograd::suits(output));
    let (input, weight) = (view(xs)?, view(weight)?);
    let offsets = offsets(batch, after)?;
    let onto = after.onto.map(view).transpose()?;

    let plane = output.0 * output.1;
    let rows = if kernels.is_some() { winograd::rows(&sizes, batch) } else { sizes.rows() };
    let pieces = output.0.div_ceil(rows);
    let mut values = vec![0f32; batch * out * plane];
    let parts = split(&mut values, batch, plane, rows * output.1);
    parts.into_par_iter().enumerate().for_each(|(index, mut lines)| {
        let (item, from) = (index / pieces, index % pieces * rows);
        let input = &input[item * channels * height * width..][..channels * height * width];
        let offsets = &offsets[item * out..][..out];
        ROOM.with_borrow_mut(|[before, after]| match kernels {
            Some(kernels) => winograd::piece(&sizes, kernels, input, from, offsets, &mut lines, (before, after)),
            None => sizes.piece(input, &weight, from, offsets, &mut lines, (before, after)),
        });
        if let Some(onto) = &onto {
            let first = item * out * plane + from * output.1;
            for (channel, line) in lines.iter_mut().enumerate() {
                let onto = &onto[first + channel * plane..][..line.len()];
                vectorised(
                    #[inline(always)]
                    || {
                        for (value, onto) in line.iter_mut().zip(onto) {
                            *value += onto;
                        }
                    },
                );
            }
        }
    });
    tensor(values, (batch, out, output.0, output.1))
}

/// Bias and shift, `[batch, out]`.
fn offsets(batch: usize, after: After) -> Result<Vec<f32>> {
    let bias = view(after.bias)?;
    let mut offsets = bias.repeat(batch);
    if let Some(shift) = after.shift {
        offsets.iter_mut().zip(view(shift)?.iter().cycle()).for_each(|(offset, shift)| *offset += shift);
    }
    Ok(offsets)
}

/// The parts of all planes that each piece writes: of each channel, `piece` elements, or what is left.
fn split(values: &mut [f32], batch: usize, plane: usize, piece: usize) -> Vec<Vec<&mut [f32]>> {
    let (pieces, out) = (plane.div_ceil(piece), values.len() / plane / batch);
    let mut parts: Vec<_> = (0..batch * pieces).map(|_| Vec::with_capacity(out)).collect();
    for (index, plane) in values.chunks_mut(plane).enumerate() {
        for (part, line) in plane.chunks_mut(piece).enumerate() {
            parts[index / out * pieces + part].push(line);
        }
    }
    parts
}

impl Sizes {
    fn depth(&self) -> usize {
        self.channels * self.side * self.side
    }

    /// Output rows of a piece.
    fn rows(&self) -> usize {
        (PIECE / (self.depth() * self.output.1)).clamp(1, self.output.0)
    }

    /// Rows of the output from `from` on: `lines` are those of each output channel.
    fn piece(
        &self,
        input: &[f32],
        weight: &[f32],
        from: usize,
        offsets: &[f32],
        lines: &mut [&mut [f32]],
        (columns, sums): (&mut Vec<f32>, &mut Vec<f32>),
    ) {
        let count = lines[0].len();
        let shape = (self.out, count, self.depth());
        let sums = room(sums, self.out * count);
        let weight = (weight, Strides::rows(self.depth()));
        if self.side == 1 && self.window.stride == 1 {
            let plane = self.input.0 * self.input.1;
            let columns = (&input[from * self.input.1..], Strides::rows(plane));
            matmul(shape, sums, Strides::rows(count), weight, columns);
        } else {
            let columns = room(columns, self.depth() * count);
            self.gather(input, from, columns);
            matmul(shape, sums, Strides::rows(count), weight, (&*columns, Strides::rows(count)));
        }
        vectorised(
            #[inline(always)]
            || {
                for ((line, sums), offset) in lines.iter_mut().zip(sums.chunks(count)).zip(offsets) {
                    for (value, sum) in line.iter_mut().zip(sums) {
                        *value = sum + offset;
                    }
                }
            },
        );
    }

    /// Fills `[channels x side x side, rows x width]`: what each weight sees at each place, zero outside the picture.
    fn gather(&self, input: &[f32], from: usize, columns: &mut [f32]) {
        let ((height, width), Window { stride, padding, .. }) = (self.input, self.window);
        let taps = self.side * self.side;
        let count = columns.len() / (self.channels * taps);
        for (tap, columns) in columns.chunks_mut(count).enumerate() {
            let plane = &input[tap / taps * height * width..][..height * width];
            let (down, across) = (tap % taps / self.side, tap % self.side);
            for (row, line) in columns.chunks_mut(self.output.1).enumerate() {
                match ((from + row) * stride + down).checked_sub(padding).filter(|&y| y < height) {
                    Some(y) => shifted(&plane[y * width..][..width], across as isize - padding as isize, stride, line),
                    None => line.fill(0.0),
                }
            }
        }
    }
}

/// `line[x] = source[x * stride + shift]`, zero where there is none.
fn shifted(source: &[f32], shift: isize, stride: usize, line: &mut [f32]) {
    let first = (-shift).max(0) as usize;
    let first = first.div_ceil(stride).min(line.len());
    let start = (first * stride) as isize + shift;
    let there = source.len().saturating_sub(start as usize).div_ceil(stride).min(line.len() - first);
    line[..first].fill(0.0);
    line[first + there..].fill(0.0);
    let line = &mut line[first..first + there];
    if stride == 1 {
        line.copy_from_slice(&source[start as usize..][..there]);
    } else {
        line.iter_mut().zip(source[start as usize..].iter().step_by(stride)).for_each(|(to, from)| *to = *from);
    }
}
