//! A linear layer with what follows it, a few rows at a time.

use super::{Strides, matmul, tensor, vectorised, view};
use candle_core::{Result, Tensor};
use rayon::prelude::*;

/// Output elements that a thread computes at a time, at most: 256 KiB.
const PIECE: usize = 64 << 10;

/// `xs @ weight^T`, plus the bias, plus `onto`. Input `[..., in]`, weight `[out, in]`, bias `[out]`; `onto` has the output's shape.
pub(super) fn linear(xs: &Tensor, weight: &Tensor, bias: Option<&Tensor>, onto: Option<&Tensor>) -> Result<Tensor> {
    let (out, depth) = weight.dims2()?;
    let mut dims = xs.dims().to_vec();
    let last = dims.len() - 1;
    dims[last] = out;
    let (input, weight) = (view(xs)?, view(weight)?);
    let bias = bias.map(view).transpose()?;
    let onto = onto.map(view).transpose()?;
    let count = input.len() / depth;
    // Equal pieces, as many for one thread as for another.
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
                if let Some(onto) = &onto {
                    for (value, onto) in values.iter_mut().zip(&onto[first * out..]) {
                        *value += onto;
                    }
                }
            },
        );
    });
    tensor(values, dims)
}
