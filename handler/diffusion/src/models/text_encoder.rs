//! CLIP's text encoder (Radford et al., "Learning transferable visual models from natural language supervision", 2021): from token ids
//! to the prompt's embedding. Names and shapes are those of transformers.

use crate::{
    error::{PipelineError, Result},
    loading::config::TextEncoderConfig,
    loading::weights::Weights,
    models::clip::{Layer, LayerConfig},
    ops::params::Params,
    ops::{Array, LayerNorm},
    prompt::tokenizer::Tokens,
};
use candle_core::{DType, Error, Result as CandleResult, Tensor};
use std::collections::HashMap;

/// Embeddings of tokens that textual inversions add, by id. They come before those of the encoder.
pub(crate) type AddedEmbeddings = HashMap<u32, Vec<f32>>;

/// A `CLIPTextModel`. Its last hidden state after the final LayerNorm is the prompt's embedding.
pub(crate) struct TextEncoder {
    embeddings: Params,
    layers: Vec<Layer>,
    final_layer_norm: LayerNorm,
}

impl TextEncoder {
    /// Takes its tensors from `params`.
    ///
    /// # Errors
    /// A tensor is missing, or its shape does not fit the config.
    pub(crate) fn new(config: &TextEncoderConfig, params: Params) -> Result<Self> {
        let params = params.pp("text_model");
        let embeddings = params.pp("embeddings");
        let width = config.hidden_size;
        embeddings.checked(&[config.vocab_size, width], "token_embedding.weight")?;
        embeddings.checked(&[config.max_position_embeddings, width], "position_embedding.weight")?;
        let each = LayerConfig {
            width,
            inner: config.intermediate_size,
            heads: config.num_attention_heads,
            eps: config.layer_norm_eps,
            causal: true,
        };
        let layers = (0..config.num_hidden_layers).map(|layer| Layer::new(each, params.pp("encoder.layers").pp(layer)));
        Ok(Self {
            layers: layers.collect::<CandleResult<_>>()?,
            final_layer_norm: LayerNorm::new(width, config.layer_norm_eps, params.pp("final_layer_norm"))?,
            embeddings,
        })
    }

    /// From now on, takes the embeddings of tokens and positions from other weights.
    pub(crate) fn embed_from(&mut self, weights: &Weights) {
        self.embeddings = self.embeddings.with_weights(weights);
    }

    /// How many layers it has.
    pub(crate) fn layers(&self) -> usize {
        self.layers.len()
    }

    /// The embeddings of prompts of one length, `[prompts, tokens, hidden_size]`, without the last `skip` layers. If tokens have weights other than 1, hidden states are
    /// multiplied with them, and then scaled to their old mean, as in AUTOMATIC1111's web UI. `added` has embeddings of further tokens.
    ///
    /// # Errors
    /// Weights that make the mean zero or infinite. Or the device fails or has too little memory.
    pub(crate) fn encode(&self, prompts: &[&Tokens], skip: usize, added: &AddedEmbeddings) -> Result<Array> {
        let mut xs = self.embed(prompts, added)?;
        for layer in self.layers.iter().take(self.layers.len().saturating_sub(skip)) {
            xs = layer.forward(&xs)?;
        }
        let hidden = self.final_layer_norm.forward(&xs)?;
        if prompts.iter().all(|tokens| tokens.weights.iter().all(|&weight| weight == 1.0)) {
            return Ok(hidden);
        }
        let plain = hidden.to_tensor()?;
        let rows =
            prompts.iter().enumerate().map(|(index, tokens)| weighted(plain.narrow(0, index, 1)?, &tokens.weights));
        Ok(Array::like(&Tensor::cat(&rows.collect::<Result<Vec<_>>>()?, 0)?, &hidden)?)
    }

    /// The sum of the embeddings of tokens and positions. Only the rows that are needed are read.
    fn embed(&self, prompts: &[&Tokens], added: &AddedEmbeddings) -> CandleResult<Array> {
        let length = prompts.first().map_or(0, |tokens| tokens.ids.len());
        if prompts.iter().any(|tokens| tokens.ids.len() != length) {
            return Err(Error::Msg("prompts of several lengths".into()).bt());
        }
        let ids: Vec<u32> = prompts.iter().flat_map(|tokens| tokens.ids.iter().copied()).collect();
        let known: Vec<u32> = ids.iter().map(|id| if added.contains_key(id) { 0 } else { *id }).collect();
        let mut tokens = self.embeddings.rows("token_embedding.weight", &known)?;
        for (place, id) in ids.iter().enumerate() {
            if let Some(embedding) = added.get(id) {
                let row = Tensor::from_slice(embedding, (1, embedding.len()), tokens.device())?;
                tokens = tokens.slice_assign(&[place..place + 1, 0..embedding.len()], &row)?;
            }
        }
        let tokens = tokens.reshape((prompts.len(), length, ()))?;
        let positions: Vec<u32> = (0..length as u32).collect();
        let positions = self.embeddings.rows("position_embedding.weight", &positions)?;
        self.embeddings.on_device(&tokens.broadcast_add(&positions)?)
    }
}

/// One prompt's hidden states, `[1, tokens, hidden_size]` in f32, with its weights applied.
fn weighted(hidden: Tensor, weights: &[f32]) -> Result<Tensor> {
    if weights.iter().all(|&weight| weight == 1.0) {
        return Ok(hidden);
    }
    let mean = |tensor: &Tensor| tensor.to_dtype(DType::F64)?.mean_all()?.to_scalar::<f64>();
    let scaled = hidden.broadcast_mul(&Tensor::new(weights, hidden.device())?.reshape((1, weights.len(), 1))?)?;
    let restore = mean(&hidden)? / mean(&scaled)?;
    if !restore.is_finite() {
        let limit = "the prompt's weights are too large, or cancel each other".to_string();
        return Err(PipelineError::Request { field: "prompt_weighting", value: "a1111".into(), limit });
    }
    Ok((scaled * restore)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{noise::Noise, ops::params::ShapeRecorder};
    use candle_core::Device;
    use candle_nn::VarBuilder;
    use candle_transformers::models::clip::text_model::{Activation, ClipTextConfig, ClipTextTransformer};

    const WIDTH: usize = 64;

    /// candle-transformers is an independent implementation.
    #[test]
    fn hidden_states_are_those_of_candle_transformers() {
        let config = TextEncoderConfig {
            vocab_size: 50,
            hidden_size: WIDTH,
            intermediate_size: 4 * WIDTH,
            num_hidden_layers: 3,
            num_attention_heads: 4,
            max_position_embeddings: 12,
            layer_norm_eps: 1e-5,
        };
        let shapes = ShapeRecorder::default();
        TextEncoder::new(&config, Params::recording(&shapes)).unwrap();
        let shapes = shapes.lock().unwrap();
        let draw = |(index, (name, dims)): (usize, &(String, Vec<usize>))| {
            let draw = Noise::cpu(index as u64).randn(dims.as_slice(), DType::F32, &Device::Cpu).unwrap();
            (name.clone(), (draw * 0.2).unwrap())
        };
        let tensors: HashMap<String, Tensor> = shapes.iter().enumerate().map(draw).collect();
        let theirs = ClipTextConfig {
            vocab_size: config.vocab_size,
            embed_dim: WIDTH,
            activation: Activation::QuickGelu,
            intermediate_size: config.intermediate_size,
            max_position_embeddings: config.max_position_embeddings,
            pad_with: None,
            num_hidden_layers: config.num_hidden_layers,
            num_attention_heads: config.num_attention_heads,
            projection_dim: WIDTH,
        };
        let builder = VarBuilder::from_tensors(tensors.clone(), DType::F32, &Device::Cpu);
        let theirs = ClipTextTransformer::new(builder.pp("text_model"), &theirs).unwrap();
        let ours = TextEncoder::new(&config, Params::on_cpu(&Weights::new(tensors))).unwrap();
        let ids: Vec<Vec<u32>> = vec![(0..12).collect(), (20..32).rev().collect()];
        let prompts = ids.iter().map(|ids| Tokens { ids: ids.clone(), truncated: 0, weights: vec![1.0; 12] });
        let prompts: Vec<Tokens> = prompts.collect();
        let ours =
            ours.encode(&prompts.iter().collect::<Vec<_>>(), 0, &AddedEmbeddings::new()).unwrap().to_tensor().unwrap();
        let theirs = theirs.forward_with_mask(&Tensor::new(ids, &Device::Cpu).unwrap(), usize::MAX).unwrap();
        let most = |tensor: &Tensor| tensor.abs().unwrap().max_all().unwrap().to_scalar::<f32>().unwrap();
        let error = most(&(&ours - &theirs).unwrap()) / most(&theirs);
        assert!(error < 1e-5, "{error:e}");
    }
}
