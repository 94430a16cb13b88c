//! The operations UNet and VAE are made of, each behind one name, so that a faster form is put in at one place.
//!
//! Activations are `[batch, channels, height, width]` or `[batch, tokens, channels]`, all contiguous. On the CPU in f32
//! [`cpu`] does the work; everything else is candle's, with sums and norms in f32 whatever the dtype, as PyTorch has it.
//!
//! What comes right after an operation (a residual, the timestep's shift) is part of it, which saves a pass over memory.

mod cpu;
#[cfg(feature = "cuda")]
mod cuda;

use candle_core::{D, DType, Result, Tensor};
use candle_nn::{Module, VarBuilder, ops::softmax_last_dim};
use std::sync::Arc;

/// Attention scores held at once, in elements: 64 MiB of f32.
const SCORES_AT_ONCE: usize = 16 << 20;

/// A convolution with bias over `[batch, channels, height, width]`.
pub(super) struct Conv {
    weight: Tensor,
    bias: Tensor,
    window: Window,
    /// For the CPU, where the window and the channels suit.
    kernels: Option<Arc<cpu::Kernels>>,
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
        Self::of(weight, vb.get(channels_out, "bias")?, window)
    }

    fn of(weight: Tensor, bias: Tensor, window: Window) -> Result<Self> {
        let (out, channels, side, _) = weight.dims4()?;
        let fits = on_cpu(&weight) && (side, window.stride, window.padding) == (3, 1, 1);
        let kernels = (fits && cpu::Kernels::suit(channels, out)).then(|| cpu::Kernels::of(&weight)).transpose()?;
        Ok(Self { weight, bias, window, kernels })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.run(xs, None, None)
    }

    /// Plus `shift`, `[batch, channels_out]`, the same at every place.
    pub(super) fn forward_shifted(&self, xs: &Tensor, shift: &Tensor) -> Result<Tensor> {
        self.run(xs, Some(shift), None)
    }

    /// Plus `onto`, which has the output's shape.
    pub(super) fn forward_onto(&self, xs: &Tensor, onto: &Tensor) -> Result<Tensor> {
        self.run(xs, None, Some(onto))
    }

    fn run(&self, xs: &Tensor, shift: Option<&Tensor>, onto: Option<&Tensor>) -> Result<Tensor> {
        if on_cpu(xs) {
            let after = cpu::After { bias: &self.bias, shift, onto };
            return cpu::conv(xs, &self.weight, self.window, self.kernels.as_deref(), after);
        }
        let mut sums = self.without_bias(xs)?.broadcast_add(&self.bias.reshape((1, (), 1, 1))?)?;
        if let Some(shift) = shift {
            sums = sums.broadcast_add(&shift.unsqueeze(2)?.unsqueeze(3)?)?;
        }
        onto.map_or(Ok(sums.clone()), |onto| onto + sums)
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

/// A linear layer over the last dimension.
pub(super) struct Linear(candle_nn::Linear);

impl Linear {
    pub(super) fn new(channels_in: usize, channels_out: usize, vb: VarBuilder) -> Result<Self> {
        candle_nn::linear(channels_in, channels_out, vb).map(Self)
    }

    pub(super) fn no_bias(channels_in: usize, channels_out: usize, vb: VarBuilder) -> Result<Self> {
        candle_nn::linear_no_bias(channels_in, channels_out, vb).map(Self)
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        if on_cpu(xs) { cpu::linear(xs, self.0.weight(), self.0.bias(), None) } else { self.0.forward(xs) }
    }

    /// Plus `onto`, which has the output's shape.
    pub(super) fn forward_onto(&self, xs: &Tensor, onto: &Tensor) -> Result<Tensor> {
        if on_cpu(xs) {
            return cpu::linear(xs, self.0.weight(), self.0.bias(), Some(onto));
        }
        onto + self.0.forward(xs)?
    }
}

/// Layer normalisation (Ba et al., 2016) over the last dimension.
pub(super) struct LayerNorm {
    plain: candle_nn::LayerNorm,
    eps: f64,
}

impl LayerNorm {
    pub(super) fn new(channels: usize, eps: f64, vb: VarBuilder) -> Result<Self> {
        Ok(Self { plain: candle_nn::layer_norm(channels, eps, vb)?, eps })
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        match self.plain.bias() {
            Some(bias) if on_cpu(xs) => cpu::layer_norm(xs, self.plain.weight(), bias, self.eps),
            _ => self.plain.forward(xs),
        }
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
        cpu::group_norm(xs, &self.weight, &self.bias, self.groups, self.eps, silu)
    }
}

/// Gated GELU (Shazeer, "GLU variants improve transformer", 2020): the last dimension is halved.
///
/// The exact GELU, as diffusers has it.
pub(super) fn geglu(xs: &Tensor) -> Result<Tensor> {
    if on_cpu(xs) {
        return cpu::geglu(xs);
    }
    let halves = xs.to_dtype(DType::F32)?.chunk(2, D::Minus1)?;
    (&halves[0].contiguous()? * halves[1].contiguous()?.gelu_erf()?)?.to_dtype(xs.dtype())
}

/// Scaled dot-product attention over `heads` heads. `q` is `[batch, tokens, channels]`, `k` and `v` `[batch, others, channels]`.
///
/// Scores and softmax are f32.
pub(super) fn attention(q: &Tensor, k: &Tensor, v: &Tensor, heads: usize) -> Result<Tensor> {
    if on_cpu(q) { cpu::attention(q, k, v, heads) } else { sliced_attention(q, k, v, heads) }
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
