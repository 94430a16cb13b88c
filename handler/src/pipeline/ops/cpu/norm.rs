//! GroupNorm with SiLU after it, in two passes over each group.

use super::{exp, slice};
use candle_core::{CpuStorage, CustomOp3, Layout, Result, Shape};
use rayon::prelude::*;

/// Elements summed in f32 before the sum goes on in f64.
const RUN: usize = 1024;

/// Input `[batch, channels, ...]`, weight and bias `[channels]`.
pub(in super::super) struct GroupNorm {
    pub(in super::super) groups: usize,
    pub(in super::super) eps: f64,
    /// Whether SiLU follows.
    pub(in super::super) silu: bool,
}

impl CustomOp3 for GroupNorm {
    fn name(&self) -> &'static str {
        "group-norm-cpu"
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
        let dims = input_layout.shape().dims();
        let (channels, plane) = (dims[1], dims[2..].iter().product::<usize>());
        let input = slice(input, input_layout, self.name())?;
        let weight = slice(weight, weight_layout, self.name())?;
        let bias = slice(bias, bias_layout, self.name())?;
        let in_group = channels / self.groups;
        let mut values = vec![0f32; input.len()];
        let groups = values.par_chunks_mut(in_group * plane).zip(input.par_chunks(in_group * plane));
        groups.enumerate().for_each(|(index, (values, input))| {
            let (mean, scale) = self.statistics(input);
            let first = index % self.groups * in_group;
            for (offset, (values, input)) in values.chunks_mut(plane).zip(input.chunks(plane)).enumerate() {
                let factor = weight[first + offset] * scale;
                let shift = bias[first + offset] - mean * factor;
                let normed = input.iter().map(|x| x * factor + shift);
                if self.silu {
                    values.iter_mut().zip(normed).for_each(|(value, x)| *value = x / (1.0 + exp(-x)));
                } else {
                    values.iter_mut().zip(normed).for_each(|(value, x)| *value = x);
                }
            }
        });
        Ok((CpuStorage::F32(values), input_layout.shape().clone()))
    }
}

impl GroupNorm {
    /// The mean, and one over the standard deviation.
    fn statistics(&self, input: &[f32]) -> (f32, f32) {
        let count = input.len() as f64;
        let mean = input.chunks(RUN).map(|run| f64::from(sum(run, |x| x))).sum::<f64>() / count;
        let middle = mean as f32;
        let squares = input.chunks(RUN).map(|run| f64::from(sum(run, |x| (x - middle) * (x - middle)))).sum::<f64>();
        (middle, (1.0 / (squares / count + self.eps).sqrt()) as f32)
    }
}

/// Sums in eight lanes, which is what lets the compiler use vectors.
fn sum(run: &[f32], of: impl Fn(f32) -> f32) -> f32 {
    let mut lanes = [0f32; 8];
    let (eights, rest) = run.as_chunks::<8>();
    for eight in eights {
        lanes.iter_mut().zip(eight).for_each(|(lane, &x)| *lane += of(x));
    }
    lanes.iter().sum::<f32>() + rest.iter().map(|&x| of(x)).sum::<f32>()
}
