//! The networks of Stable Diffusion 1.5, as diffusers names them.

mod blocks;
pub mod text_encoder;
mod transformer;
pub(crate) mod unet;
pub mod vae;
