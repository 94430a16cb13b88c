//! Attention: the large ones tile by tile, the prompt's in candle's operations.

use super::{
    bf16::{self, Instructions, Queries},
    flash::{self, Sizes},
    tensor,
    vectors::most,
    view, view_of,
};
use candle_core::{D, DType, Result, Tensor};

/// See [`crate::ops::attention`]. In bf16 if keys and values are.
pub(crate) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (items, tokens, channels) = q.dims3()?;
    let sizes = Sizes { items, tokens, others: k.dim(1)?, channels, heads };
    let mut values = vec![0f32; q.elem_count()];
    if let (DType::BF16, Ok(instructions)) = (k.dtype(), Instructions::detect(most())) {
        let (k, v) = (view_of(k)?, view_of(v)?);
        let kv = [&*k, &*v];
        match q.dtype() {
            DType::BF16 => {
                bf16::attention(instructions, &mut values, Queries::Bf16(&view_of(q)?), kv, sizes)?;
            }
            _ => bf16::attention(instructions, &mut values, Queries::F32(&view(q)?), kv, sizes)?,
        }
        return tensor(values, q.shape());
    }
    flash::attention(&mut values, &view(q)?, &view(k)?, &view(v)?, sizes);
    tensor(values, q.shape())
}

/// See [`crate::ops::causal_attention`]. In candle's operations, which are fast enough for the few tokens of a prompt.
pub(crate) fn causal_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, channels) = q.dims3()?;
    let width = channels / heads;
    let split =
        |xs: &Tensor| xs.to_dtype(DType::F32)?.reshape((batch, tokens, heads, width))?.transpose(1, 2)?.contiguous();
    let later: Vec<f32> = (0..tokens * tokens)
        .map(|index| if index % tokens > index / tokens { f32::NEG_INFINITY } else { 0.0 })
        .collect();
    let scores = (split(q)?.matmul(&split(k)?.t()?.contiguous()?)? * (width as f64).powf(-0.5))?;
    let scores = scores.broadcast_add(&Tensor::from_vec(later, (tokens, tokens), q.device())?)?;
    let weights = scores.broadcast_sub(&scores.max_keepdim(D::Minus1)?)?.exp()?;
    let weights = weights.broadcast_div(&weights.sum_keepdim(D::Minus1)?)?;
    weights.matmul(&split(v)?)?.transpose(1, 2)?.contiguous()?.reshape((batch, tokens, channels))
}
