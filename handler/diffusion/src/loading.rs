//! Model folders in the diffusers layout: where files are, what their JSON says, and their tensors.

pub mod config;
mod header;
pub mod weights;

pub use header::{Header, HeaderError};

use std::path::Path;

/// Names a diffusers folder uses for the weights of UNet and VAE, in order of preference.
pub const DIFFUSION_FILES: [&str; 2] =
    ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
/// Names a diffusers folder uses for the weights of the text encoder, in order of preference.
pub const ENCODER_FILES: [&str; 2] = ["model.safetensors", "model.fp16.safetensors"];

/// Asks the system to bring a model's weights into memory, and does not wait for it.
pub fn read_ahead(model: &Path) {
    weights::read_ahead(&model.join("unet"), &DIFFUSION_FILES);
    weights::read_ahead(&model.join("text_encoder"), &ENCODER_FILES);
    weights::read_ahead(&model.join("vae"), &DIFFUSION_FILES);
}
