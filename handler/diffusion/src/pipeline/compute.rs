//! What the networks compute on.

use crate::gpu::{Dtype, Gpu};
use candle_core::DType;

/// The CPU in f32, or a GPU.
#[derive(Clone)]
pub enum Compute {
    /// All cores.
    Cpu,
    /// One GPU, with the dtype of weights and activations.
    Gpu(Gpu, Dtype),
}

impl Compute {
    /// The dtype of weights and activations.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Cpu | Self::Gpu(_, Dtype::F32) => DType::F32,
            Self::Gpu(_, Dtype::F16) => DType::F16,
            Self::Gpu(_, Dtype::BF16) => DType::BF16,
        }
    }
}

/// Whether text encoder and VAE leave the GPU while the UNet works; they come back from the model's files when they are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// If memory is short once the weights are loaded.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}
