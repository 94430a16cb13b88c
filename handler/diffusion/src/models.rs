//! The networks of Stable Diffusion 1.5. Their names are those of diffusers.

mod blocks;
mod clip;
pub(crate) mod safety_checker;
pub mod text_encoder;
mod time_embedding;
mod transformer;
pub(crate) mod unet;
pub mod vae;
