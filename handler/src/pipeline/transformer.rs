//! `Transformer2DModel` as SD1.5 has it: self-attention, attention to the prompt and a gated feed-forward layer.

use super::{
    blocks::Norm,
    ops::{Conv, GroupNorm, LayerNorm, Linear, attention, geglu, to_map, to_tokens},
};
use candle_core::{Result, Tensor};
use candle_nn::VarBuilder;

/// Attention over a feature map, residual included.
pub(super) struct Transformer {
    norm: GroupNorm,
    project_in: Projection,
    blocks: Vec<Block>,
    project_out: Projection,
}

/// Shape of a transformer.
#[derive(Clone, Copy)]
pub(super) struct Shape {
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
    attn1: Attention,
    norm2: LayerNorm,
    attn2: Attention,
    norm3: LayerNorm,
    widen: Linear,
    narrow: Linear,
}

struct Attention {
    to_q: Linear,
    to_k: Linear,
    to_v: Linear,
    to_out: Linear,
    heads: usize,
}

impl Transformer {
    pub(super) fn new(shape: Shape, norm: Norm, vb: VarBuilder) -> Result<Self> {
        let channels = shape.channels;
        let projection = |vb: VarBuilder| -> Result<Projection> {
            Ok(if shape.linear_projection {
                Projection::Tokens(Linear::new(channels, channels, vb)?)
            } else {
                Projection::Map(Conv::pointwise(channels, channels, vb)?)
            })
        };
        let blocks = (0..shape.layers).map(|layer| Block::new(shape, vb.pp("transformer_blocks").pp(layer)));
        Ok(Self {
            norm: GroupNorm::new(norm.groups, channels, 1e-6, vb.pp("norm"))?,
            project_in: projection(vb.pp("proj_in"))?,
            blocks: blocks.collect::<Result<_>>()?,
            project_out: projection(vb.pp("proj_out"))?,
        })
    }

    /// `context` is the prompt's embedding, `[batch, tokens, context]`.
    pub(super) fn forward(&self, xs: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (_, _, height, width) = xs.dims4()?;
        let normed = self.norm.forward(xs)?;
        let mut tokens = match &self.project_in {
            Projection::Map(conv) => to_tokens(&conv.forward(&normed)?)?,
            Projection::Tokens(linear) => linear.forward(&to_tokens(&normed)?)?,
        };
        for block in &self.blocks {
            tokens = block.forward(&tokens, context)?;
        }
        match &self.project_out {
            Projection::Map(conv) => conv.forward_onto(&to_map(&tokens, height, width)?, xs),
            Projection::Tokens(linear) => xs + to_map(&linear.forward(&tokens)?, height, width)?,
        }
    }
}

impl Block {
    fn new(shape: Shape, vb: VarBuilder) -> Result<Self> {
        let Shape { channels, heads, context, .. } = shape;
        Ok(Self {
            norm1: LayerNorm::new(channels, 1e-5, vb.pp("norm1"))?,
            attn1: Attention::new(channels, channels, heads, vb.pp("attn1"))?,
            norm2: LayerNorm::new(channels, 1e-5, vb.pp("norm2"))?,
            attn2: Attention::new(channels, context, heads, vb.pp("attn2"))?,
            norm3: LayerNorm::new(channels, 1e-5, vb.pp("norm3"))?,
            widen: Linear::new(channels, channels * 8, vb.pp("ff.net.0.proj"))?,
            narrow: Linear::new(channels * 4, channels, vb.pp("ff.net.2"))?,
        })
    }

    fn forward(&self, xs: &Tensor, context: &Tensor) -> Result<Tensor> {
        let normed = self.norm1.forward(xs)?;
        let xs = self.attn1.forward_onto(&normed, &normed, xs)?;
        let xs = self.attn2.forward_onto(&self.norm2.forward(&xs)?, context, &xs)?;
        let wide = self.widen.forward(&self.norm3.forward(&xs)?)?;
        self.narrow.forward_onto(&geglu(&wide)?, &xs)
    }
}

impl Attention {
    fn new(channels: usize, context: usize, heads: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            to_q: Linear::no_bias(channels, channels, vb.pp("to_q"))?,
            to_k: Linear::no_bias(context, channels, vb.pp("to_k"))?,
            to_v: Linear::no_bias(context, channels, vb.pp("to_v"))?,
            to_out: Linear::new(channels, channels, vb.pp("to_out.0"))?,
            heads,
        })
    }

    /// Plus `onto`, of the shape of `xs`.
    fn forward_onto(&self, xs: &Tensor, context: &Tensor, onto: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(xs)?, self.to_k.forward(context)?, self.to_v.forward(context)?);
        self.to_out.forward_onto(&attention(&q, &k, &v, self.heads)?, onto)
    }
}
