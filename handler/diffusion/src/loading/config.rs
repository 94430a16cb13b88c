//! The JSON files of a model folder in the diffusers layout. A setting that changes the arithmetic is used, or refused by its name.

mod fields;
mod model_index;
mod preprocessor;
mod safety_checker;
mod text_encoder;
mod unet;
mod vae;

pub use model_index::ModelIndex;
pub use preprocessor::PreprocessorConfig;
pub use safety_checker::{SafetyCheckerConfig, VisionConfig};
pub use text_encoder::TextEncoderConfig;
pub use unet::UnetConfig;
pub use vae::VaeConfig;

use super::{FileKind, settings};
use crate::error::{PipelineError, Result};
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::{io, path::Path};

/// The most channels that latents may have: as many as a vector of a GPU's kernels.
const MOST_LATENT_CHANNELS: usize = 8;

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

/// Reads one JSON file of a model that holds an object, by its name in a model folder.
fn read_object(model: &Path, file: &str) -> Result<Map<String, Value>> {
    let text = settings(model, file)?;
    serde_json::from_str(&text).map_err(|source| PipelineError::Json { path: model.join(file), source })
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

/// Checks that the parts of a model fit each other.
///
/// # Errors
/// A UNet that needs more than latents and a prompt, or whose widths are not those of the text encoder or the VAE. The error says what
/// kind of model it may be.
pub fn check_together(index: &ModelIndex, text: &TextEncoderConfig, unet: &UnetConfig, vae: &VaeConfig) -> Result<()> {
    let (channels, latents) = (unet.in_channels, vae.latent_channels);
    let fits = (1..=MOST_LATENT_CHANNELS).contains(&latents);
    require("vae/config.json", "latent_channels", latents, fits, "1 to 8, and 4 in Stable Diffusion 1.5")?;
    let supported = match channels {
        9 if latents == 4 => {
            "the VAE's `latent_channels` (9 is an inpainting model: give the model that it was trained from)"
        }
        8 if latents == 4 => {
            "the VAE's `latent_channels` (8 is a model that changes pictures, such as InstructPix2Pix)"
        }
        7 if latents == 4 => "the VAE's `latent_channels` (7 is a model that enlarges pictures)",
        5 if latents == 4 => "the VAE's `latent_channels` (5 is a model that needs a depth map)",
        _ => "the VAE's `latent_channels`",
    };
    require(unet::FILE, "in_channels", channels, channels == latents, supported)?;
    let out = unet.out_channels;
    require(unet::FILE, "out_channels", out, out == channels, "the same as `in_channels`")?;
    for level in 0..unet.block_out_channels.len() {
        let width = unet.cross_attention_dim.at(level);
        let supported = "the text encoder's `hidden_size` (768 in Stable Diffusion 1.5, 1024 in 2, 2048 in SDXL)";
        require(unet::FILE, "cross_attention_dim", width, width == text.hidden_size, supported)?;
    }
    let guided = unet.time_cond_proj_dim.is_some() || !index.embeds_guidance();
    let supported =
        "a whole number in a LatentConsistencyModelPipeline (else name StableDiffusionPipeline in model_index.json)";
    require(unet::FILE, "time_cond_proj_dim", "null", guided, supported)
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

#[cfg(test)]
mod tests;
