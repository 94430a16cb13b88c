//! Stable Diffusion 1.5 from a model folder in the diffusers layout: a request goes in, a picture comes out.
//!
//! Knows nothing of tasks, S3 or webhooks. Everything it needs to know about the model is read from the folder's JSON files.

mod compute;
mod graphs;
mod networks;

pub use crate::ops::params::Shapes;
pub use compute::{Compute, Offload};
pub use networks::parameters;

use crate::{
    error::{PipelineError, Result},
    loading::{
        DIFFUSION_FILES, ENCODER_FILES,
        config::{ModelIndex, TextEncoderConfig, UnetConfig, VaeConfig},
        weights::Weights,
    },
    lora::{self, AppliedLora, Dora, LoraError, Target},
    models::{text_encoder, vae},
    noise::{self, Noise},
    ops,
    prompt::{
        self,
        tokenizer::{Tokenizer, Tokens},
    },
    schedulers::{self, SchedulerConfig},
};
use candle_core::{DType, Device, Tensor};
use image::RgbImage;
use networks::{Model, Networks, Steps};
use std::{ops::ControlFlow, path::Path};

/// Reads all of a model folder but the numbers of its weights: settings, tokenizer, and the headers of the weights.
///
/// # Errors
/// A missing or broken file, or a model of another kind; the error names the file and the field.
pub fn inspect(model: &Path) -> Result<()> {
    ModelIndex::load(model)?;
    let text_config = TextEncoderConfig::load(model)?;
    Tokenizer::load(model, text_config.max_position_embeddings)?;
    UnetConfig::load(model)?;
    VaeConfig::load(model)?;
    SchedulerConfig::load(model)?;
    for (folder, names) in [("text_encoder", &ENCODER_FILES), ("unet", &DIFFUSION_FILES), ("vae", &DIFFUSION_FILES)] {
        Weights::open(&model.join(folder), names)?;
    }
    Ok(())
}

/// What to paint.
#[derive(Debug, Clone)]
pub struct Request {
    /// What the picture shows.
    pub prompt: String,
    /// What the picture must not show; empty for nothing.
    pub negative_prompt: String,
    /// Whether brackets in both prompts mean weights.
    pub prompt_weighting: prompt::Weighting,
    /// Pixels, a multiple of 8.
    pub width: usize,
    /// Pixels, a multiple of 8.
    pub height: usize,
    /// Seed of the noise.
    pub seed: u64,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance (Ho & Salimans, 2022); none at 1 and below.
    pub guidance_scale: f64,
    /// How the latents move from noise to picture.
    pub scheduler: schedulers::Kind,
    /// The noise levels of Karras et al., or not; if nothing is asked for, the model's file decides.
    pub karras_sigmas: Option<bool>,
    /// Whose generator draws the noise.
    pub noise_source: noise::Source,
}

/// A loaded model with the LoRAs that are applied to it at present.
pub struct Pipeline {
    tokenizer: Tokenizer,
    networks: Networks,
    dtype: DType,
    scheduler_config: SchedulerConfig,
    target: Target,
    dora: Dora,
    /// None if the weights are to be set anew.
    applied: Option<Vec<AppliedLora>>,
}

impl Pipeline {
    /// Loads a model folder where it is to compute, in that dtype. `size` is the width and height in pixels of the pictures that
    /// are expected first; others are painted as well, with a delay on a GPU.
    ///
    /// # Errors
    /// A missing or broken file, or a model of another kind; the error names the file and the field or tensor.
    pub fn load(model: &Path, compute: &Compute, size: (usize, usize)) -> Result<Self> {
        Self::load_with(model, compute, Offload::Auto, size)
    }

    /// The same with a rule for what leaves a GPU.
    ///
    /// # Errors
    /// As [`Pipeline::load`].
    pub fn load_with(model: &Path, compute: &Compute, offload: Offload, size: (usize, usize)) -> Result<Self> {
        ModelIndex::load(model)?;
        let text_config = TextEncoderConfig::load(model)?;
        let weights = |folder: &str, names: &[&str]| match compute {
            Compute::Cpu => Weights::load(&model.join(folder), names),
            Compute::Gpu(..) => Weights::open(&model.join(folder), names),
        };
        let tokenizer = Tokenizer::load(model, text_config.max_position_embeddings)?;
        let parts = Model {
            folder: model.into(),
            text_config,
            text_weights: weights("text_encoder", &ENCODER_FILES)?.renamed(text_encoder::canonical_name),
            unet_config: UnetConfig::load(model)?,
            unet_weights: weights("unet", &DIFFUSION_FILES)?,
            vae_config: VaeConfig::load(model)?,
            vae_weights: weights("vae", &DIFFUSION_FILES)?.renamed(vae::canonical_name),
        };
        let factor = parts.vae_config.factor();
        let latents = (size.1.div_ceil(factor), size.0.div_ceil(factor));
        let target = Target::of_weights(&parts.unet_weights, &parts.text_weights);
        Ok(Self {
            tokenizer,
            networks: Networks::new(parts, compute, offload, latents)?,
            dtype: compute.dtype(),
            scheduler_config: SchedulerConfig::load(model)?,
            target,
            dora: Dora::default(),
            applied: Some(Vec::new()),
        })
    }

    /// The same with another rule for DoRA.
    pub fn with_dora(self, dora: Dora) -> Self {
        Self { dora, ..self }
    }

    /// Applies these LoRAs with their scales, and no others. The same list again costs nothing; an empty one restores the
    /// base exactly. After an error the base is in force.
    ///
    /// # Errors
    /// A LoRA that does not fit the model, names the key.
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
            self.networks.apply(lora::Plan::nothing())?;
        }
        self.applied = Some(result?);
        Ok(())
    }

    /// Gives back what memory it can, at the price of speed.
    ///
    /// # Errors
    /// The device.
    pub fn shrink(&mut self) -> Result<()> {
        self.networks.shrink()
    }

    /// Whether memory has sufficed so far, so that nothing needs to leave it.
    pub fn is_at_ease(&self) -> bool {
        !self.networks.offloads()
    }

    /// The same, and lets the UNet go until it is needed again, for pixels that have no room beside it. LoRAs are to be set anew then.
    ///
    /// # Errors
    /// The device.
    pub fn make_room_for_pixels(&mut self) -> Result<()> {
        self.applied = None;
        self.networks.shrink()?;
        self.networks.dismiss_unet()
    }

    /// The stream of the request's seed, rounded to the model's dtype as diffusers draws it. `threads` is how many the GPU
    /// holds whose noise it is, see [`Noise::cuda`].
    pub fn noise(&self, request: &Request, threads: u32) -> Noise {
        let noise = match request.noise_source {
            noise::Source::Cuda => Noise::cuda(request.seed, threads),
            noise::Source::Cpu => Noise::cpu(request.seed),
        };
        noise.in_dtype(self.dtype)
    }

    /// The stream's next draw as f32, `[images, channels, height / 8, width / 8]`, drawn at once as diffusers draws it for
    /// several images of one generator.
    ///
    /// # Errors
    /// A size that is no multiple of the VAE's factor.
    pub fn first_noise(&self, request: &Request, images: usize, noise: &mut Noise) -> Result<Tensor> {
        let factor = self.networks.model().vae_config.factor();
        for (field, pixels) in [("width", request.width), ("height", request.height)] {
            if pixels == 0 || !pixels.is_multiple_of(factor) {
                let limit = format!("it must be a multiple of {factor} and not 0");
                return Err(PipelineError::Request { field, value: pixels.to_string(), limit });
            }
        }
        let channels = self.networks.model().unet_config.in_channels;
        Ok(noise.unit((images, channels, request.height / factor, request.width / factor), &Device::Cpu)?)
    }

    /// Runs the scheduler from unit noise to the final latents, both f32 and of the same shape. A stochastic scheduler goes
    /// on drawing from `stream`. `on_step` is called with the number of finished steps, before the first (0) and after each,
    /// and may stop the run.
    ///
    /// # Errors
    /// A step count the model cannot do, a stop, or the device.
    pub fn denoise(
        &self,
        request: &Request,
        noise: Tensor,
        stream: &mut Noise,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        self.denoise_together(&[request], noise, stream, on_step)
    }

    /// The same for several requests at once that differ in prompts and seeds only, see [`Request::goes_with`]. `noise` has as many
    /// pictures for each, in their order.
    ///
    /// # Errors
    /// As [`Pipeline::denoise`], and no request at all.
    pub fn denoise_together(
        &self,
        requests: &[&Request],
        noise: Tensor,
        stream: &mut Noise,
        on_step: &mut dyn FnMut(usize) -> ControlFlow<()>,
    ) -> Result<Tensor> {
        let [request, ..] = requests else { return Err(candle_core::Error::msg("nothing to paint").into()) };
        let (kind, karras_sigmas) = (request.scheduler, request.karras_sigmas);
        let mut scheduler = schedulers::build(kind, karras_sigmas, &self.scheduler_config, request.steps)?;
        let guidance_scale = Some(request.guidance_scale).filter(|&scale| scale > 1.0);
        let images = noise.dim(0)? / requests.len();
        let context = self.context(requests, guidance_scale.is_some())?.repeat_rows(images)?;
        let mut latents = (noise * scheduler.init_noise_sigma())?;
        let timesteps = scheduler.timesteps().to_vec();
        let sums = scheduler.sums();
        let mut steps = self.networks.steps(&timesteps, &context, guidance_scale, &latents, sums.as_deref())?;
        match (&mut steps, sums) {
            (Steps::Gpu(steps), Some(sums)) => {
                latents = steps.run(&latents, sums.len(), on_step)?.map_err(|step| PipelineError::Stopped { step })?;
            }
            _ => {
                for step in 0..timesteps.len() {
                    if on_step(step).is_break() {
                        return Err(PipelineError::Stopped { step });
                    }
                    let output = steps.predict(&scheduler.scale_model_input(&latents, step)?, step)?;
                    latents = scheduler.step(&output, step, &latents, stream)?;
                }
            }
        }
        // The last call tells of completion; there is nothing left to stop.
        let _ = on_step(request.steps);
        Ok(latents)
    }

    /// The text encoder by itself: the embeddings of prompts of one length, `[prompts, tokens, hidden_size]`, f32 on the CPU.
    ///
    /// # Errors
    /// Weights in a prompt that leave no mean to restore; device or memory.
    pub fn embed(&self, prompts: &[&Tokens]) -> Result<Tensor> {
        Ok(self.networks.embed(prompts)?.to_tensor()?)
    }

    /// The UNet by itself: its output for latents `[batch, channels, height, width]`, all at one timestep, with the embedding
    /// `[batch, tokens, hidden_size]`. f32 on the CPU.
    ///
    /// # Errors
    /// Shapes that do not fit the model; device or memory.
    pub fn output(&self, latents: &Tensor, timestep: f64, context: &Tensor) -> Result<Tensor> {
        self.networks.output(latents, timestep, context)
    }

    /// The VAE decoder by itself: `[batch, 3, height, width]`, about -1 to 1, f32 on the CPU.
    ///
    /// # Errors
    /// Device or memory.
    pub fn decoded(&self, latents: &Tensor) -> Result<Tensor> {
        self.networks.decoded(latents)
    }

    /// Paints one picture: noise of the request's seed, the steps, pixels. `on_step` is called with the number of finished steps,
    /// before the first (0) and after each, and may stop the run.
    ///
    /// # Errors
    /// A request that the model cannot paint, a stop ([`PipelineError::Stopped`]), or the device.
    pub fn paint(&self, request: &Request, on_step: &mut dyn FnMut(usize) -> ControlFlow<()>) -> Result<RgbImage> {
        let mut stream = self.noise(request, noise::DEFAULT_THREADS);
        let noise = self.first_noise(request, 1, &mut stream)?;
        self.decode_one(&self.denoise(request, noise, &mut stream, on_step)?)
    }

    /// Pixels of the final latents, rounded to the nearest of 256 levels. One picture at a time, which bounds memory.
    ///
    /// # Errors
    /// Device or memory.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<RgbImage>> {
        (0..latents.dim(0)?).map(|index| self.decode_one(&latents.narrow(0, index, 1)?)).collect()
    }

    fn decode_one(&self, latents: &Tensor) -> Result<RgbImage> {
        let (bytes, height, width) = self.networks.pixels(&latents.contiguous()?)?;
        RgbImage::from_raw(width as u32, height as u32, bytes)
            .ok_or_else(|| candle_core::Error::msg("the decoder did not give three channels").into())
    }

    /// The embedding the UNet sees: the negative prompts and then the prompts with guidance, the prompts alone without.
    fn context(&self, requests: &[&Request], guided: bool) -> Result<ops::Array> {
        let (mut negatives, mut prompts) = (Vec::new(), Vec::new());
        for request in requests {
            negatives.push(self.tokens(request, "negative_prompt", &request.negative_prompt)?);
            prompts.push(self.tokens(request, "prompt_tags", &request.prompt)?);
        }
        let seen = negatives.iter().filter(|_| guided).chain(&prompts);
        self.networks.embed(&seen.collect::<Vec<_>>())
    }

    fn tokens(&self, request: &Request, field: &'static str, text: &str) -> Result<Tokens> {
        let tokens = request.prompt_weighting.tokens(&self.tokenizer, field, text)?;
        if tokens.truncated > 0 {
            tracing::warn!(field, truncated_tokens = tokens.truncated, "the text is longer than the encoder reads");
        }
        Ok(tokens)
    }
}

impl Request {
    /// What Stable Diffusion 1.5 is asked for where nothing else is said: 512x512, 50 steps of DPM-Solver++, guidance 7.5, seed 0.
    pub fn new(prompt: impl Into<String>) -> Self {
        Self {
            prompt: prompt.into(),
            negative_prompt: String::new(),
            prompt_weighting: prompt::Weighting::None,
            width: 512,
            height: 512,
            seed: 0,
            steps: 50,
            guidance_scale: 7.5,
            scheduler: schedulers::Kind::DpmSolverPlusPlus,
            karras_sigmas: None,
            noise_source: noise::Source::Cuda,
        }
    }

    /// Whether both can be painted at once, as one batch. A scheduler that draws noise at each step cannot: it would draw it for all
    /// from one stream.
    pub fn goes_with(&self, other: &Self) -> bool {
        let rules = |request: &Self| {
            let Self { width, height, steps, scheduler, karras_sigmas, .. } = *request;
            (width, height, steps, scheduler, karras_sigmas, request.guidance_scale.to_bits())
        };
        !self.scheduler.draws() && rules(self) == rules(other)
    }
}
