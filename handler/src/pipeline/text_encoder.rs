//! CLIP's text encoder: token ids to the embedding that steers the UNet.

use super::{config::TextEncoderConfig, error::Result, tokenizer::Tokens, weights::Weights};
use candle_core::{Device, Tensor};
use candle_nn::VarBuilder;
use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig, ClipTextTransformer};

/// A `CLIPTextModel`; its last hidden state after the final LayerNorm is the prompt's embedding.
pub struct TextEncoder {
    transformer: ClipTextTransformer,
    device: Device,
}

impl TextEncoder {
    /// Takes its tensors from `weights`.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than the config says.
    pub fn new(weights: &Weights, config: &TextEncoderConfig) -> Result<Self> {
        Self::with_builder(weights.builder(), config)
    }

    /// Takes its tensors from `vb`.
    ///
    /// # Errors
    /// A tensor that is missing or has another shape than the config says.
    pub fn with_builder(vb: VarBuilder, config: &TextEncoderConfig) -> Result<Self> {
        let config = ClipTextConfig {
            vocab_size: config.vocab_size,
            embed_dim: config.hidden_size,
            activation: Activation::QuickGelu,
            intermediate_size: config.intermediate_size,
            max_position_embeddings: config.max_position_embeddings,
            pad_with: None,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            projection_dim: config.hidden_size,
        };
        let device = vb.device().clone();
        Ok(Self { transformer: ClipTextTransformer::new(vb.pp("text_model"), &config)?, device })
    }

    /// Embeds prompts: `[prompts, tokens, hidden_size]`.
    ///
    /// # Errors
    /// Device or memory.
    pub fn encode(&self, prompts: &[&Tokens]) -> Result<Tensor> {
        let rows = prompts.iter().map(|tokens| Tensor::new(tokens.ids.as_slice(), &self.device));
        let ids = Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        Ok(self.transformer.forward_with_mask(&ids, usize::MAX)?)
    }
}

/// transformers 5 writes a `CLIPTextModel` without the `text_model.` that older files have in every name.
pub fn canonical_name(name: &str) -> String {
    if name.starts_with("text_model.") { name.to_string() } else { format!("text_model.{name}") }
}
