//! `UNet2DConditionModel`: predicts the noise in latents, given the timestep and the prompt's embedding.
//!
//! Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022. Names and shapes are diffusers'.

use super::{
    blocks::{Downsample, Norm, ResnetBlock, Upsample},
    config::UnetConfig,
    error::Result,
    ops::{Conv, GroupNorm, Linear},
    transformer::{Shape, Transformer},
};
use candle_core::{Result as CandleResult, Tensor};
use candle_nn::VarBuilder;

/// The UNet of one model.
pub struct Unet {
    time: TimeEmbedding,
    conv_in: Conv,
    down: Vec<DownBlock>,
    mid: (ResnetBlock, Transformer, ResnetBlock),
    up: Vec<UpBlock>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

struct TimeEmbedding {
    channels: usize,
    cosines_first: bool,
    shift: f64,
    linear_1: Linear,
    linear_2: Linear,
}

struct DownBlock {
    layers: Vec<(ResnetBlock, Option<Transformer>)>,
    downsample: Option<Downsample>,
}

struct UpBlock {
    layers: Vec<(ResnetBlock, Option<Transformer>)>,
    upsample: Option<Upsample>,
}

impl Unet {
    /// Takes its tensors from `vb`.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than the config says.
    pub fn new(config: &UnetConfig, vb: VarBuilder) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let time_channels = first * 4;
        let norm = Norm { groups: config.norm_num_groups, eps: config.norm_eps };
        let bottom = channels.len() - 1;
        let resnet = |name: &str| ResnetBlock::new(last, last, Some(time_channels), norm, vb.pp("mid_block").pp(name));
        let mid_attention = vb.pp("mid_block.attentions.0");
        Ok(Self {
            time: TimeEmbedding::new(config, first, vb.pp("time_embedding"))?,
            conv_in: Conv::same3x3(config.in_channels, first, vb.pp("conv_in"))?,
            down: (0..channels.len())
                .map(|level| DownBlock::new(config, level, vb.pp("down_blocks").pp(level)))
                .collect::<CandleResult<_>>()?,
            mid: (
                resnet("resnets.0")?,
                Transformer::new(transformer_shape(config, bottom), norm, mid_attention)?,
                resnet("resnets.1")?,
            ),
            up: (0..channels.len())
                .map(|level| UpBlock::new(config, level, vb.pp("up_blocks").pp(level)))
                .collect::<CandleResult<_>>()?,
            norm_out: GroupNorm::new(norm.groups, first, norm.eps, vb.pp("conv_norm_out"))?,
            conv_out: Conv::same3x3(first, config.out_channels, vb.pp("conv_out"))?,
        })
    }

    /// The UNet's output for `latents` `[batch, in_channels, height, width]`, all at the same `timestep`, with the
    /// prompt's embedding `[batch, tokens, cross_attention_dim]`. Same shape and dtype as the latents.
    ///
    /// # Errors
    /// Shapes that don't fit the model; device or memory.
    pub fn forward(&self, latents: &Tensor, timestep: f64, context: &Tensor) -> Result<Tensor> {
        let time = self.time.forward(timestep, latents)?;
        let mut xs = self.conv_in.forward(latents)?;
        let mut skips = vec![xs.clone()];
        for block in &self.down {
            xs = block.forward(&xs, &time, context, &mut skips)?;
        }
        let (before, attention, after) = &self.mid;
        xs = before.forward(&xs, Some(&time))?;
        xs = after.forward(&attention.forward(&xs, context)?, Some(&time))?;
        for block in &self.up {
            xs = block.forward(&xs, &time, context, &mut skips)?;
        }
        Ok(self.conv_out.forward(&self.norm_out.forward_silu(&xs)?)?)
    }
}

impl TimeEmbedding {
    fn new(config: &UnetConfig, channels: usize, vb: VarBuilder) -> CandleResult<Self> {
        Ok(Self {
            channels,
            cosines_first: config.flip_sin_to_cos,
            shift: config.freq_shift,
            linear_1: Linear::new(channels, channels * 4, vb.pp("linear_1"))?,
            linear_2: Linear::new(channels * 4, channels * 4, vb.pp("linear_2"))?,
        })
    }

    /// The embedding after SiLU, `[batch, 4 x channels]`. The sinusoids are f32 whatever the model's dtype.
    fn forward(&self, timestep: f64, latents: &Tensor) -> CandleResult<Tensor> {
        let half = self.channels / 2;
        let angle = |index: usize| {
            let exponent = -10_000f64.ln() * index as f64 / (half as f64 - self.shift);
            timestep as f32 * exponent.exp() as f32
        };
        let angles: Vec<f32> = (0..half).map(angle).collect();
        let (sines, cosines) = (angles.iter().map(|a| a.sin()), angles.iter().map(|a| a.cos()));
        let row: Vec<f32> =
            if self.cosines_first { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() };
        let row = Tensor::new(row, latents.device())?.unsqueeze(0)?.to_dtype(latents.dtype())?;
        let hidden = self.linear_2.forward(&self.linear_1.forward(&row)?.silu()?)?.silu()?;
        hidden.repeat((latents.dim(0)?, 1))
    }
}

impl DownBlock {
    fn new(config: &UnetConfig, level: usize, vb: VarBuilder) -> CandleResult<Self> {
        let channels = &config.block_out_channels;
        let (before, out) = (channels[level.saturating_sub(1)], channels[level]);
        let attends = config.down_block_types[level] == "CrossAttnDownBlock2D";
        let inputs = |layer| if layer == 0 { before } else { out };
        let count = config.layers_per_block.at(level);
        Ok(Self {
            layers: layers(config, level, count, attends, inputs, &vb)?,
            downsample: (level + 1 < channels.len()).then(|| Downsample::new(out, vb)).transpose()?,
        })
    }

    fn forward(&self, xs: &Tensor, time: &Tensor, context: &Tensor, skips: &mut Vec<Tensor>) -> CandleResult<Tensor> {
        let mut xs = xs.clone();
        for (resnet, transformer) in &self.layers {
            xs = run(resnet, transformer.as_ref(), &xs, time, context)?;
            skips.push(xs.clone());
        }
        if let Some(downsample) = &self.downsample {
            xs = downsample.forward(&xs)?;
            skips.push(xs.clone());
        }
        Ok(xs)
    }
}

impl UpBlock {
    /// `index` counts from the innermost level.
    fn new(config: &UnetConfig, index: usize, vb: VarBuilder) -> CandleResult<Self> {
        let channels = &config.block_out_channels;
        let bottom = channels.len() - 1;
        let level = bottom - index;
        let (out, below) = (channels[level], channels[(level + 1).min(bottom)]);
        let outside = channels[level.saturating_sub(1)];
        let attends = config.up_block_types[index] == "CrossAttnUpBlock2D";
        let count = config.layers_per_block.at(level) + 1;
        let inputs = |layer| {
            let skip = if layer + 1 == count { outside } else { out };
            skip + if layer == 0 { below } else { out }
        };
        Ok(Self {
            layers: layers(config, level, count, attends, inputs, &vb)?,
            upsample: (level > 0).then(|| Upsample::new(out, vb)).transpose()?,
        })
    }

    fn forward(&self, xs: &Tensor, time: &Tensor, context: &Tensor, skips: &mut Vec<Tensor>) -> CandleResult<Tensor> {
        let mut xs = xs.clone();
        for (resnet, transformer) in &self.layers {
            let skip = skips.pop().ok_or_else(|| candle_core::Error::msg("more layers up than down"))?;
            xs = run(resnet, transformer.as_ref(), &Tensor::cat(&[&xs, &skip], 1)?, time, context)?;
        }
        match &self.upsample {
            Some(upsample) => {
                let size = skips.last().map(|skip| skip.dims4()).transpose()?.map(|(_, _, h, w)| (h, w));
                upsample.forward(&xs, size)
            }
            None => Ok(xs),
        }
    }
}

fn layers(
    config: &UnetConfig,
    level: usize,
    count: usize,
    attends: bool,
    inputs: impl Fn(usize) -> usize,
    vb: &VarBuilder,
) -> CandleResult<Vec<(ResnetBlock, Option<Transformer>)>> {
    let norm = Norm { groups: config.norm_num_groups, eps: config.norm_eps };
    let time_channels = Some(config.block_out_channels[0] * 4);
    let out = config.block_out_channels[level];
    let layer = |index: usize| {
        let resnet = ResnetBlock::new(inputs(index), out, time_channels, norm, vb.pp("resnets").pp(index))?;
        let attention = vb.pp("attentions").pp(index);
        let transformer =
            attends.then(|| Transformer::new(transformer_shape(config, level), norm, attention)).transpose()?;
        Ok((resnet, transformer))
    };
    (0..count).map(layer).collect()
}

fn transformer_shape(config: &UnetConfig, level: usize) -> Shape {
    Shape {
        channels: config.block_out_channels[level],
        heads: config.heads(level),
        context: config.cross_attention_dim,
        layers: config.transformer_layers_per_block.at(level),
        linear_projection: config.use_linear_projection,
    }
}

fn run(
    resnet: &ResnetBlock,
    transformer: Option<&Transformer>,
    xs: &Tensor,
    time: &Tensor,
    context: &Tensor,
) -> CandleResult<Tensor> {
    let xs = resnet.forward(xs, Some(time))?;
    transformer.map_or(Ok(xs.clone()), |transformer| transformer.forward(&xs, context))
}
