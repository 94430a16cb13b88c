//! Reads model folders in the diffusers layout: their JSON files and their tensors.

pub mod config;
mod header;
pub mod weights;

pub use header::{Header, HeaderError};

use std::path::Path;

/// File names of the weights of UNet and VAE, in order of preference.
pub const DIFFUSION_FILES: [&str; 2] =
    ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
/// File names of the weights of the text encoder, in order of preference.
pub const ENCODER_FILES: [&str; 2] = ["model.safetensors", "model.fp16.safetensors"];

/// Asks the operating system to read a model's weights into its page cache. Does not wait for it.
pub fn read_ahead(model: &Path) {
    weights::read_ahead(&model.join("unet"), &DIFFUSION_FILES);
    weights::read_ahead(&model.join("text_encoder"), &ENCODER_FILES);
    weights::read_ahead(&model.join("vae"), &DIFFUSION_FILES);
}
