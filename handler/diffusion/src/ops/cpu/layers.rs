//! The layers with parameters, in f32 on candle's tensors.

use super::{
    super::Window,
    conv::{self, After},
    linear, norm,
    winograd::Kernels,
};
use crate::ops::params::Params;
use candle_core::{Result, Tensor};
use std::sync::Arc;

/// A convolution with bias over `[batch, channels, height, width]`.
pub(crate) struct Conv {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) window: Window,
    /// Where the window and the channels suit.
    pub(super) kernels: Option<Arc<Kernels>>,
}

/// A linear layer over the last dimension.
pub(crate) struct Linear {
    pub(super) weight: Tensor,
    pub(super) bias: Option<Tensor>,
}

/// Layer normalisation over the last dimension.
pub(crate) struct LayerNorm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) eps: f64,
}

/// Group normalisation over `[batch, channels, height, width]`.
pub(crate) struct GroupNorm {
    pub(super) weight: Tensor,
    pub(super) bias: Tensor,
    pub(super) groups: usize,
    pub(super) eps: f64,
}

impl Conv {
    pub(crate) fn new(inner: usize, outer: usize, window: Window, params: &Params) -> Result<Self> {
        let weight = params.tensor(&[outer, inner, window.side, window.side], "weight")?;
        Self::of(weight, params.tensor(&[outer], "bias")?, window)
    }

    pub(super) fn of(weight: Tensor, bias: Tensor, window: Window) -> Result<Self> {
        let (out, channels, ..) = weight.dims4()?;
        let fits = (window.side, window.stride, window.padding) == (3, 1, 1);
        let kernels = (fits && Kernels::suit(channels, out)).then(|| Kernels::of(&weight)).transpose()?;
        Ok(Self { weight, bias, window, kernels })
    }

    /// Plus `shift`, `[1, out]` or `[batch, out]`, at every place, and `onto`.
    pub(crate) fn forward(&self, xs: &Tensor, shift: Option<&Tensor>, onto: Option<&Tensor>) -> Result<Tensor> {
        let after = After { bias: &self.bias, shift, onto };
        conv::conv(xs, &self.weight, self.window, self.kernels.as_deref(), after)
    }
}

impl Linear {
    pub(crate) fn new(inner: usize, outer: usize, bias: bool, params: &Params) -> Result<Self> {
        let weight = params.tensor(&[outer, inner], "weight")?;
        let bias = bias.then(|| params.tensor(&[outer], "bias")).transpose()?;
        Ok(Self { weight, bias })
    }

    pub(crate) fn forward(&self, xs: &Tensor, onto: Option<&Tensor>) -> Result<Tensor> {
        linear::linear(xs, &self.weight, self.bias.as_ref(), onto)
    }
}

impl LayerNorm {
    pub(crate) fn new(channels: usize, eps: f64, params: &Params) -> Result<Self> {
        let tensor = |name| params.tensor(&[channels], name);
        Ok(Self { weight: tensor("weight")?, bias: tensor("bias")?, eps })
    }

    pub(crate) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        norm::layer_norm(xs, &self.weight, &self.bias, self.eps)
    }
}

impl GroupNorm {
    pub(crate) fn new(groups: usize, channels: usize, eps: f64, params: &Params) -> Result<Self> {
        let tensor = |name| params.tensor(&[channels], name);
        Ok(Self { weight: tensor("weight")?, bias: tensor("bias")?, groups, eps })
    }

    pub(crate) fn forward(&self, xs: &Tensor, silu: bool) -> Result<Tensor> {
        norm::group_norm(xs, &self.weight, &self.bias, self.groups, self.eps, silu)
    }
}
