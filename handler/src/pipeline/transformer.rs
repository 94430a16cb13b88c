//! `Transformer2DModel` as SD1.5 has it: self-attention, attention to the prompt and a gated feed-forward layer.

use super::{
    blocks::Norm,
    ops::{Conv, GroupNorm, attention, geglu, to_map, to_tokens},
};
use candle_core::{Result, Tensor};
use candle_nn::{LayerNorm, Linear, Module, VarBuilder, layer_norm, linear, linear_no_bias};

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
                Projection::Tokens(linear(channels, channels, vb)?)
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
        let out = match &self.project_out {
            Projection::Map(conv) => conv.forward(&to_map(&tokens, height, width)?)?,
            Projection::Tokens(linear) => to_map(&linear.forward(&tokens)?, height, width)?,
        };
        xs + out
    }
}

impl Block {
    fn new(shape: Shape, vb: VarBuilder) -> Result<Self> {
        let Shape { channels, heads, context, .. } = shape;
        Ok(Self {
            norm1: layer_norm(channels, 1e-5, vb.pp("norm1"))?,
            attn1: Attention::new(channels, channels, heads, vb.pp("attn1"))?,
            norm2: layer_norm(channels, 1e-5, vb.pp("norm2"))?,
            attn2: Attention::new(channels, context, heads, vb.pp("attn2"))?,
            norm3: layer_norm(channels, 1e-5, vb.pp("norm3"))?,
            widen: linear(channels, channels * 8, vb.pp("ff.net.0.proj"))?,
            narrow: linear(channels * 4, channels, vb.pp("ff.net.2"))?,
        })
    }

    fn forward(&self, xs: &Tensor, context: &Tensor) -> Result<Tensor> {
        let normed = self.norm1.forward(xs)?;
        let xs = (xs + self.attn1.forward(&normed, &normed)?)?;
        let xs = (&xs + self.attn2.forward(&self.norm2.forward(&xs)?, context)?)?;
        let wide = self.widen.forward(&self.norm3.forward(&xs)?)?;
        &xs + self.narrow.forward(&geglu(&wide)?)?
    }
}

impl Attention {
    fn new(channels: usize, context: usize, heads: usize, vb: VarBuilder) -> Result<Self> {
        Ok(Self {
            to_q: linear_no_bias(channels, channels, vb.pp("to_q"))?,
            to_k: linear_no_bias(context, channels, vb.pp("to_k"))?,
            to_v: linear_no_bias(context, channels, vb.pp("to_v"))?,
            to_out: linear(channels, channels, vb.pp("to_out.0"))?,
            heads,
        })
    }

    fn forward(&self, xs: &Tensor, context: &Tensor) -> Result<Tensor> {
        let (q, k, v) = (self.to_q.forward(xs)?, self.to_k.forward(context)?, self.to_v.forward(context)?);
        self.to_out.forward(&attention(&q, &k, &v, self.heads)?)
    }
}
