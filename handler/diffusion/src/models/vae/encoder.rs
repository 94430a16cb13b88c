//! The encoder of diffusers' `AutoencoderKL`: from pixels to the distribution of their latents.

use super::MidBlock;
use crate::{
    error::Result,
    loading::config::VaeConfig,
    models::blocks::{Downsample, NormConfig, ResnetBlock},
    ops::params::Params,
    ops::{Array, Conv, GroupNorm},
};
use candle_core::Result as CandleResult;

/// A VAE encoder.
pub(crate) struct VaeEncoder {
    conv_in: Conv,
    down: Vec<(Vec<ResnetBlock>, Option<Downsample>)>,
    mid: MidBlock,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
    quant_conv: Option<Conv>,
}

impl VaeEncoder {
    /// Takes its tensors from `params`.
    ///
    /// # Errors
    /// A setting is not supported, a tensor is missing, or its shape does not fit the config.
    pub(crate) fn new(config: &VaeConfig, params: Params) -> Result<Self> {
        config.check_encoder()?;
        let norm = NormConfig { groups: config.norm_num_groups, eps: 1e-6 };
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        // A mean and the logarithm of a variance for each number.
        let moments = 2 * config.latent_channels;
        let encoder = params.pp("encoder");
        let down = |index: usize| -> CandleResult<_> {
            let (before, out) = (channels[index.saturating_sub(1)], channels[index]);
            let params = encoder.pp("down_blocks").pp(index);
            let layer = |layer: usize| {
                let channels_in = if layer == 0 { before } else { out };
                ResnetBlock::new(channels_in, out, None, norm, params.pp("resnets").pp(layer))
            };
            let resnets = (0..config.layers_per_block).map(layer).collect::<CandleResult<Vec<_>>>()?;
            let halves = index + 1 < channels.len();
            Ok((resnets, halves.then(|| Downsample::past(out, params.clone())).transpose()?))
        };
        Ok(Self {
            conv_in: Conv::same3x3(config.in_channels, first, encoder.pp("conv_in"))?,
            down: (0..channels.len()).map(down).collect::<CandleResult<_>>()?,
            mid: MidBlock::new(config, norm, encoder.pp("mid_block"))?,
            conv_norm_out: GroupNorm::new(norm.groups, last, norm.eps, encoder.pp("conv_norm_out"))?,
            conv_out: Conv::same3x3(last, moments, encoder.pp("conv_out"))?.measured_in(None),
            quant_conv: config
                .use_quant_conv
                .then(|| {
                    Ok::<_, candle_core::Error>(
                        Conv::pointwise(moments, moments, params.pp("quant_conv"))?.measured_in(None),
                    )
                })
                .transpose()?,
        })
    }

    /// The distribution of the latents of `pixels` `[batch, 3, height, width]`, -1 to 1: the means and then the logarithms of the
    /// variances, for SD1.5 `[batch, 8, height / 8, width / 8]`. They are not multiplied by the scaling factor yet.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    pub(crate) fn encode(&self, pixels: &Array) -> Result<Array> {
        let mut xs = self.conv_in.forward(pixels)?;
        for (resnets, downsample) in &self.down {
            for resnet in resnets {
                xs = resnet.forward(xs.into(), None)?;
            }
            if let Some(downsample) = downsample {
                xs = downsample.forward(&xs)?;
            }
        }
        xs = self.mid.forward(xs)?;
        let moments = self.conv_out.forward(&self.conv_norm_out.forward_silu(xs)?)?;
        Ok(match &self.quant_conv {
            Some(conv) => conv.forward(&moments)?,
            None => moments,
        })
    }
}
