//! What UNet and VAE share: the ResNet block, up- and downsampling.

use super::ops::{conv1x1, conv3x3, norm_silu};
use candle_core::{Result, Tensor};
use candle_nn::{Conv2d, Conv2dConfig, GroupNorm, Linear, Module, VarBuilder, conv2d, group_norm, linear};

/// `ResnetBlock2D`: two normalised 3x3 convolutions, the timestep added between them, and a shortcut.
pub(super) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv2d,
    time: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv2d,
    shortcut: Option<Conv2d>,
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
            .then(|| conv1x1(channels_in, channels_out, vb.pp("conv_shortcut")))
            .transpose()?;
        let time = time_channels.map(|width| linear(width, channels_out, vb.pp("time_emb_proj"))).transpose()?;
        Ok(Self {
            norm1: group_norm(norm.groups, channels_in, norm.eps, vb.pp("norm1"))?,
            conv1: conv3x3(channels_in, channels_out, vb.pp("conv1"))?,
            time,
            norm2: group_norm(norm.groups, channels_out, norm.eps, vb.pp("norm2"))?,
            conv2: conv3x3(channels_out, channels_out, vb.pp("conv2"))?,
            shortcut,
        })
    }

    /// `time` is the timestep embedding after SiLU, `[batch, time_channels]`.
    pub(super) fn forward(&self, xs: &Tensor, time: Option<&Tensor>) -> Result<Tensor> {
        let mut hidden = self.conv1.forward(&norm_silu(&self.norm1, xs)?)?;
        if let (Some(projection), Some(time)) = (&self.time, time) {
            let shift = projection.forward(time)?.unsqueeze(2)?.unsqueeze(3)?;
            hidden = hidden.broadcast_add(&shift)?;
        }
        let hidden = self.conv2.forward(&norm_silu(&self.norm2, &hidden)?)?;
        match &self.shortcut {
            Some(shortcut) => shortcut.forward(xs)? + hidden,
            None => xs + hidden,
        }
    }
}

/// Halves height and width with a strided 3x3 convolution.
pub(super) struct Downsample(Conv2d);

impl Downsample {
    pub(super) fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        let config = Conv2dConfig { padding: 1, stride: 2, ..Default::default() };
        Ok(Self(conv2d(channels, channels, 3, config, vb.pp("downsamplers.0.conv"))?))
    }

    pub(super) fn forward(&self, xs: &Tensor) -> Result<Tensor> {
        self.0.forward(xs)
    }
}

/// Doubles height and width by repeating pixels, then a 3x3 convolution.
pub(super) struct Upsample(Conv2d);

impl Upsample {
    pub(super) fn new(channels: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self(conv3x3(channels, channels, vb.pp("upsamplers.0.conv"))?))
    }

    /// `size` is the height and width to reach: the skip's, which may be odd.
    pub(super) fn forward(&self, xs: &Tensor, size: Option<(usize, usize)>) -> Result<Tensor> {
        let (_, _, height, width) = xs.dims4()?;
        let (height, width) = size.unwrap_or((height * 2, width * 2));
        self.0.forward(&xs.upsample_nearest2d(height, width)?)
    }
}
