//! The operations UNet and VAE are made of, each behind one function, so that a faster form is put in at one place.
//!
//! Activations are `[batch, channels, height, width]` or `[batch, tokens, channels]`, all contiguous.

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, GroupNorm, Module, VarBuilder, conv2d, ops::softmax_last_dim};

/// Attention scores held at once, in elements: 64 MiB of f32.
const SCORES_AT_ONCE: usize = 16 << 20;

/// A 3x3 convolution that keeps height and width.
pub(super) fn conv3x3(channels_in: usize, channels_out: usize, vb: VarBuilder) -> Result<Conv2d> {
    conv2d(channels_in, channels_out, 3, Conv2dConfig { padding: 1, ..Default::default() }, vb)
}

/// A 1x1 convolution.
pub(super) fn conv1x1(channels_in: usize, channels_out: usize, vb: VarBuilder) -> Result<Conv2d> {
    conv2d(channels_in, channels_out, 1, Conv2dConfig::default(), vb)
}

/// GroupNorm, then SiLU.
pub(super) fn norm_silu(norm: &GroupNorm, xs: &Tensor) -> Result<Tensor> {
    norm.forward(xs)?.silu()
}

/// Gated GELU (Shazeer, "GLU variants improve transformer", 2020): the last dimension is halved.
///
/// The exact GELU, as diffusers has it.
pub(super) fn geglu(xs: &Tensor) -> Result<Tensor> {
    let halves = xs.chunk(2, D::Minus1)?;
    &halves[0].contiguous()? * halves[1].contiguous()?.gelu_erf()?
}

/// Scaled dot-product attention over `heads` heads. `q` is `[batch, tokens, channels]`, `k` and `v` `[batch, others, channels]`.
///
/// Scores and softmax are f32. Queries are taken in slices, so that large pictures don't need the whole score matrix.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    let (batch, tokens, channels) = q.dims3()?;
    let others = k.dim(1)?;
    let split = |xs: &Tensor, length: usize| {
        xs.reshape((batch, length, heads, channels / heads))?.transpose(1, 2)?.contiguous()?.to_dtype(DType::F32)
    };
    let scale = ((channels / heads) as f64).powf(-0.5);
    let q = (split(q, tokens)? * scale)?;
    let k = split(k, others)?.transpose(2, 3)?;
    let (dtype, v) = (v.dtype(), split(v, others)?);
    let at_once = (SCORES_AT_ONCE / (batch * heads * others)).clamp(1, tokens);
    let mut slices = Vec::with_capacity(tokens.div_ceil(at_once));
    for from in (0..tokens).step_by(at_once) {
        let part = q.narrow(2, from, at_once.min(tokens - from))?.contiguous()?;
        slices.push(softmax_last_dim(&part.matmul(&k)?)?.matmul(&v)?);
    }
    let mixed = Tensor::cat(&slices, 2)?.transpose(1, 2)?;
    mixed.reshape((batch, tokens, channels))?.to_dtype(dtype)
}

/// `[batch, channels, height, width]` to `[batch, height x width, channels]`.
pub(super) fn to_tokens(xs: &Tensor) -> Result<Tensor> {
    xs.flatten_from(2)?.transpose(1, 2)?.contiguous()
}

/// `[batch, height x width, channels]` back to `[batch, channels, height, width]`.
pub(super) fn to_map(xs: &Tensor, height: usize, width: usize) -> Result<Tensor> {
    let (batch, _, channels) = xs.dims3()?;
    xs.transpose(1, 2)?.contiguous()?.reshape((batch, channels, height, width))
}

#[cfg(test)]
mod tests {
    use super::*;
    use candle_core::Device;

    #[test]
    fn sliced_attention_is_whole_attention() {
        let draw = |shape: (usize, usize, usize)| Tensor::randn(0f32, 1., shape, &Device::Cpu).unwrap();
        let (q, k, v) = (draw((2, 2100, 8)), draw((2, 2100, 8)), draw((2, 2100, 8)));
        const { assert!(2 * 2 * 2100 * 2100 > SCORES_AT_ONCE, "the case must need slices") };
        let sliced = attention(&q, &k, &v, 2).unwrap();
        let one = |head: usize| {
            let part = |xs: &Tensor| xs.narrow(2, head * 4, 4).unwrap().contiguous().unwrap();
            let scores = (part(&q).matmul(&part(&k).t().unwrap().contiguous().unwrap()).unwrap() * 0.5).unwrap();
            candle_nn::ops::softmax(&scores, 2).unwrap().matmul(&part(&v)).unwrap()
        };
        let whole = Tensor::cat(&[one(0), one(1)], 2).unwrap();
        let error = (sliced - whole).unwrap().abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        assert!(error < 1e-5, "{error}");
    }
}
