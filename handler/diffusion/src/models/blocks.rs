//! The blocks that UNet and VAE share: ResNet block, downsampling and upsampling.

use crate::{
    ops::params::Params,
    ops::{Array, Conv, GroupNorm, Linear, Maps, Step, UpsampledConv},
};
use candle_core::{Error, Result};
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
            let conv = || Conv::pointwise(channels_in, channels_out, params.pp("conv_shortcut"));
            (channels_in != channels_out).then(|| Ok::<_, Error>(conv()?.measured_in(None))).transpose()
        };
        let time_emb_proj = time_channels
            .map(|width| Linear::new(width, channels_out, params.pp("time_emb_proj").ahead()))
            .transpose()?;
        let conv3x3 = |channels_in, name| {
            let conv = Conv::same3x3(channels_in, channels_out, params.pp(name))?;
            Ok::<_, Error>(conv.measured_in(Some(norm.groups)))
        };
        // In the order in which they run: weights that are streamed come in it.
        Ok(Self {
            shortcut: shortcut()?,
            norm1: GroupNorm::new(norm.groups, channels_in, norm.eps, params.pp("norm1"))?,
            conv1: conv3x3(channels_in, "conv1")?,
            time_emb_proj,
            norm2: GroupNorm::new(norm.groups, channels_out, norm.eps, params.pp("norm2"))?,
            conv2: conv3x3(channels_out, "conv2")?,
        })
    }

    /// See [`Conv::measured_in`]; the groups of the model's norms unless this says otherwise.
    pub(crate) fn measured_in(self, groups: Option<usize>) -> Self {
        Self { conv2: self.conv2.measured_in(groups), ..self }
    }

    /// The shift of each step, `[steps, channels_out]`. `time` is the embedding of the timesteps after SiLU, `[steps, time_channels]`.
    pub(crate) fn shifts(&self, time: &Array) -> Result<Option<Array>> {
        self.time_emb_proj.as_ref().map(|projection| projection.forward(time)).transpose()
    }

    /// `shifts` is the result of [`ResnetBlock::shifts`], with the current step.
    pub(crate) fn forward(&self, xs: Maps, shifts: Option<(&Array, &Step)>) -> Result<Array> {
        // Each map is dropped or written over as soon as nothing reads it: those of a VAE are large.
        let residual = match &self.shortcut {
            Some(shortcut) => shortcut.forward_joined(&xs)?,
            None => xs.one()?,
        };
        let normed = self.norm1.forward_silu(xs)?;
        let hidden = match shifts {
            Some((shifts, step)) => self.conv1.forward_shifted(&normed, shifts, step)?,
            None => self.conv1.forward(&normed)?,
        };
        drop(normed);
        self.conv2.forward_adding(&self.norm2.forward_silu(hidden)?, &residual)
    }
}

/// Halves height and width with a strided 3x3 convolution.
pub(crate) struct Downsample(Conv);

impl Downsample {
    pub(crate) fn new(channels: usize, params: Params) -> Result<Self> {
        Ok(Self(Conv::half3x3(channels, channels, params.pp("downsamplers.0.conv"))?))
    }

    /// With zeros below and to the right of the map alone, as in the VAE.
    pub(crate) fn past(channels: usize, params: Params) -> Result<Self> {
        Ok(Self(Conv::half3x3_past(channels, channels, params.pp("downsamplers.0.conv"))?))
    }

    pub(crate) fn forward(&self, xs: &Array) -> Result<Array> {
        self.0.forward(xs)
    }
}

/// Doubles height and width by repeating pixels, then a 3x3 convolution.
pub(crate) struct Upsample(UpsampledConv);

impl Upsample {
    pub(crate) fn new(channels: usize, params: Params) -> Result<Self> {
        Ok(Self(UpsampledConv::new(channels, channels, params.pp("upsamplers.0.conv"))?))
    }

    /// See [`Conv::measured_in`].
    pub(crate) fn measured_in(self, groups: Option<usize>) -> Self {
        Self(self.0.measured_in(groups))
    }

    /// `size` is the height and width of the output. It is that of the skip connection, which may be odd.
    pub(crate) fn forward(&self, xs: &Array, size: Option<(usize, usize)>) -> Result<Array> {
        let (height, width) = xs.size()?;
        let (height, width) = size.unwrap_or((height * 2, width * 2));
        self.0.forward(xs, height, width)
    }

    /// Some rows of the output of twice the size. `xs` is one image.
    pub(super) fn forward_rows(&self, xs: &Array, rows: Range<usize>) -> Result<Array> {
        self.0.forward_rows(xs, rows)
    }

    /// A map for the output of twice the size, with any content.
    pub(super) fn room(&self, xs: &Array) -> Result<Array> {
        self.0.room(xs)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loading::weights::Weights;
    use candle_core::{DType, Device, Tensor};

    fn draw(dims: &[usize]) -> Tensor {
        let seed = dims.iter().fold(0, |seed, &dim| seed * 31 + dim as u64);
        crate::noise::Noise::cpu(seed).randn(dims, DType::F32, &Device::Cpu).unwrap()
    }

    /// A block of 24 channels in and 16 out.
    fn block() -> ResnetBlock {
        let (inner, outer) = (24, 16);
        let tensors = [
            ("norm1.weight", vec![inner]),
            ("norm1.bias", vec![inner]),
            ("conv1.weight", vec![outer, inner, 3, 3]),
            ("conv1.bias", vec![outer]),
            ("norm2.weight", vec![outer]),
            ("norm2.bias", vec![outer]),
            ("conv2.weight", vec![outer, outer, 3, 3]),
            ("conv2.bias", vec![outer]),
            ("conv_shortcut.weight", vec![outer, inner, 1, 1]),
            ("conv_shortcut.bias", vec![outer]),
        ];
        let weights = Weights::new(tensors.iter().map(|(name, dims)| (format!("m.{name}"), draw(dims))).collect());
        let norm = NormConfig { groups: 8, eps: 1e-5 };
        ResnetBlock::new(inner, outer, None, norm, Params::on_cpu(&weights).pp("m")).unwrap()
    }

    #[test]
    fn a_block_reads_two_maps_as_one_with_the_channels_of_both() {
        let (block, first, second) = (block(), draw(&[2, 16, 9, 7]), draw(&[2, 8, 9, 7]));
        let numbers = |maps: Maps| {
            let out = block.forward(maps, None).unwrap().to_tensor().unwrap();
            out.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        };
        let whole = Tensor::cat(&[&first, &second], 1).unwrap();
        let joined = Maps::joined(Array::Cpu(first.clone()), Array::Cpu(second.clone())).unwrap();
        assert_eq!(numbers(joined), numbers(Array::Cpu(whole.clone()).into()));
        // In the other order it is another map.
        let crossed = Maps::joined(Array::Cpu(second), Array::Cpu(first)).unwrap();
        assert_ne!(numbers(crossed), numbers(Array::Cpu(whole).into()));
    }

    #[test]
    fn maps_that_do_not_fit_are_refused() {
        for dims in [[1, 8, 9, 7], [2, 8, 7, 9], [2, 8, 9, 8]] {
            let maps = Maps::joined(Array::Cpu(draw(&[2, 16, 9, 7])), Array::Cpu(draw(&dims)));
            assert!(maps.is_err(), "{dims:?}");
        }
        let few = Maps::joined(Array::Cpu(draw(&[2, 8, 9, 7])), Array::Cpu(draw(&[2, 8, 9, 7]))).unwrap();
        assert!(block().forward(few, None).is_err());
    }
}
