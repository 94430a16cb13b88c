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
    startup::log_phase,
    task::Format,
};
use candle_core::Tensor;
use image::RgbImage;
use std::{ops::ControlFlow, time::Duration, time::Instant};

/// What a picture of 512x512 needs on a GPU beside the weights, in bytes, with guidance: measured, and rounded up.
const BYTES_FOR_A_PICTURE: usize = 512 << 20;
const MOST_AT_ONCE: usize = 8;

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

/// A commission, and what is called with the number of its finished steps.
pub type Order<'a> = (&'a Commission, &'a mut dyn FnMut(usize) -> ControlFlow<()>);

/// Pictures of a commission, neither signed nor encoded, and how long each stage took.
pub struct Painted {
    /// The pictures.
    pub pictures: Vec<RgbImage>,
    /// What painted them.
    pub model: ModelName,
    /// Stages in order, with their names.
    pub stages: Vec<(&'static str, Duration)>,
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
        log_phase("device", started);
        let weights = Instant::now();
        let pipeline = Pipeline::load_with(&config.dir, &compute, config.offload, size)?.with_dora(config.dora);
        log_phase("weights", weights);
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

    /// Paints, signs, encodes and writes the metadata. `on_step` is called with the number of finished steps and may stop the
    /// painting.
    ///
    /// # Errors
    /// See [`StudioError`]; the studio stays usable after each.
    pub fn paint(
        &mut self,
        commission: &Commission,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Delivery, StudioError> {
        commission.check()?;
        commission.finish(self.paint_alone(commission, on_step)?)
    }

    /// How many pictures of this request can be painted at once. Eight gain little over four, and a CPU gains nothing.
    pub fn most_at_once(&self, request: &Request) -> usize {
        let Some(free) = self.gpu().and_then(|gpu| gpu.free_bytes().ok()) else { return 1 };
        let each = BYTES_FOR_A_PICTURE * request.width * request.height / (512 * 512);
        (free / each.max(1)).clamp(1, MOST_AT_ONCE)
    }

    /// Paints commissions at once that go together, see [`Commission::goes_with`]. Each has its own `on_step`; one that stops does not
    /// stop the others. If that fails, each is painted on its own, so that every one gets its own error.
    pub fn paint_together(&mut self, orders: &mut [Order<'_>]) -> Vec<Result<Painted, StudioError>> {
        if orders.len() > 1 {
            match self.try_together(orders) {
                Ok(painted) => return painted,
                Err(error) => {
                    tracing::warn!(%error, pictures = orders.len(), "not painted together: one after the other")
                }
            }
        }
        orders.iter_mut().map(|(commission, on_step)| self.paint_alone(commission, on_step)).collect()
    }

    fn try_together(&mut self, orders: &mut [Order<'_>]) -> Result<Vec<Result<Painted, StudioError>>, StudioError> {
        let mut watch = Watch::default();
        let Some((first, _)) = orders.first() else { return Ok(vec![]) };
        self.pipeline.set_loras(&first.loras)?;
        watch.lap("lora");
        let images = first.images;
        let mut stream = self.pipeline.noise(&first.request, self.noise_threads);
        let mut noises = Vec::new();
        for (commission, _) in orders.iter() {
            let mut own = self.pipeline.noise(&commission.request, self.noise_threads);
            noises.push(self.pipeline.first_noise(&commission.request, images, &mut own)?);
        }
        let noise = Tensor::cat(&noises, 0).map_err(PipelineError::from)?;
        let (requests, mut callbacks): (Vec<&Request>, Vec<_>) =
            orders.iter_mut().map(|(commission, on_step)| (&commission.request, on_step)).unzip();
        let mut stopped: Vec<Option<usize>> = vec![None; callbacks.len()];
        let latents = self.pipeline.denoise_together(&requests, noise, &mut stream, &mut |step| {
            for (on_step, stopped) in callbacks.iter_mut().zip(&mut stopped) {
                if stopped.is_none() && on_step(step).is_break() {
                    *stopped = Some(step);
                }
            }
            if stopped.iter().all(Option::is_some) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        watch.lap("denoise");
        let latents = match latents {
            Err(PipelineError::Stopped { .. }) => None,
            latents => Some(latents?),
        };
        let painted = (0..).zip(stopped).map(|(index, stopped)| match (stopped, &latents) {
            (None, Some(latents)) => {
                let mut watch = watch.clone();
                let own = latents.narrow(0, index * images, images).map_err(PipelineError::from)?;
                let pictures = self.pipeline.decode(&own)?;
                watch.lap("decode");
                Ok(Painted { pictures, model: self.model.clone(), stages: watch.stages })
            }
            (stopped, _) => Err(PipelineError::Stopped { step: stopped.unwrap_or_default() }.into()),
        });
        Ok(painted.collect())
    }

    /// Where memory does not suffice, it is made, and the pictures are painted one by one.
    fn paint_alone(
        &mut self,
        commission: &Commission,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Painted, StudioError> {
        match self.try_alone(commission, commission.images, on_step) {
            Err(StudioError::Pipeline(error)) if error.is_out_of_memory() => {
                tracing::warn!(%error, "out of memory: once more, with less");
                self.pipeline.shrink()?;
                self.try_alone(commission, 1, on_step)
            }
            ended => ended,
        }
    }

    fn try_alone(
        &mut self,
        commission: &Commission,
        at_once: usize,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Painted, StudioError> {
        let mut watch = Watch::default();
        self.pipeline.set_loras(&commission.loras)?;
        watch.lap("lora");
        let request = &commission.request;
        let mut stream = self.pipeline.noise(request, self.noise_threads);
        let noise = self.pipeline.first_noise(request, commission.images, &mut stream)?;
        // What is drawn at each step is drawn for all pictures.
        let at_once = if request.scheduler.draws() { commission.images } else { at_once.max(1) };
        let mut latents = Vec::new();
        for first in (0..commission.images).step_by(at_once) {
            let part = noise.narrow(0, first, at_once.min(commission.images - first)).map_err(PipelineError::from)?;
            latents.push(self.pipeline.denoise(request, part, &mut stream, on_step)?);
        }
        watch.lap("denoise");
        let mut pictures = Vec::new();
        for latents in &latents {
            pictures.extend(self.pipeline.decode(latents)?);
        }
        watch.lap("decode");
        Ok(Painted { pictures, model: self.model.clone(), stages: watch.stages })
    }
}

impl Commission {
    /// Whether both can be painted at once.
    pub fn goes_with(&self, other: &Self) -> bool {
        self.images == other.images && self.loras == other.loras && self.request.goes_with(&other.request)
    }

    /// Whether the picture can be signed, to be known before it is painted.
    ///
    /// # Errors
    /// A name that cannot be drawn.
    pub fn check(&self) -> Result<(), SignatureError> {
        let Some((name, options)) = &self.signature else { return Ok(()) };
        signature::check((self.request.width as u32, self.request.height as u32), name, options)
    }

    /// Signs, encodes and writes the metadata, which needs no model.
    ///
    /// # Errors
    /// A name that cannot be drawn, or a picture that cannot be encoded.
    pub fn finish(&self, painted: Painted) -> Result<Delivery, StudioError> {
        let Painted { mut pictures, model, stages } = painted;
        let mut watch = Watch { stages, ..Watch::default() };
        if let Some((name, options)) = &self.signature {
            for picture in &mut pictures {
                sign(picture, name, options)?;
            }
        }
        watch.lap("sign");
        let encode = |picture| picture::encode(picture, self.format, &self.file);
        let files = pictures.iter().map(encode).collect::<Result<Vec<_>, _>>()?;
        watch.lap("encode");
        let images = files.len();
        let told = files.into_iter().enumerate().map(|(index, file)| {
            let provenance = Provenance {
                origin: &self.origin,
                artist: self.signature.as_ref().map(|(name, _)| name.as_str()),
                model: &model,
                loras: &self.loras,
                request: &self.request,
                image: (index + 1, images),
                prompts: self.file.metadata_prompt,
            };
            picture::embed(file, self.format, &provenance)
        });
        let files = told.collect::<Result<_, _>>()?;
        watch.lap("metadata");
        Ok(Delivery { files, stages: watch.stages })
    }
}

/// Measures stages.
#[derive(Clone)]
struct Watch {
    clock: Instant,
    stages: Vec<(&'static str, Duration)>,
}

impl Default for Watch {
    fn default() -> Self {
        Self { clock: Instant::now(), stages: Vec::new() }
    }
}

impl Watch {
    fn lap(&mut self, stage: &'static str) {
        self.stages.push((stage, self.clock.elapsed()));
        self.clock = Instant::now();
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
