//! What UNet and VAE share: the ResNet block, up- and downsampling.

use super::ops::{Conv, GroupNorm, Linear};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// `ResnetBlock2D`: two normalised 3x3 convolutions, the timestep added between them, and a shortcut.
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

/// GroupNorm settings of a model.
#[derive(Clone, Copy)]
pub(super) struct Norm {
    pub groups: usize,
    pub eps: f64,
}

impl ResnetBlock {
    /// `time_channels` is none in a VAE.
    pub(super) fn new(
        channels_in: usize,
        channels_out: usize,
        time_channels: Option<usize>,
        norm: Norm,
        vb: VarBuilder,
    ) -> Result<Self> {
        let shortcut = (channels_in != channels_out)
            .then(|| Conv::pointwise(channels_in, channels_out, vb.pp("conv_shortcut")))
            .transpose()?;
        let time = time_channels.map(|width| Linear::new(width, channels_out, vb.pp("time_emb_proj"))).transpose()?;
        Ok(Self {
            norm1: GroupNorm::new(norm.groups, channels_in, norm.eps, vb.pp("norm1"))?,
            conv1: Conv::same3x3(channels_in, channels_out, vb.pp("conv1"))?,
            time,
            norm2: GroupNorm::new(norm.groups, channels_out, norm.eps, vb.pp("norm2"))?,
            conv2: Conv::same3x3(channels_out, channels_out, vb.pp("conv2"))?,
            shortcut,
        })
    }

    /// `time` is the timestep embedding after SiLU, `[batch, time_channels]`.
    pub(super) fn forward(&self, xs: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let normed = self.norm1.forward_silu(xs)?;
        let hidden = match (&self.time, time) {
            (Some(projection), Some(time)) => self.conv1.forward_shifted(&normed, &projection.forward(time)?)?,
            _ => self.conv1.forward(&normed)?,
        };
        let normed = self.norm2.forward_silu(&hidden)?;
        match &self.shortcut {
            Some(shortcut) => self.conv2.forward_onto(&normed, &shortcut.forward(xs)?),
            None => self.conv2.forward_onto(&normed, xs),
        }
    }
}

/// Halves height and width with a strided 3x3 convolution.
pub(super) struct Downsample(Conv);

impl Downsample {
    pub(super) fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(Conv::half3x3(channels, channels, vb.pp("downsamplers.0.conv"))?))
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}

/// Doubles height and width by repeating pixels, then a 3x3 convolution.
pub(super) struct Upsample(Conv);

impl Upsample {
    pub(super) fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(Conv::same3x3(channels, channels, vb.pp("upsamplers.0.conv"))?))
    }

    /// `size` is the height and width to reach: the skip's, which may be odd.
    pub(super) fn forward(&self, xs: &Tensor, size: Option<(usize, usize)>) -> Result<Tensor> {
        let (_, _, height, width) = xs.dims4()?;
        let (height, width) = size.unwrap_or((height * 2, width * 2));
        self.0.forward(&xs.upsample_nearest2d(height, width)?)
    }
}
