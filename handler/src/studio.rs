//! The studio: one model on one device that paints commissions one after the other, signs and encodes them.
//!
//! Every entry point paints here. It blocks its thread while it paints and knows nothing of queues, S3 or webhooks.

use crate::{
    config::{DeviceKind, ModelConfig, Precision},
    gpu::{Dtype, Gpu, GpuError},
    lora::{AppliedLora, LoraError},
    pipeline::{self, Compute, Pipeline, Request, error::PipelineError},
    signature::{Signature, SignatureError, sign},
    startup::log_phase,
    task::Format,
};
use image::{ExtendedColorType, ImageEncoder, RgbImage, codecs::jpeg::JpegEncoder, codecs::png::PngEncoder};
use std::{ops::ControlFlow, time::Duration, time::Instant};

/// As the Python worker saved them.
const JPEG_QUALITY: u8 = 95;

/// What to paint, and how to deliver it.
pub struct Commission {
    /// What to paint.
    pub request: Request,
    /// How many pictures of the request's seed.
    pub images: usize,
    /// LoRAs to apply.
    pub loras: Vec<AppliedLora>,
    /// The artist's name and how to sign with it.
    pub signature: Option<(String, Signature)>,
    /// File format.
    pub format: Format,
}

/// Encoded pictures and how long each stage took.
pub struct Delivery {
    /// One file per picture.
    pub files: Vec<Vec<u8>>,
    /// Stages in order, with their names.
    pub stages: Vec<(&'static str, Duration)>,
}

/// Why a commission was not painted.
#[derive(Debug, thiserror::Error)]
pub enum StudioError {
    /// A LoRA does not fit.
    #[error(transparent)]
    Lora(#[from] LoraError),
    /// The pipeline failed.
    #[error(transparent)]
    Pipeline(#[from] PipelineError),
    /// The name cannot be drawn.
    #[error(transparent)]
    Signature(#[from] SignatureError),
    /// The picture could not be encoded.
    #[error("encoding: {0}")]
    Encode(#[from] image::ImageError),
}

impl StudioError {
    /// Whether the commission itself is at fault, so that trying again would end the same way.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Lora(error) => error.is_permanent(),
            Self::Signature(_) | Self::Pipeline(PipelineError::Request { .. }) => true,
            Self::Pipeline(_) | Self::Encode(_) => false,
        }
    }
}

/// A loaded model.
pub struct Studio {
    pipeline: Pipeline,
    noise_threads: u32,
    compute: Compute,
}

impl Studio {
    /// Loads the model. `size` is the width and height of the pictures that are expected first.
    ///
    /// # Errors
    /// No such device in this build or machine, a dtype it does not have, or a model folder that cannot be used.
    pub fn open(config: &ModelConfig, size: (usize, usize)) -> Result<Self, PipelineError> {
        let started = Instant::now();
        if config.device != DeviceKind::Cpu {
            pipeline::read_ahead(&config.dir);
        }
        let compute = compute(config.device, config.dtype)?;
        log_phase("device", started);
        let weights = Instant::now();
        let pipeline = Pipeline::load_with(&config.dir, &compute, config.offload, size)?.with_dora(config.dora);
        log_phase("weights", weights);
        let studio = Self { pipeline, noise_threads: config.noise_threads, compute };
        let duration_ms = started.elapsed().as_millis() as u64;
        tracing::info!(device = studio.device_name(), duration_ms, "model loaded");
        Ok(studio)
    }

    /// What it computes on.
    pub fn device_name(&self) -> &str {
        self.gpu().map_or("cpu", Gpu::name)
    }

    /// The GPU, if it computes on one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.compute {
            Compute::Cpu => None,
            Compute::Gpu(gpu, _) => Some(gpu),
        }
    }

    /// Applies these LoRAs and no others, waits for the device, and says how long that took.
    ///
    /// # Errors
    /// A LoRA that does not fit.
    pub fn swap(&mut self, loras: &[AppliedLora]) -> Result<Duration, StudioError> {
        let clock = Instant::now();
        self.pipeline.set_loras(loras)?;
        if let Some(gpu) = self.gpu() {
            gpu.synchronize().map_err(PipelineError::from)?;
        }
        Ok(clock.elapsed())
    }

    /// Paints, signs and encodes. `on_step` is called with the number of finished steps and may stop the painting.
    ///
    /// # Errors
    /// See [`StudioError`]; the studio stays usable after each.
    pub fn paint(
        &mut self,
        commission: &Commission,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Delivery, StudioError> {
        let mut stages = Vec::new();
        let mut clock = Instant::now();
        let mut lap = |stages: &mut Vec<_>, name: &'static str| {
            stages.push((name, clock.elapsed()));
            clock = Instant::now();
        };
        self.pipeline.set_loras(&commission.loras)?;
        lap(&mut stages, "lora");
        let request = &commission.request;
        let mut stream = self.pipeline.noise(request, self.noise_threads);
        let noise = self.pipeline.first_noise(request, commission.images, &mut stream)?;
        let latents = self.pipeline.denoise(request, noise, &mut stream, on_step)?;
        lap(&mut stages, "denoise");
        let mut pictures = self.pipeline.decode(&latents)?;
        lap(&mut stages, "decode");
        if let Some((name, options)) = &commission.signature {
            for picture in &mut pictures {
                sign(picture, name, options)?;
            }
        }
        lap(&mut stages, "sign");
        let files = pictures.iter().map(|picture| encode(picture, commission.format)).collect::<Result<_, _>>()?;
        lap(&mut stages, "encode");
        Ok(Delivery { files, stages })
    }
}

fn compute(kind: DeviceKind, precision: Precision) -> Result<Compute, PipelineError> {
    let gpu = match kind {
        DeviceKind::Cpu => None,
        DeviceKind::Cuda => Some(Gpu::open(0)?),
        DeviceKind::Auto => Gpu::open(0).inspect_err(why_not).ok(),
    };
    let Some(gpu) = gpu else {
        if matches!(precision, Precision::Auto | Precision::F32) {
            return Ok(Compute::Cpu);
        }
        let value = if precision == Precision::F16 { "f16" } else { "bf16" }.to_string();
        return Err(PipelineError::Request { field: "dtype", value, limit: "the CPU computes in f32 only".into() });
    };
    let dtype = match precision {
        Precision::Auto | Precision::F16 => Dtype::F16,
        Precision::Bf16 => Dtype::BF16,
        Precision::F32 => Dtype::F32,
    };
    Ok(Compute::Gpu(gpu, dtype))
}

fn why_not(error: &GpuError) {
    tracing::info!(reason = %error, "no GPU is used");
}

fn encode(picture: &RgbImage, format: Format) -> Result<Vec<u8>, image::ImageError> {
    let mut file = Vec::new();
    let (width, height, color) = (picture.width(), picture.height(), ExtendedColorType::Rgb8);
    match format {
        Format::Jpeg => {
            JpegEncoder::new_with_quality(&mut file, JPEG_QUALITY).write_image(picture, width, height, color)?;
        }
        Format::Png => PngEncoder::new(&mut file).write_image(picture, width, height, color)?,
    }
    Ok(file)
}
