//! diffusers' `Transformer2DModel` as in SD1.5: self-attention, cross-attention to the prompt, and a gated feed-forward layer.

use crate::{
    models::blocks::NormConfig,
    ops::params::Params,
    ops::{
        Array, Conv, GroupNorm, Linear, PromptAttention, PromptKeys, add, repeated, self_attention, to_map, to_tokens,
    },
};
use candle_core::Result;

/// Transformer blocks over the positions of a feature map, with a residual around all of them.
pub(crate) struct Transformer {
    norm: GroupNorm,
    proj_in: Projection,
    blocks: Vec<Block>,
    proj_out: Projection,
}

/// Added to the variance in the layer norms.
const EPS: f64 = 1e-5;

/// The settings of a transformer.
#[derive(Clone, Copy)]
pub(crate) struct TransformerConfig {
    pub channels: usize,
    pub heads: usize,
    /// Width of the prompt's embedding.
    pub cross_attention_dim: usize,
    pub layers: usize,
    pub linear_projection: bool,
}

/// SD1 projects the feature map with a 1x1 convolution, SD2 the tokens with a linear layer.
enum Projection {
    Map(Conv),
    Tokens(Linear),
}

impl Projection {
    fn measured_in(self, groups: Option<usize>) -> Self {
        match self {
            Self::Map(conv) => Self::Map(conv.measured_in(groups)),
            Self::Tokens(linear) => Self::Tokens(linear),
        }
    }

    fn ahead_of_norm(self) -> Self {
        match self {
            Self::Map(conv) => Self::Map(conv.ahead_of_norm()),
            Self::Tokens(linear) => Self::Tokens(linear.ahead_of_norm()),
        }
    }
}

/// Attention, attention to the prompt and the feed-forward layer, each behind a layer norm.
struct Block {
    attn1: SelfAttention,
    attn2: PromptAttention,
    ff_in: Linear,
    ff_out: Linear,
}

struct SelfAttention {
    to_qkv: Linear,
    to_out: Linear,
    heads: usize,
}

impl Transformer {
    pub(crate) fn new(config: TransformerConfig, norm: NormConfig, params: Params) -> Result<Self> {
        let channels = config.channels;
        let projection = |params: Params| -> Result<Projection> {
            Ok(if config.linear_projection {
                Projection::Tokens(Linear::new(channels, channels, params)?)
            } else {
                Projection::Map(Conv::pointwise(channels, channels, params)?)
            })
        };
        let blocks = (0..config.layers).map(|layer| {
            let is_last = layer + 1 == config.layers;
            Block::new(config, is_last, params.pp("transformer_blocks").pp(layer))
        });
        Ok(Self {
            norm: GroupNorm::new(norm.groups, channels, 1e-6, params.pp("norm"))?,
            proj_in: projection(params.pp("proj_in"))?.ahead_of_norm(),
            blocks: blocks.collect::<Result<_>>()?,
            proj_out: projection(params.pp("proj_out"))?.measured_in(Some(norm.groups)),
        })
    }

    /// See [`Conv::measured_in`]; the groups of the model's norms unless this says otherwise.
    pub(crate) fn measured_in(self, groups: Option<usize>) -> Self {
        Self { proj_out: self.proj_out.measured_in(groups), ..self }
    }

    /// The attention to the prompt of each block.
    pub(crate) fn prompt_attentions(&self) -> impl Iterator<Item = &PromptAttention> {
        self.blocks.iter().map(|block| &block.attn2)
    }

    /// `prompts` are the keys of each of [`Transformer::prompt_attentions`], for `copies` prompts of each map, the first of all maps
    /// first. The output has a map for each prompt.
    pub(crate) fn forward(&self, xs: &Array, prompts: &[PromptKeys], copies: usize) -> Result<Array> {
        let (height, width) = xs.size()?;
        let normed = self.norm.forward(xs)?;
        let mut tokens = match &self.proj_in {
            Projection::Map(conv) => to_tokens(&conv.forward(&normed)?)?,
            Projection::Tokens(linear) => linear.forward(&to_tokens(&normed)?)?,
        };
        for (index, (block, keys)) in self.blocks.iter().zip(prompts).enumerate() {
            tokens = block.forward(&tokens, keys, if index == 0 { copies } else { 1 })?;
        }
        let xs = repeated(xs, copies)?;
        match &self.proj_out {
            Projection::Map(conv) => conv.forward_adding(&to_map(&tokens, height, width)?, &xs),
            Projection::Tokens(linear) => add(&xs, &to_map(&linear.forward(&tokens)?, height, width)?),
        }
    }
}

impl Block {
    fn new(config: TransformerConfig, is_last: bool, params: Params) -> Result<Self> {
        let TransformerConfig { channels, heads, cross_attention_dim, .. } = config;
        let [norm1, norm2, norm3] = ["norm1", "norm2", "norm3"].map(|norm| params.pp(norm));
        let attn1 = SelfAttention::new((EPS, &norm1), channels, heads, params.pp("attn1"))?;
        let attn2 = PromptAttention::new((EPS, &norm2), channels, cross_attention_dim, heads, params.pp("attn2"))?;
        let gate = [params.pp("ff.net.0.proj")];
        let ff_in = Linear::behind_norm((EPS, &norm3), channels, channels * 8, true, &gate)?;
        let ff_out = Linear::new(channels * 4, channels, params.pp("ff.net.2"))?;
        Ok(Self { attn1, attn2, ff_in, ff_out: if is_last { ff_out } else { ff_out.ahead_of_norm() } })
    }

    /// Until a prompt is looked at, all `copies` of a map are the same, and it is computed once.
    fn forward(&self, xs: &Array, prompt: &PromptKeys, copies: usize) -> Result<Array> {
        let xs = repeated(&self.attn1.forward_adding(xs, xs)?, copies)?;
        let xs = self.attn2.forward_adding(&xs, prompt, &xs)?;
        let gated = self.ff_in.forward_geglu(&xs)?;
        self.ff_out.forward_adding(&gated, &xs)
    }
}

impl SelfAttention {
    fn new(norm: (f64, &Params), channels: usize, heads: usize, params: Params) -> Result<Self> {
        let parts = ["to_q", "to_k", "to_v"].map(|part| params.pp(part));
        let to_qkv = Linear::behind_norm(norm, channels, channels, false, &parts)?;
        let to_out = Linear::new(channels, channels, params.pp("to_out.0"))?.ahead_of_norm();
        Ok(Self { to_qkv, to_out, heads })
    }

    /// The attention plus `residual`, which has the shape of `xs`.
    fn forward_adding(&self, xs: &Array, residual: &Array) -> Result<Array> {
        self.to_out.forward_adding(&self_attention(&self.to_qkv, xs, self.heads)?, residual)
    }
}
