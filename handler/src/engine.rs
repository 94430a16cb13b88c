//! The engine: one model on one device that paints requests one after the other, signs and encodes them,
//! and writes into the files what they are.
//!
//! Every entry point paints here. It blocks its thread while it paints and knows nothing of queues, S3 or webhooks. [`loader`] loads it,
//! [`batcher`] is the thread that owns it.

pub mod batcher;
mod device;
pub mod loader;
pub mod options;
mod request;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests;

pub use request::{EngineError, GenerationRequest, OnStep, Order, Output, Painted, Step};

use crate::{
    engine::options::{DeviceKind, ModelConfig},
    observe::trace::log_phase,
    picture::ModelName,
};
use candle_core::Tensor;
use device::{Chosen, choose};
use diffusion::{
    error::PipelineError,
    gpu::{Gpu, Memory},
    loading,
    lora::AppliedLora,
    pipeline::{Compute, Pipeline, Request},
};
use image::RgbImage;
use request::Watch;
use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// What the steps of a picture of 512x512 need on a GPU, in bytes, with guidance, for each that is painted at once. Eight held 958 MiB
/// beside the weights of Stable Diffusion 1.5 in f16 (`handler bench picture --num-images 8`, docs/PERFORMANCE.md).
const BYTES_FOR_A_PICTURE: usize = 160 << 20;
/// What its pixels need, one picture at a time: one held 574 MiB.
const BYTES_FOR_PIXELS: usize = 640 << 20;
const MOST_AT_ONCE: usize = 8;

/// A loaded model.
pub struct Engine {
    pipeline: Pipeline,
    model: ModelName,
    noise_threads: u32,
    compute: Compute,
    leaves_a_gpu: bool,
}

impl Engine {
    /// Loads the model. `size` is the width and height of the pictures that are expected first.
    ///
    /// # Errors
    /// No such device in this build or machine, a dtype it does not have, or a model folder that cannot be used.
    pub fn open(config: &ModelConfig, size: (usize, usize)) -> Result<Self, PipelineError> {
        let started = Instant::now();
        if config.device != DeviceKind::Cpu {
            loading::read_ahead(&config.dir);
        }
        let Chosen { compute, leaves_a_gpu } = choose(config.device, config.dtype)?;
        log_phase("device", started);
        let weights = Instant::now();
        let pipeline =
            Pipeline::load_with(&config.dir, &compute, config.offload.into(), size)?.with_dora(config.dora.into());
        log_phase("weights", weights);
        let model = ModelName::of(&config.dir);
        let engine = Self { pipeline, model, noise_threads: config.noise_threads, compute, leaves_a_gpu };
        let duration_ms = started.elapsed().as_millis() as u64;
        tracing::info!(device = engine.device_name(), duration_ms, "model loaded");
        Ok(engine)
    }

    /// What it computes on.
    pub fn device_name(&self) -> &str {
        self.gpu().map_or("cpu", Gpu::name)
    }

    /// Whether the machine has a GPU that should have been used and could not be opened.
    pub fn leaves_a_gpu(&self) -> bool {
        self.leaves_a_gpu
    }

    /// The GPU, if it computes on one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match &self.compute {
            Compute::Cpu => None,
            Compute::Gpu(gpu, _) => Some(gpu),
        }
    }

    /// Whether nothing can be painted any more: the GPU is lost for this process, see [`Gpu::is_lost`].
    pub fn is_lost(&self) -> bool {
        self.gpu().is_some_and(Gpu::is_lost)
    }

    /// How much of the GPU's memory is taken; none on a CPU.
    pub fn memory(&self) -> Option<Memory> {
        self.gpu()?.memory().ok()
    }

    /// Applies these LoRAs and no others, waits for the device, and says how long that took.
    ///
    /// # Errors
    /// A LoRA that does not fit.
    pub fn swap(&mut self, loras: &[AppliedLora]) -> Result<Duration, EngineError> {
        let clock = Instant::now();
        self.pipeline.set_loras(loras)?;
        if let Some(gpu) = self.gpu() {
            gpu.synchronize().map_err(PipelineError::from)?;
        }
        Ok(clock.elapsed())
    }

    /// Paints, signs, encodes and writes the metadata. `on_step` is called with each step and may stop the painting.
    ///
    /// # Errors
    /// See [`EngineError`]; the engine stays usable after each.
    pub fn paint(&mut self, wanted: &GenerationRequest, on_step: &mut OnStep<'_>) -> Result<Output, EngineError> {
        wanted.check()?;
        wanted.finish(self.paint_alone(wanted, on_step)?)
    }

    /// How many pictures of this request can be painted at once: by the memory that is free on a GPU, one on a CPU.
    pub fn most_at_once(&self, request: &Request) -> usize {
        let Some(free) = self.gpu().and_then(|gpu| gpu.free_bytes().ok()) else { return 1 };
        let scaled = |bytes: usize| bytes * request.width * request.height / (512 * 512);
        let room = free.saturating_sub(scaled(BYTES_FOR_PIXELS));
        (room / scaled(BYTES_FOR_A_PICTURE).max(1)).clamp(1, MOST_AT_ONCE)
    }

    /// Paints requests at once that go together, see [`GenerationRequest::goes_with`]. Each has its own `on_step`; one that stops does not
    /// stop the others. If that fails, each is painted on its own, so that every one gets its own error.
    pub fn paint_together(&mut self, orders: &mut [Order<'_>]) -> Vec<Result<Painted, EngineError>> {
        if orders.len() > 1 {
            match self.try_together(orders) {
                Ok(painted) => return painted,
                Err(error) => {
                    tracing::warn!(%error, pictures = orders.len(), "not painted together: one after the other")
                }
            }
        }
        orders.iter_mut().map(|(wanted, on_step)| self.paint_alone(wanted, on_step)).collect()
    }

    fn try_together(&mut self, orders: &mut [Order<'_>]) -> Result<Vec<Result<Painted, EngineError>>, EngineError> {
        let Some((first, _)) = orders.first() else { return Ok(vec![]) };
        let tasks = orders.iter().map(|(wanted, _)| wanted.span.clone());
        let mut watch = Watch::start("lora", tasks.collect(), vec![]);
        self.pipeline.set_loras(&first.loras)?;
        watch.then("denoise");
        let images = first.images;
        let mut stream = self.pipeline.noise(&first.request, self.noise_threads);
        let mut noises = Vec::new();
        for (wanted, _) in orders.iter() {
            let mut own = self.pipeline.noise(&wanted.request, self.noise_threads);
            noises.push(self.pipeline.first_noise(&wanted.request, images, &mut own)?);
        }
        let noise = Tensor::cat(&noises, 0).map_err(PipelineError::from)?;
        let (all, mut callbacks): (Vec<&GenerationRequest>, Vec<_>) =
            orders.iter_mut().map(|(wanted, on_step)| (*wanted, on_step)).unzip();
        let requests: Vec<&Request> = all.iter().map(|wanted| &wanted.request).collect();
        let mut stopped: Vec<Option<usize>> = vec![None; callbacks.len()];
        let pictures = images * all.len();
        let latents = self.pipeline.denoise_together(&requests, noise, &mut stream, &mut |finished| {
            for (on_step, stopped) in callbacks.iter_mut().zip(&mut stopped) {
                if stopped.is_none() && on_step(Step { finished, part: 0, parts: 1, pictures }).is_break() {
                    *stopped = Some(finished);
                }
            }
            if stopped.iter().all(Option::is_some) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let stages = watch.stop();
        let latents = match latents {
            Err(PipelineError::Stopped { .. }) => None,
            latents => Some(latents?),
        };
        let painted = (0..).zip(stopped).map(|(index, stopped)| match (stopped, &latents) {
            (None, Some(latents)) => {
                let watch = Watch::start("decode", vec![all[index].span.clone()], stages.clone());
                let own = latents.narrow(0, index * images, images).map_err(PipelineError::from)?;
                let pictures = self.decode(&own)?;
                Ok(Painted { pictures, model: self.model.clone(), stages: watch.stop() })
            }
            (stopped, _) => Err(PipelineError::Stopped { step: stopped.unwrap_or_default() }.into()),
        });
        Ok(painted.collect())
    }

    /// Where memory does not suffice, it is made, and the pictures are painted one by one.
    fn paint_alone(&mut self, wanted: &GenerationRequest, on_step: &mut OnStep<'_>) -> Result<Painted, EngineError> {
        match self.try_alone(wanted, wanted.images, on_step) {
            Err(error) if error.is_out_of_memory() => {
                tracing::warn!(%error, "out of memory: once more, with less");
                self.pipeline.shrink()?;
                self.try_alone(wanted, 1, on_step)
            }
            ended => ended,
        }
    }

    fn try_alone(
        &mut self,
        wanted: &GenerationRequest,
        at_once: usize,
        on_step: &mut OnStep<'_>,
    ) -> Result<Painted, EngineError> {
        let mut watch = Watch::start("lora", vec![wanted.span.clone()], vec![]);
        self.pipeline.set_loras(&wanted.loras)?;
        watch.then("denoise");
        let request = &wanted.request;
        let mut stream = self.pipeline.noise(request, self.noise_threads);
        let noise = self.pipeline.first_noise(request, wanted.images, &mut stream)?;
        // What is drawn at each step is drawn for all pictures.
        let at_once = if request.scheduler.draws() { wanted.images } else { at_once.max(1) };
        let parts = wanted.images.div_ceil(at_once);
        let mut latents = Vec::new();
        for part in 0..parts {
            let first = part * at_once;
            let pictures = at_once.min(wanted.images - first);
            let own = noise.narrow(0, first, pictures).map_err(PipelineError::from)?;
            let mut on_step = |finished| on_step(Step { finished, part, parts, pictures });
            latents.push(self.pipeline.denoise(request, own, &mut stream, &mut on_step)?);
        }
        watch.then("decode");
        let mut pictures = Vec::new();
        for latents in &latents {
            pictures.extend(self.decode(latents)?);
        }
        Ok(Painted { pictures, model: self.model.clone(), stages: watch.stop() })
    }

    /// Where memory does not suffice, the UNet makes room.
    fn decode(&mut self, latents: &Tensor) -> Result<Vec<RgbImage>, EngineError> {
        match self.pipeline.decode(latents) {
            Err(error) if error.is_out_of_memory() => {
                tracing::warn!(%error, "out of memory for the pixels: once more, without the UNet");
                self.pipeline.make_room_for_pixels()?;
                Ok(self.pipeline.decode(latents)?)
            }
            decoded => Ok(decoded?),
        }
    }
}
