//! `Transformer2DModel` as SD1.5 has it: self-attention, attention to the prompt and a gated feed-forward layer.

use crate::{
    models::blocks::Norm,
    ops::params::Params,
    ops::{Array, Conv, GroupNorm, LayerNorm, Linear, add, attention, to_map, to_tokens},
};
use candle_core::{Error, Result};

/// Attention over a feature map, residual included.
pub(crate) struct Transformer {
    norm: GroupNorm,
    project_in: Projection,
    blocks: Vec<Block>,
    project_out: Projection,
}

/// Shape of a transformer.
#[derive(Clone, Copy)]
pub(crate) struct Shape {
    pub channels: usize,
    pub heads: usize,
    pub context: usize,
    pub layers: usize,
    pub linear_projection: bool,
}

/// SD1 projects the map with a 1x1 convolution, SD2 the tokens with a linear layer.
enum Projection {
    Map(Conv),
    Tokens(Linear),
}

struct Block {
    norm1: LayerNorm,
    attn1: SelfAttention,
    norm2: LayerNorm,
    attn2: CrossAttention,
    norm3: LayerNorm,
    widen: Linear,
    narrow: Linear,
}

struct SelfAttention {
    to_qkv: Linear,
    to_out: Linear,
    heads: usize,
}

struct CrossAttention {
    to_q: Linear,
    to_kv: Linear,
    to_out: Linear,
    heads: usize,
}

/// Keys and values of the prompt for one attention.
pub(crate) type Prompt = Vec<Array>;

impl Transformer {
    pub(crate) fn new(shape: Shape, norm: Norm, params: Params) -> Result<Self> {
        let channels = shape.channels;
        let projection = |params: Params| -> Result<Projection> {
            Ok(if shape.linear_projection {
                Projection::Tokens(Linear::new(channels, channels, params)?)
            } else {
                Projection::Map(Conv::pointwise(channels, channels, params)?)
            })
        };
        let blocks = (0..shape.layers).map(|layer| Block::new(shape, params.pp("transformer_blocks").pp(layer)));
        Ok(Self {
            norm: GroupNorm::new(norm.groups, channels, 1e-6, params.pp("norm"))?,
            project_in: projection(params.pp("proj_in"))?,
            blocks: blocks.collect::<Result<_>>()?,
            project_out: projection(params.pp("proj_out"))?,
        })
    }

    /// Keys and values of the prompt, for each block: what all steps share. `context` is its embedding, `[batch, tokens, context]`.
    pub(crate) fn prompts(&self, context: &Array) -> Result<Vec<Prompt>> {
        self.blocks.iter().map(|block| block.attn2.to_kv.forward_each(context)).collect()
    }

    /// `prompts` is what [`Transformer::prompts`] gave.
    pub(crate) fn forward(&self, xs: &Array, prompts: &[Prompt]) -> Result<Array> {
        let (height, width) = xs.size()?;
        let normed = self.norm.forward(xs)?;
        let mut tokens = match &self.project_in {
            Projection::Map(conv) => to_tokens(&conv.forward(&normed)?)?,
            Projection::Tokens(linear) => linear.forward(&to_tokens(&normed)?)?,
        };
        for (block, prompt) in self.blocks.iter().zip(prompts) {
            tokens = block.forward(&tokens, prompt)?;
        }
        match &self.project_out {
            Projection::Map(conv) => conv.forward_onto(&to_map(&tokens, height, width)?, xs),
            Projection::Tokens(linear) => add(xs, &to_map(&linear.forward(&tokens)?, height, width)?),
        }
    }
}

impl Block {
    fn new(shape: Shape, params: Params) -> Result<Self> {
        let Shape { channels, heads, context, .. } = shape;
        Ok(Self {
            norm1: LayerNorm::new(channels, 1e-5, params.pp("norm1"))?,
            attn1: SelfAttention::new(channels, heads, params.pp("attn1"))?,
            norm2: LayerNorm::new(channels, 1e-5, params.pp("norm2"))?,
            attn2: CrossAttention::new(channels, context, heads, params.pp("attn2"))?,
            norm3: LayerNorm::new(channels, 1e-5, params.pp("norm3"))?,
            widen: Linear::new(channels, channels * 8, params.pp("ff.net.0.proj"))?,
            narrow: Linear::new(channels * 4, channels, params.pp("ff.net.2"))?,
        })
    }

    fn forward(&self, xs: &Array, prompt: &Prompt) -> Result<Array> {
        let xs = self.attn1.forward_onto(&self.norm1.forward(xs)?, xs)?;
        let xs = self.attn2.forward_onto(&self.norm2.forward(&xs)?, prompt, &xs)?;
        let gated = self.widen.forward_geglu(&self.norm3.forward(&xs)?)?;
        self.narrow.forward_onto(&gated, &xs)
    }
}

impl SelfAttention {
    fn new(channels: usize, heads: usize, params: Params) -> Result<Self> {
        let parts = ["to_q", "to_k", "to_v"].map(|part| params.pp(part));
        let to_qkv = Linear::packed(channels, channels, false, &parts)?;
        Ok(Self { to_qkv, to_out: Linear::new(channels, channels, params.pp("to_out.0"))?, heads })
    }

    /// Plus `onto`, of the shape of `xs`.
    fn forward_onto(&self, xs: &Array, onto: &Array) -> Result<Array> {
        match self.to_qkv.forward_each(xs)?.as_slice() {
            [q, k, v] => self.to_out.forward_onto(&attention(q, k, v, self.heads)?, onto),
            _ => Err(incomplete()),
        }
    }
}

impl CrossAttention {
    fn new(channels: usize, context: usize, heads: usize, params: Params) -> Result<Self> {
        let parts = ["to_k", "to_v"].map(|part| params.pp(part));
        Ok(Self {
            to_q: Linear::no_bias(channels, channels, params.pp("to_q"))?,
            to_kv: Linear::packed(context, channels, false, &parts)?,
            to_out: Linear::new(channels, channels, params.pp("to_out.0"))?,
            heads,
        })
    }

    /// Plus `onto`, of the shape of `xs`.
    fn forward_onto(&self, xs: &Array, prompt: &Prompt, onto: &Array) -> Result<Array> {
        match prompt.as_slice() {
            [k, v] => self.to_out.forward_onto(&attention(&self.to_q.forward(xs)?, k, v, self.heads)?, onto),
            _ => Err(incomplete()),
        }
    }
}

fn incomplete() -> Error {
    Error::Msg("an attention lacks queries, keys or values".into()).bt()
}
