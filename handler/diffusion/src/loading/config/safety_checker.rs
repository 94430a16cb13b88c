//! `safety_checker/config.json` of a `StableDiffusionSafetyChecker`: the `CLIPConfig` of a vision model with a projection.

use super::{
    fields::{self, Field, only, shown, unneeded, used},
    require,
    text_encoder::OF_EVERY_MODEL,
};
use crate::error::{PipelineError, Result};
use serde::Deserialize;
use serde_json::{Map, Value, json};

pub(super) const FILE: &str = "safety_checker/config.json";

/// `safety_checker/config.json`.
#[derive(Debug, Clone, PartialEq)]
pub struct SafetyCheckerConfig {
    /// Width of the embeddings of pictures and concepts.
    pub projection_dim: usize,
    /// The network that looks at the picture.
    pub vision: VisionConfig,
}

/// The settings of a `CLIPVisionModel`.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct VisionConfig {
    /// Width of a token.
    pub hidden_size: usize,
    /// Width of the feed-forward layers.
    pub intermediate_size: usize,
    /// Number of layers.
    pub num_hidden_layers: usize,
    /// Heads per layer.
    pub num_attention_heads: usize,
    /// Height and width of the picture in pixels.
    pub image_size: usize,
    /// Height and width in pixels of what becomes one token.
    pub patch_size: usize,
    /// Epsilon of each LayerNorm.
    pub layer_norm_eps: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Outer {
    projection_dim: usize,
}

impl SafetyCheckerConfig {
    /// Makes a config of the content of `safety_checker/config.json`.
    ///
    /// # Errors
    /// A setting is not supported.
    pub fn from_object(content: &Map<String, Value>) -> Result<Self> {
        let Outer { projection_dim } = fields::read(FILE, content, &table())?;
        // Files of older versions have both. The other one's settings, and its defaults for the rest, go over this one's.
        let given = |field| content.get(field).filter(|value: &&Value| !value.is_null()).map(|value| (field, value));
        let vision = match given("vision_config_dict").or_else(|| given("vision_config")) {
            None => Map::new(),
            Some((_, Value::Object(vision))) => vision.clone(),
            Some((field, other)) => {
                let (value, supported) = (shown(other), "an object with the vision model's settings");
                return Err(PipelineError::Unsupported { file: FILE, field, value, supported });
            }
        };
        let vision: VisionConfig = fields::read(FILE, &vision, &vision_table())?;
        let VisionConfig { num_attention_heads: heads, patch_size: patch, .. } = vision;
        let divides = heads > 0 && vision.hidden_size.is_multiple_of(heads);
        require(FILE, "num_attention_heads", heads, divides, "a divisor of `hidden_size`")?;
        let fits = patch > 0 && vision.image_size >= patch;
        require(FILE, "patch_size", patch, fits, "1 to `image_size`")?;
        Ok(Self { projection_dim, vision })
    }
}

/// The parameters of transformers' `CLIPConfig` with their defaults, and what else a file may have.
pub(super) fn table() -> Vec<Field> {
    let checker = "the checker reads no text";
    let table = [
        unneeded("text_config", json!(null), checker),
        unneeded("text_config_dict", json!(null), checker),
        // Read on their own.
        unneeded("vision_config", json!(null), "its settings are read by themselves"),
        unneeded("vision_config_dict", json!(null), "its settings are read by themselves"),
        used("projection_dim", json!(512), "a whole number"),
        unneeded("logit_scale_init_value", json!(2.6592), "for training"),
        unneeded("initializer_factor", json!(1.0), "for training"),
    ];
    table.into_iter().chain(of_every_config()).collect()
}

/// The parameters of transformers' `CLIPVisionConfig` with their defaults, and what else a file may have.
pub(super) fn vision_table() -> Vec<Field> {
    let (whole, training) = ("a whole number", "for training");
    let table = [
        used("hidden_size", json!(768), whole),
        used("intermediate_size", json!(3072), whole),
        unneeded("projection_dim", json!(512), "the checker's own `projection_dim` is used"),
        used("num_hidden_layers", json!(12), whole),
        used("num_attention_heads", json!(12), whole),
        only("num_channels", json!(3), "3"),
        used("image_size", json!(224), whole),
        used("patch_size", json!(32), whole),
        only("hidden_act", json!("quick_gelu"), "quick_gelu"),
        used("layer_norm_eps", json!(1e-5), "a number"),
        unneeded("attention_dropout", json!(0.0), training),
        unneeded("initializer_range", json!(0.02), training),
        unneeded("initializer_factor", json!(1.0), training),
    ];
    table.into_iter().chain(of_every_config()).collect()
}

/// What is in the config of every model.
fn of_every_config() -> impl Iterator<Item = Field> {
    let not_read = "CLIP's encoder does not read it";
    let table = [
        unneeded("transformers_version", json!(null), "who wrote the file"),
        unneeded("architectures", json!(null), "the class is in model_index.json"),
        unneeded("output_hidden_states", json!(false), "only the last hidden state is used"),
        unneeded("return_dict", json!(true), "the form of a result in Python"),
        unneeded("dtype", json!(null), "each tensor's dtype is in the weights"),
        unneeded("chunk_size_feed_forward", json!(0), not_read),
        unneeded("is_encoder_decoder", json!(false), not_read),
        unneeded("id2label", json!(null), "for classification"),
        unneeded("label2id", json!(null), "for classification"),
        unneeded("problem_type", json!(null), "for classification"),
        unneeded("pad_token_id", json!(null), "for texts"),
        unneeded("bos_token_id", json!(null), "for texts"),
        unneeded("eos_token_id", json!(null), "for texts"),
        // Not the constructor's, but read where they are.
        only("pruned_heads", json!({}), "{}, null"),
        only("quantization_config", json!(null), "null (give weights that are not quantised)"),
    ];
    let of_every_model = OF_EVERY_MODEL.split_whitespace();
    let of_every_model = of_every_model.map(move |name| unneeded(name, json!(null), not_read));
    table.into_iter().chain(of_every_model)
}
