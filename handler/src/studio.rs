//! The studio: one model on one device that paints commissions one after the other, signs and encodes them,
//! and writes into the files what they are.
//!
//! Every entry point paints here. It blocks its thread while it paints and knows nothing of queues, S3 or webhooks.

use crate::{
    config::{DeviceKind, ModelConfig, PictureConfig, Precision},
    gpu::{Dtype, Gpu, GpuError},
    lora::{AppliedLora, LoraError},
    picture::{self, EmbedError, EncodeError, ModelName, Origin, Provenance},
    pipeline::{self, Compute, Pipeline, Request, error::PipelineError},
    signature::{self, Signature, SignatureError, sign},
    task::Format,
};
use std::{ops::ControlFlow, time::Duration, time::Instant};

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
    /// How the file is written.
    pub file: PictureConfig,
    /// What the file says beside that.
    pub origin: Origin,
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
    #[error(transparent)]
    Encode(#[from] EncodeError),
    /// The picture's file could not be told where it comes from.
    #[error(transparent)]
    Embed(#[from] EmbedError),
}

impl StudioError {
    /// Whether the commission itself is at fault, so that trying again would end the same way.
    pub fn is_permanent(&self) -> bool {
        match self {
            Self::Lora(error) => error.is_permanent(),
            Self::Signature(_) | Self::Pipeline(PipelineError::Request { .. }) => true,
            Self::Pipeline(_) | Self::Encode(_) | Self::Embed(_) => false,
        }
    }
}

/// A loaded model.
pub struct Studio {
    pipeline: Pipeline,
    model: ModelName,
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
        let pipeline = Pipeline::load_with(&config.dir, &compute, config.offload, size)?.with_dora(config.dora);
        let model = ModelName::of(&config.dir);
        let studio = Self { pipeline, model, noise_threads: config.noise_threads, compute };
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

    /// Paints, signs, encodes and writes the metadata. `on_step` is called with the number of finished steps and may stop the painting.
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
        let request = &commission.request;
        if let Some((name, options)) = &commission.signature {
            signature::check((request.width as u32, request.height as u32), name, options)?;
        }
        self.pipeline.set_loras(&commission.loras)?;
        lap(&mut stages, "lora");
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
        let encode = |picture| picture::encode(picture, commission.format, &commission.file);
        let files = pictures.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        lap(&mut stages, "encode");
        let images = files.len();
        let told = files.into_iter().enumerate().map(|(index, file)| {
            let provenance = Provenance {
                origin: &commission.origin,
                artist: commission.signature.as_ref().map(|(name, _)| name.as_str()),
                model: &self.model,
                loras: &commission.loras,
                request,
                image: (index + 1, images),
                prompts: commission.file.metadata_prompt,
            };
            picture::embed(file, commission.format, &provenance)
        });
        let files = told.collect::<Result<_, _>>()?;
        lap(&mut stages, "metadata");
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
