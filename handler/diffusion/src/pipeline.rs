//! The pipeline: Stable Diffusion 1.5 from a model folder in the diffusers layout, or from a checkpoint. A request goes in, a picture comes out.
//!
//! All settings of the model are read from the folder's JSON files. A checkpoint has none: see [`crate::loading`].

mod beside;
mod fit;
mod gpu_state;
mod graphs;
mod guidance;
mod inspection;
mod inversions;
mod networks;
mod options;
mod preview;
mod prompts;
mod request;
mod residence;
mod resize;
mod safety;
mod start;

pub use crate::models::vae::DecodeMemory;
pub use crate::offload::{Offload, Shortage};
pub use crate::ops::params::Shapes;
pub use fit::CheckerPlace;
pub use inspection::{Inspection, check_weights, inspect, inspect_settings};
pub use networks::{Compute, parameters};
pub use options::LoadOptions;
pub use preview::PreviewMap;
pub use request::{Request, StartImage, steps_of_strength};
pub use residence::{Footprint, foresee};
#[cfg(test)]
pub(crate) use safety::tests as safety_tests;
pub use safety::{CheckerInspection, SafetySource, Verdict, inspect_safety_checker, safety_checker_parameters};
pub use start::filling;

use crate::{
    error::{PipelineError, Result},
    loading::{
        config::{ModelIndex, TextEncoderConfig, UnetConfig, VaeConfig, check_together},
        is_checkpoint,
    },
    lora::{self, AppliedLora, Dora, LoraError, Target},
    noise::{self, Noise},
    prompt::inversion::{AppliedInversion, InversionError},
    prompt::tokenizer::{Tokenizer, Tokens},
    schedulers::{self, SchedulerConfig},
};
use beside::Beside;
use candle_core::{DType, Device, Tensor};
use guidance::Guidance;
use image::RgbImage;
use inversions::Inversions;
use networks::{Denoiser, Model, Networks};
use residence::{Extent, Sizes};
use safety::SafetyNetwork;
use std::{ops::ControlFlow, path::Path};

/// The scheduler's file. The default scheduler must be able to paint with it. For the others, a warning is logged.
fn scheduler_config(model: &Path) -> Result<SchedulerConfig> {
    let config = SchedulerConfig::load(model)?;
    schedulers::check(schedulers::Kind::default(), &config)?;
    for (scheduler, checked) in schedulers::check_all(&config) {
        if let Err(error) = checked {
            tracing::warn!(scheduler, %error, "tasks with this scheduler will fail: it does not paint with the model's file");
        }
    }
    Ok(config)
}

/// The model's tokenizer. A checkpoint has CLIP's.
fn tokenizer(model: &Path, config: &TextEncoderConfig) -> Result<Tokenizer> {
    if is_checkpoint(model) {
        Tokenizer::clip(config.max_position_embeddings)
    } else {
        Tokenizer::load(model, config.max_position_embeddings, config.vocab_size)
    }
}

/// Gives the latents as they are, `[images, channels, height / 8, width / 8]`.
pub type Latents<'a> = dyn FnMut() -> Result<Tensor> + 'a;

/// Called with the number of finished steps and with what gives the latents. May stop the run.
pub type Watch<'a> = dyn FnMut(usize, &mut Latents<'_>) -> ControlFlow<()> + 'a;

/// A loaded model with the LoRAs that are applied to it.
pub struct Pipeline {
    tokenizer: Tokenizer,
    inversions: Inversions,
    networks: Networks,
    safety: Option<SafetyNetwork>,
    /// What a safety checker that is loaded later is looked up by.
    index: ModelIndex,
    compute: Compute,
    dtype: DType,
    scheduler_config: SchedulerConfig,
    target: Target,
    dora: Dora,
    /// None if the weights are in an unknown state, so that LoRAs must be applied again.
    applied: Option<Vec<AppliedLora>>,
}

impl Pipeline {
    /// Loads a model folder, or a checkpoint file, on a device, without a safety checker. `size` is the width and height in pixels of the
    /// first pictures.
    ///
    /// # Errors
    /// A missing or broken file, or an unsupported model. The error names the file and the field or tensor.
    pub fn load(model: &Path, compute: &Compute, size: (usize, usize)) -> Result<Self> {
        Self::load_with(model, compute, &LoadOptions { size, ..LoadOptions::default() })
    }

    /// As [`Pipeline::load`], with all options.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn load_with(model: &Path, compute: &Compute, options: &LoadOptions) -> Result<Self> {
        let &LoadOptions { offload, size, largest, .. } = options;
        let index = ModelIndex::load(model)?;
        let text_config = TextEncoderConfig::load(model)?;
        let (unet_config, vae_config) = (UnetConfig::load(model)?, VaeConfig::load(model)?);
        check_together(&index, &text_config, &unet_config, &vae_config)?;
        let tokenizer = tokenizer(model, &text_config)?;
        let scheduler_config = scheduler_config(model)?;
        // The headers of all weights are checked before the numbers of any are read.
        let weights = inspection::open_checked(model)?;
        let weights = match compute {
            Compute::Cpu => weights.in_memory()?,
            // Rounded copies are all that stays in memory.
            Compute::CpuBf16(_) | Compute::Gpu(..) => weights,
        };
        let model = Model {
            folder: model.into(),
            text_config,
            text_weights: weights.text_encoder,
            unet_config,
            unet_weights: weights.unet,
            vae_config,
            vae_weights: weights.vae,
        };
        let factor = model.vae_config.factor();
        let sizes = Sizes::of(size, largest, factor);
        let target = Target::of_weights(&model.unet_weights, &model.text_weights);
        let mut safety = SafetyNetwork::open((&model.folder, &index), &options.safety_checker, compute)?;
        let beside = safety.as_mut().map(|safety| safety as &mut dyn Beside);
        let mut pipeline = Self {
            tokenizer,
            inversions: Inversions::default(),
            scheduler_config,
            networks: Networks::new(model, compute, offload, sizes, beside)?,
            safety,
            index,
            compute: compute.clone(),
            dtype: compute.dtype(),
            target,
            dora: Dora::default(),
            applied: Some(Vec::new()),
        };
        pipeline.safety.as_mut().map_or(Ok(()), SafetyNetwork::rehearse)?;
        Ok(pipeline)
    }

    /// The same pipeline with another rule for DoRA.
    pub fn with_dora(self, dora: Dora) -> Self {
        Self { dora, ..self }
    }

    /// Applies these LoRAs, and removes all others. The same list again costs nothing. An empty list restores the base exactly. After an
    /// error no LoRA is applied.
    ///
    /// # Errors
    /// A LoRA that does not fit the model (the error names the key), or the device fails or has too little memory.
    pub fn set_loras(&mut self, wanted: &[AppliedLora]) -> std::result::Result<(), LoraError> {
        if self.applied.as_deref() == Some(wanted) {
            return Ok(());
        }
        self.applied = None;
        let model = self.networks.model();
        let planned = lora::plan(wanted, &self.target, &model.unet_weights, &model.text_weights, self.dora);
        let result = match planned {
            Ok(plan) => self.networks.apply(plan).map(|()| wanted.to_vec()),
            Err(error) => Err(error),
        };
        if result.is_err() {
            self.networks.apply(lora::MergePlan::nothing())?;
        }
        self.applied = Some(result?);
        Ok(())
    }

    /// Adds the tokens of these textual inversions, and removes all others. The same list again costs nothing. An empty list restores the
    /// base exactly. After an error none is there.
    ///
    /// # Errors
    /// A textual inversion that does not fit the model, or whose token is not named or there already.
    pub fn set_inversions(&mut self, wanted: &[AppliedInversion]) -> std::result::Result<(), InversionError> {
        if self.inversions.applied == wanted {
            return Ok(());
        }
        self.inversions = Inversions::default();
        self.networks.add_embeddings(Default::default());
        let width = self.networks.model().text_config.hidden_size;
        let (inversions, embeddings) = Inversions::of(&self.tokenizer, wanted, width)?;
        self.inversions = inversions;
        self.networks.add_embeddings(embeddings);
        Ok(())
    }

    /// How many tokens of a prompt of the request the text encoder reads, and how many are cut off. `field` names the prompt in an error.
    ///
    /// # Errors
    /// A weight in the prompt that is no number.
    pub fn count_tokens(&self, request: &Request, field: &'static str, text: &str) -> Result<(usize, usize)> {
        let tokens = request.prompt_weighting.tokens(self.tokenizer(), field, text)?;
        // Start and end are of no prompt.
        Ok((tokens.ids.len().saturating_sub(2), tokens.truncated))
    }

    /// The tokenizer, with the tokens of the textual inversions.
    pub fn tokenizer(&self) -> &Tokenizer {
        self.inversions.tokenizer.as_ref().unwrap_or(&self.tokenizer)
    }

    /// Frees GPU memory at the price of speed: recorded graphs, scratch memory, and from now on less of the networks stays, so that one
    /// picture of this request's size fits. LoRAs stay applied.
    ///
    /// # Errors
    /// It cannot fit ([`PipelineError::Memory`]), or the device fails.
    pub fn shrink(&mut self, request: &Request) -> Result<()> {
        let factor = self.networks.model().vae_config.factor();
        let latents = (request.height.div_ceil(factor), request.width.div_ceil(factor));
        // The first to leave, as no picture is painted with it.
        self.safety.as_mut().map_or(Ok(()), SafetyNetwork::shrink)?;
        self.networks.shrink(Extent { latents, images: 1, long_prompts: request.long_prompt })
    }

    /// Frees GPU memory for the decoder: all that can leave leaves while it is not in use. LoRAs stay applied.
    ///
    /// # Errors
    /// The device fails, or the host has no memory for what leaves.
    pub fn make_room_for_pixels(&mut self) -> Result<()> {
        self.networks.lend_all()
    }

    /// What the networks need, against what is free now. None on a CPU.
    pub fn shortage(&self) -> Option<Shortage> {
        self.networks.shortage()
    }

    /// Whether all networks stay in the GPU's memory.
    pub fn is_fully_resident(&self) -> bool {
        self.footprint().is_none_or(|footprint| footprint.offload == Offload::Never)
    }

    /// How the networks lie in the GPU's memory. None on a CPU.
    pub fn footprint(&self) -> Option<Footprint> {
        self.networks.footprint()
    }

    /// The noise stream of the request's seed, rounded to the model's dtype as in diffusers. For `threads` see [`Noise::cuda`].
    pub fn noise(&self, request: &Request, threads: u32) -> Noise {
        let noise = match request.noise_source {
            noise::Source::Cuda => Noise::cuda(request.seed, threads),
            noise::Source::Cpu => Noise::cpu(request.seed),
        };
        noise.in_dtype(self.dtype)
    }

    /// Draws the unit noise for the first latents of all images at once, as diffusers does: `[images, channels, height / 8, width / 8]`,
    /// f32.
    ///
    /// # Errors
    /// Width or height is not a multiple of 8.
    pub fn first_noise(&self, request: &Request, images: usize, noise: &mut Noise) -> Result<Tensor> {
        let factor = self.networks.model().vae_config.factor();
        for (field, pixels) in [("width", request.width), ("height", request.height)] {
            if pixels == 0 || !pixels.is_multiple_of(factor) {
                let limit = format!("it must be a multiple of {factor} and not 0");
                return Err(PipelineError::Request { field, value: pixels.to_string(), limit });
            }
        }
        let channels = self.networks.model().unet_config.in_channels;
        Ok(noise.draw((images, channels, request.height / factor, request.width / factor), &Device::Cpu)?)
    }

    /// Runs the scheduler from unit noise, or from a picture's latents with noise as [`Pipeline::begin`] gives them, to the final latents,
    /// both f32 `[images, channels, height / 8, width / 8]`. A stochastic scheduler draws from `stream`. `on_step` is called with the number of finished steps, before the first (0) and after each call of
    /// the UNet, and may stop the run. If a scheduler makes more calls than steps, the first ones finish none, as in diffusers' progress
    /// bar. So every later step takes the time of one call.
    ///
    /// # Errors
    /// A number of steps that the scheduler does not allow, a stop ([`PipelineError::Stopped`]), or the device fails or has too little
    /// memory.
    pub fn denoise(
        &self,
        request: &Request,
        noise: Tensor,
        stream: &mut Noise,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        self.denoise_together(&[request], noise, stream, on_step)
    }

    /// As [`Pipeline::denoise`], for several requests at once that differ in prompts and seeds only, see [`Request::goes_with`]. `noise`
    /// has the images of the first request, then those of the second and so on, the same number for each.
    ///
    /// # Errors
    /// As [`Pipeline::denoise`], or there is no request.
    pub fn denoise_together(
        &self,
        requests: &[&Request],
        noise: Tensor,
        stream: &mut Noise,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        self.denoise_watched(requests, noise, stream, &mut |step, _| on_step(step))
    }

    /// As [`Pipeline::denoise_together`]. `on_step` may also ask for the latents as they are, f32 on the CPU. On a GPU they may be those
    /// after one step more, and asking waits for that step.
    ///
    /// # Errors
    /// As [`Pipeline::denoise`], or there is no request.
    pub fn denoise_watched(
        &self,
        requests: &[&Request],
        noise: Tensor,
        stream: &mut Noise,
        on_step: &mut Watch<'_>,
    ) -> Result<Tensor> {
        let [request, ..] = requests else { return Err(candle_core::Error::msg("nothing to paint").into()) };
        let (kind, karras_sigmas) = (request.scheduler, request.karras_sigmas);
        let mut scheduler = schedulers::build(kind, karras_sigmas, &self.scheduler_config, request.steps)?;
        let first = request.first_step()?;
        scheduler.begin_at(first)?;
        let guidance = Guidance::of(&self.networks.model().unet_config, request.guidance_scale);
        let guided = guidance.classifier_free().is_some();
        if matches!(guidance, Guidance::Embedded(_))
            && requests.iter().any(|request| !request.negative_prompt.is_empty())
        {
            tracing::warn!("the model takes the guidance scale as an input: it does not read the negative prompt");
        }
        let context = self.context(requests, guided)?;
        let mut latents = match request.start {
            Some(_) => noise,
            None => (noise * scheduler.init_noise_sigma())?,
        };
        let timesteps: Vec<f64> = scheduler.timesteps().iter().skip(first).copied().collect();
        let coefficients = scheduler.coefficients().map(|all| all.into_iter().skip(first).collect::<Vec<_>>());
        let mut denoiser = self.networks.denoiser(&timesteps, &context, guidance, &latents, coefficients.as_deref())?;
        let extra = timesteps.len().saturating_sub(request.painted_steps());
        let mut on_step = |call: usize, latents: &mut Latents<'_>| on_step(call.saturating_sub(extra), latents);
        let stopped = |call: usize| PipelineError::Stopped { step: call.saturating_sub(extra) };
        match (&mut denoiser, coefficients) {
            (Denoiser::Gpu { recorded, .. }, Some(_)) => {
                let result = recorded.run(&latents, timesteps.len(), &mut on_step)?;
                latents = result.map_err(stopped)?;
            }
            _ => {
                for step in 0..timesteps.len() {
                    if on_step(step, &mut || Ok(latents.clone())).is_break() {
                        return Err(stopped(step));
                    }
                    let output = denoiser.predict(&scheduler.scale_model_input(&latents, first + step)?, step)?;
                    latents = scheduler.step(&output, first + step, &latents, stream)?;
                }
            }
        }
        // After the last step there is nothing to stop.
        let _ = on_step(timesteps.len(), &mut || Ok(latents.clone()));
        Ok(latents)
    }

    /// The text encoder alone: the embeddings of prompts of one length, `[prompts, tokens, hidden_size]`, f32 on the CPU.
    ///
    /// # Errors
    /// Weights that make a prompt's mean zero or infinite. Or the device fails or has too little memory.
    pub fn embed(&self, prompts: &[&Tokens]) -> Result<Tensor> {
        Ok(self.networks.embed(prompts, 0)?.to_tensor()?)
    }

    /// The UNet alone: its output for latents `[batch, channels, height, width]` at one timestep. `context` is the prompts' embedding
    /// `[batch, tokens, hidden_size]`. All f32 on the CPU.
    ///
    /// # Errors
    /// Shapes do not fit the model, or the device fails or has too little memory.
    pub fn unet_output(&self, latents: &Tensor, timestep: f64, context: &Tensor) -> Result<Tensor> {
        self.networks.unet_output(latents, timestep, None, context)
    }

    /// As [`Pipeline::unet_output`], of a UNet that takes the guidance scale as an input.
    ///
    /// # Errors
    /// As [`Pipeline::unet_output`].
    pub fn unet_output_guided(
        &self,
        latents: &Tensor,
        timestep: f64,
        guidance_scale: f64,
        context: &Tensor,
    ) -> Result<Tensor> {
        self.networks.unet_output(latents, timestep, Some(guidance_scale), context)
    }

    /// The VAE decoder alone: from latents `[batch, channels, height / 8, width / 8]` to `[batch, 3, height, width]`, about -1 to 1. f32
    /// on the CPU. `memory` says in which form.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    pub fn vae_output(&self, latents: &Tensor, memory: DecodeMemory) -> Result<Tensor> {
        self.networks.vae_output(latents, memory)
    }

    /// Paints one picture. `on_step` is called with the number of finished steps, before the first (0) and after each, and may stop the
    /// run.
    ///
    /// # Errors
    /// A request that the model cannot paint, a stop ([`PipelineError::Stopped`]), or the device fails or has too little memory.
    pub fn paint(&mut self, request: &Request, on_step: &mut dyn FnMut(usize) -> ControlFlow<()>) -> Result<RgbImage> {
        let mut stream = self.noise(request, noise::DEFAULT_THREADS);
        let noise = self.begin(request, 1, &mut stream)?;
        self.decode_one(&self.denoise(request, noise, &mut stream, on_step)?, DecodeMemory::Whole)
    }

    /// The pictures of final latents, rounded to 8 bits. They are decoded one by one, which limits the memory, in the form that `memory`
    /// says.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    pub fn decode(&self, latents: &Tensor, memory: DecodeMemory) -> Result<Vec<RgbImage>> {
        (0..latents.dim(0)?).map(|index| self.decode_one(&latents.narrow(0, index, 1)?, memory)).collect()
    }

    /// The usual bands in which pictures of these latents are decoded where memory is short.
    ///
    /// # Errors
    /// They are no latents.
    pub fn bands(&self, latents: &Tensor) -> Result<DecodeMemory> {
        Ok(DecodeMemory::bands(latents.dims4()?.3 * self.networks.model().vae_config.factor()))
    }

    /// How pictures of these latents are decoded as the networks lie now.
    ///
    /// # Errors
    /// They are no latents.
    pub fn decoding(&self, latents: &Tensor) -> Result<DecodeMemory> {
        let (_, _, height, width) = latents.dims4()?;
        Ok(self.networks.decoding((height, width)))
    }

    fn decode_one(&self, latents: &Tensor, memory: DecodeMemory) -> Result<RgbImage> {
        let (bytes, height, width) = self.networks.pixels(&latents.contiguous()?, memory)?;
        RgbImage::from_raw(width as u32, height as u32, bytes)
            .ok_or_else(|| candle_core::Error::msg("the decoder did not give three channels").into())
    }
}
