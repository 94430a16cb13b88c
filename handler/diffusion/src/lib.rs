//! Stable Diffusion 1.5 on the CPU and on NVIDIA GPUs, with LoRAs.
//!
//! A [`pipeline::Pipeline`] is a loaded model folder in the diffusers layout. It paints a [`pipeline::Request`] with the
//! [`lora::Lora`]s that are set. [`gpu`] is CUDA without Stable Diffusion. Nothing here knows of tasks, queues, storage or
//! webhooks, and nothing waits for a network.

mod cut;
pub mod error;
pub mod gpu;
pub mod loading;
pub mod lora;
pub mod models;
pub mod noise;
mod ops;
pub mod pipeline;
pub mod prompt;
pub mod schedulers;

pub use cut::{MESSAGE, NAME, cut};
