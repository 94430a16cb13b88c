//! GroupNorm, with SiLU after it, and LayerNorm. Each reads what is normalised together three times: for the mean, for the variance,
//! and for the output.

use super::{exp, tensor, vectors::vectorised, view};
use crate::ops::{params::Params, spread::Spread};
use candle_core::{Error, Result, Tensor};
use rayon::prelude::*;

/// How many elements are summed in f32 before their sum is added in f64.
const RUN: usize = 1024;
/// Independent sums, for vectors: of a row, and of the many numbers of a group, whose additions would wait for each other otherwise.
const FEW: usize = 16;
const MANY: usize = 64;
/// Rows of a LayerNorm that a thread computes at once.
const ROWS: usize = 64;

/// Layer normalisation over the last dimension.
pub(crate) struct LayerNorm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) eps: f64,
}

/// Group normalisation over `[batch, channels, height, width]`.
pub(crate) struct GroupNorm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) groups: usize,
    pub(super) eps: f64,
}

impl LayerNorm {
    pub(crate) fn new(channels: usize, eps: f64, params: &Params) -> Result<Self> {
        let tensor = |name| params.tensor(&[channels], name);
        Ok(Self { weight: tensor("weight")?, bias: tensor("bias")?, eps })
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        let (input, weight, bias) = (view(xs)?, view(&self.weight)?, view(&self.bias)?);
        let width = weight.len();
        let mut values = vec![0f32; input.len()];
        values.par_chunks_mut(width * ROWS).zip(input.par_chunks(width * ROWS)).for_each(|(values, input)| {
            vectorised(
                #[inline(always)]
                || {
                    for (values, input) in values.chunks_mut(width).zip(input.chunks(width)) {
                        let (mean, scale) = scale(statistics::<FEW>(input), self.eps);
                        let factors = weight.iter().zip(bias.iter());
                        for ((value, x), (weight, bias)) in values.iter_mut().zip(input).zip(factors) {
                            *value = (x - mean) * scale * weight + bias;
                        }
                    }
                },
            );
        });
        tensor(values, xs.shape())
    }
}

impl GroupNorm {
    pub(crate) fn new(groups: usize, channels: usize, eps: f64, params: &Params) -> Result<Self> {
        let tensor = |name| params.tensor(&[channels], name);
        Ok(Self { weight: tensor("weight")?, bias: tensor("bias")?, groups, eps })
    }

    /// The norm, and SiLU after it if `silu`.
    pub(crate) fn forward(&self, xs: &Tensor, silu: bool) -> Result<Tensor> {
        self.run(
            xs,
            silu,
            #[inline(always)]
            |_, input| scale(statistics::<MANY>(input), self.eps),
        )
    }

    /// The same by given statistics of the groups of one image.
    pub(crate) fn forward_by(&self, xs: &Tensor, silu: bool, spreads: &[Spread]) -> Result<Tensor> {
        if spreads.len() != self.groups {
            return Err(Error::Msg(format!("statistics of {} groups for {}", spreads.len(), self.groups)).bt());
        }
        self.run(
            xs,
            silu,
            #[inline(always)]
            |group, _| scale(spreads[group], self.eps),
        )
    }

    /// The statistics of the groups of one image.
    pub(crate) fn measure(&self, xs: &Tensor) -> Result<Vec<Spread>> {
        let (input, group) = (view(xs)?, xs.elem_count() / self.groups);
        let measure = |input| {
            vectorised(
                #[inline(always)]
                || statistics::<MANY>(input),
            )
        };
        Ok(input.par_chunks(group).map(measure).collect())
    }

    /// `factors` gives mean and reciprocal of the standard deviation, by the number of the group and its elements.
    fn run(&self, xs: &Tensor, silu: bool, factors: impl Fn(usize, &[f32]) -> (f32, f32) + Sync) -> Result<Tensor> {
        let dims = xs.dims();
        let (channels, plane) = (dims[1], dims[2..].iter().product::<usize>());
        let (input, weight, bias) = (view(xs)?, view(&self.weight)?, view(&self.bias)?);
        if channels != weight.len() {
            return Err(Error::Msg(format!("a group norm of {dims:?} by {} weights", weight.len())).bt());
        }
        let in_group = channels / self.groups;
        let mut values = vec![0f32; input.len()];
        let pairs = values.par_chunks_mut(in_group * plane).zip(input.par_chunks(in_group * plane));
        pairs.enumerate().for_each(|(index, (values, input))| {
            vectorised(
                #[inline(always)]
                || {
                    let (mean, scale) = factors(index % self.groups, input);
                    let first = index % self.groups * in_group;
                    for (offset, (values, input)) in values.chunks_mut(plane).zip(input.chunks(plane)).enumerate() {
                        let factor = weight[first + offset] * scale;
                        let shift = bias[first + offset] - mean * factor;
                        for (value, x) in values.iter_mut().zip(input) {
                            let x = x * factor + shift;
                            *value = if silu { x / (1.0 + exp(-x)) } else { x };
                        }
                    }
                },
            );
        });
        tensor(values, xs.shape())
    }
}

/// Count, mean and sum of squared deviations from the mean in f32.
#[inline(always)]
fn statistics<const LANES: usize>(input: &[f32]) -> Spread {
    let count = input.len() as f64;
    let mut total = 0.0;
    for run in input.chunks(RUN) {
        total += f64::from(sum::<LANES>(run, 0.0, false));
    }
    let mean = (total / count) as f32;
    let mut squares = 0.0;
    for run in input.chunks(RUN) {
        squares += f64::from(sum::<LANES>(run, mean, true));
    }
    Spread { count, mean: f64::from(mean), squares }
}

/// The mean and the reciprocal of the standard deviation.
#[inline(always)]
fn scale(spread: Spread, eps: f64) -> (f32, f32) {
    (spread.mean as f32, (1.0 / (spread.variance() + eps).sqrt()) as f32)
}

/// The sum of `x - middle`, or of its squares. It sums in lanes, so that the compiler can use vectors.
#[inline(always)]
fn sum<const LANES: usize>(run: &[f32], middle: f32, squared: bool) -> f32 {
    let (chunks, rest) = run.as_chunks::<LANES>();
    let mut lanes = [0f32; LANES];
    let mut last = 0.0;
    for chunk in chunks {
        for (lane, x) in lanes.iter_mut().zip(chunk) {
            let x = x - middle;
            *lane += if squared { x * x } else { x };
        }
    }
    for x in rest {
        let x = x - middle;
        last += if squared { x * x } else { x };
    }
    lanes.iter().sum::<f32>() + last
}
