//! Convolution: the windows of some rows of the picture as columns of a matrix, times the weights.
//!
//! Chellapilla et al., "High performance convolutional neural networks for document processing", 2006; here in pieces that
//! stay in the cache, one thread to a piece.

use super::{super::Window, Strides, matmul, slice};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};
use rayon::prelude::*;
use std::cell::RefCell;

/// Elements of a piece's matrix: 512 KiB.
const PIECE: usize = 128 << 10;

thread_local! {
    static COLUMNS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Input `[batch, in, height, width]`, weight `[out, in, side, side]`, bias `[out]`.
pub(in super::super) struct Conv(pub(in super::super) Window);

/// Sizes of one convolution.
struct Sizes {
    channels: usize,
    side: usize,
    /// Height and width of the input.
    input: (usize, usize),
    /// Height and width of the output.
    output: (usize, usize),
    window: Window,
}

impl CustomOp3 for Conv {
    fn name(&self) -> &'static str {
        "conv-cpu"
    }

    fn cpu_fwd(
        &self,
        input: &CpuStorage,
        input_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
        bias: &CpuStorage,
        bias_layout: &Layout,
    ) -> Result<(CpuStorage, Shape)> {
        let (batch, channels, height, width) = input_layout.shape().dims4()?;
        let (out, _, side, _) = weight_layout.shape().dims4()?;
        let after = |length: usize| (length + 2 * self.0.padding - side) / self.0.stride + 1;
        let output = (after(height), after(width));
        let sizes = Sizes { channels, side, input: (height, width), output, window: self.0 };
        let input = slice(input, input_layout, self.name())?;
        let weight = slice(weight, weight_layout, self.name())?;
        let bias = slice(bias, bias_layout, self.name())?;
        let values = sizes.convolve(batch, out, input, weight, bias);
        Ok((CpuStorage::F32(values), (batch, out, output.0, output.1).into()))
    }
}

impl Sizes {
    fn convolve(&self, batch: usize, out: usize, input: &[f32], weight: &[f32], bias: &[f32]) -> Vec<f32> {
        let (height, width) = self.output;
        let depth = self.channels * self.side * self.side;
        let rows = (PIECE / (depth * width)).clamp(1, height);
        let pieces = height.div_ceil(rows);
        let picture = self.channels * self.input.0 * self.input.1;
        let results: Vec<Vec<f32>> = (0..batch * pieces)
            .into_par_iter()
            .map(|index| {
                let from = index % pieces * rows;
                let taken = rows.min(height - from);
                let input = &input[index / pieces * picture..][..picture];
                self.piece(input, weight, out, from, taken)
            })
            .collect();
        let mut values = vec![0f32; batch * out * height * width];
        values.par_chunks_mut(height * width).enumerate().for_each(|(plane, values)| {
            let (item, channel) = (plane / out, plane % out);
            for (piece, values) in values.chunks_mut(rows * width).enumerate() {
                let result = &results[item * pieces + piece];
                let line = &result[channel * values.len()..][..values.len()];
                values.iter_mut().zip(line).for_each(|(value, sum)| *value = sum + bias[channel]);
            }
        });
        values
    }

    /// Rows `from..from + taken` of every output channel, without bias: `[out, taken x width]`.
    fn piece(&self, input: &[f32], weight: &[f32], out: usize, from: usize, taken: usize) -> Vec<f32> {
        let count = taken * self.output.1;
        let depth = self.channels * self.side * self.side;
        let mut result = vec![0f32; out * count];
        let shape = (out, count, depth);
        if self.side == 1 && self.window.stride == 1 {
            let plane = self.input.0 * self.input.1;
            let columns = (&input[from * self.input.1..], Strides::rows(plane));
            matmul(shape, &mut result, Strides::rows(count), (weight, Strides::rows(depth)), columns);
            return result;
        }
        COLUMNS.with_borrow_mut(|columns| {
            columns.resize(columns.len().max(depth * count), 0.0);
            let columns = &mut columns[..depth * count];
            self.gather(input, from, columns);
            let columns = (&*columns, Strides::rows(count));
            matmul(shape, &mut result, Strides::rows(count), (weight, Strides::rows(depth)), columns);
        });
        result
    }

    /// Fills `[channels x side x side, rows x width]`: what each weight sees at each place, zero outside the picture.
    fn gather(&self, input: &[f32], from: usize, columns: &mut [f32]) {
        let ((height, width), Window { stride, padding }) = (self.input, self.window);
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
