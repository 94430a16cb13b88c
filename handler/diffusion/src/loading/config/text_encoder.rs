//! `text_encoder/config.json` of a `CLIPTextModel`.

use super::{
    fields::{self, Field, only, shown, unneeded, used},
    read_object, require,
};
use crate::error::{PipelineError, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};
use std::path::Path;

const FILE: &str = "text_encoder/config.json";
/// What transformers up to version 4 wrote into the config of every model. CLIP's encoder reads none of it.
pub(super) const OF_EVERY_MODEL: &str = "add_cross_attention bad_words_ids begin_suppress_tokens cross_attention_hidden_size \
    decoder_start_token_id diversity_penalty do_sample dropout early_stopping encoder_no_repeat_ngram_size \
    exponential_decay_length_penalty finetuning_task forced_bos_token_id forced_eos_token_id is_decoder length_penalty \
    max_length min_length model_type no_repeat_ngram_size num_beam_groups num_beams num_return_sequences output_attentions \
    output_scores prefix remove_invalid_values repetition_penalty return_dict_in_generate sep_token_id suppress_tokens \
    task_specific_params temperature tf_legacy_loss tie_encoder_decoder tie_word_embeddings tokenizer_class top_k top_p \
    torch_dtype torchscript typical_p use_bfloat16 use_cache";

/// `text_encoder/config.json` of a `CLIPTextModel`.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TextEncoderConfig {
    /// Number of token embeddings.
    pub vocab_size: usize,
    /// Width of the encoder, and of the UNet's cross attention.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads per layer.
    pub num_attention_heads: usize,
    /// Length of the longest sequence in tokens, 77 for CLIP.
    pub max_position_embeddings: usize,
    /// Epsilon of each LayerNorm.
    pub layer_norm_eps: f64,
}

impl TextEncoderConfig {
    /// Reads and checks `text_encoder/config.json`.
    ///
    /// # Errors
    /// The file cannot be read, its JSON is wrong, or a setting is not supported.
    pub fn load(model: &Path) -> Result<Self> {
        Self::from_object(&read_object(model, FILE)?)
    }

    /// Makes a config of the content of `text_encoder/config.json`. In the config of a whole `CLIPModel`, it is that of its text model.
    ///
    /// # Errors
    /// A setting is not supported.
    pub fn from_object(content: &Map<String, Value>) -> Result<Self> {
        let content = match content.get("text_config") {
            None => content,
            Some(Value::Object(text_config)) => text_config,
            Some(other) => {
                let (value, supported) = (shown(other), "an object with the text model's settings");
                return Err(PipelineError::Unsupported { file: FILE, field: "text_config", value, supported });
            }
        };
        let config: Self = fields::read(FILE, content, &table())?;
        let heads = config.num_attention_heads;
        let divides = heads > 0 && config.hidden_size.is_multiple_of(heads);
        require(FILE, "num_attention_heads", heads, divides, "a divisor of `hidden_size`")?;
        Ok(config)
    }
}

/// The parameters of transformers' `CLIPTextConfig` with their defaults, and what else a file may have.
pub(super) fn table() -> Vec<Field> {
    let (whole, training) = ("a whole number", "for training");
    let of_every_model = OF_EVERY_MODEL.split_whitespace();
    let of_every_model = of_every_model.map(|name| unneeded(name, json!(null), "CLIP's encoder does not read it"));
    let table = [
        used("vocab_size", json!(49408), whole),
        used("hidden_size", json!(512), whole),
        used("intermediate_size", json!(2048), whole),
        unneeded("projection_dim", json!(512), "a text model without its head has no projection"),
        used("num_hidden_layers", json!(12), whole),
        used("num_attention_heads", json!(8), whole),
        used("max_position_embeddings", json!(77), whole),
        only("hidden_act", json!("quick_gelu"), "quick_gelu (gelu is Stable Diffusion 2's)"),
        used("layer_norm_eps", json!(1e-5), "a number"),
        unneeded("attention_dropout", json!(0.0), training),
        unneeded("initializer_range", json!(0.02), training),
        unneeded("initializer_factor", json!(1.0), training),
        unneeded("pad_token_id", json!(1), "the tokenizer pads"),
        unneeded("bos_token_id", json!(49406), "the tokenizer sets the first token"),
        unneeded("eos_token_id", json!(49407), "for the pooled output, which is not used"),
        unneeded("transformers_version", json!(null), "who wrote the file"),
        unneeded("architectures", json!(null), "the class is in model_index.json"),
        unneeded("output_hidden_states", json!(false), "the last hidden state is always there"),
        unneeded("return_dict", json!(true), "the form of a result in Python"),
        unneeded("dtype", json!(null), "each tensor's dtype is in the weights"),
        unneeded("chunk_size_feed_forward", json!(0), "CLIP's encoder does not read it"),
        unneeded("is_encoder_decoder", json!(false), "CLIP's encoder does not read it"),
        unneeded("id2label", json!(null), "for classification"),
        unneeded("label2id", json!(null), "for classification"),
        unneeded("problem_type", json!(null), "for classification"),
        // Not the constructor's, but read where they are.
        only(
            "use_attention_mask",
            json!(false),
            "false, null (with it the pipeline hides the padding from the encoder)",
        ),
        only("pruned_heads", json!({}), "{}, null"),
        only("quantization_config", json!(null), "null (give weights that are not quantised)"),
    ];
    table.into_iter().chain(of_every_model).collect()
}
