//! The JSON files of a model folder in the diffusers layout. A field with a value that is not supported is an error.

use super::{FileKind, settings};
use crate::error::{PipelineError, Result};
use serde::{Deserialize, de::DeserializeOwned};
use std::{io, path::Path};

/// Reads one JSON file of a model, by its name in a model folder.
fn load<T: DeserializeOwned>(model: &Path, name: &str) -> Result<T> {
    let text = settings(model, name)?;
    serde_json::from_str(&text).map_err(|source| PipelineError::Json { path: model.join(name), source })
}

/// Reads one JSON file of a model folder.
///
/// # Errors
/// [`PipelineError::File`] or [`PipelineError::Json`], naming the file.
pub fn read_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    let text = read_text(path)?;
    serde_json::from_str(&text).map_err(|source| PipelineError::Json { path: path.into(), source })
}

/// Reads one text file of a model folder.
///
/// # Errors
/// [`PipelineError::File`], naming the file, or [`PipelineError::ModelFile`] if it is another one, as a Git LFS pointer is.
pub(crate) fn read_text(path: &Path) -> Result<String> {
    let failed = |source| PipelineError::File { path: path.into(), source };
    let content = std::fs::read(path).map_err(failed)?;
    let is_json = path.extension().is_some_and(|ending| ending == "json");
    match FileKind::instead_of_settings(&content) {
        Some(kind) if is_json || !matches!(kind, FileKind::Text(_)) => {
            Err(PipelineError::ModelFile { path: path.into(), reason: format!("it is {kind}") })
        }
        _ => String::from_utf8(content).map_err(|error| failed(io::Error::other(error))),
    }
}

/// A number, or one number per block, as in diffusers' `attention_head_dim`.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
pub enum PerBlock {
    /// The same for all blocks.
    One(usize),
    /// One per block.
    Each(Vec<usize>),
}

impl PerBlock {
    /// The value for block `index`. The last one if the list is too short.
    pub fn at(&self, index: usize) -> usize {
        match self {
            Self::One(value) => *value,
            Self::Each(values) => values.get(index).or(values.last()).copied().unwrap_or(1),
        }
    }
}

/// `model_index.json`.
#[derive(Debug, Clone, Deserialize)]
pub struct ModelIndex {
    /// The pipeline's class. Only `StableDiffusionPipeline` is supported.
    #[serde(rename = "_class_name")]
    pub class_name: String,
}

/// `text_encoder/config.json` of a `CLIPTextModel`.
#[derive(Debug, Clone, Deserialize)]
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
    #[serde(default = "number::<77>")]
    pub max_position_embeddings: usize,
    /// Activation of the feed-forward layers.
    #[serde(default = "quick_gelu")]
    pub hidden_act: String,
}

/// `unet/config.json` of a `UNet2DConditionModel`.
#[derive(Debug, Clone, Deserialize)]
pub struct UnetConfig {
    /// Channels of the input latents.
    #[serde(default = "number::<4>")]
    pub in_channels: usize,
    /// Channels of the predicted noise.
    #[serde(default = "number::<4>")]
    pub out_channels: usize,
    /// Channels per level, outermost first.
    pub block_out_channels: Vec<usize>,
    /// The class of each down block.
    pub down_block_types: Vec<String>,
    /// The class of each up block.
    pub up_block_types: Vec<String>,
    /// The class of the mid block.
    #[serde(default = "cross_attention_mid")]
    pub mid_block_type: Option<String>,
    /// ResNets per level.
    #[serde(default = "per_block::<2>")]
    pub layers_per_block: PerBlock,
    /// Width of the prompt's embedding.
    pub cross_attention_dim: usize,
    /// Heads per attention. For SD1.5, diffusers has the number of heads under this name.
    #[serde(default = "per_block::<8>")]
    pub attention_head_dim: PerBlock,
    /// Heads per attention, if the file has the newer name.
    #[serde(default)]
    pub num_attention_heads: Option<PerBlock>,
    /// Transformer blocks per attention.
    #[serde(default = "per_block::<1>")]
    pub transformer_layers_per_block: PerBlock,
    /// Groups of each GroupNorm.
    #[serde(default = "number::<32>")]
    pub norm_num_groups: usize,
    /// Epsilon of each GroupNorm.
    #[serde(default = "norm_eps")]
    pub norm_eps: f64,
    /// Whether the projections around the transformer are linear layers (SD2), else 1x1 convolutions (SD1).
    #[serde(default)]
    pub use_linear_projection: bool,
    /// Whether the timestep embedding starts with the cosines.
    #[serde(default = "yes")]
    pub flip_sin_to_cos: bool,
    /// Shift of the timestep embedding's frequencies.
    #[serde(default)]
    pub freq_shift: f64,
    /// Latent height and width that the model was trained for.
    #[serde(default = "number::<64>")]
    pub sample_size: usize,
    #[serde(default = "silu")]
    act_fn: String,
    #[serde(default = "default_shift")]
    resnet_time_scale_shift: String,
    #[serde(default)]
    class_embed_type: Option<String>,
    #[serde(default)]
    addition_embed_type: Option<String>,
}

/// `vae/config.json` of an `AutoencoderKL`.
#[derive(Debug, Clone, Deserialize)]
pub struct VaeConfig {
    /// Channels per level, outermost first.
    pub block_out_channels: Vec<usize>,
    /// ResNets per level of the encoder; the decoder has one more.
    #[serde(default = "number::<1>")]
    pub layers_per_block: usize,
    /// Channels of the latents.
    #[serde(default = "number::<4>")]
    pub latent_channels: usize,
    /// Channels of the picture.
    #[serde(default = "number::<3>")]
    pub out_channels: usize,
    /// Groups of each GroupNorm.
    #[serde(default = "number::<32>")]
    pub norm_num_groups: usize,
    /// The factor of the latents after encoding, 0.18215 for SD1.5.
    #[serde(default = "scaling_factor")]
    pub scaling_factor: f64,
    /// Whether the mid block has an attention.
    #[serde(default = "yes")]
    pub mid_block_add_attention: bool,
    /// Whether a 1x1 convolution precedes the decoder.
    #[serde(default = "yes")]
    pub use_post_quant_conv: bool,
    #[serde(default = "silu")]
    act_fn: String,
}

impl ModelIndex {
    /// Reads and checks `model_index.json`.
    ///
    /// # Errors
    /// The file cannot be read, its JSON is wrong, or the class is not `StableDiffusionPipeline`.
    pub fn load(model: &Path) -> Result<Self> {
        let index: Self = load(model, "model_index.json")?;
        let supported = "StableDiffusionPipeline";
        require("model_index.json", "_class_name", &index.class_name, index.class_name == supported, supported)?;
        Ok(index)
    }
}

impl TextEncoderConfig {
    /// Reads and checks `text_encoder/config.json`.
    ///
    /// # Errors
    /// The file cannot be read, its JSON is wrong, or the activation is not `quick_gelu`.
    pub fn load(model: &Path) -> Result<Self> {
        let config: Self = load(model, "text_encoder/config.json")?;
        let file = "text_encoder/config.json";
        let heads = config.num_attention_heads;
        require(file, "hidden_act", &config.hidden_act, config.hidden_act == "quick_gelu", "quick_gelu")?;
        let divides = heads > 0 && config.hidden_size.is_multiple_of(heads);
        require(file, "num_attention_heads", heads, divides, "a divisor of `hidden_size`")?;
        Ok(config)
    }
}

impl UnetConfig {
    /// Reads and checks `unet/config.json`.
    ///
    /// # Errors
    /// The file cannot be read, its JSON is wrong, or a block type, activation or conditioning is one that SD1.5 does not have.
    pub fn load(model: &Path) -> Result<Self> {
        let config: Self = load(model, "unet/config.json")?;
        let file = "unet/config.json";
        let levels = config.block_out_channels.len();
        let same = levels > 0 && config.down_block_types.len() == levels && config.up_block_types.len() == levels;
        require(file, "block_out_channels", levels, same, "as many entries as down_block_types and up_block_types")?;
        for kind in &config.down_block_types {
            let known = matches!(kind.as_str(), "DownBlock2D" | "CrossAttnDownBlock2D");
            require(file, "down_block_types", kind, known, "DownBlock2D, CrossAttnDownBlock2D")?;
        }
        for kind in &config.up_block_types {
            let known = matches!(kind.as_str(), "UpBlock2D" | "CrossAttnUpBlock2D");
            require(file, "up_block_types", kind, known, "UpBlock2D, CrossAttnUpBlock2D")?;
        }
        let mid = config.mid_block_type.as_deref().unwrap_or("null");
        require(file, "mid_block_type", mid, mid == "UNetMidBlock2DCrossAttn", "UNetMidBlock2DCrossAttn")?;
        require(file, "act_fn", &config.act_fn, matches!(config.act_fn.as_str(), "silu" | "swish"), "silu")?;
        let shift = &config.resnet_time_scale_shift;
        require(file, "resnet_time_scale_shift", shift, shift == "default", "default")?;
        let class = config.class_embed_type.as_deref().unwrap_or("null");
        require(file, "class_embed_type", class, class == "null", "null")?;
        let addition = config.addition_embed_type.as_deref().unwrap_or("null");
        require(file, "addition_embed_type", addition, addition == "null", "null (SDXL is another model)")?;
        for (level, channels) in config.block_out_channels.iter().enumerate() {
            let grouped = config.norm_num_groups > 0 && channels.is_multiple_of(config.norm_num_groups);
            require(file, "block_out_channels", channels, grouped, "multiples of `norm_num_groups`")?;
            let heads = config.heads(level);
            let divides = heads > 0 && channels.is_multiple_of(heads);
            require(file, "attention_head_dim", heads, divides, "a divisor of the level's channels")?;
        }
        Ok(config)
    }

    /// Attention heads at a level, 0 the outermost.
    pub fn heads(&self, level: usize) -> usize {
        self.num_attention_heads.as_ref().unwrap_or(&self.attention_head_dim).at(level)
    }
}

impl VaeConfig {
    /// Reads and checks `vae/config.json`.
    ///
    /// # Errors
    /// The file cannot be read, its JSON is wrong, the activation is not SiLU, or the picture has not 3 channels.
    pub fn load(model: &Path) -> Result<Self> {
        let config: Self = load(model, "vae/config.json")?;
        let file = "vae/config.json";
        require(file, "act_fn", &config.act_fn, matches!(config.act_fn.as_str(), "silu" | "swish"), "silu")?;
        require(file, "out_channels", config.out_channels, config.out_channels == 3, "3")?;
        require(file, "block_out_channels", "[]", !config.block_out_channels.is_empty(), "one entry per level")?;
        for channels in &config.block_out_channels {
            let grouped = config.norm_num_groups > 0 && channels.is_multiple_of(config.norm_num_groups);
            require(file, "block_out_channels", channels, grouped, "multiples of `norm_num_groups`")?;
        }
        Ok(config)
    }

    /// Pixels per latent along one side, 8 for SD1.5.
    pub fn factor(&self) -> usize {
        1 << (self.block_out_channels.len() - 1)
    }
}

fn require(
    file: &'static str,
    field: &'static str,
    value: impl ToString,
    holds: bool,
    supported: &'static str,
) -> Result<()> {
    if holds {
        return Ok(());
    }
    Err(PipelineError::Unsupported { file, field, value: value.to_string(), supported })
}

// The defaults of diffusers and transformers for absent fields.
fn number<const N: usize>() -> usize {
    N
}
fn per_block<const N: usize>() -> PerBlock {
    PerBlock::One(N)
}
fn quick_gelu() -> String {
    "quick_gelu".into()
}
fn norm_eps() -> f64 {
    1e-5
}
fn scaling_factor() -> f64 {
    0.18215
}
fn yes() -> bool {
    true
}
fn silu() -> String {
    "silu".into()
}
fn default_shift() -> String {
    "default".into()
}
#[expect(clippy::unnecessary_wraps, reason = "serde asks for the field's own type")]
fn cross_attention_mid() -> Option<String> {
    Some("UNetMidBlock2DCrossAttn".into())
}
