//! Gated GELU in one pass.

use super::{exp, tensor, vectorised, view};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Input `[..., 2 x width]`, output `[..., width]`: the first half times the GELU of the second.
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
                let (kept, gate) = input.split_at(width);
                for ((value, kept), gate) in values.iter_mut().zip(kept).zip(gate) {
                    *value = kept * gelu(*gate);
                }
            },
        );
    });
    tensor(values, dims)
}

/// `x` times the normal distribution up to `x`. The error function is 7.1.26 of Abramowitz & Stegun, "Handbook of mathematical
/// functions", 1964: within 1.5e-7.
#[inline(always)]
fn gelu(x: f32) -> f32 {
    let z = x.abs() * std::f32::consts::FRAC_1_SQRT_2;
    let t = 1.0 / (1.0 + 0.327_591_1 * z);
    let series = t * (0.254_829_6 + t * (-0.284_496_73 + t * (1.421_413_8 + t * (-1.453_152 + t * 1.061_405_4))));
    let tail = 0.5 * series * exp(-z * z);
    x * if x < 0.0 { tail } else { 1.0 - tail }
}
