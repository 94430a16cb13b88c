//! Which base model a LoRA was made for. Keys are trusted most, then shapes, then metadata.

use crate::error::{MAX_NAME, cut};
use serde::Serialize;
use std::{collections::HashMap, fmt};

/// A family of base models whose LoRAs are not interchangeable.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum BaseModel {
    /// Stable Diffusion 1.x: the prompt's embedding is 768 wide.
    Sd1,
    /// Stable Diffusion 2.x: 1024 wide.
    Sd2,
    /// Stable Diffusion XL: 2048 wide, two text encoders.
    Sdxl,
    /// Stable Diffusion 3.x: a transformer.
    Sd3,
    /// Flux: a transformer.
    Flux,
}

/// Parts of keys that no LoRA for SD1 or SD2 has.
const MARKS: [(&str, BaseModel); 16] = [
    ("double_blocks", BaseModel::Flux),
    ("single_blocks", BaseModel::Flux),
    ("single_transformer_blocks", BaseModel::Flux),
    ("joint_blocks", BaseModel::Sd3),
    ("lora_te3_", BaseModel::Sd3),
    ("text_encoder_3.", BaseModel::Sd3),
    ("text_encoders.t5xxl", BaseModel::Sd3),
    ("lora_te2_", BaseModel::Sdxl),
    ("clip_g.", BaseModel::Sdxl),
    ("text_encoders.clip_g", BaseModel::Sdxl),
    ("text_encoder_2.", BaseModel::Sdxl),
    ("add_embedding", BaseModel::Sdxl),
    ("label_emb", BaseModel::Sdxl),
    ("down_blocks_1_attentions_0_transformer_blocks_1_", BaseModel::Sdxl),
    ("input_blocks_4_1_transformer_blocks_1_", BaseModel::Sdxl),
    ("input_blocks_7_1_transformer_blocks_1_", BaseModel::Sdxl),
];

/// How trainers name base models in the metadata: field, start of its value, model.
const NAMES: [(&str, &str, BaseModel); 12] = [
    ("ss_base_model_version", "sd_v1", BaseModel::Sd1),
    ("ss_base_model_version", "sd_1", BaseModel::Sd1),
    ("ss_base_model_version", "sd_v2", BaseModel::Sd2),
    ("ss_base_model_version", "sd_2", BaseModel::Sd2),
    ("ss_base_model_version", "sdxl", BaseModel::Sdxl),
    ("ss_base_model_version", "sd3", BaseModel::Sd3),
    ("ss_base_model_version", "flux", BaseModel::Flux),
    ("modelspec.architecture", "stable-diffusion-v1", BaseModel::Sd1),
    ("modelspec.architecture", "stable-diffusion-v2", BaseModel::Sd2),
    ("modelspec.architecture", "stable-diffusion-xl", BaseModel::Sdxl),
    ("modelspec.architecture", "stable-diffusion-3", BaseModel::Sd3),
    ("modelspec.architecture", "flux", BaseModel::Flux),
];

impl BaseModel {
    /// The base model that a key alone shows.
    pub(super) fn of_key(key: &str) -> Option<Self> {
        let flat = key.replace('.', "_");
        let found = MARKS.iter().find(|(mark, _)| key.contains(mark) || flat.contains(mark));
        // diffusers keeps SD3 and Flux under this name; a Flux file has `single_transformer_blocks` as well.
        let transformer = key.starts_with("transformer.") || key.starts_with("lora_transformer_");
        found.map(|(_, model)| *model).or(transformer.then_some(Self::Sd3))
    }

    /// The base model that a module's input width shows: `attn2.to_k` and `to_v` read the prompt's embedding.
    pub(super) fn of_input(module: &str, width: usize) -> Option<Self> {
        (module.ends_with("attn2_to_k") || module.ends_with("attn2_to_v")).then(|| Self::of_context(width)).flatten()
    }

    /// The model whose UNet reads embeddings of that width.
    pub(super) fn of_context(width: usize) -> Option<Self> {
        match width {
            768 => Some(Self::Sd1),
            1024 => Some(Self::Sd2),
            2048 => Some(Self::Sdxl),
            _ => None,
        }
    }

    /// The base model that the metadata names, and the text that names it.
    pub(super) fn of_metadata(metadata: &HashMap<String, String>) -> Option<(Self, String)> {
        NAMES.iter().find_map(|(field, name, model)| {
            let text = metadata.get(*field)?;
            text.to_ascii_lowercase()
                .starts_with(name)
                .then(|| (*model, format!("`{field}` is `{}`", cut(text, MAX_NAME))))
        })
    }

    /// Whether the pipeline can load a UNet of that family.
    pub(super) fn is_supported(self) -> bool {
        matches!(self, Self::Sd1 | Self::Sd2)
    }

    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Sd1 => "SD1",
            Self::Sd2 => "SD2",
            Self::Sdxl => "SDXL",
            Self::Sd3 => "SD3",
            Self::Flux => "Flux",
        }
    }
}

impl fmt::Display for BaseModel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}
