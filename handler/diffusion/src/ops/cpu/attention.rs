//! Attention, for a few queries at a time so that their scores stay in the cache.

use super::{Strides, exp2_of_negative, matmul, scratch, tensor, vectorised, view};
use candle_core::{D, Result, Tensor};
use rayon::prelude::*;
use std::cell::RefCell;

/// The most scores of a thread at once: 512 KiB.
const SCORES: usize = 128 << 10;
/// Independent maxima and sums, for vectors.
const LANES: usize = 16;

thread_local! {
    static SCRATCH: RefCell<[Vec<f32>; 2]> = const { RefCell::new([const { Vec::new() }; 2]) };
}

/// See [`crate::ops::attention`].
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let shape = q.shape();
    let (batch, tokens, channels) = shape.dims3()?;
    let others = k.dim(1)?;
    let (q, k, v) = (view(q)?, view(k)?, view(v)?);
    let at_once = (SCORES / others).clamp(1, tokens);
    let pieces = tokens.div_ceil(at_once);
    let mut values = vec![0f32; batch * tokens * channels];
    let blocks: Vec<_> = values
        .chunks_mut(tokens * channels)
        .zip(q.chunks(tokens * channels))
        .flat_map(|(values, q)| values.chunks_mut(at_once * channels).zip(q.chunks(at_once * channels)))
        .collect();
    blocks.into_par_iter().enumerate().for_each(|(index, (values, q))| {
        let item = index / pieces * others * channels;
        block(values, q, &k[item..], &v[item..], others, channels, heads);
    });
    tensor(values, shape)
}

/// See [`crate::ops::causal_attention`]. In candle's operations, which are fast enough for the few tokens of a prompt.
pub(crate) fn causal_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, channels) = q.dims3()?;
    let width = channels / heads;
    let split = |xs: &Tensor| xs.reshape((batch, tokens, heads, width))?.transpose(1, 2)?.contiguous();
    let later: Vec<f32> = (0..tokens * tokens)
        .map(|index| if index % tokens > index / tokens { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    let scores = (split(q)?.matmul(&split(k)?.t()?.contiguous()?)? * (width as f64).powf(-0.5))?;
    let scores = scores.broadcast_add(&Tensor::from_vec(later, (tokens, tokens), q.device())?)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&split(v)?)?.transpose(1, 2)?.contiguous()?.reshape((batch, tokens, channels))
}

/// All heads for some queries of one picture.
fn block(values: &mut [f32], q: &[f32], k: &[f32], v: &[f32], others: usize, channels: usize, heads: usize) {
    let width = channels / heads;
    let queries = q.len() / channels;
    let rows = Strides::rows(channels);
    let scale = (width as f32).powf(-0.5);
    SCRATCH.with_borrow_mut(|[scores, sums]| {
        let (scores, sums) = (scratch(scores, queries * others), scratch(sums, queries));
        for head in (0..channels).step_by(width) {
            let keys = (&k[head..], rows.transposed());
            matmul((queries, others, width), scores, Strides::rows(others), (&q[head..], rows), keys);
            vectorised(
                #[inline(always)]
                || {
                    for (row, sum) in scores.chunks_mut(others).zip(&mut *sums) {
                        *sum = unnormalised_softmax(row, scale);
                    }
                },
            );
            let scores = (&*scores, Strides::rows(others));
            matmul((queries, width, others), &mut values[head..], rows, scores, (&v[head..], rows));
            for (row, sum) in values.chunks_mut(channels).zip(&*sums) {
                for value in &mut row[head..head + width] {
                    *value /= sum;
                }
            }
        }
    });
}

/// Softmax of `scale * row` in place, without the division by the sum, which is returned.
#[inline(always)]
fn unnormalised_softmax(row: &mut [f32], scale: f32) -> f32 {
    let (chunks, rest) = row.as_chunks::<LANES>();
    let mut most = [f32::NEG_INFINITY; LANES];
    for chunk in chunks {
        for (most, &x) in most.iter_mut().zip(chunk) {
            *most = if x > *most { x } else { *most };
        }
    }
    let mut highest = f32::NEG_INFINITY;
    for &x in most.iter().chain(rest) {
        highest = highest.max(x);
    }
    let factor = scale * std::f32::consts::LOG2_E;
    let (chunks, rest) = row.as_chunks_mut::<LANES>();
    let mut sums = [0f32; LANES];
    for chunk in chunks {
        for (x, sum) in chunk.iter_mut().zip(&mut sums) {
            *x = exp2_of_negative((*x - highest) * factor);
            *sum += *x;
        }
    }
    for x in rest {
        *x = exp2_of_negative((*x - highest) * factor);
        sums[0] += *x;
    }
    sums.iter().sum()
}
