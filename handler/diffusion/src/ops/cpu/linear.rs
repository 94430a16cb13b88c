//! Linear layers, and the gated GELU of the feed-forward layers.

use super::{
    bf16::Matrix,
    exp,
    product::{DEPTH, Rows, Start, product},
    tensor,
    vectors::{self, Kernel, aligned, vectorised},
    view,
};
use crate::ops::params::Params;
use candle_core::{Error, Result, Tensor};
use half::bf16;
use pulp::Simd;
use rayon::prelude::*;
use std::{cell::RefCell, ops::Range, sync::Arc};

/// The most output elements that a thread computes at once: 256 KiB.
const PIECE: usize = 64 << 10;

thread_local! {
    /// The weights as panels. Only the thread that calls a layer has them.
    static PANELS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// A linear layer over the last dimension.
pub(crate) struct Linear {
    pub(super) weight: Weight,
    pub(super) bias: Option<Tensor>,
}

/// The weights of a linear layer.
pub(super) enum Weight {
    /// `[out, in]`.
    F32(Tensor),
    Bf16(Arc<Matrix>),
}

impl Linear {
    pub(crate) fn new(channels_in: usize, channels_out: usize, bias: bool, params: &Params) -> Result<Self> {
        let weight = Weight::new(channels_out, &[channels_out, channels_in], params)?;
        let bias = bias.then(|| params.tensor(&[channels_out], "bias")).transpose()?;
        Ok(Self { weight, bias })
    }

    /// Of the filters `dims` of a convolution, each as one row.
    pub(crate) fn of_windows(dims: [usize; 4], params: &Params) -> Result<Self> {
        Ok(Self { weight: Weight::new(dims[0], &dims, params)?, bias: None })
    }

    /// `xs @ weight^T + bias + residual`. `xs` is `[..., in]`, `residual` has the output's shape `[..., out]`.
    pub(crate) fn forward(&self, xs: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let (out, depth) = match &self.weight {
            Weight::F32(weight) => weight.dims2()?,
            Weight::Bf16(matrix) => matrix.dims(),
        };
        let mut dims = xs.dims().to_vec();
        let last = dims.len() - 1;
        dims[last] = out;
        let input = view(xs)?;
        let bias = self.bias.as_ref().map(view).transpose()?;
        let residual = residual.map(view).transpose()?;
        let count = input.len() / depth;
        let mut values = vec![0f32; count * out];
        let weight = match &self.weight {
            Weight::F32(weight) => view(weight)?,
            Weight::Bf16(matrix) => {
                matrix.forward(&input, bias.as_deref(), residual.as_deref(), &mut values)?;
                return tensor(values, dims);
            }
        };
        let (rows, across) = vectors::block();
        // Pieces of one size, and the same number for each thread.
        let threads = rayon::current_num_threads();
        let rounds = (count * out).div_ceil(PIECE * threads).max(1);
        let at_once = count.div_ceil(rounds * threads).max(1).next_multiple_of(rows);
        // Taken, not borrowed: this thread may compute another layer while it waits for the others.
        let mut buffer = PANELS.take();
        let panels = aligned(&mut buffer, out.next_multiple_of(across) * depth);
        panels.par_chunks_mut(across * depth).enumerate().for_each(|(index, panel)| {
            pack(panel, &weight[index * across * depth..], across, depth);
        });
        values.par_chunks_mut(at_once * out).enumerate().for_each(|(index, values)| {
            let first = index * at_once;
            vectors::run(Piece {
                input: &input[first * depth..],
                panels,
                bias: bias.as_deref(),
                residual: residual.as_ref().map(|residual| &residual[first * out..]),
                depth,
                out,
                values,
            });
        });
        PANELS.set(buffer);
        tensor(values, dims)
    }
}

impl Linear {
    /// `xs @ weight^T + bias` as an operand of attention: in bf16 if products are in it, else in f32.
    pub(crate) fn forward_to_attention(&self, xs: &Tensor) -> Result<Tensor> {
        let Weight::Bf16(matrix) = &self.weight else { return self.forward(xs, None) };
        let mut dims = xs.dims().to_vec();
        let last = dims.len() - 1;
        dims[last] = matrix.dims().0;
        let bias = self.bias.as_ref().map(view).transpose()?;
        let mut values = vec![bf16::ZERO; dims.iter().product()];
        matrix.forward(&view(xs)?, bias.as_deref(), None, &mut values)?;
        Tensor::from_vec(values, dims, xs.device())
    }
}

impl Weight {
    /// The tensor `weight` of that shape, with a row for each output.
    fn new(out: usize, dims: &[usize], params: &Params) -> Result<Self> {
        let weight = || params.tensor(dims, "weight")?.reshape((out, ()));
        match params.packed() {
            None => weight().map(Self::F32),
            Some(packed) => {
                let matrix = packed.matrix(params.unchanged("weight"), || {
                    let weight = weight()?;
                    Ok::<_, Error>(Matrix::new(packed.instructions, &view(&weight)?, out, weight.dim(1)?))
                });
                matrix.map(Self::Bf16)
            }
        }
    }
}

/// A panel `[depth][across]` of rows of `depth` weights, with zeros after the last.
fn pack(panel: &mut [f32], weight: &[f32], across: usize, depth: usize) {
    let mut rows = weight.chunks_exact(depth);
    for column in 0..across {
        let to = panel[column..].iter_mut().step_by(across);
        match rows.next() {
            Some(row) => to.zip(row).for_each(|(to, weight)| *to = *weight),
            None => to.for_each(|to| *to = 0.0),
        }
    }
}

/// Some rows of a linear layer.
struct Piece<'a> {
    input: &'a [f32],
    panels: &'a [f32],
    bias: Option<&'a [f32]>,
    residual: Option<&'a [f32]>,
    depth: usize,
    out: usize,
    values: &'a mut [f32],
}

impl Kernel for Piece<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const WIDE: usize>(self, simd: S) {
        let Self { input, depth, out, values, .. } = self;
        let across = WIDE * S::F32_LANES;
        let count = values.len() / out;
        for (index, panel) in self.panels.chunks(depth * across).enumerate() {
            let columns = index * across..out.min((index + 1) * across);
            let panel = S::as_simd_f32s(panel).0.as_chunks::<WIDE>().0;
            let mut rows = Columns { values, out, columns: columns.clone() };
            let mut start = Start::Zero;
            if let Some(bias) = self.bias {
                start = Start::OfColumn(&bias[columns.clone()]);
            }
            if let Some(residual) = self.residual {
                for (row, residual) in residual.chunks(out).enumerate().take(count) {
                    let row = rows.row(row).iter_mut().zip(&residual[columns.clone()]);
                    match self.bias {
                        Some(bias) => row.zip(&bias[columns.clone()]).for_each(|((to, from), bias)| *to = from + bias),
                        None => row.for_each(|(to, from)| *to = *from),
                    }
                }
                start = Start::There;
            }
            for (part, panel) in panel.chunks(DEPTH).enumerate() {
                product::<S, ROWS, WIDE>(simd, count, (&input[part * DEPTH..], depth), panel, start, &mut rows);
                start = Start::There;
            }
        }
    }
}

/// Some columns of an output.
struct Columns<'a> {
    values: &'a mut [f32],
    /// Columns in all.
    out: usize,
    columns: Range<usize>,
}

impl Rows for Columns<'_> {
    #[inline(always)]
    fn row(&mut self, row: usize) -> &mut [f32] {
        &mut self.values[row * self.out..][self.columns.clone()]
    }
}

/// The gated GELU: the first half of `xs` `[..., 2 x width]` times the GELU of the second, `[..., width]`.
pub(crate) fn geglu(xs: &Tensor) -> Result<Tensor> {
    let mut dims = xs.dims().to_vec();
    let last = dims.len() - 1;
    dims[last] /= 2;
    let width = dims[last];
    let input = view(xs)?;
    let mut values = vec![0f32; input.len() / 2];
    values.par_chunks_mut(width).zip(input.par_chunks(2 * width)).for_each(|(values, input)| {
        vectorised(
            #[inline(always)]
            || {
                let (linear, gate) = input.split_at(width);
                for ((value, linear), gate) in values.iter_mut().zip(linear).zip(gate) {
                    *value = linear * gelu(*gate);
                }
            },
        );
    });
    tensor(values, dims)
}

/// `x` times the standard normal distribution function of `x`. The error function is 7.1.26 of Abramowitz & Stegun, "Handbook of
/// mathematical functions", 1964, exact within 1.5e-7.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let series = t * (0.254_829_6 + t * (-0.284_496_73 + t * (1.421_413_8 + t * (-1.453_152 + t * 1.061_405_4))));
    let tail = 0.5 * series * exp(-z * z);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}
