//! Convolution as a product of matrices (im2col): Chellapilla et al., "High performance convolutional neural networks for document
//! processing", 2006. Each thread computes a piece whose matrix fits into the cache. Large maps with few channels go through
//! [`winograd`] instead.

use super::{
    super::Window,
    Strides, matmul, scratch, tensor, vectorised, view,
    winograd::{self, Kernels},
};
use crate::ops::params::Params;
use candle_core::{Error, Result, Tensor};
use rayon::prelude::*;
use std::{cell::RefCell, sync::Arc};

/// The most elements of a piece's matrix: 512 KiB.
const PIECE: usize = 128 << 10;

thread_local! {
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([const { Vec::new() }; 2]) };
}

/// A convolution with bias over `[batch, channels, height, width]`.
pub(crate) struct Conv {
    /// `[out, in, side, side]`.
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) window: Window,
    /// The weights for Winograd's algorithm, if window and channels suit it.
    pub(super) kernels: Option<Arc<Kernels>>,
}

/// Sizes of one convolution.
pub(super) struct Sizes {
    pub(super) channels: usize,
    pub(super) out: usize,
    /// Height and width of the input.
    pub(super) input: (usize, usize),
    /// Height and width of the output.
    pub(super) output: (usize, usize),
    window: Window,
}

impl Conv {
    pub(crate) fn new(channels_in: usize, channels_out: usize, window: Window, params: &Params) -> Result<Self> {
        let weight = params.tensor(&[channels_out, channels_in, window.side, window.side], "weight")?;
        let bias = params.tensor(&[channels_out], "bias")?;
        if params.is_recording() {
            return Ok(Self { weight, bias, window, kernels: None });
        }
        Self::of(weight, bias, window)
    }

    pub(super) fn of(weight: Tensor, bias: Tensor, window: Window) -> Result<Self> {
        let (out, channels, ..) = weight.dims4()?;
        let fits = (window.side, window.stride, window.padding) == (3, 1, 1);
        let kernels = (fits && Kernels::suit(channels, out)).then(|| Kernels::of(&weight)).transpose()?;
        Ok(Self { weight, bias, window, kernels })
    }

    /// The convolution plus `shift`, `[1, out]` or `[batch, out]`, at every position, plus `residual`, which has the output's shape.
    pub(crate) fn forward(&self, xs: &Tensor, shift: Option<&Tensor>, residual: Option<&Tensor>) -> Result<Tensor> {
        let (batch, channels, height, width) = xs.dims4()?;
        let (out, window) = (self.weight.dim(0)?, self.window);
        let positions = |length: usize| (length + 2 * window.padding - window.side) / window.stride + 1;
        let output = (positions(height), positions(width));
        let sizes = Sizes { channels, out, input: (height, width), output, window };
        let kernels = self.kernels.as_deref().filter(|_| winograd::suits(output));
        let (input, weight) = (view(xs)?, view(&self.weight)?);
        let offsets = offsets(batch, &self.bias, shift)?;
        let residual = residual.map(view).transpose()?;

        let plane = output.0 * output.1;
        let rows = if kernels.is_some() { winograd::rows(&sizes, batch) } else { sizes.rows() };
        let pieces = output.0.div_ceil(rows);
        let mut values = vec![0f32; batch * out * plane];
        let parts = split(&mut values, batch, plane, rows * output.1);
        parts.into_par_iter().enumerate().for_each(|(index, mut lines)| {
            let (item, from) = (index / pieces, index % pieces * rows);
            let input = &input[item * channels * height * width..][..channels * height * width];
            let offsets = &offsets[item * out..][..out];
            SCRATCH.with_borrow_mut(|[before, after]| match kernels {
                Some(kernels) => winograd::piece(&sizes, kernels, input, from, offsets, &mut lines, (before, after)),
                None => sizes.piece(input, &weight, from, offsets, &mut lines, (before, after)),
            });
            if let Some(residual) = &residual {
                let first = item * out * plane + from * output.1;
                for (channel, line) in lines.iter_mut().enumerate() {
                    let residual = &residual[first + channel * plane..][..line.len()];
                    vectorised(
                        #[inline(always)]
                        || {
                            for (value, residual) in line.iter_mut().zip(residual) {
                                *value += residual;
                            }
                        },
                    );
                }
            }
        });
        tensor(values, (batch, out, output.0, output.1))
    }
}

impl Conv {
    pub(crate) fn channels_out(&self) -> Result<usize> {
        self.weight.dim(0)
    }

    /// The convolution of maps with a row more above and below than the output has, plus `residual`, which has the output's shape.
    pub(crate) fn forward_open(&self, xs: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let Window { side, stride, padding } = self.window;
        let height = xs.dim(2)?;
        if (side, stride, padding) != (3, 1, 1) || height < 3 {
            return Err(Error::Msg(format!("{height} rows without zeros around them, for {:?}", self.window)).bt());
        }
        // Zeros reach the first and the last row alone.
        let out = self.forward(xs, None, None)?.narrow(2, 1, height - 2)?.contiguous()?;
        residual.map_or(Ok(out.clone()), |residual| out + residual)
    }
}

/// The sum of bias and shift, `[batch, out]`.
fn offsets(batch: usize, bias: &Tensor, shift: Option<&Tensor>) -> Result<Vec<f32>> {
    let mut offsets = view(bias)?.repeat(batch);
    if let Some(shift) = shift {
        offsets.iter_mut().zip(view(shift)?.iter().cycle()).for_each(|(offset, shift)| *offset += shift);
    }
    Ok(offsets)
}

/// The parts of the output that each piece writes: `piece` elements of each channel, fewer in the last piece.
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
        self.channels * self.window.side * self.window.side
    }

    /// The output rows of a piece.
    fn rows(&self) -> usize {
        (PIECE / (self.depth() * self.output.1)).clamp(1, self.output.0)
    }

    /// Computes the output rows from `from` on. `lines` has those rows of each output channel.
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
        let sums = scratch(sums, self.out * count);
        let weight = (weight, Strides::rows(self.depth()));
        if self.window.side == 1 && self.window.stride == 1 {
            let plane = self.input.0 * self.input.1;
            let columns = (&input[from * self.input.1..], Strides::rows(plane));
            matmul(shape, sums, Strides::rows(count), weight, columns);
        } else {
            let columns = scratch(columns, self.depth() * count);
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

    /// Fills `[channels x side x side, rows x width]` with the input of each weight at each position, zero outside the picture.
    fn gather(&self, input: &[f32], from: usize, columns: &mut [f32]) {
        let ((height, width), Window { stride, padding, .. }) = (self.input, self.window);
        let taps = self.window.side * self.window.side;
        let count = columns.len() / (self.channels * taps);
        for (tap, columns) in columns.chunks_mut(count).enumerate() {
            let plane = &input[tap / taps * height * width..][..height * width];
            let (down, across) = (tap % taps / self.window.side, tap % self.window.side);
            for (row, line) in columns.chunks_mut(self.output.1).enumerate() {
                match ((from + row) * stride + down).checked_sub(padding).filter(|&y| y < height) {
                    Some(y) => shifted(&plane[y * width..][..width], across as isize - padding as isize, stride, line),
                    None => line.fill(0.0),
                }
            }
        }
    }
}

/// `line[x] = source[x * stride + shift]`, zero outside of `source`.
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
