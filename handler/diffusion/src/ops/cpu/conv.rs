//! Convolution as a product of matrices (im2col): Chellapilla et al., "High performance convolutional neural networks for document
//! processing", 2006. Each thread computes a piece whose matrix fits into the cache. Large maps with few channels go through
//! [`winograd`] instead.

use super::{
    super::Window,
    bf16::{self, Packed},
    product::{DEPTH, Rows, Start, product},
    tensor,
    vectors::{self, Kernel, aligned, clear, vectorised},
    view,
    winograd::{self, Kernels},
};
use crate::ops::params::Params;
use candle_core::{Error, Result, Tensor};
use pulp::Simd;
use rayon::prelude::*;
use std::{cell::RefCell, ops::Range, sync::Arc};

/// Pieces for each thread, so that none waits long for the others.
const PIECES: usize = 4;

thread_local! {
    /// A map with zeros around it. Only the thread that calls a convolution has it.
    static PADDED: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([const { Vec::new() }; 2]) };
}

/// A convolution with bias over `[batch, channels, height, width]`.
pub(crate) struct Conv {
    pub(super) filters: Filters,
    pub(super) bias: Tensor,
    pub(super) window: Window,
}

/// The weights of a convolution.
pub(super) enum Filters {
    F32 {
        /// `[out, in, side, side]`.
        weight: Tensor,
        /// For Winograd's algorithm, if window and channels suit it.
        kernels: Option<Arc<Kernels>>,
    },
    Bf16(Arc<bf16::Filters>),
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
        let weight = || params.tensor(&[channels_out, channels_in, window.side, window.side], "weight");
        let filters = match params.packed() {
            _ if params.is_recording() => Filters::F32 { weight: weight()?, kernels: None },
            None => Filters::f32(weight()?, window)?,
            Some(packed) => Filters::bf16(packed, params.unchanged("weight"), window, weight)?,
        };
        Ok(Self { filters, bias: params.tensor(&[channels_out], "bias")?, window })
    }

    /// The convolution plus `shift`, `[1, out]` or `[batch, out]`, at every position, plus `residual`, which has the output's shape.
    pub(crate) fn forward(&self, xs: &Tensor, shift: Option<&Tensor>, residual: Option<&Tensor>) -> Result<Tensor> {
        let (batch, channels, height, width) = xs.dims4()?;
        let (out, window) = (self.channels_out()?, self.window);
        let positions = |length: usize| (length + 2 * window.padding + window.past - window.side) / window.stride + 1;
        let output = (positions(height), positions(width));
        let sizes = Sizes { channels, out, input: (height, width), output, window };
        let input = view(xs)?;
        let offsets = offsets(batch, &self.bias, shift)?;
        let residual = residual.map(view).transpose()?;
        let dims = (batch, out, output.0, output.1);
        let (weight, kernels) = match &self.filters {
            Filters::F32 { weight, kernels } => (view(weight)?, kernels),
            Filters::Bf16(filters) => {
                let mut values = vec![0f32; batch * out * output.0 * output.1];
                filters.forward(&input, [sizes.input, output], &offsets, residual.as_deref(), &mut values)?;
                return tensor(values, dims);
            }
        };
        let kernels = kernels.as_deref().filter(|_| winograd::suits(output));

        let plane = output.0 * output.1;
        let rows = if kernels.is_some() { winograd::rows(&sizes, batch) } else { sizes.rows(batch) };
        let pieces = output.0.div_ceil(rows);
        let mut values = vec![0f32; batch * out * plane];
        let parts = split(&mut values, batch, plane, rows * output.1);
        // Taken, not borrowed: this thread may compute another convolution while it waits for the others.
        let mut buffer = PADDED.take();
        let padding = winograd::padding((height, width), batch * channels);
        let mut padded = &mut [][..];
        if kernels.is_some() {
            padded = aligned(&mut buffer, padding.room());
            padding.fill(padded, &input, (height, width));
        }
        let padded = &*padded;
        parts.into_par_iter().enumerate().for_each(|(index, mut lines)| {
            let (item, from) = (index / pieces, index % pieces * rows);
            let input = &input[item * channels * height * width..][..channels * height * width];
            let offsets = &offsets[item * out..][..out];
            SCRATCH.with_borrow_mut(|scratch| {
                let (sizes, lines) = (&sizes, &mut *lines);
                match kernels {
                    Some(kernels) => {
                        let input = padding.part(padded, item * channels);
                        vectors::run(winograd::Piece { sizes, kernels, input, from, offsets, lines, scratch });
                    }
                    None => vectors::run(Piece { sizes, input, weight: &weight, from, offsets, lines, scratch }),
                }
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
        PADDED.set(buffer);
        tensor(values, dims)
    }
}

impl Filters {
    /// Of `[out, in, side, side]`.
    pub(super) fn f32(weight: Tensor, window: Window) -> Result<Self> {
        let (out, channels, ..) = weight.dims4()?;
        let fits = (window.side, window.stride, window.padding, window.past) == (3, 1, 1, 0);
        let kernels = (fits && Kernels::suit(channels, out)).then(|| Kernels::of(&weight)).transpose()?;
        Ok(Self::F32 { weight, kernels })
    }

    /// The same in bf16. `name` is that of weights that no LoRA has changed.
    pub(super) fn bf16(
        packed: &Packed,
        name: Option<String>,
        window: Window,
        weight: impl FnOnce() -> Result<Tensor>,
    ) -> Result<Self> {
        let filters = packed.filters(name, || {
            let weight = weight()?;
            let (out, channels, ..) = weight.dims4()?;
            Ok::<_, Error>(bf16::Filters::new(packed.instructions, &view(&weight)?, (out, channels), window))
        });
        filters.map(Self::Bf16)
    }
}

impl Conv {
    pub(crate) fn channels_out(&self) -> Result<usize> {
        match &self.filters {
            Filters::F32 { weight, .. } => weight.dim(0),
            Filters::Bf16(filters) => Ok(filters.dims().0),
        }
    }

    /// The convolution of maps with a row more above and below than the output has, plus `residual`, which has the output's shape.
    pub(crate) fn forward_open(&self, xs: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let Window { side, stride, padding, .. } = self.window;
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

    /// The output rows of a piece: whole panels, if there are enough for all threads.
    fn rows(&self, batch: usize) -> usize {
        let (height, width) = self.output;
        let share = (height * batch).div_ceil(PIECES * rayon::current_num_threads()).min(height);
        share.next_multiple_of(vectors::block().1.div_ceil(width)).min(height)
    }

    /// Fills `[channels x side x side][across]` with the input of each weight at each position of the runs, zero outside the picture.
    #[inline(always)]
    fn gather(&self, input: &[f32], channels: Range<usize>, runs: &[Run], panel: &mut [f32], across: usize) {
        let ((height, width), Window { stride, padding, side, .. }) = (self.input, self.window);
        let panels = panel.chunks_mut(side * side * across);
        for (plane, panel) in input[channels.start * height * width..].chunks(height * width).zip(panels) {
            for down in 0..side {
                for run in runs {
                    let y = (run.row * stride + down).wrapping_sub(padding);
                    let row = plane.get(y.wrapping_mul(width)..).filter(|_| y < height).map(|rows| &rows[..width]);
                    for right in 0..side {
                        let line = &mut panel[(down * side + right) * across + run.at..][..run.count];
                        match row {
                            None => line.fill(0.0),
                            Some(row) if stride == 1 => {
                                let (from, before) = (
                                    (run.from + right).saturating_sub(padding),
                                    padding.saturating_sub(run.from + right),
                                );
                                let before = before.min(run.count);
                                let there = width.saturating_sub(from).min(run.count - before);
                                line[before..before + there].copy_from_slice(&row[from..][..there]);
                                clear(&mut line[..before]);
                                clear(&mut line[before + there..]);
                            }
                            Some(row) => {
                                let shift = (run.from * stride + right) as isize - padding as isize;
                                shifted(row, shift, stride, line);
                            }
                        }
                    }
                }
            }
        }
    }
}

/// Positions of a panel that are side by side in the output.
#[derive(Clone, Copy)]
struct Run {
    row: usize,
    /// The first column.
    from: usize,
    count: usize,
    /// The first column's place in the panel.
    at: usize,
}

impl Run {
    /// Those of some positions in an output of that width.
    fn all(positions: Range<usize>, width: usize, runs: &mut Vec<Self>) {
        runs.clear();
        let mut next = positions.start;
        while next < positions.end {
            let (row, from) = (next / width, next % width);
            let count = (width - from).min(positions.end - next);
            runs.push(Self { row, from, count, at: next - positions.start });
            next += count;
        }
    }
}

/// Some output rows of a convolution.
struct Piece<'a, 'b> {
    sizes: &'a Sizes,
    input: &'a [f32],
    weight: &'a [f32],
    /// The first row.
    from: usize,
    offsets: &'a [f32],
    /// Those rows of each output channel.
    lines: &'a mut [&'b mut [f32]],
    scratch: &'a mut [Vec<f32>; 2],
}

impl Kernel for Piece<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const WIDE: usize>(self, simd: S) {
        let Self { sizes, input, lines, .. } = self;
        let (across, depth) = (WIDE * S::F32_LANES, sizes.depth());
        let (first, count) = (self.from * sizes.output.1, lines[0].len());
        let taps = sizes.window.side * sizes.window.side;
        let at_once = (DEPTH / taps).max(1);
        let panel = aligned(&mut self.scratch[0], at_once.min(sizes.channels) * taps * across);
        // What is after the last position counts for nothing, but must be numbers.
        panel.fill(0.0);
        let mut runs = Vec::new();
        for from in (0..count).step_by(across) {
            let columns = from..count.min(from + across);
            Run::all(first + columns.start..first + columns.end, sizes.output.1, &mut runs);
            let mut rows = Columns { lines, columns: columns.clone() };
            let mut start = Start::OfRow(self.offsets);
            for channel in (0..sizes.channels).step_by(at_once) {
                let channels = channel..sizes.channels.min(channel + at_once);
                let panel = &mut panel[..channels.len() * taps * across];
                sizes.gather(input, channels, &runs, panel, across);
                let panel = S::as_simd_f32s(panel).0.as_chunks::<WIDE>().0;
                let weight = (&self.weight[channel * taps..], depth);
                product::<S, ROWS, WIDE>(simd, sizes.out, weight, panel, start, &mut rows);
                start = Start::There;
            }
        }
    }
}

/// Some columns of the output's rows, which are its channels.
pub(super) struct Columns<'a, 'b> {
    lines: &'a mut [&'b mut [f32]],
    columns: Range<usize>,
}

impl Rows for Columns<'_, '_> {
    #[inline(always)]
    fn row(&mut self, row: usize) -> &mut [f32] {
        &mut self.lines[row][self.columns.clone()]
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
