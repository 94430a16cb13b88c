//! The gated GELU of the feed-forward layers, at the end of the product before it.

use super::{
    exp,
    product::{Columns, Start, deep},
    tensor,
    vectors::{Kernel, aligned, vectorised},
    view,
};
use candle_core::{Result, Tensor};
use pulp::Simd;
use rayon::prelude::*;

/// Some rows of a linear layer with the gated GELU after it. There are panels of what is gated and of gates, in turns.
pub(super) struct Gated<'a> {
    pub(super) input: &'a [f32],
    pub(super) panels: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) depth: usize,
    /// Columns of `values`.
    pub(super) out: usize,
    pub(super) values: &'a mut [f32],
    /// For some columns of the gates.
    pub(super) gate: &'a mut Vec<f32>,
}

impl Kernel for Gated<'_> {
    type Output = ();

    #[inline(always)]
    fn run<S: Simd, const ROWS: usize, const WIDE: usize>(self, simd: S) {
        let Self { input, panels, bias, depth, out, values, gate } = self;
        let (across, count) = (WIDE * S::F32_LANES, values.len() / out);
        let gate = aligned(gate, count * across);
        for (index, panels) in panels.chunks(2 * depth * across).enumerate() {
            let columns = index * across..out.min((index + 1) * across);
            let wide = columns.len();
            let bias = |part: usize| match bias {
                Some(bias) => Start::OfColumn(&bias[part * out..][columns.clone()]),
                None => Start::Zero,
            };
            let (panel, gates) = panels.split_at(depth * across);
            let [panel, gates] = [panel, gates].map(|panel| S::as_simd_f32s(panel).0.as_chunks::<WIDE>().0);
            let mut rows = Columns { values, out, columns: columns.clone() };
            deep::<S, ROWS, WIDE>(simd, count, (input, depth), panel, bias(0), &mut rows);
            let mut rows = Columns { values: gate, out: across, columns: 0..wide };
            deep::<S, ROWS, WIDE>(simd, count, (input, depth), gates, bias(1), &mut rows);
            for (values, gate) in values.chunks_mut(out).zip(gate.chunks(across)) {
                for (value, gate) in values[columns.clone()].iter_mut().zip(gate) {
                    *value *= gelu(*gate);
                }
            }
        }
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
