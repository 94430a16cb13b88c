//! Linear layers, and the gated GELU of the feed-forward layers.

use super::{Strides, exp, matmul, tensor, vectorised, view};
use crate::ops::params::Params;
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// The most output elements that a thread computes at once: 256 KiB.
const PIECE: usize = 64 << 10;

/// A linear layer over the last dimension.
pub(crate) struct Linear {
    /// `[out, in]`.
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

impl Linear {
    pub(crate) fn new(channels_in: usize, channels_out: usize, bias: bool, params: &Params) -> Result<Self> {
        let weight = params.tensor(&[channels_out, channels_in], "weight")?;
        let bias = bias.then(|| params.tensor(&[channels_out], "bias")).transpose()?;
        Ok(Self { weight, bias })
    }

    /// Of the filters `dims` of a convolution, each as one row.
    pub(crate) fn of_windows(dims: [usize; 4], params: &Params) -> Result<Self> {
        let weight = params.tensor(&dims, "weight")?.reshape((dims[0], ()))?;
        Ok(Self { weight, bias: None })
    }

    /// `xs @ weight^T + bias + residual`. `xs` is `[..., in]`, `residual` has the output's shape `[..., out]`.
    pub(crate) fn forward(&self, xs: &Tensor, residual: Option<&Tensor>) -> Result<Tensor> {
        let (out, depth) = self.weight.dims2()?;
        let mut dims = xs.dims().to_vec();
        let last = dims.len() - 1;
        dims[last] = out;
        let (input, weight) = (view(xs)?, view(&self.weight)?);
        let bias = self.bias.as_ref().map(view).transpose()?;
        let residual = residual.map(view).transpose()?;
        let count = input.len() / depth;
        // Pieces of one size, and the same number for each thread.
        let threads = rayon::current_num_threads();
        let rounds = (count * out).div_ceil(PIECE * threads).max(1);
        let at_once = count.div_ceil(rounds * threads).max(1);
        let mut values = vec![0f32; count * out];
        values.par_chunks_mut(at_once * out).enumerate().for_each(|(index, values)| {
            let (rows, first) = (values.len() / out, index * at_once);
            let input = (&input[first * depth..], Strides::rows(depth));
            matmul((rows, out, depth), values, Strides::rows(out), input, (&weight, Strides::rows(depth).transposed()));
            vectorised(
                #[inline(always)]
                || {
                    if let Some(bias) = &bias {
                        for row in values.chunks_mut(out) {
                            for (value, bias) in row.iter_mut().zip(bias.iter()) {
                                *value += bias;
                            }
                        }
                    }
                    if let Some(residual) = &residual {
                        for (value, residual) in values.iter_mut().zip(&residual[first * out..]) {
                            *value += residual;
                        }
                    }
                },
            );
        });
        tensor(values, dims)
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
