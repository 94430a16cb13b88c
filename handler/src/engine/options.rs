//! Options of the engine, and the device that they mean on this machine.

use crate::engine::safety::CheckerConfig;
use clap::{Args, ValueEnum};
use diffusion::{
    Instructions, Vectors,
    error::PipelineError,
    gpu::{self, Dtype, Generation, Gpu, GpuError},
    limit_vectors, lora, noise,
    pipeline::{self, Compute, Footprint, LoadOptions},
};
use std::path::PathBuf;

/// Which model, and on what it runs.
#[derive(Debug, Clone, Args)]
#[command(next_help_heading = "Model")]
pub struct ModelConfig {
    /// Model folder in the diffusers layout, or a checkpoint: one .safetensors file with a whole Stable Diffusion 1.x model.
    #[arg(long = "model", env = "EASEL_MODEL_DIR", value_name = "MODEL")]
    pub dir: PathBuf,
    /// Where to compute.
    #[arg(long, env = "EASEL_DEVICE", default_value = "auto")]
    pub device: DeviceKind,
    /// Floating-point type of weights and activations.
    #[arg(long, env = "EASEL_DTYPE", default_value = "auto")]
    pub dtype: Precision,
    /// How wide the vectors are that the CPU computes with. Narrower ones show on one machine what another would do.
    #[arg(long, env = "EASEL_CPU_VECTORS", default_value = "auto")]
    pub cpu_vectors: CpuVectors,
    /// What leaves the GPU while it is not in use: auto is the fastest way that fits into the GPU's free memory.
    #[arg(long, env = "EASEL_OFFLOAD", default_value = "auto")]
    pub offload: Offload,
    /// Use kernels for GPUs of that compute capability at most: 7.5 (Turing), 8.0 (Ampere, Ada) or 9.0 (Hopper). For measurements and
    /// tests; by default the newest that the GPU runs.
    #[arg(long, env = "EASEL_KERNELS_OF", value_name = "CAPABILITY")]
    pub kernels_of: Option<Generation>,
    /// How many threads the GPU whose noise is reproduced runs at a time: multiprocessors times threads of each, a multiple of 256.
    /// H100 SXM and H200 270336, A100 221184, L40S 218112, A10G 122880, L4 89088, T4 40960. Only several large pictures of one task
    /// depend on it.
    #[arg(long, env = "EASEL_NOISE_THREADS", default_value_t = noise::DEFAULT_THREADS, value_name = "COUNT", value_parser = noise_threads)]
    pub noise_threads: u32,
    /// What is done with the magnitudes in a DoRA file.
    #[arg(long, env = "EASEL_DORA", default_value = "apply")]
    pub dora: Dora,
    /// The safety checker.
    #[command(flatten)]
    pub checker: CheckerConfig,
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

/// How wide the vectors of the CPU are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum CpuVectors {
    /// As wide as the CPU has them, and for bf16 the tiles of AMX where they are.
    Auto,
    /// 512 bits at most, and no tiles.
    Avx512,
    /// 256 bits at most, also on a CPU with AVX-512.
    Avx2,
}

impl CpuVectors {
    /// Computes with vectors of that width from now on.
    fn apply(self) {
        if !limit_vectors(self.most()) {
            tracing::warn!(
                "--cpu-vectors (EASEL_CPU_VECTORS) comes too late: this process computes with other vectors already"
            );
        }
    }

    fn most(self) -> Vectors {
        match self {
            Self::Auto => Vectors::Widest,
            Self::Avx512 => Vectors::Avx512,
            Self::Avx2 => Vectors::Avx2,
        }
    }
}

/// What leaves the GPU while it is not in use. It comes back from a copy in the host's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Offload {
    /// The fastest of the others that fits into the free memory, decided before loading.
    Auto,
    /// Nothing: everything stays.
    Never,
    /// Text encoder, UNet and decoder come one at a time. It was called always before.
    #[value(alias = "always")]
    Model,
    /// The same, and the UNet's weights pass through a small part of the memory in each step.
    Sequential,
}

impl From<Offload> for pipeline::Offload {
    fn from(offload: Offload) -> Self {
        match offload {
            Offload::Auto => Self::Auto,
            Offload::Never => Self::Never,
            Offload::Model => Self::Model,
            Offload::Sequential => Self::Sequential,
        }
    }
}

/// What is done with DoRA's magnitudes.
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
    /// 16 bits, of which 8 exponent. On a CPU with AVX512-BF16 or AMX-BF16, products and convolutions multiply such numbers and the rest
    /// is f32.
    Bf16,
}

/// The device and dtype to compute with.
pub(crate) struct ChosenDevice {
    pub(crate) compute: Compute,
    /// Whether the machine has an NVIDIA GPU that could not be opened.
    pub(crate) has_unused_gpu: bool,
}

/// Opens the device that the options mean on this machine.
///
/// # Errors
/// This build or machine does not have it, or it does not compute with the dtype.
pub(crate) fn choose(config: &ModelConfig) -> Result<ChosenDevice, PipelineError> {
    let (precision, kernels_of) = (config.dtype, config.kernels_of);
    config.cpu_vectors.apply();
    let (gpu, has_unused_gpu) = match config.device {
        DeviceKind::Cpu => (None, false),
        DeviceKind::Cuda => (Some(Gpu::open_with(0, kernels_of)?), false),
        DeviceKind::Auto => match Gpu::open_with(0, kernels_of) {
            Ok(gpu) => (Some(gpu), false),
            Err(error) => (None, report_fallback(&error, gpu::device_of_machine())),
        },
    };
    let Some(gpu) = gpu else {
        return Ok(ChosenDevice { compute: precision.on_cpu(config.cpu_vectors)?, has_unused_gpu });
    };
    Ok(ChosenDevice { compute: Compute::Gpu(gpu, precision.on_gpu()), has_unused_gpu })
}

impl Precision {
    /// How the CPU computes.
    ///
    /// # Errors
    /// It does not compute with the dtype.
    fn on_cpu(self, vectors: CpuVectors) -> Result<Compute, PipelineError> {
        let refused = |value: &str, limit| {
            Err(PipelineError::Request { field: "--dtype (EASEL_DTYPE)", value: value.into(), limit })
        };
        match self {
            Self::Auto | Self::F32 => Ok(Compute::Cpu),
            Self::F16 => refused("f16", "which only a GPU computes in: use auto, f32 or bf16 on the CPU".into()),
            Self::Bf16 if vectors == CpuVectors::Avx2 => refused(
                "bf16",
                "which needs AVX512-BF16, and --cpu-vectors (EASEL_CPU_VECTORS) is avx2: use auto or avx512 there, or --dtype f32".into(),
            ),
            Self::Bf16 => match Instructions::detect(vectors.most()) {
                Ok(instructions) => {
                    tracing::info!(instructions = instructions.name(), "the CPU multiplies in bf16");
                    Ok(Compute::CpuBf16(instructions))
                }
                Err(lack) => refused("bf16", format!("and {lack}: use --dtype auto or f32, or another CPU or a GPU")),
            },
        }
    }

    /// The dtype on a GPU.
    fn on_gpu(self) -> Dtype {
        match self {
            Self::Auto | Self::F16 => Dtype::F16,
            Self::Bf16 => Dtype::BF16,
            Self::F32 => Dtype::F32,
        }
    }
}

impl ModelConfig {
    /// How the model is loaded. `size` is the width and height of the first pictures, `largest` that of the largest to come.
    pub(crate) fn load_options(&self, size: (usize, usize), largest: Option<(usize, usize)>) -> LoadOptions {
        LoadOptions { offload: self.offload.into(), size, largest, safety_checker: self.checker.source_at_start() }
    }

    /// How the model would lie in so many free bytes of a GPU's memory, for sizes as those that it is loaded with.
    ///
    /// # Errors
    /// There is too little memory for `--offload` ([`PipelineError::Memory`]), or the model's folder cannot be used.
    pub fn foresee(
        &self,
        free: usize,
        size: (usize, usize),
        largest: (usize, usize),
    ) -> Result<Footprint, PipelineError> {
        pipeline::foresee(&self.dir, self.dtype.on_gpu(), &self.load_options(size, Some(largest)), free)
    }
}

/// Logs why the CPU paints: a warning only if the machine has a GPU that cannot be opened. Returns whether it has one.
fn report_fallback(error: &GpuError, device: Option<String>) -> bool {
    match &device {
        None => tracing::info!(reason = %error, "no GPU is used"),
        Some(device) => tracing::warn!(
            device,
            reason = %error,
            "this machine has an NVIDIA GPU that cannot be used: pictures are painted by the CPU and take minutes; mend the reason and start \
             anew, or say --device cpu (EASEL_DEVICE) if that is wanted; --device cuda makes it an error"
        ),
    }
    device.is_some()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{
        io::{self, Write},
        sync::{Arc, Mutex, PoisonError},
    };

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap_or_else(PoisonError::into_inner).write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn only_a_gpu_that_is_there_and_cannot_be_used_is_a_warning() {
        let error = GpuError::Unavailable("no NVIDIA driver".into());
        for (device, level, words) in [
            (None, "INFO", vec!["no GPU is used", "no NVIDIA driver"]),
            (
                Some("/dev/nvidia0".to_string()),
                "WARN",
                vec!["/dev/nvidia0", "no NVIDIA driver", "EASEL_DEVICE", "cuda"],
            ),
        ] {
            let log = Log::default();
            let writer = log.clone();
            let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
            let is_there = device.is_some();
            let has_gpu = tracing::subscriber::with_default(subscriber, || report_fallback(&error, device));
            assert_eq!(has_gpu, is_there);
            let text = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
            assert!(text.contains(level), "{text}");
            for word in words {
                assert!(text.contains(word), "{word} is not in {text}");
            }
        }
    }
}
