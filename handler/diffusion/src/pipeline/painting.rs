//! What a loaded pipeline does for a request: first noise, denoising, and pixels; and each of its networks alone.

use super::{DecodeMemory, Pipeline, Request, guidance::Guidance, networks::Denoiser};
use crate::{
    error::{PipelineError, Result},
    noise::{self, Noise},
    prompt::tokenizer::Tokens,
    schedulers,
};
use candle_core::{Device, Tensor};
use image::RgbImage;
use std::ops::ControlFlow;

/// Gives the latents as they are, `[images, channels, height / 8, width / 8]`.
pub type Latents<'a> = dyn FnMut() -> Result<Tensor> + 'a;

/// Called with the number of finished steps and with what gives the latents. May stop the run.
pub type Watch<'a> = dyn FnMut(usize, &mut Latents<'_>) -> ControlFlow<()> + 'a;

/// The same, and first the number of the part, from 0.
pub type WatchParts<'a> = dyn FnMut(usize, usize, &mut Latents<'_>) -> ControlFlow<()> + 'a;

impl Pipeline {
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
    /// both f32 `[images, channels, height / 8, width / 8]`. A stochastic scheduler draws from `stream`. `on_step` is called with the
    /// number of finished steps, before the first (0) and after each call of the UNet, and may stop the run. If a scheduler makes more
    /// calls than steps, the first ones finish none, as in diffusers' progress bar. So every later step takes the time of one call.
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
        let on_step = &mut |_: usize, step: usize, latents: &mut Latents<'_>| on_step(step, latents);
        let mut latents = self.denoise_each(requests, vec![noise], stream, on_step)?;
        latents.pop().ok_or_else(|| candle_core::Error::msg("nothing to paint").into())
    }

    /// As [`Pipeline::denoise`], for so many images at once and then the others. What the prompts give is computed once for all parts of
    /// one size. A result for each part.
    ///
    /// # Errors
    /// As [`Pipeline::denoise`].
    pub fn denoise_in_parts(
        &self,
        request: &Request,
        noise: &Tensor,
        at_once: usize,
        stream: &mut Noise,
        on_step: &mut WatchParts<'_>,
    ) -> Result<Vec<Tensor>> {
        let (images, at_once) = (noise.dim(0)?, at_once.max(1));
        let part = |first: usize| noise.narrow(0, first, at_once.min(images - first));
        let parts = (0..images).step_by(at_once).map(part).collect::<candle_core::Result<_>>()?;
        self.denoise_each(&[request], parts, stream, on_step)
    }

    /// Runs the requests' steps for one noise after the other.
    fn denoise_each(
        &self,
        requests: &[&Request],
        parts: Vec<Tensor>,
        stream: &mut Noise,
        on_step: &mut WatchParts<'_>,
    ) -> Result<Vec<Tensor>> {
        let [request, ..] = requests else { return Err(candle_core::Error::msg("nothing to paint").into()) };
        let (kind, karras_sigmas) = (request.scheduler, request.karras_sigmas);
        let first = request.first_step()?;
        let guidance = Guidance::of(&self.networks.model().unet_config, request.guidance_scale);
        let guided = guidance.classifier_free().is_some();
        if matches!(guidance, Guidance::Embedded(_))
            && requests.iter().any(|request| !request.negative_prompt.is_empty())
        {
            tracing::warn!("the model takes the guidance scale as an input: it does not read the negative prompt");
        }
        let (mut prepared, mut painted): (Option<(Vec<usize>, Denoiser)>, _) = (None, Vec::new());
        for (part, noise) in parts.into_iter().enumerate() {
            let mut scheduler = schedulers::build(kind, karras_sigmas, &self.scheduler_config, request.steps)?;
            scheduler.begin_at(first)?;
            let mut latents = match request.start {
                Some(_) => noise,
                None => (noise * scheduler.init_noise_sigma())?,
            };
            let timesteps: Vec<f64> = scheduler.timesteps().iter().skip(first).copied().collect();
            let coefficients = scheduler.coefficients().map(|all| all.into_iter().skip(first).collect::<Vec<_>>());
            let dims = latents.dims().to_vec();
            let mut denoiser = match prepared.take().filter(|(before, _)| *before == dims) {
                Some((_, mut denoiser)) => {
                    denoiser.rewind()?;
                    denoiser
                }
                None => {
                    let context = self.context(requests, guided)?;
                    self.networks.denoiser(&timesteps, &context, guidance, &latents, coefficients.as_deref())?
                }
            };
            let extra = timesteps.len().saturating_sub(request.painted_steps());
            let mut on_step =
                |call: usize, latents: &mut Latents<'_>| on_step(part, call.saturating_sub(extra), latents);
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
            painted.push(latents);
            prepared = Some((dims, denoiser));
        }
        Ok(painted)
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
