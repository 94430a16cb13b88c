//! The operations UNet and VAE are made of, each behind one name, so that a faster form is put in at one place.
//!
//! Activations are `[batch, channels, height, width]` or `[batch, tokens, channels]`, all contiguous. On the CPU in f32
//! [`cpu`] does the work; everything else is candle's, with sums and norms in f32 whatever the dtype, as PyTorch has it.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{Module, VarBuilder, ops::softmax_last_dim};

/// Attention scores held at once, in elements: 64 MiB of f32.
const SCORES_AT_ONCE: usize = 16 << 20;

/// A convolution with bias over `[batch, channels, height, width]`.
pub(super) struct Conv {
    weight: Tensor,
    bias: Tensor,
    window: Window,
}

/// How a square kernel moves over the picture.
#[derive(Debug, Clone, Copy)]
struct Window {
    stride: usize,
    padding: usize,
}

impl Conv {
    /// A 3x3 convolution that keeps height and width.
    pub(super) fn same3x3(channels_in: usize, channels_out: usize, vb: VarBuilder) -> Result<Self> {
        Self::new(channels_in, channels_out, 3, Window { stride: 1, padding: 1 }, vb)
    }

    /// A 3x3 convolution that halves height and width.
    pub(super) fn half3x3(channels_in: usize, channels_out: usize, vb: VarBuilder) -> Result<Self> {
        Self::new(channels_in, channels_out, 3, Window { stride: 2, padding: 1 }, vb)
    }

    /// A 1x1 convolution.
    pub(super) fn pointwise(channels_in: usize, channels_out: usize, vb: VarBuilder) -> Result<Self> {
        Self::new(channels_in, channels_out, 1, Window { stride: 1, padding: 0 }, vb)
    }

    fn new(channels_in: usize, channels_out: usize, side: usize, window: Window, vb: VarBuilder) -> Result<Self> {
        let weight = vb.get((channels_out, channels_in, side, side), "weight")?.contiguous()?;
        Ok(Self { weight, bias: vb.get(channels_out, "bias")?, window })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if on_cpu(xs) {
            return xs.apply_op3_no_bwd(&self.weight, &self.bias, &cpu::Conv(self.window));
        }
        self.without_bias(xs)?.broadcast_add(&self.bias.reshape((1, (), 1, 1))?)
    }

    #[cfg(feature = "cuda")]
    fn without_bias(&self, xs: &Tensor) -> Result<Tensor> {
        xs.apply_op2_no_bwd(&self.weight, &cuda::Conv(self.window))
    }

    #[cfg(not(feature = "cuda"))]
    fn without_bias(&self, xs: &Tensor) -> Result<Tensor> {
        xs.conv2d(&self.weight, self.window.padding, self.window.stride, 1, 1)
    }
}

/// Group normalisation (Wu & He, "Group normalization", 2018) over `[batch, channels, height, width]`.
pub(super) struct GroupNorm {
    plain: candle_nn::GroupNorm,
    weight: Tensor,
    bias: Tensor,
    groups: usize,
    eps: f64,
}

impl GroupNorm {
    pub(super) fn new(groups: usize, channels: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        let tensor = |name: &str| vb.get(channels, name)?.to_dtype(DType::F32);
        let (weight, bias) = (tensor("weight")?, tensor("bias")?);
        let plain = candle_nn::GroupNorm::new(weight.clone(), bias.clone(), channels, groups, eps)?;
        Ok(Self { plain, weight, bias, groups, eps })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if on_cpu(xs) { self.on_cpu(xs, false) } else { self.exact(xs)?.to_dtype(xs.dtype()) }
    }

    /// The norm, then SiLU.
    pub(super) fn forward_silu(&self, xs: &Tensor) -> Result<Tensor> {
        if on_cpu(xs) { self.on_cpu(xs, true) } else { self.exact(xs)?.silu()?.to_dtype(xs.dtype()) }
    }

    fn exact(&self, xs: &Tensor) -> Result<Tensor> {
        self.plain.forward(&xs.to_dtype(DType::F32)?)
    }

    fn on_cpu(&self, xs: &Tensor, silu: bool) -> Result<Tensor> {
        let norm = cpu::GroupNorm { groups: self.groups, eps: self.eps, silu };
        xs.apply_op3_no_bwd(&self.weight, &self.bias, &norm)
    }
}

/// Gated GELU (Shazeer, "GLU variants improve transformer", 2020): the last dimension is halved.
///
/// The exact GELU, as diffusers has it.
pub(super) fn geglu(xs: &Tensor) -> Result<Tensor> {
    if on_cpu(xs) {
        return xs.apply_op1_no_bwd(&cpu::Geglu);
    }
    let halves = xs.to_dtype(DType::F32)?.chunk(2, D::Minus1)?;
    (&halves[0].contiguous()? * halves[1].contiguous()?.gelu_erf()?)?.to_dtype(xs.dtype())
}

/// Scaled dot-product attention over `heads` heads. `q` is `[batch, tokens, channels]`, `k` and `v` `[batch, others, channels]`.
///
/// Scores and softmax are f32.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    if on_cpu(q) { q.apply_op3_no_bwd(k, v, &cpu::Attention { heads }) } else { sliced_attention(q, k, v, heads) }
}

/// Queries are taken in slices, so that large pictures don't need the whole score matrix.
fn sliced_attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
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

fn on_cpu(xs: &Tensor) -> bool {
    xs.device().is_cpu() && xs.dtype() == DType::F32
}

#[cfg(test)]
mod tests;
