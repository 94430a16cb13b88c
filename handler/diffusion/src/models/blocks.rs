//! The blocks that UNet and VAE share: ResNet block, downsampling and upsampling.

use crate::{
    ops::params::Params,
    ops::{Array, Conv, GroupNorm, Linear, Step, upsample},
};
use candle_core::Result;

/// diffusers' `ResnetBlock2D`: two 3x3 convolutions with norms before them, the timestep's shift between them, and a shortcut.
pub(crate) struct ResnetBlock {
    norm1: GroupNorm,
    conv1: Conv,
    time_emb_proj: Option<Linear>,
    norm2: GroupNorm,
    conv2: Conv,
    shortcut: Option<Conv>,
}

/// The settings of all GroupNorms of a model.
#[derive(Clone, Copy)]
pub(crate) struct NormConfig {
    pub groups: usize,
    pub eps: f64,
}

impl ResnetBlock {
    /// A VAE has no `time_channels`.
    pub(crate) fn new(
        channels_in: usize,
        channels_out: usize,
        time_channels: Option<usize>,
        norm: NormConfig,
        params: Params,
    ) -> Result<Self> {
        let shortcut = || {
            (channels_in != channels_out)
                .then(|| Conv::pointwise(channels_in, channels_out, params.pp("conv_shortcut")))
                .transpose()
        };
        let time_emb_proj = time_channels
            .map(|width| Linear::new(width, channels_out, params.pp("time_emb_proj").ahead()))
            .transpose()?;
        // In the order in which they run: weights that are streamed come in it.
        Ok(Self {
            norm1: GroupNorm::new(norm.groups, channels_in, norm.eps, params.pp("norm1"))?,
            conv1: Conv::same3x3(channels_in, channels_out, params.pp("conv1"))?,
            time_emb_proj,
            norm2: GroupNorm::new(norm.groups, channels_out, norm.eps, params.pp("norm2"))?,
            shortcut: shortcut()?,
            conv2: Conv::same3x3(channels_out, channels_out, params.pp("conv2"))?,
        })
    }

    /// The shift of each step, `[steps, channels_out]`. `time` is the embedding of the timesteps after SiLU, `[steps, time_channels]`.
    pub(crate) fn shifts(&self, time: &Array) -> Result<Option<Array>> {
        self.time_emb_proj.as_ref().map(|projection| projection.forward(time)).transpose()
    }

    /// `shifts` is the result of [`ResnetBlock::shifts`], with the current step.
    pub(crate) fn forward(&self, xs: &Array, shifts: Option<(&Array, &Step)>) -> Result<Array> {
        let normed = self.norm1.forward_silu(xs)?;
        let hidden = match shifts {
            Some((shifts, step)) => self.conv1.forward_shifted(&normed, shifts, step)?,
            None => self.conv1.forward(&normed)?,
        };
        let normed = self.norm2.forward_silu(&hidden)?;
        match &self.shortcut {
            Some(shortcut) => self.conv2.forward_adding(&normed, &shortcut.forward(xs)?),
            None => self.conv2.forward_adding(&normed, xs),
        }
    }
}

/// Halves height and width with a strided 3x3 convolution.
pub(crate) struct Downsample(Conv);

impl Downsample {
    pub(crate) fn new(channels: usize, params: Params) -> Result<Self> {
        Ok(Self(Conv::half3x3(channels, channels, params.pp("downsamplers.0.conv"))?))
    }

    pub(crate) fn forward(&self, xs: &Array) -> Result<Array> {
        self.0.forward(xs)
    }
}

/// Doubles height and width by repeating pixels, then a 3x3 convolution.
pub(crate) struct Upsample(Conv);

impl Upsample {
    pub(crate) fn new(channels: usize, params: Params) -> Result<Self> {
        Ok(Self(Conv::same3x3(channels, channels, params.pp("upsamplers.0.conv"))?))
    }

    /// `size` is the height and width of the output. It is that of the skip connection, which may be odd.
    pub(crate) fn forward(&self, xs: &Array, size: Option<(usize, usize)>) -> Result<Array> {
        let (height, width) = xs.size()?;
        let (height, width) = size.unwrap_or((height * 2, width * 2));
        self.0.forward(&upsample(xs, height, width)?)
    }
}
