//! Noise as torch's generators on CUDA and on the CPU draw it, so that a seed gives the same picture here and there.

mod mt19937;
mod philox;

use candle_core::{DType, Device, Result, Shape, Tensor};
use mt19937::Mt19937;
use philox::Philox;
use serde::Deserialize;
use std::{fmt, str::FromStr};

/// Threads that run at once on an H100 SXM or an H200: 132 multiprocessors with 2048 each.
///
/// Others: A100 221,184, H100 PCIe 233,472, L40S 218,112, RTX 4090 196,608, A10G 122,880, L4 89,088, T4 40,960.
pub const DEFAULT_THREADS: u32 = 270_336;

/// The generator that draws the noise.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Source {
    /// `torch.Generator("cuda")`.
    #[default]
    Cuda,
    /// `torch.Generator("cpu")`.
    Cpu,
}

impl Source {
    /// The names in a request, for an error or a help text.
    pub const NAMES: &'static str = "cuda, cpu";
}

impl FromStr for Source {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        match name {
            "cuda" => Ok(Self::Cuda),
            "cpu" => Ok(Self::Cpu),
            _ => Err(format!("unknown source of noise, known: {}", Self::NAMES)),
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Cuda => "cuda",
            Self::Cpu => "cpu",
        })
    }
}

/// A seeded stream of normal numbers. Each draw continues where the last one ended, as with a `torch.Generator`.
#[derive(Debug, Clone)]
pub struct Noise {
    generator: Generator,
    dtype: DType,
}

#[derive(Debug, Clone)]
enum Generator {
    Cuda(Philox),
    Cpu(Mt19937),
}

impl Noise {
    /// The stream of `torch.Generator("cuda").manual_seed(seed)` on a GPU with [`DEFAULT_THREADS`].
    pub fn new(seed: u64) -> Self {
        Self::cuda(seed, DEFAULT_THREADS)
    }

    /// The stream of `torch.Generator("cuda").manual_seed(seed)` on a GPU that runs `threads` at once: multiprocessors times threads of
    /// each, a multiple of 256. Only draws of more elements than that depend on it.
    pub fn cuda(seed: u64, threads: u32) -> Self {
        Self { generator: Generator::Cuda(Philox::new(seed, threads)), dtype: DType::F32 }
    }

    /// The stream of `torch.Generator("cpu").manual_seed(seed)`.
    pub fn cpu(seed: u64) -> Self {
        Self { generator: Generator::Cpu(Mt19937::new(seed)), dtype: DType::F32 }
    }

    /// The same stream for a model that computes in `dtype`: [`Noise::draw`] and [`Noise::draw_like`] round to it.
    pub fn in_dtype(self, dtype: DType) -> Self {
        Self { dtype, ..self }
    }

    /// The next `torch.randn(shape, dtype)`: drawn in f32 and rounded to `dtype`.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    pub fn randn(&mut self, shape: impl Into<Shape>, dtype: DType, device: &Device) -> Result<Tensor> {
        let shape = shape.into();
        let draws = match &mut self.generator {
            Generator::Cuda(philox) => philox.normals(shape.elem_count()),
            Generator::Cpu(mt19937) => mt19937.normals(shape.elem_count(), dtype != DType::F32),
        };
        Tensor::from_vec(draws, shape, device)?.to_dtype(dtype)
    }

    /// The next draw, in the shape and on the device of `tensor`. f32, rounded to the model's dtype.
    ///
    /// # Errors
    /// As [`Noise::randn`].
    pub fn draw_like(&mut self, tensor: &Tensor) -> Result<Tensor> {
        self.draw(tensor.shape(), tensor.device())
    }

    /// The next draw, in that shape. f32, rounded to the model's dtype.
    ///
    /// # Errors
    /// As [`Noise::randn`].
    pub fn draw(&mut self, shape: impl Into<Shape>, device: &Device) -> Result<Tensor> {
        self.randn(shape, self.dtype, device)?.to_dtype(DType::F32)
    }
}
