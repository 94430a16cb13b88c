//! The blocks that UNet and VAE share: ResNet block, downsampling and upsampling.

use crate::{
    ops::params::Params,
    ops::{Array, Conv, GroupNorm, Linear, Step, pad_rows, upsample},
};
use candle_core::Result;
use std::ops::Range;

/// diffusers' `ResnetBlock2D`: two 3x3 convolutions with norms before them, the timestep's shift between them, and a shortcut.
pub(crate) struct ResnetBlock {
    pub(super) norm1: GroupNorm,
    pub(super) conv1: Conv,
    time_emb_proj: Option<Linear>,
    pub(super) norm2: GroupNorm,
    pub(super) conv2: Conv,
    pub(super) shortcut: Option<Conv>,
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
        // Each map is dropped as soon as nothing reads it: those of a VAE are large.
        let normed = self.norm1.forward_silu(xs)?;
        let hidden = match shifts {
            Some((shifts, step)) => self.conv1.forward_shifted(&normed, shifts, step)?,
            None => self.conv1.forward(&normed)?,
        };
        drop(normed);
        let normed = self.norm2.forward_silu(&hidden)?;
        drop(hidden);
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
        self.0.forward_resized(xs, height, width)
    }

    /// Some rows of the output of twice the size. `xs` is one image.
    pub(super) fn forward_rows(&self, xs: &Array, rows: Range<usize>) -> Result<Array> {
        let (height, width) = xs.size()?;
        let (first, end) = (rows.start == 0, rows.end == 2 * height);
        // The convolution reads a row more above and below.
        let around = rows.start - usize::from(!first)..rows.end + usize::from(!end);
        let from = around.start / 2..around.end.div_ceil(2);
        let larger = upsample(&xs.rows(from.clone())?, 2 * from.len(), 2 * width)?;
        let larger = larger.rows(around.start - 2 * from.start..around.end - 2 * from.start)?;
        self.0.forward_open(&pad_rows(larger, first, end)?, None)
    }

    /// A map for the output of twice the size, with any content.
    pub(super) fn room(&self, xs: &Array) -> Result<Array> {
        let (height, width) = xs.size()?;
        self.0.room(xs, (2 * height, 2 * width))
    }
}
