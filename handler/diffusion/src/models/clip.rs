//! The layer that CLIP's text encoder and vision encoder are made of (Radford et al., "Learning transferable visual models from natural
//! language supervision", 2021).

use crate::{
    ops::params::Params,
    ops::{Array, LayerNorm, Linear, attention, causal_attention, quick_gelu},
};
use candle_core::{Error, Result};

/// What the layers of an encoder have in common.
#[derive(Debug, Clone, Copy)]
pub(super) struct LayerConfig {
    /// Channels of a token.
    pub width: usize,
    /// Channels between the two feed-forward layers.
    pub inner: usize,
    pub heads: usize,
    /// Epsilon of each LayerNorm.
    pub eps: f64,
    /// Whether a token sees only itself and those before it.
    pub causal: bool,
}

/// transformers' `CLIPEncoderLayer`: self-attention and a feed-forward layer, each after a norm and with a residual around it.
pub(super) struct Layer {
    layer_norm1: LayerNorm,
    qkv: Linear,
    out: Linear,
    layer_norm2: LayerNorm,
    fc1: Linear,
    fc2: Linear,
    heads: usize,
    causal: bool,
}

impl Layer {
    pub(super) fn new(config: LayerConfig, params: Params) -> Result<Self> {
        let LayerConfig { width, inner, heads, eps, causal } = config;
        let parts = ["q_proj", "k_proj", "v_proj"].map(|part| params.pp("self_attn").pp(part));
        Ok(Self {
            layer_norm1: LayerNorm::new(width, eps, params.pp("layer_norm1"))?,
            qkv: Linear::packed(width, width, true, &parts)?,
            out: Linear::new(width, width, params.pp("self_attn.out_proj"))?,
            layer_norm2: LayerNorm::new(width, eps, params.pp("layer_norm2"))?,
            fc1: Linear::new(width, inner, params.pp("mlp.fc1"))?,
            fc2: Linear::new(inner, width, params.pp("mlp.fc2"))?,
            heads,
            causal,
        })
    }

    /// `xs` is `[batch, tokens, width]`, and so is the result.
    pub(super) fn forward(&self, xs: &Array) -> Result<Array> {
        let parts = self.qkv.forward_each(&self.layer_norm1.forward(xs)?)?;
        let [q, k, v] = parts.as_slice() else {
            return Err(Error::Msg("an attention lacks queries, keys or values".into()).bt());
        };
        let mixed = if self.causal { causal_attention(q, k, v, self.heads)? } else { attention(q, k, v, self.heads)? };
        let xs = self.out.forward_adding(&mixed, xs)?;
        let wide = self.fc1.forward(&self.layer_norm2.forward(&xs)?)?;
        self.fc2.forward_adding(&quick_gelu(&wide)?, &xs)
    }
}
