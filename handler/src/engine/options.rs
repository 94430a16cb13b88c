//! Which model, and on what it runs.

use clap::{Args, ValueEnum};
use diffusion::{lora, noise, pipeline};
use std::path::PathBuf;

/// Which model, and on what it runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelConfig {
    /// Model folder in the diffusers layout.
    #[arg(long = "model", env = "EASEL_MODEL_DIR", value_name = "DIR")]
    pub dir: PathBuf,
    /// Where to compute.
    #[arg(long, env = "EASEL_DEVICE", default_value = "auto")]
    pub device: DeviceKind,
    /// Floating-point type of weights and activations.
    #[arg(long, env = "EASEL_DTYPE", default_value = "auto")]
    pub dtype: Precision,
    /// Whether text encoder and VAE leave the GPU while the UNet works: auto does so if memory is short.
    #[arg(long, env = "EASEL_OFFLOAD", default_value = "auto")]
    pub offload: Offload,
    /// How many threads the GPU whose noise is reproduced runs at a time: multiprocessors times threads of each, a multiple of 256.
    /// H100 SXM and H200 270336, A100 221184, L40S 218112, A10G 122880, L4 89088, T4 40960. Only several large pictures of one task
    /// depend on it.
    #[arg(long, env = "EASEL_NOISE_THREADS", default_value_t = noise::DEFAULT_THREADS, value_name = "COUNT", value_parser = noise_threads)]
    pub noise_threads: u32,
    /// What is done with the magnitudes in a DoRA file.
    #[arg(long, env = "EASEL_DORA", default_value = "apply")]
    pub dora: Dora,
}

fn noise_threads(text: &str) -> Result<u32, String> {
    let count = text.parse().ok().filter(|count: &u32| *count > 0 && count.is_multiple_of(256));
    count.ok_or_else(|| "must be a multiple of 256 and not 0".into())
}

/// Where to compute.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum DeviceKind {
    /// The GPU if this build and machine have one, else the CPU.
    Auto,
    /// The CPU.
    Cpu,
    /// The first CUDA GPU.
    Cuda,
}

/// Whether text encoder and VAE leave the GPU while the UNet works; they come back from the model's files when they are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Offload {
    /// If memory is short once the weights are loaded.
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
}

impl From<Offload> for pipeline::Offload {
    fn from(offload: Offload) -> Self {
        match offload {
            Offload::Auto => Self::Auto,
            Offload::Always => Self::Always,
            Offload::Never => Self::Never,
        }
    }
}

/// What becomes of DoRA's lengths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Dora {
    /// They are applied, as LyCORIS and peft do.
    Apply,
    /// LyCORIS' `dora_scale` is dropped, as diffusers does; peft's `lora_magnitude_vector` is applied, as diffusers does.
    Ignore,
}

impl From<Dora> for lora::Dora {
    fn from(dora: Dora) -> Self {
        match dora {
            Dora::Apply => Self::Apply,
            Dora::Ignore => Self::Ignore,
        }
    }
}

/// Floating-point type of weights and activations. Sums, norms, softmax and the scheduler are f32 in any case.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Precision {
    /// f16 on a GPU, f32 on the CPU.
    Auto,
    /// 32 bits.
    F32,
    /// 16 bits, of which 5 exponent. On a GPU only.
    F16,
    /// 16 bits, of which 8 exponent. On a GPU only.
    Bf16,
}
