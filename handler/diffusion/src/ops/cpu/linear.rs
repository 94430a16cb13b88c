//! Linear layers.

use super::{
    bf16::Matrix,
    gated::{Gated, geglu},
    product::{Columns, Rows, Start, deep},
    tensor,
    vectors::{self, Kernel, aligned},
    view,
};
use crate::ops::params::Params;
use candle_core::{Error, Result, Tensor};
use half::bf16;
use pulp::Simd;
use rayon::prelude::*;
use std::{cell::RefCell, sync::Arc};

/// The most output elements that a thread computes at once: 256 KiB.
const PIECE: usize = 64 << 10;

thread_local! {
    /// The weights as panels. Only the thread that calls a layer has them.
    static PANELS: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// Some columns of the gates of a piece.
    static GATE: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
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
        match &self.weight {
            Weight::F32(_) => self.run(xs, residual, false),
            Weight::Bf16(matrix) => {
                let (dims, bias) = (self.dims_after(xs, 1)?, self.bias.as_ref().map(view).transpose()?);
                let residual = residual.map(view).transpose()?;
                let mut values = vec![0f32; dims.iter().product()];
                matrix.forward(&view(xs)?, bias.as_deref(), residual.as_deref(), &mut values)?;
                tensor(values, dims)
            }
        }
    }

    /// The same with the gated GELU after it, see [`geglu`].
    pub(crate) fn forward_geglu(&self, xs: &Tensor) -> Result<Tensor> {
        match &self.weight {
            Weight::F32(_) => self.run(xs, None, true),
            Weight::Bf16(_) => geglu(&self.forward(xs, None)?),
        }
    }

    /// The output's shape, with the last dimension divided.
    fn dims_after(&self, xs: &Tensor, parts: usize) -> Result<Vec<usize>> {
        let (out, _) = self.sizes()?;
        let mut dims = xs.dims().to_vec();
        let last = dims.len() - 1;
        dims[last] = out / parts;
        Ok(dims)
    }

    /// Outputs and inputs.
    fn sizes(&self) -> Result<(usize, usize)> {
        match &self.weight {
            Weight::F32(weight) => weight.dims2(),
            Weight::Bf16(matrix) => Ok(matrix.dims()),
        }
    }

    /// In f32. With `gated`, the output is half as wide.
    fn run(&self, xs: &Tensor, residual: Option<&Tensor>, gated: bool) -> Result<Tensor> {
        let Weight::F32(weight) = &self.weight else { return self.forward(xs, residual) };
        let (parts, dims) = if gated { (2, self.dims_after(xs, 2)?) } else { (1, self.dims_after(xs, 1)?) };
        let (all, depth) = self.sizes()?;
        let out = all / parts;
        let (input, weight) = (view(xs)?, view(weight)?);
        let bias = self.bias.as_ref().map(view).transpose()?;
        let residual = residual.map(view).transpose()?;
        let count = input.len() / depth;
        let (at_once, across) = (rows_at_once(count, all), vectors::block().1);
        let mut values = vec![0f32; count * out];
        // Taken, not borrowed: this thread may compute another layer while it waits for the others.
        let mut buffer = PANELS.take();
        let panels = aligned(&mut buffer, out.next_multiple_of(across) * parts * depth);
        panels.par_chunks_mut(across * depth).enumerate().for_each(|(index, panel)| {
            // A gate's panel is behind the panel that it gates.
            let (part, column) = (index % parts, index / parts * across);
            let rows = part * out + column..part * out + out.min(column + across);
            pack(panel, &weight[rows.start * depth..rows.end * depth], across, depth);
        });
        values.par_chunks_mut(at_once * out).enumerate().for_each(|(index, values)| {
            let first = index * at_once;
            let (input, bias) = (&input[first * depth..], bias.as_deref());
            if gated {
                GATE.with_borrow_mut(|gate| vectors::run(Gated { input, panels, bias, depth, out, values, gate }));
            } else {
                let residual = residual.as_ref().map(|residual| &residual[first * out..]);
                vectors::run(Piece { input, panels, bias, residual, depth, out, values });
            }
        });
        PANELS.set(buffer);
        tensor(values, dims)
    }
}

impl Linear {
    /// `xs @ weight^T + bias` of layers of one size, as operands of attention: in bf16 if products are in it, else in f32.
    pub(crate) fn forward_to_attention(layers: &[Self], xs: &Tensor) -> Result<Vec<Tensor>> {
        let weights = layers.iter().map(|layer| match &layer.weight {
            Weight::F32(weight) => Some(weight),
            Weight::Bf16(_) => None,
        });
        match weights.collect::<Option<Vec<_>>>() {
            Some(weights) => Self::forward_together(layers, &weights, xs),
            None => layers.iter().map(|layer| layer.forward_to_bf16(xs)).collect(),
        }
    }

    fn forward_to_bf16(&self, xs: &Tensor) -> Result<Tensor> {
        let Weight::Bf16(matrix) = &self.weight else { return self.forward(xs, None) };
        let (dims, bias) = (self.dims_after(xs, 1)?, self.bias.as_ref().map(view).transpose()?);
        let mut values = vec![bf16::ZERO; dims.iter().product()];
        matrix.forward(&view(xs)?, bias.as_deref(), None, &mut values)?;
        Tensor::from_vec(values, dims, xs.device())
    }

    /// In f32: each thread takes its rows through all layers.
    fn forward_together(layers: &[Self], weights: &[&Tensor], xs: &Tensor) -> Result<Vec<Tensor>> {
        let [first, ..] = layers else { return Ok(Vec::new()) };
        let (dims, (out, depth)) = (first.dims_after(xs, 1)?, first.sizes()?);
        let input = view(xs)?;
        let weights = weights.iter().map(|weight| view(weight)).collect::<Result<Vec<_>>>()?;
        let biases =
            layers.iter().map(|layer| layer.bias.as_ref().map(view).transpose()).collect::<Result<Vec<_>>>()?;
        let count = input.len() / depth;
        let (at_once, across) = (rows_at_once(count, layers.len() * out), vectors::block().1);
        let mut buffer = PANELS.take();
        let of_layer = out.next_multiple_of(across) * depth;
        let panels = aligned(&mut buffer, layers.len() * of_layer);
        panels.par_chunks_mut(across * depth).enumerate().for_each(|(index, panel)| {
            let in_layer = of_layer / (across * depth);
            let column = index % in_layer * across;
            let rows = column..out.min(column + across);
            pack(panel, &weights[index / in_layer][rows.start * depth..rows.end * depth], across, depth);
        });
        let panels = &*panels;
        let mut values: Vec<_> = layers.iter().map(|_| vec![0f32; count * out]).collect();
        let mut parts: Vec<_> = (0..count.div_ceil(at_once)).map(|_| Vec::with_capacity(layers.len())).collect();
        for values in &mut values {
            parts.iter_mut().zip(values.chunks_mut(at_once * out)).for_each(|(part, values)| part.push(values));
        }
        parts.into_par_iter().enumerate().for_each(|(index, part)| {
            let input = &input[index * at_once * depth..];
            for ((values, panels), bias) in part.into_iter().zip(panels.chunks(of_layer)).zip(&biases) {
                vectors::run(Piece { input, panels, bias: bias.as_deref(), residual: None, depth, out, values });
            }
        });
        PANELS.set(buffer);
        values.into_iter().map(|values| tensor(values, dims.as_slice())).collect()
    }
}

/// The rows of a piece: pieces of one size, and the same number for each thread.
fn rows_at_once(count: usize, out: usize) -> usize {
    let threads = rayon::current_num_threads();
    let rounds = (count * out).div_ceil(PIECE * threads).max(1);
    count.div_ceil(rounds * threads).max(1).next_multiple_of(vectors::block().0)
}

impl Weight {
    /// The tensor `weight` of that shape, with a row for each output.
    fn new(out: usize, dims: &[usize], params: &Params) -> Result<Self> {
        let weight = || match dims {
            // One that is only recorded is never copied.
            [_, _] => params.tensor(dims, "weight"),
            _ => params.tensor(dims, "weight")?.reshape((out, ())),
        };
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
            deep::<S, ROWS, WIDE>(simd, count, (input, depth), panel, start, &mut rows);
        }
    }
}
