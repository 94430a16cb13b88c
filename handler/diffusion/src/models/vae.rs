//! diffusers' `AutoencoderKL`: the decoder, from latents to pixels, and the encoder, for runs that begin from a picture.

mod bands;
pub(crate) mod encoder;
mod memory;
#[cfg(test)]
mod tests;

pub use memory::DecodeMemory;

use crate::{
    error::Result,
    loading::config::VaeConfig,
    models::blocks::{NormConfig, ResnetBlock, Upsample},
    ops::params::Params,
    ops::{Array, Conv, GroupNorm, Linear, add, self_attention, to_map, to_tokens},
};
use bands::{Bands, Source};
use candle_core::Result as CandleResult;
use memory::{Form, Levels};

/// A VAE decoder.
pub(crate) struct VaeDecoder {
    post_quant_conv: Option<Conv>,
    conv_in: Conv,
    mid: MidBlock,
    up: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    /// How each level is computed where memory is short.
    forms: Vec<Form>,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
}

/// The blocks between the innermost level of encoder or decoder and its way out or in.
struct MidBlock {
    before: ResnetBlock,
    attention: Option<SpatialAttention>,
    after: ResnetBlock,
}

/// Self-attention with one head over all positions, with a residual.
struct SpatialAttention {
    norm: GroupNorm,
    to_qkv: Linear,
    to_out: Linear,
}

impl VaeDecoder {
    /// Takes its tensors from `params`.
    ///
    /// # Errors
    /// A tensor is missing, or its shape does not fit the config.
    pub(crate) fn new(config: &VaeConfig, params: Params) -> Result<Self> {
        let norm = NormConfig { groups: config.norm_num_groups, eps: 1e-6 };
        let inner: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (top, latent) = (inner[0], config.latent_channels);
        let decoder = params.pp("decoder");
        let up = |index: usize| -> CandleResult<_> {
            let (before, out) = (inner[index.saturating_sub(1)], inner[index]);
            let params = decoder.pp("up_blocks").pp(index);
            let layer = |layer: usize| {
                let channels_in = if layer == 0 { before } else { out };
                ResnetBlock::new(channels_in, out, None, norm, params.pp("resnets").pp(layer))
            };
            let resnets = (0..=config.layers_per_block).map(layer).collect::<CandleResult<Vec<_>>>()?;
            let upsample = (index + 1 < inner.len()).then(|| Upsample::new(out, params.clone())).transpose()?;
            Ok((resnets, upsample))
        };
        let last = inner[inner.len() - 1];
        Ok(Self {
            post_quant_conv: config
                .use_post_quant_conv
                .then(|| Conv::pointwise(latent, latent, params.pp("post_quant_conv")))
                .transpose()?,
            conv_in: Conv::same3x3(latent, top, decoder.pp("conv_in"))?,
            mid: MidBlock::new(config, norm, decoder.pp("mid_block"))?,
            up: (0..inner.len()).map(up).collect::<CandleResult<_>>()?,
            forms: Levels::of(config).forms(),
            conv_norm_out: GroupNorm::new(norm.groups, last, norm.eps, decoder.pp("conv_norm_out"))?,
            conv_out: Conv::same3x3(last, config.out_channels, decoder.pp("conv_out"))?,
        })
    }

    /// The pixels of `latents` `[batch, latent_channels, height, width]`, which must already be divided by the scaling factor. For SD1.5
    /// the result is `[batch, 3, 8 x height, 8 x width]`, about -1 to 1.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    pub(crate) fn decode(&self, latents: &Array) -> Result<Array> {
        let mut xs = self.middle(latents)?;
        for (resnets, upsample) in &self.up {
            for resnet in resnets {
                xs = resnet.forward(xs.into(), None)?;
            }
            if let Some(upsample) = upsample {
                xs = upsample.forward(&xs, None)?;
            }
        }
        Ok(self.conv_out.forward(&self.conv_norm_out.forward_silu(xs)?)?)
    }

    /// The same for one picture, in bands of so many rows: `take` gets the pixels from the first rows to the last. It takes less memory,
    /// see [`DecodeMemory`].
    ///
    /// # Errors
    /// That of `take`. There is more than one picture, or the device fails or has too little memory.
    pub(crate) fn decode_in_bands(
        &self,
        latents: &Array,
        rows: usize,
        take: &mut dyn FnMut(Array) -> CandleResult<()>,
    ) -> Result<()> {
        let (bands, mut xs) = (Bands(rows), self.middle(latents)?);
        let mut before: Option<&Upsample> = None;
        for ((resnets, upsample), form) in self.up.iter().zip(&self.forms) {
            if *form == Form::Whole {
                if let Some(upsample) = before {
                    xs = upsample.forward(&xs, None)?;
                }
                for resnet in resnets {
                    xs = resnet.forward(xs.into(), None)?;
                }
            } else {
                let mut source = match before {
                    Some(by) => Source::Upsampled { from: xs, by },
                    None => Source::Whole(xs),
                };
                if *form == Form::Held {
                    source = bands.held(source)?;
                }
                for resnet in resnets {
                    source = Source::Whole(bands.block(resnet, source)?);
                }
                xs = source.into_map()?;
            }
            before = upsample.as_ref();
        }
        Ok(bands.finish((&self.conv_norm_out, &self.conv_out), &xs, take)?)
    }

    /// The map before the first level.
    fn middle(&self, latents: &Array) -> Result<Array> {
        let mut xs = latents.clone();
        if let Some(conv) = &self.post_quant_conv {
            xs = conv.forward(&xs)?;
        }
        xs = self.conv_in.forward(&xs)?;
        Ok(self.mid.forward(xs)?)
    }
}

impl MidBlock {
    fn new(config: &VaeConfig, norm: NormConfig, params: Params) -> CandleResult<Self> {
        let channels = config.block_out_channels.last().copied().unwrap_or_default();
        let resnet = |name: &str| ResnetBlock::new(channels, channels, None, norm, params.pp(name));
        let attention = || SpatialAttention::new(channels, norm, params.pp("attentions.0"));
        Ok(Self {
            before: resnet("resnets.0")?,
            attention: config.mid_block_add_attention.then(attention).transpose()?,
            after: resnet("resnets.1")?,
        })
    }

    fn forward(&self, xs: Array) -> CandleResult<Array> {
        let mut xs = self.before.forward(xs.into(), None)?;
        if let Some(attention) = &self.attention {
            xs = attention.forward(&xs)?;
        }
        self.after.forward(xs.into(), None)
    }
}

impl SpatialAttention {
    fn new(channels: usize, norm: NormConfig, params: Params) -> CandleResult<Self> {
        let parts = ["to_q", "to_k", "to_v"].map(|part| params.pp(part));
        Ok(Self {
            norm: GroupNorm::new(norm.groups, channels, norm.eps, params.pp("group_norm"))?,
            to_qkv: Linear::packed(channels, channels, true, &parts)?,
            to_out: Linear::new(channels, channels, params.pp("to_out.0"))?,
        })
    }

    fn forward(&self, xs: &Array) -> CandleResult<Array> {
        let (height, width) = xs.size()?;
        let tokens = to_tokens(&self.norm.forward(xs)?)?;
        let mixed = self.to_out.forward(&self_attention(&self.to_qkv, &tokens, 1)?)?;
        add(xs, &to_map(&mixed, height, width)?)
    }
}
