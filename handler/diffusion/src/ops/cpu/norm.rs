//! GroupNorm with SiLU after it, and LayerNorm, each in two passes over what is normalised together.

use super::{exp, tensor, vectorised, view};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Elements summed in f32 before the sum goes on in f64.
const RUN: usize = 1024;
/// Elements summed beside each other.
const LANES: usize = 16;
/// Rows of a LayerNorm that a thread takes at a time.
const ROWS: usize = 64;

/// Input `[batch, channels, ...]`, weight and bias `[channels]`; `silu` says whether SiLU follows.
pub(super) fn group_norm(
    xs: &Tensor,
    weight: &Tensor,
    bias: &Tensor,
    groups: usize,
    eps: f64,
    silu: bool,
) -> Result<Tensor> {
    let dims = xs.dims();
    let (channels, plane) = (dims[1], dims[2..].iter().product::<usize>());
    let (input, weight, bias) = (view(xs)?, view(weight)?, view(bias)?);
    let in_group = channels / groups;
    let mut values = vec![0f32; input.len()];
    let pairs = values.par_chunks_mut(in_group * plane).zip(input.par_chunks(in_group * plane));
    pairs.enumerate().for_each(|(index, (values, input))| {
        vectorised(
            #[inline(always)]
            || {
                let (mean, scale) = statistics(input, eps);
                let first = index % groups * in_group;
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

/// Input `[..., width]`, weight and bias `[width]`.
pub(super) fn layer_norm(xs: &Tensor, weight: &Tensor, bias: &Tensor, eps: f64) -> Result<Tensor> {
    let (input, weight, bias) = (view(xs)?, view(weight)?, view(bias)?);
    let width = weight.len();
    let mut values = vec![0f32; input.len()];
    values.par_chunks_mut(width * ROWS).zip(input.par_chunks(width * ROWS)).for_each(|(values, input)| {
        vectorised(
            #[inline(always)]
            || {
                for (values, input) in values.chunks_mut(width).zip(input.chunks(width)) {
                    let (mean, scale) = statistics(input, eps);
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

/// The mean, and one over the standard deviation.
#[inline(always)]
fn statistics(input: &[f32], eps: f64) -> (f32, f32) {
    let count = input.len() as f64;
    let mut total = 0.0;
    for run in input.chunks(RUN) {
        total += f64::from(sum(run, 0.0, false));
    }
    let mean = (total / count) as f32;
    let mut squares = 0.0;
    for run in input.chunks(RUN) {
        squares += f64::from(sum(run, mean, true));
    }
    (mean, (1.0 / (squares / count + eps).sqrt()) as f32)
}

/// The sum of the distances from `middle`, or of their squares, in lanes, which is what lets the compiler use vectors.
#[inline(always)]
fn sum(run: &[f32], middle: f32, squared: bool) -> f32 {
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
