//! diffusers' `UNet2DConditionModel`: predicts the noise in latents from the timestep and the prompt's embedding.
//!
//! Rombach et al., "High-resolution image synthesis with latent diffusion models", 2022. Names and shapes are those of diffusers.

#[cfg(test)]
mod tests;

use crate::{
    error::Result,
    gpu::{Dtype, Gpu},
    loading::config::UnetConfig,
    models::blocks::{Downsample, NormConfig, ResnetBlock, Upsample},
    models::time_embedding::TimeEmbedding,
    models::transformer::{Transformer, TransformerConfig},
    ops::params::Params,
    ops::{Array, Conv, Folded, GroupNorm, Maps, PromptAttention, PromptKeys, Prompts, Step, prompt_bytes, repeated},
};
use candle_core::{Error, Result as CandleResult};

/// The UNet of one model.
pub(crate) struct Unet {
    time: TimeEmbedding,
    conv_in: Conv,
    down: Vec<DownBlock>,
    mid: (ResnetBlock, Transformer, ResnetBlock),
    up: Vec<UpBlock>,
    conv_norm_out: GroupNorm,
    conv_out: Conv,
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
    /// A tensor is missing, or its shape does not fit the config.
    pub(crate) fn new(config: &UnetConfig, params: Params) -> Result<Self> {
        let channels = &config.block_out_channels;
        let (first, last) = (channels[0], channels[channels.len() - 1]);
        let time_channels = first * 4;
        let norm = NormConfig { groups: config.norm_num_groups, eps: config.norm_eps };
        let bottom = channels.len() - 1;
        let resnet =
            |name: &str| ResnetBlock::new(last, last, Some(time_channels), norm, params.pp("mid_block").pp(name));
        let mid_attention = params.pp("mid_block.attentions.0");
        Ok(Self {
            time: TimeEmbedding::new(config, first, params.pp("time_embedding").ahead())?,
            conv_in: Conv::same3x3(config.in_channels, first, params.pp("conv_in"))?,
            down: (0..channels.len())
                .map(|level| DownBlock::new(config, level, params.pp("down_blocks").pp(level)))
                .collect::<CandleResult<_>>()?,
            mid: (
                resnet("resnets.0")?,
                Transformer::new(transformer_config(config, bottom), norm, mid_attention)?,
                resnet("resnets.1")?,
            ),
            up: (0..channels.len())
                .map(|level| UpBlock::new(config, level, params.pp("up_blocks").pp(level)))
                .collect::<CandleResult<_>>()?,
            conv_norm_out: GroupNorm::new(norm.groups, first, norm.eps, params.pp("conv_norm_out"))?,
            conv_out: Conv::same3x3(first, config.out_channels, params.pp("conv_out"))?,
        })
    }

    /// Computes what all steps share, for those timesteps and the prompts' embeddings `[prompts, tokens, cross_attention_dim]`. Each
    /// latent will be looked at with `copies` prompts, the first of all latents first, and each prompt is for `times` of these copies,
    /// which follow one another. A UNet that takes the guidance scale as an input is given it, if there is one. What is folded of the
    /// prompts is in `room`, the result of [`Unet::room`] for them, or in scratch memory if that is empty.
    ///
    /// # Errors
    /// Shapes do not fit the model, or the device fails or has too little memory.
    pub(crate) fn prepare(
        &self,
        timesteps: &[f64],
        guidance_scale: Option<f64>,
        context: &Array,
        copies: usize,
        times: usize,
        room: &[Folded],
    ) -> Result<Prepared> {
        let time = self.time.forward(timesteps, guidance_scale, context)?;
        let mut prepared = Prepared { copies, size: context.sequences()?, ..Prepared::default() };
        let prompts = Prompts::new(context, times, self.prompt_attentions().any(PromptAttention::is_folded))?;
        let mut room = room.iter();
        let mut keys = |attention: &PromptAttention| {
            attention.keys(&prompts, if attention.is_folded() { room.next() } else { None })
        };
        for (resnet, transformer) in self.layers() {
            prepared.shifts.extend(resnet.shifts(&time)?);
            if let Some(transformer) = transformer {
                prepared.prompts.push(transformer.prompt_attentions().map(&mut keys).collect::<CandleResult<_>>()?);
            }
        }
        Ok(prepared)
    }

    /// Memory that stays for what is folded of so many prompts, in the order of the layers.
    ///
    /// # Errors
    /// There is too little memory.
    pub(crate) fn room(&self, gpu: &Gpu, prompts: usize) -> Result<Vec<Folded>> {
        let rooms = self.prompt_attentions().map(|attention| attention.room(gpu, prompts));
        Ok(rooms.filter_map(CandleResult::transpose).collect::<CandleResult<_>>()?)
    }

    fn prompt_attentions(&self) -> impl Iterator<Item = &PromptAttention> {
        self.layers().filter_map(|(_, transformer)| transformer).flat_map(Transformer::prompt_attentions)
    }

    /// ResNet blocks in the order in which they run, with the transformers behind them.
    fn layers(&self) -> impl Iterator<Item = (&ResnetBlock, Option<&Transformer>)> {
        let (before, attention, after) = &self.mid;
        let down = self.down.iter().flat_map(|block| &block.layers).map(as_refs);
        let up = self.up.iter().flat_map(|block| &block.layers).map(as_refs);
        down.chain([(before, Some(attention)), (after, None)]).chain(up)
    }

    /// The UNet's output for latents that are all at one step, in their dtype, with an output for each copy. `prepared` is the result
    /// of [`Unet::prepare`] for prompts that make up all copies of the latents.
    ///
    /// What comes before the first attention to a prompt is the same for all copies, and is computed once.
    ///
    /// # Errors
    /// Shapes do not fit the model, or the device fails or has too little memory.
    pub(crate) fn forward(&self, latents: &Array, step: &Step, prepared: &Prepared) -> Result<Array> {
        let mut layers = prepared.layers(step);
        let mut xs = self.conv_in.forward(latents)?;
        let mut skips = vec![xs.clone()];
        for block in &self.down {
            xs = block.forward(xs, &mut layers, &mut skips)?;
        }
        let (before, attention, after) = &self.mid;
        xs = layers.run(before, Some(attention), xs.into())?;
        xs = layers.run(after, None, xs.into())?;
        for block in &self.up {
            xs = block.forward(xs, &mut layers, &mut skips)?;
        }
        Ok(self.conv_out.forward(&self.conv_norm_out.forward_silu(xs)?)?)
    }
}

fn as_refs((resnet, transformer): &(ResnetBlock, Option<Transformer>)) -> (&ResnetBlock, Option<&Transformer>) {
    (resnet, transformer.as_ref())
}

/// What the steps of one picture share, for each layer in the order in which they run.
#[derive(Default)]
pub(crate) struct Prepared {
    /// Prompts of each latent.
    pub copies: usize,
    /// The shifts of each ResNet block, `[steps, channels]`.
    pub shifts: Vec<Array>,
    /// What each block of each transformer needs of the prompts.
    pub prompts: Vec<Vec<PromptKeys>>,
    /// Prompts, and tokens of each.
    pub size: [usize; 2],
}

/// Runs layers in order, each with what was prepared for it.
struct PreparedLayers<'a> {
    step: &'a Step,
    /// Prompts of each map that the next transformer reads.
    copies: usize,
    shifts: std::slice::Iter<'a, Array>,
    prompts: std::slice::Iter<'a, Vec<PromptKeys>>,
}

impl Prepared {
    fn layers<'a>(&'a self, step: &'a Step) -> PreparedLayers<'a> {
        PreparedLayers { step, copies: self.copies, shifts: self.shifts.iter(), prompts: self.prompts.iter() }
    }
}

impl PreparedLayers<'_> {
    fn run(&mut self, resnet: &ResnetBlock, transformer: Option<&Transformer>, xs: Maps) -> CandleResult<Array> {
        let missing = || Error::Msg("more layers than were prepared".into()).bt();
        let hidden = resnet.forward(xs, Some((self.shifts.next().ok_or_else(missing)?, self.step)))?;
        match transformer {
            Some(transformer) => {
                let copies = std::mem::replace(&mut self.copies, 1);
                transformer.forward(&hidden, self.prompts.next().ok_or_else(missing)?, copies)
            }
            None => Ok(hidden),
        }
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
            layers: layers(config, level, count, attends, (inputs, |_| Some(config.norm_num_groups)), &params)?,
            downsample: (level + 1 < channels.len()).then(|| Downsample::new(out, params)).transpose()?,
        })
    }

    fn forward(&self, mut xs: Array, layers: &mut PreparedLayers, skips: &mut Vec<Array>) -> CandleResult<Array> {
        for (resnet, transformer) in &self.layers {
            xs = layers.run(resnet, transformer.as_ref(), xs.into())?;
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
    /// `index` 0 is the innermost level.
    fn new(config: &UnetConfig, index: usize, params: Params) -> CandleResult<Self> {
        let channels = &config.block_out_channels;
        let bottom = channels.len() - 1;
        let level = bottom - index;
        let attends = config.up_block_types[index] == "CrossAttnUpBlock2D";
        let count = config.layers_per_block.at(level) + 1;
        let inputs = |layer| joined_channels(config, level, layer).iter().sum();
        let measured = |maps| groups_before_join(config.norm_num_groups, maps);
        let last = (level == 0).then_some(config.norm_num_groups);
        let groups = |layer: usize| {
            // No norm reads what is resized.
            if layer + 1 == count { last } else { Some(measured(joined_channels(config, level, layer + 1))) }
        };
        let upsample = |next| {
            let resized = measured(joined_channels(config, next, 0));
            Ok::<_, Error>(Upsample::new(channels[level], params.clone())?.measured_in(Some(resized)))
        };
        Ok(Self {
            layers: layers(config, level, count, attends, (inputs, groups), &params)?,
            upsample: level.checked_sub(1).map(upsample).transpose()?,
        })
    }

    fn forward(&self, mut xs: Array, layers: &mut PreparedLayers, skips: &mut Vec<Array>) -> CandleResult<Array> {
        for (resnet, transformer) in &self.layers {
            let skip = skips.pop().ok_or_else(|| candle_core::Error::msg("more layers up than down"))?;
            // One from before the first transformer is that of all prompts.
            let skip = repeated(&skip, xs.batch() / skip.batch().max(1))?;
            xs = layers.run(resnet, transformer.as_ref(), Maps::joined(xs, skip)?)?;
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

/// Channels of the map from below and of the skip connection, which are joined before a layer of an up block.
fn joined_channels(config: &UnetConfig, level: usize, layer: usize) -> [usize; 2] {
    let channels = &config.block_out_channels;
    let is_last = layer == config.layers_per_block.at(level);
    let below = channels[if layer == 0 { (level + 1).min(channels.len() - 1) } else { level }];
    [below, channels[if is_last { level.saturating_sub(1) } else { level }]]
}

/// Groups in which the first of two maps is to be measured before a norm of both as one: those of a norm of that map alone, or parts of
/// them, of which the groups of both are made, too.
fn groups_before_join(groups: usize, [first, second]: [usize; 2]) -> usize {
    if !first.is_multiple_of(groups) || !second.is_multiple_of(groups) {
        return groups;
    }
    let (mut channels, mut rest) = ((first + second) / groups, first / groups);
    while rest > 0 {
        (channels, rest) = (rest, channels % rest);
    }
    first / channels
}

/// `shape` gives the channels of a layer's input, and the groups in which its output is to be measured, if a norm follows.
fn layers(
    config: &UnetConfig,
    level: usize,
    count: usize,
    attends: bool,
    shape: (impl Fn(usize) -> usize, impl Fn(usize) -> Option<usize>),
    params: &Params,
) -> CandleResult<Vec<(ResnetBlock, Option<Transformer>)>> {
    let norm = NormConfig { groups: config.norm_num_groups, eps: config.norm_eps };
    let time_channels = Some(config.block_out_channels[0] * 4);
    let out = config.block_out_channels[level];
    let (inputs, groups) = shape;
    let layer = |index: usize| {
        let resnet = ResnetBlock::new(inputs(index), out, time_channels, norm, params.pp("resnets").pp(index))?;
        let attention = params.pp("attentions").pp(index);
        let transformer =
            attends.then(|| Transformer::new(transformer_config(config, level), norm, attention)).transpose()?;
        Ok(match transformer {
            Some(transformer) => (resnet, Some(transformer.measured_in(groups(index)))),
            None => (resnet.measured_in(groups(index)), None),
        })
    };
    (0..count).map(layer).collect()
}

/// Bytes of [`Unet::room`] for each prompt, by the config alone. The most of any GPU, if none is given.
pub(crate) fn room_bytes(config: &UnetConfig, gpu: Option<&Gpu>, dtype: Dtype) -> usize {
    let levels = config.block_out_channels.len();
    let attends = |kinds: &[String], index: usize| usize::from(kinds[index].starts_with("CrossAttn"));
    let blocks = |level: usize| {
        let layers = config.layers_per_block.at(level);
        let around = attends(&config.down_block_types, level) * layers
            + attends(&config.up_block_types, levels - 1 - level) * (layers + 1);
        (around + usize::from(level + 1 == levels)) * config.transformer_layers_per_block.at(level)
    };
    let of = |level: usize| prompt_bytes(gpu, dtype, config.block_out_channels[level], config.heads(level));
    (0..levels).map(|level| blocks(level) * of(level)).sum()
}

fn transformer_config(config: &UnetConfig, level: usize) -> TransformerConfig {
    TransformerConfig {
        channels: config.block_out_channels[level],
        heads: config.heads(level),
        cross_attention_dim: config.cross_attention_dim.at(level),
        layers: config.transformer_layers_per_block.at(level),
        linear_projection: config.use_linear_projection,
    }
}
