//! `UNet2DConditionModel`: predicts the noise in latents, given the timestep and the prompt's embedding.
//!
//! Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022. Names and shapes are diffusers'.

use crate::{
    error::Result,
    loading::config::UnetConfig,
    models::blocks::{Downsample, Norm, ResnetBlock, Upsample},
    models::transformer::{Prompt, Shape, Transformer},
    ops::params::Params,
    ops::{Array, Conv, GroupNorm, Linear, Step, join, silu},
};
use candle_core::{Device, Error, Result as CandleResult, Tensor};

/// The UNet of one model.
pub(crate) struct Unet {
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
    /// Takes its tensors from `params`.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than the config says.
    pub(crate) fn new(config: &UnetConfig, params: Params) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let time_channels = first * 4;
        let norm = Norm { groups: config.norm_num_groups, eps: config.norm_eps };
        let bottom = channels.len() - 1;
        let resnet =
            |name: &str| ResnetBlock::new(last, last, Some(time_channels), norm, params.pp("mid_block").pp(name));
        let mid_attention = params.pp("mid_block.attentions.0");
        Ok(Self {
            time: TimeEmbedding::new(config, first, params.pp("time_embedding"))?,
            conv_in: Conv::same3x3(config.in_channels, first, params.pp("conv_in"))?,
            down: (0..channels.len())
                .map(|level| DownBlock::new(config, level, params.pp("down_blocks").pp(level)))
                .collect::<CandleResult<_>>()?,
            mid: (
                resnet("resnets.0")?,
                Transformer::new(transformer_shape(config, bottom), norm, mid_attention)?,
                resnet("resnets.1")?,
            ),
            up: (0..channels.len())
                .map(|level| UpBlock::new(config, level, params.pp("up_blocks").pp(level)))
                .collect::<CandleResult<_>>()?,
            norm_out: GroupNorm::new(norm.groups, first, norm.eps, params.pp("conv_norm_out"))?,
            conv_out: Conv::same3x3(first, config.out_channels, params.pp("conv_out"))?,
        })
    }

    /// What all steps share, for those timesteps and the prompt's embedding `[batch, tokens, cross_attention_dim]`.
    ///
    /// # Errors
    /// Shapes that don't fit the model; device or memory.
    pub(crate) fn prepare(&self, timesteps: &[f64], context: &Array) -> Result<Prepared> {
        let time = self.time.forward(timesteps, context)?;
        let mut prepared = Prepared::default();
        let (before, attention, after) = &self.mid;
        let down = self.down.iter().flat_map(|block| &block.layers);
        let up = self.up.iter().flat_map(|block| &block.layers);
        let layers = down.map(|(resnet, transformer)| (resnet, transformer.as_ref()));
        let layers = layers.chain([(before, Some(attention)), (after, None)]);
        for (resnet, transformer) in layers.chain(up.map(|(resnet, transformer)| (resnet, transformer.as_ref()))) {
            prepared.shifts.extend(resnet.shifts(&time)?);
            if let Some(transformer) = transformer {
                prepared.prompts.push(transformer.prompts(context)?);
            }
        }
        Ok(prepared)
    }

    /// The UNet's output for a map of latents, all at one step. `prepared` is what [`Unet::prepare`] gave for a context of the
    /// latents' batch. Same shape and dtype as the latents.
    ///
    /// # Errors
    /// Shapes that don't fit the model; device or memory.
    pub(crate) fn forward(&self, latents: &Array, step: &Step, prepared: &Prepared) -> Result<Array> {
        let mut feed = prepared.feed(step);
        let mut xs = self.conv_in.forward(latents)?;
        let mut skips = vec![xs.clone()];
        for block in &self.down {
            xs = block.forward(&xs, &mut feed, &mut skips)?;
        }
        let (before, attention, after) = &self.mid;
        xs = feed.run(before, Some(attention), &xs)?;
        xs = feed.run(after, None, &xs)?;
        for block in &self.up {
            xs = block.forward(&xs, &mut feed, &mut skips)?;
        }
        Ok(self.conv_out.forward(&self.norm_out.forward_silu(&xs)?)?)
    }
}

/// What the steps of one picture share, layer by layer in the order in which they run.
#[derive(Default)]
pub(crate) struct Prepared {
    /// What each ResNet block adds at each step, `[steps, channels]`.
    pub shifts: Vec<Array>,
    /// Keys and values of each transformer.
    pub prompts: Vec<Vec<Prompt>>,
}

/// Hands out what was prepared.
struct Feed<'a> {
    step: &'a Step,
    shifts: std::slice::Iter<'a, Array>,
    prompts: std::slice::Iter<'a, Vec<Prompt>>,
}

impl Prepared {
    fn feed<'a>(&'a self, step: &'a Step) -> Feed<'a> {
        Feed { step, shifts: self.shifts.iter(), prompts: self.prompts.iter() }
    }
}

impl Feed<'_> {
    fn run(&mut self, resnet: &ResnetBlock, transformer: Option<&Transformer>, xs: &Array) -> CandleResult<Array> {
        let missing = || Error::Msg("more layers than were prepared".into()).bt();
        let xs = resnet.forward(xs, Some((self.shifts.next().ok_or_else(missing)?, self.step)))?;
        match transformer {
            Some(transformer) => transformer.forward(&xs, self.prompts.next().ok_or_else(missing)?),
            None => Ok(xs),
        }
    }
}

impl TimeEmbedding {
    fn new(config: &UnetConfig, channels: usize, params: Params) -> CandleResult<Self> {
        Ok(Self {
            channels,
            cosines_first: config.flip_sin_to_cos,
            shift: config.freq_shift,
            linear_1: Linear::new(channels, channels * 4, params.pp("linear_1"))?,
            linear_2: Linear::new(channels * 4, channels * 4, params.pp("linear_2"))?,
        })
    }

    /// The embeddings after SiLU, `[timesteps, 4 x channels]`. The sinusoids are f32 whatever the model's dtype.
    fn forward(&self, timesteps: &[f64], like: &Array) -> CandleResult<Array> {
        let rows: Vec<f32> = timesteps.iter().flat_map(|&timestep| self.sinusoids(timestep)).collect();
        let rows = Tensor::from_vec(rows, (timesteps.len(), self.channels), &Device::Cpu)?;
        let hidden = silu(&self.linear_1.forward(&Array::like(&rows, like)?)?)?;
        silu(&self.linear_2.forward(&hidden)?)
    }

    fn sinusoids(&self, timestep: f64) -> Vec<f32> {
        let half = self.channels / 2;
        let angle = |index: usize| {
            let exponent = -10_000f64.ln() * index as f64 / (half as f64 - self.shift);
            timestep as f32 * exponent.exp() as f32
        };
        let angles: Vec<f32> = (0..half).map(angle).collect();
        let (sines, cosines) = (angles.iter().map(|a| a.sin()), angles.iter().map(|a| a.cos()));
        if self.cosines_first { cosines.chain(sines).collect() } else { sines.chain(cosines).collect() }
    }
}

impl DownBlock {
    fn new(config: &UnetConfig, level: usize, params: Params) -> CandleResult<Self> {
        let channels = &config.block_out_channels;
        let (before, out) = (channels[level.saturating_sub(1)], channels[level]);
        let attends = config.down_block_types[level] == "CrossAttnDownBlock2D";
        let inputs = |layer| if layer == 0 { before } else { out };
        let count = config.layers_per_block.at(level);
        Ok(Self {
            layers: layers(config, level, count, attends, inputs, &params)?,
            downsample: (level + 1 < channels.len()).then(|| Downsample::new(out, params)).transpose()?,
        })
    }

    fn forward(&self, xs: &Array, feed: &mut Feed, skips: &mut Vec<Array>) -> CandleResult<Array> {
        let mut xs = xs.clone();
        for (resnet, transformer) in &self.layers {
            xs = feed.run(resnet, transformer.as_ref(), &xs)?;
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
    fn new(config: &UnetConfig, index: usize, params: Params) -> CandleResult<Self> {
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
            layers: layers(config, level, count, attends, inputs, &params)?,
            upsample: (level > 0).then(|| Upsample::new(out, params)).transpose()?,
        })
    }

    fn forward(&self, xs: &Array, feed: &mut Feed, skips: &mut Vec<Array>) -> CandleResult<Array> {
        let mut xs = xs.clone();
        for (resnet, transformer) in &self.layers {
            let skip = skips.pop().ok_or_else(|| candle_core::Error::msg("more layers up than down"))?;
            xs = feed.run(resnet, transformer.as_ref(), &join(&xs, &skip)?)?;
        }
        match &self.upsample {
            Some(upsample) => {
                let size = skips.last().map(Array::size).transpose()?;
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
    params: &Params,
) -> CandleResult<Vec<(ResnetBlock, Option<Transformer>)>> {
    let norm = Norm { groups: config.norm_num_groups, eps: config.norm_eps };
    let time_channels = Some(config.block_out_channels[0] * 4);
    let out = config.block_out_channels[level];
    let layer = |index: usize| {
        let resnet = ResnetBlock::new(inputs(index), out, time_channels, norm, params.pp("resnets").pp(index))?;
        let attention = params.pp("attentions").pp(index);
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
