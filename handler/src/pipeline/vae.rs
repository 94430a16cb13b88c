//! The decoder of `AutoencoderKL`: latents to pixels. There is no encoder, since nothing here starts from a picture.

use super::{
    blocks::{Norm, ResnetBlock, Upsample},
    config::VaeConfig,
    error::Result,
    ops::{Conv, GroupNorm, Linear, attention, to_map, to_tokens},
};
use candle_core::{Result as CandleResult, Tensor};
use candle_nn::VarBuilder;

/// A VAE decoder.
pub struct VaeDecoder {
    scaling_factor: f64,
    post_quant: Option<Conv>,
    conv_in: Conv,
    mid: (ResnetBlock, Option<SpatialAttention>, ResnetBlock),
    up: Vec<(Vec<ResnetBlock>, Option<Upsample>)>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

/// Single-head self-attention over all positions, residual included.
struct SpatialAttention {
    norm: GroupNorm,
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
}

impl VaeDecoder {
    /// Takes its tensors from `vb`.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than the config says.
    pub fn new(config: &VaeConfig, vb: VarBuilder) -> Result<Self> {
        let norm = Norm { groups: config.norm_num_groups, eps: 1e-6 };
        let inner: Vec<usize> = config.block_out_channels.iter().rev().copied().collect();
        let (top, latent) = (inner[0], config.latent_channels);
        let decoder = vb.pp("decoder");
        let resnet = |name: &str| ResnetBlock::new(top, top, None, norm, decoder.pp("mid_block").pp(name));
        let attention = config
            .mid_block_add_attention
            .then(|| SpatialAttention::new(top, norm, decoder.pp("mid_block.attentions.0")))
            .transpose()?;
        let up = |index: usize| -> CandleResult<_> {
            let (before, out) = (inner[index.saturating_sub(1)], inner[index]);
            let vb = decoder.pp("up_blocks").pp(index);
            let layer = |layer: usize| {
                let channels_in = if layer == 0 { before } else { out };
                ResnetBlock::new(channels_in, out, None, norm, vb.pp("resnets").pp(layer))
            };
            let resnets = (0..=config.layers_per_block).map(layer).collect::<CandleResult<Vec<_>>>()?;
            let upsample = (index + 1 < inner.len()).then(|| Upsample::new(out, vb.clone())).transpose()?;
            Ok((resnets, upsample))
        };
        let last = inner[inner.len() - 1];
        Ok(Self {
            scaling_factor: config.scaling_factor,
            post_quant: config
                .use_post_quant_conv
                .then(|| Conv::pointwise(latent, latent, vb.pp("post_quant_conv")))
                .transpose()?,
            conv_in: Conv::same3x3(latent, top, decoder.pp("conv_in"))?,
            mid: (resnet("resnets.0")?, attention, resnet("resnets.1")?),
            up: (0..inner.len()).map(up).collect::<CandleResult<_>>()?,
            norm_out: GroupNorm::new(norm.groups, last, norm.eps, decoder.pp("conv_norm_out"))?,
            conv_out: Conv::same3x3(last, config.out_channels, decoder.pp("conv_out"))?,
        })
    }

    /// Pixels of `latents` `[batch, latent_channels, height, width]`: `[batch, 3, 8 x height, 8 x width]` for SD1.5, about -1 to 1.
    ///
    /// # Errors
    /// Device or memory.
    pub fn decode(&self, latents: &Tensor) -> Result<Tensor> {
        let mut xs = (latents / self.scaling_factor)?;
        if let Some(conv) = &self.post_quant {
            xs = conv.forward(&xs)?;
        }
        xs = self.conv_in.forward(&xs)?;
        let (before, attention, after) = &self.mid;
        xs = before.forward(&xs, None)?;
        if let Some(attention) = attention {
            xs = attention.forward(&xs)?;
        }
        xs = after.forward(&xs, None)?;
        for (resnets, upsample) in &self.up {
            for resnet in resnets {
                xs = resnet.forward(&xs, None)?;
            }
            if let Some(upsample) = upsample {
                xs = upsample.forward(&xs, None)?;
            }
        }
        Ok(self.conv_out.forward(&self.norm_out.forward_silu(&xs)?)?)
    }
}

impl SpatialAttention {
    fn new(channels: usize, norm: Norm, vb: VarBuilder) -> CandleResult<Self> {
        let projection = |name: &str| Linear::new(channels, channels, vb.pp(name));
        Ok(Self {
            norm: GroupNorm::new(norm.groups, channels, norm.eps, vb.pp("group_norm"))?,
            to_q: projection("to_q")?,
            to_k: projection("to_k")?,
            to_v: projection("to_v")?,
            to_out: projection("to_out.0")?,
        })
    }

    fn forward(&self, xs: &Tensor) -> CandleResult<Tensor> {
        let (_, _, height, width) = xs.dims4()?;
        let tokens = to_tokens(&self.norm.forward(xs)?)?;
        let [q, k, v] = [&self.to_q, &self.to_k, &self.to_v].map(|projection| projection.forward(&tokens));
        let mixed = self.to_out.forward(&attention(&q?, &k?, &v?, 1)?)?;
        xs + to_map(&mixed, height, width)?
    }
}

/// SD1.5's own file has older names for the attention of the middle block.
pub fn canonical_name(name: &str) -> String {
    let Some((block, layer)) = name.split_once(".attentions.0.") else { return name.to_string() };
    let layer = [("query.", "to_q."), ("key.", "to_k."), ("value.", "to_v."), ("proj_attn.", "to_out.0.")]
        .iter()
        .find_map(|(old, new)| layer.strip_prefix(old).map(|rest| format!("{new}{rest}")))
        .unwrap_or_else(|| layer.to_string());
    format!("{block}.attentions.0.{layer}")
}
