//! CLIP's text encoder: token ids to the embedding that steers the UNet.

use super::{
    config::TextEncoderConfig,
    error::{PipelineError, Result},
    tokenizer::Tokens,
    weights::Weights,
};
use candle_core::{DType, Device, Tensor};
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

    /// Embeds prompts: `[prompts, tokens, hidden_size]`. Where a token has a weight other than 1, its hidden state is
    /// multiplied with it and the mean of the prompt's embedding restored, as AUTOMATIC1111's web UI does.
    ///
    /// # Errors
    /// Weights that leave no mean to restore; device or memory.
    pub fn encode(&self, prompts: &[&Tokens]) -> Result<Tensor> {
        let rows = prompts.iter().map(|tokens| Tensor::new(tokens.ids.as_slice(), &self.device));
        let ids = Tensor::stack(&rows.collect::<candle_core::Result<Vec<_>>>()?, 0)?;
        let hidden = self.transformer.forward_with_mask(&ids, usize::MAX)?;
        let rows =
            prompts.iter().enumerate().map(|(index, tokens)| weighted(hidden.narrow(0, index, 1)?, &tokens.weights));
        Ok(Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?)
    }
}

/// One prompt's hidden states, `[1, tokens, hidden_size]`, with weights.
fn weighted(hidden: Tensor, weights: &[f32]) -> Result<Tensor> {
    if weights.iter().all(|&weight| weight == 1.0) {
        return Ok(hidden);
    }
    let mean = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>();
    let plain = hidden.to_dtype(DType::F32)?;
    let scaled = plain.broadcast_mul(&Tensor::new(weights, hidden.device())?.reshape((1, weights.len(), 1))?)?;
    let restore = mean(&plain)? / mean(&scaled)?;
    if !restore.is_finite() {
        let limit = "the prompt's weights are too large, or cancel each other".to_string();
        return Err(PipelineError::Request { field: "prompt_weighting", value: "a1111".into(), limit });
    }
    Ok((scaled * restore)?.to_dtype(hidden.dtype())?)
}

/// transformers 5 writes a `CLIPTextModel` without the `text_model.` that older files have in every name.
pub fn canonical_name(name: &str) -> String {
    if name.starts_with("text_model.") { name.to_string() } else { format!("text_model.{name}") }
}
