//! The engine: one model on one device. It paints requests, and turns the pictures into signed files with their metadata.
//!
//! Every entry point paints here. The engine blocks its thread while it paints, and knows nothing of queues, S3 or webhooks.
//! [`loader`] loads it, [`batcher`] is the thread that owns it.

pub mod batcher;
mod cut_prompts;
pub mod loader;
pub mod options;
mod request;
pub mod safety;
#[cfg(test)]
#[cfg(feature = "cuda")]
mod tests;

pub use request::{BatchItem, EngineError, GenerationRequest, OnStep, Output, Pictures, Preview, Step};

use crate::{
    engine::options::{ChosenDevice, DeviceKind, ModelConfig, choose},
    observe::trace::log_phase,
    picture::ModelName,
    task::SafetyMode,
};
use candle_core::Tensor;
use cut_prompts::cut_prompts;
use diffusion::{
    error::PipelineError,
    gpu::{Gpu, Memory},
    loading,
    lora::AppliedLora,
    pipeline::{Compute, Footprint, Latents, Pipeline, PreviewMap, Request, SafetySource},
};
use image::RgbImage;
use request::StageTimer;
use safety::{hide, no_checker};
use std::{
    ops::ControlFlow,
    time::{Duration, Instant},
};

/// GPU memory in bytes that the denoising steps need for each 512x512 picture of a batch, with guidance. Eight took 958 MiB beside the
/// weights of Stable Diffusion 1.5 in f16 (`handler bench picture --num-images 8`, docs/PERFORMANCE.md).
const BYTES_PER_PICTURE: usize = 160 << 20;
/// GPU memory in bytes for the keys and values of the longest prompts of a picture, whatever its size.
const BYTES_PER_LONG_PROMPT: usize = 64 << 20;
/// GPU memory in bytes to decode one 512x512 picture: one took 574 MiB.
const BYTES_TO_DECODE: usize = 640 << 20;
/// How often a task is tried again when memory runs out.
const RETRIES: usize = 2;
/// Most pictures of one batch.
const MAX_BATCH: usize = 8;

/// A loaded model.
pub struct Engine {
    pipeline: Pipeline,
    model: ModelName,
    noise_threads: u32,
    compute: Compute,
    has_unused_gpu: bool,
    safety: SafetyMode,
    /// Where a task that asks for a check has the checker loaded from, if it is not loaded yet.
    checker: SafetySource,
    /// Made when the first request asks for previews.
    preview_map: Option<PreviewMap>,
}

impl Engine {
    /// Loads the model. `size` is the width and height of the first pictures to expect.
    ///
    /// # Errors
    /// The build or machine lacks the device, the device lacks the dtype, or the model folder cannot be used.
    pub fn open(config: &ModelConfig, size: (usize, usize)) -> Result<Self, PipelineError> {
        Self::open_for(config, size, None)
    }

    /// The same, with the width and height of the largest pictures to expect.
    ///
    /// # Errors
    /// As [`Engine::open`].
    pub fn open_for(
        config: &ModelConfig,
        size: (usize, usize),
        largest: Option<(usize, usize)>,
    ) -> Result<Self, PipelineError> {
        let started = Instant::now();
        if config.device != DeviceKind::Cpu {
            loading::read_ahead(&config.dir);
        }
        let ChosenDevice { compute, has_unused_gpu } = choose(config)?;
        log_phase("device", started);
        let weights = Instant::now();
        let options = config.load_options(size, largest);
        let pipeline = Pipeline::load_with(&config.dir, &compute, &options)?.with_dora(config.dora.into());
        log_phase("weights", weights);
        let safety = config.checker.mode(pipeline.has_safety_checker(), &config.dir)?;
        if safety == SafetyMode::Off && config.checker.safety.is_none() {
            tracing::info!("the model has no safety checker: pictures are not checked");
        }
        let engine = Self {
            pipeline,
            model: ModelName::of(&config.dir),
            noise_threads: config.noise_threads,
            compute,
            has_unused_gpu,
            safety,
            checker: config.checker.source(),
            preview_map: None,
        };
        let duration_ms = started.elapsed().as_millis() as u64;
        let safety = engine.safety.name();
        match engine.footprint() {
            None => tracing::info!(device = engine.device_name(), safety, duration_ms, "model loaded"),
            Some(Footprint { offload, needed, size, free, kept, lent, streamed, checker, .. }) => tracing::info!(
                device = engine.device_name(),
                safety,
                duration_ms,
                offload = offload.name(),
                safety_checker = engine.pipeline.has_safety_checker().then(|| checker.name()),
                needed_bytes = needed,
                needed_for = format!("{}x{}", size.0, size.1),
                free_bytes = free,
                kept_bytes = kept,
                lent_bytes = lent,
                streamed_bytes = streamed,
                "model loaded"
            ),
        }
        Ok(engine)
    }

    /// How the model lies in the GPU's memory; `None` on a CPU.
    pub fn footprint(&self) -> Option<Footprint> {
        self.pipeline.footprint()
    }

    /// The device's name.
    pub fn device_name(&self) -> &str {
        self.gpu().map_or("cpu", Gpu::name)
    }

    /// Whether the CPU is used although the machine has an NVIDIA GPU, because it could not be opened.
    pub fn has_unused_gpu(&self) -> bool {
        self.has_unused_gpu
    }

    /// The safety mode that holds for all tasks; a task's own may be stricter.
    pub fn safety(&self) -> SafetyMode {
        self.safety
    }

    /// The GPU; `None` on a CPU.
    pub fn gpu(&self) -> Option<&Gpu> {
        self.compute.gpu()
    }

    /// Whether the GPU is lost for this process, so that nothing can be painted any more. See [`Gpu::is_lost`].
    pub fn is_lost(&self) -> bool {
        self.gpu().is_some_and(Gpu::is_lost)
    }

    /// The GPU's memory; `None` on a CPU.
    pub fn memory(&self) -> Option<Memory> {
        self.gpu()?.memory().ok()
    }

    /// Applies exactly these LoRAs, waits for the device and returns how long that took.
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

    /// Paints a request and makes its files. `on_step` is called with each step and may stop the painting.
    ///
    /// # Errors
    /// See [`EngineError`]; the engine stays usable after each.
    pub fn paint(&mut self, request: &GenerationRequest, on_step: &mut OnStep<'_>) -> Result<Output, EngineError> {
        request.check()?;
        request.finish(self.paint_alone(request, on_step)?)
    }

    /// How many pictures of this size are best painted in one batch: as many as the GPU's free memory allows, and no more than are the
    /// fastest together; one on a CPU.
    pub fn max_batch(&self, inputs: &Request) -> usize {
        let Some(free) = self.gpu().and_then(|gpu| gpu.free_bytes().ok()) else { return 1 };
        let scaled = |bytes: usize| bytes * inputs.width * inputs.height / (512 * 512);
        let room = free.saturating_sub(scaled(BYTES_TO_DECODE));
        let prompts = if inputs.long_prompt { BYTES_PER_LONG_PROMPT } else { 0 };
        let each = scaled(BYTES_PER_PICTURE) + prompts;
        (room / each.max(1)).clamp(1, MAX_BATCH.min(self.fastest_batch(inputs)))
    }

    /// How many pictures of this size are painted the fastest together.
    fn fastest_batch(&self, inputs: &Request) -> usize {
        let places = (inputs.width * inputs.height / 64).max(1);
        let fastest = self.gpu().and_then(Gpu::fastest_places);
        fastest.map_or(usize::MAX, |fastest| ((fastest + places / 2) / places).max(1))
    }

    /// Whether both can be painted together: they differ in prompts and seeds only, and their prompts have as many chunks.
    pub fn joins(&self, first: &GenerationRequest, other: &GenerationRequest) -> bool {
        let chunks = |request: &GenerationRequest| self.pipeline.chunks(&request.inputs, &request.inversions);
        first.goes_with(other) && chunks(first).is_some_and(|count| chunks(other) == Some(count))
    }

    /// Paints requests as one batch; they must go together, see [`Engine::joins`]. Each has its own `on_step`; stopping one
    /// does not stop the others. If the batch fails, each request is painted alone, so that each gets its own error.
    pub fn paint_together(&mut self, items: &mut [BatchItem<'_>]) -> Vec<Result<Pictures, EngineError>> {
        if items.len() > 1 {
            match self.try_together(items) {
                Ok(painted) => return painted,
                Err(error) => {
                    tracing::warn!(%error, pictures = items.len(), "not painted together: one after the other")
                }
            }
        }
        items.iter_mut().map(|(request, on_step)| self.paint_alone(request, on_step)).collect()
    }

    fn try_together(&mut self, items: &mut [BatchItem<'_>]) -> Result<Vec<Result<Pictures, EngineError>>, EngineError> {
        let modes: Vec<SafetyMode> =
            items.iter().map(|(request, _)| self.safety_of(request)).collect::<Result<_, EngineError>>()?;
        let Some((first, _)) = items.first() else { return Ok(vec![]) };
        let tasks = items.iter().map(|(request, _)| request.span.clone());
        let mut timer = StageTimer::start("lora", tasks.collect(), vec![]);
        self.pipeline.set_loras(&first.loras)?;
        self.pipeline.set_inversions(&first.inversions)?;
        timer.next("denoise");
        let images = first.images;
        let wanted = items.iter().zip(&modes);
        let maps: Vec<Option<PreviewMap>> = wanted.map(|((request, _), mode)| self.map_for(request, *mode)).collect();
        let mut stream = self.pipeline.noise(&first.inputs, self.noise_threads);
        let mut noises = Vec::new();
        for (request, _) in items.iter() {
            let mut own = self.pipeline.noise(&request.inputs, self.noise_threads);
            noises.push(self.pipeline.begin(&request.inputs, images, &mut own)?);
        }
        let noise = Tensor::cat(&noises, 0).map_err(PipelineError::from)?;
        let (requests, mut callbacks): (Vec<&GenerationRequest>, Vec<_>) =
            items.iter_mut().map(|(request, on_step)| (*request, on_step)).unzip();
        let inputs: Vec<&Request> = requests.iter().map(|request| &request.inputs).collect();
        let mut stopped: Vec<Option<usize>> = vec![None; callbacks.len()];
        let pictures = images * requests.len();
        let latents = self.pipeline.denoise_watched(&inputs, noise, &mut stream, &mut |finished, latents| {
            let step = Step { finished, part: 0, parts: 1, pictures };
            for (index, (on_step, stopped)) in callbacks.iter_mut().zip(&mut stopped).enumerate() {
                let map = maps[index].as_ref();
                let mut preview = || small_picture(map, finished, index * images, latents);
                if stopped.is_none() && on_step(step, &mut preview).is_break() {
                    *stopped = Some(finished);
                }
            }
            if stopped.iter().all(Option::is_some) { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        let stages = timer.finish();
        let latents = match latents {
            Err(PipelineError::Stopped { .. }) => None,
            latents => Some(latents?),
        };
        let painted = (0..).zip(stopped).map(|(index, stopped)| match (stopped, &latents) {
            (None, Some(latents)) => {
                let timer = StageTimer::start("decode", vec![requests[index].span.clone()], stages.clone());
                let own = latents.narrow(0, index * images, images).map_err(PipelineError::from)?;
                let pictures = self.decode(&own)?;
                self.checked(requests[index], pictures, modes[index], timer)
            }
            (stopped, _) => Err(PipelineError::Stopped { step: stopped.unwrap_or_default() }.into()),
        });
        Ok(painted.collect())
    }

    /// Many pictures are painted in several parts. If memory runs out, frees some and tries again with one picture at a time. Twice, as
    /// another process may take it meanwhile.
    fn paint_alone(&mut self, request: &GenerationRequest, on_step: &mut OnStep<'_>) -> Result<Pictures, EngineError> {
        let at_once = self.fastest_batch(&request.inputs).min(request.images);
        let mut ended = self.try_alone(request, at_once, on_step);
        for _ in 0..RETRIES {
            match ended {
                Err(error) if error.is_out_of_memory() => {
                    tracing::warn!(%error, "out of memory: once more, with less");
                    self.pipeline.shrink(&request.inputs)?;
                    ended = self.try_alone(request, 1, on_step);
                }
                ended => return ended,
            }
        }
        ended.map_err(|error| match self.pipeline.shortage().filter(|_| error.is_out_of_memory()) {
            Some(shortage) => {
                tracing::warn!(%error, "out of memory again");
                PipelineError::Memory(shortage).into()
            }
            None => error,
        })
    }

    fn try_alone(
        &mut self,
        request: &GenerationRequest,
        at_once: usize,
        on_step: &mut OnStep<'_>,
    ) -> Result<Pictures, EngineError> {
        let mode = self.safety_of(request)?;
        let mut timer = StageTimer::start("lora", vec![request.span.clone()], vec![]);
        self.pipeline.set_loras(&request.loras)?;
        self.pipeline.set_inversions(&request.inversions)?;
        timer.next("denoise");
        let (inputs, map) = (&request.inputs, self.map_for(request, mode));
        let mut stream = self.pipeline.noise(inputs, self.noise_threads);
        let noise = self.pipeline.begin(inputs, request.images, &mut stream)?;
        // These schedulers draw each step's noise for all pictures together.
        let at_once = if inputs.scheduler.draws() { request.images } else { at_once.max(1) };
        let parts = request.images.div_ceil(at_once);
        let latents =
            self.pipeline.denoise_in_parts(inputs, &noise, at_once, &mut stream, &mut |part, finished, latents| {
                let pictures = at_once.min(request.images - part * at_once);
                // Of the first picture alone, which the first part has.
                let mut preview = || small_picture(map.as_ref().filter(|_| part == 0), finished, 0, latents);
                on_step(Step { finished, part, parts, pictures }, &mut preview)
            })?;
        timer.next("decode");
        let mut pictures = Vec::new();
        for latents in &latents {
            pictures.extend(self.decode(latents)?);
        }
        self.checked(request, pictures, mode, timer)
    }

    /// The map from latents to a preview, if the request asks for previews and no picture may have to be hidden. Without it, pictures are
    /// painted all the same.
    fn map_for(&mut self, request: &GenerationRequest, mode: SafetyMode) -> Option<PreviewMap> {
        if !request.previews || mode > SafetyMode::Flag {
            return None;
        }
        if self.preview_map.is_none() {
            let fitted = self.pipeline.preview_map();
            let fitted = fitted.inspect_err(|error| tracing::warn!(%error, "there are no previews of this task"));
            self.preview_map = fitted.ok();
        }
        self.preview_map.clone()
    }

    /// The mode that holds for a request. Loads a checker if it is the first that needs one.
    fn safety_of(&mut self, request: &GenerationRequest) -> Result<SafetyMode, EngineError> {
        let mode = self.safety.max(request.safety.unwrap_or_default());
        if mode != SafetyMode::Off && !self.pipeline.has_safety_checker() {
            self.pipeline.load_safety_checker(&self.checker)?;
            if !self.pipeline.has_safety_checker() {
                return Err(no_checker(mode).into());
            }
            tracing::info!(safety = mode.name(), "safety checker loaded: this is the first task that asks for it");
        }
        Ok(mode)
    }

    /// Ends a painting: checks the pictures if the mode asks for it. What is not to be seen is black afterwards.
    fn checked(
        &mut self,
        request: &GenerationRequest,
        mut pictures: Vec<RgbImage>,
        mode: SafetyMode,
        mut timer: StageTimer,
    ) -> Result<Pictures, EngineError> {
        let mut checked = Vec::new();
        if mode != SafetyMode::Off {
            timer.next("safety");
            let verdicts = self.pipeline.check_safety(&pictures)?;
            checked = hide(&mut pictures, &verdicts, mode);
        }
        let warnings = cut_prompts(&self.pipeline, request)?;
        Ok(Pictures { pictures, checked, model: self.model.clone(), warnings, stages: timer.finish() })
    }

    /// If memory runs out, decodes in bands of rows, and then again without the UNet on the GPU.
    fn decode(&mut self, latents: &Tensor) -> Result<Vec<RgbImage>, EngineError> {
        let bands = self.pipeline.bands(latents)?;
        let planned = self.pipeline.decoding(latents)?;
        match self.pipeline.decode(latents, planned) {
            Err(error) if error.is_out_of_memory() => {
                tracing::warn!(%error, "out of memory for the pixels: once more, in bands of rows");
            }
            decoded => return Ok(decoded?),
        }
        match self.pipeline.decode(latents, bands) {
            Err(error) if error.is_out_of_memory() => {
                tracing::warn!(%error, "out of memory for the pixels: once more, without the UNet");
                self.pipeline.make_room_for_pixels()?;
                Ok(self.pipeline.decode(latents, bands)?)
            }
            decoded => Ok(decoded?),
        }
    }
}

/// A preview of the picture at that place of the batch. `None` before the first step, when there is noise alone.
fn small_picture(
    map: Option<&PreviewMap>,
    finished: usize,
    index: usize,
    latents: &mut Latents<'_>,
) -> Option<RgbImage> {
    let map = map.filter(|_| finished > 0)?;
    let small = latents().and_then(|latents| map.picture(&latents.narrow(0, index, 1)?));
    small.inspect_err(|error| tracing::warn!(%error, "no preview of this step")).ok()
}
