//! Stable Diffusion 1.5 from a model folder in the diffusers layout: a request goes in, a picture comes out.
//!
//! Knows nothing of tasks, S3 or webhooks. Everything it needs to know about the model is read from the folder's JSON files.

mod blocks;
pub mod config;
pub mod error;
pub mod noise;
mod ops;
pub mod prompt;
pub mod scheduler;
pub mod text_encoder;
pub mod tokenizer;
mod transformer;
pub mod unet;
pub mod vae;
pub mod weights;

use crate::lora::{self, AppliedLora, Dora, LoraError, Overlays, Target};
use candle_core::{DType, Device, Tensor};
use config::{ModelIndex, TextEncoderConfig, UnetConfig, VaeConfig};
use error::{PipelineError, Result};
use image::RgbImage;
use noise::Noise;
use scheduler::SchedulerConfig;
use std::{ops::ControlFlow, path::Path};
use text_encoder::TextEncoder;
use tokenizer::Tokenizer;
use unet::Unet;
use vae::VaeDecoder;
use weights::Weights;

/// Names a diffusers folder uses for the weights of UNet and VAE, in order of preference.
pub(crate) const DIFFUSION_FILES: [&str; 2] =
    ["diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.fp16.safetensors"];
/// Names a diffusers folder uses for the weights of the text encoder, in order of preference.
pub(crate) const ENCODER_FILES: [&str; 2] = ["model.safetensors", "model.fp16.safetensors"];

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
    pub scheduler: scheduler::Kind,
    /// The noise levels of Karras et al., or not; if nothing is asked for, the model's file decides.
    pub karras_sigmas: Option<bool>,
    /// Whose generator draws the noise.
    pub noise_source: noise::Source,
}

/// A loaded model with the LoRAs that are applied to it at present.
pub struct Pipeline {
    tokenizer: Tokenizer,
    text_config: TextEncoderConfig,
    text_weights: Weights,
    text_encoder: TextEncoder,
    unet_config: UnetConfig,
    unet_weights: Weights,
    unet: Unet,
    vae_config: VaeConfig,
    vae: VaeDecoder,
    scheduler_config: SchedulerConfig,
    target: Target,
    dora: Dora,
    applied: Vec<AppliedLora>,
}

impl Pipeline {
    /// Loads a model folder onto a device, converting floating-point weights to `dtype`.
    ///
    /// # Errors
    /// A missing or broken file, or a model of another kind; the error names the file and the field or tensor.
    pub fn load(model: &Path, dtype: DType, device: &Device) -> Result<Self> {
        ModelIndex::load(model)?;
        let text_config = TextEncoderConfig::load(model)?;
        let unet_config = UnetConfig::load(model)?;
        let vae_config = VaeConfig::load(model)?;
        let text_weights = Weights::load(&model.join("text_encoder"), &ENCODER_FILES, dtype, device)?
            .renamed(text_encoder::canonical_name);
        let unet_weights = Weights::load(&model.join("unet"), &DIFFUSION_FILES, dtype, device)?;
        let vae_weights =
            Weights::load(&model.join("vae"), &DIFFUSION_FILES, dtype, device)?.renamed(vae::canonical_name);
        let target = Target::of_weights(&unet_weights, &text_weights);
        Ok(Self {
            tokenizer: Tokenizer::load(model, text_config.max_position_embeddings)?,
            text_encoder: TextEncoder::new(&text_weights, &text_config)?,
            text_config,
            text_weights,
            unet: Unet::new(&unet_config, unet_weights.builder())?,
            unet_config,
            unet_weights,
            vae: VaeDecoder::new(&vae_config, vae_weights.builder())?,
            vae_config,
            scheduler_config: SchedulerConfig::load(model)?,
            target,
            dora: Dora::default(),
            applied: Vec::new(),
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
        if self.applied == wanted {
            return Ok(());
        }
        self.applied.clear();
        let merged = lora::merge(wanted, &self.target, &self.unet_weights, &self.text_weights, self.dora);
        let (overlays, result) = match merged {
            Ok(overlays) => (overlays, Ok(wanted.to_vec())),
            Err(error) => (Overlays::default(), Err(error)),
        };
        let text_weights = self.text_weights.with_overlay(overlays.text_encoder);
        self.text_encoder = TextEncoder::new(&text_weights, &self.text_config)?;
        self.unet = Unet::new(&self.unet_config, self.unet_weights.with_overlay(overlays.unet).builder())?;
        self.applied = result?;
        Ok(())
    }

    /// The stream of the request's seed, rounded to the model's dtype as diffusers draws it. `threads` is how many the GPU
    /// holds whose noise it is, see [`Noise::cuda`].
    pub fn noise(&self, request: &Request, threads: u32) -> Noise {
        let noise = match request.noise_source {
            noise::Source::Cuda => Noise::cuda(request.seed, threads),
            noise::Source::Cpu => Noise::cpu(request.seed),
        };
        noise.in_dtype(self.unet_weights.dtype())
    }

    /// The stream's next draw as f32, `[images, channels, height / 8, width / 8]`, drawn at once as diffusers draws it for
    /// several images of one generator.
    ///
    /// # Errors
    /// A size that is no multiple of the VAE's factor.
    pub fn first_noise(&self, request: &Request, images: usize, noise: &mut Noise) -> Result<Tensor> {
        let factor = self.vae_config.factor();
        for (field, pixels) in [("width", request.width), ("height", request.height)] {
            if pixels == 0 || !pixels.is_multiple_of(factor) {
                let limit = format!("it must be a multiple of {factor} and not 0");
                return Err(PipelineError::Request { field, value: pixels.to_string(), limit });
            }
        }
        let shape = (images, self.unet_config.in_channels, request.height / factor, request.width / factor);
        Ok(noise.unit(shape, self.unet_weights.device())?)
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
        let (kind, karras_sigmas) = (request.scheduler, request.karras_sigmas);
        let mut scheduler = scheduler::build(kind, karras_sigmas, &self.scheduler_config, request.steps)?;
        let guided = request.guidance_scale > 1.0;
        let context = repeat_rows(&self.embed(request, guided)?, noise.dim(0)?)?;
        let dtype = self.unet_weights.dtype();
        let mut latents = (noise * scheduler.init_noise_sigma())?;
        let timesteps = scheduler.timesteps().to_vec();
        for (step, timestep) in timesteps.into_iter().enumerate() {
            if on_step(step).is_break() {
                return Err(PipelineError::Stopped { step });
            }
            let input = scheduler.scale_model_input(&latents, step)?.to_dtype(dtype)?;
            let input = if guided { Tensor::cat(&[&input, &input], 0)? } else { input };
            let output = self.unet.forward(&input, timestep, &context)?.to_dtype(DType::F32)?;
            let output = if guided { guide(&output, request.guidance_scale)? } else { output };
            latents = scheduler.step(&output, step, &latents, stream)?;
        }
        // The last call tells of completion; there is nothing left to stop.
        let _ = on_step(request.steps);
        Ok(latents)
    }

    /// Pixels of the final latents, rounded to the nearest of 256 levels. One picture at a time, which bounds memory.
    ///
    /// # Errors
    /// Device or memory.
    pub fn decode(&self, latents: &Tensor) -> Result<Vec<RgbImage>> {
        (0..latents.dim(0)?).map(|index| self.decode_one(&latents.narrow(0, index, 1)?)).collect()
    }

    fn decode_one(&self, latents: &Tensor) -> Result<RgbImage> {
        let pixels = self.vae.decode(&latents.to_dtype(self.unet_weights.dtype())?)?.to_dtype(DType::F32)?;
        let pixels = ((pixels / 2.0)? + 0.5)?.clamp(0f32, 1f32)?.squeeze(0)?.permute((1, 2, 0))?;
        let (height, width, _) = pixels.dims3()?;
        let bytes = pixels.flatten_all()?.to_vec1::<f32>()?;
        let bytes = bytes.into_iter().map(|level| (level * 255.0).round_ties_even() as u8).collect();
        RgbImage::from_raw(width as u32, height as u32, bytes)
            .ok_or_else(|| candle_core::Error::msg("the decoder did not give three channels").into())
    }

    /// The embedding the UNet sees: negative prompt and prompt with guidance, the prompt alone without.
    fn embed(&self, request: &Request, guided: bool) -> Result<Tensor> {
        let tokens = |field, text: &str| request.prompt_weighting.tokens(&self.tokenizer, field, text);
        let prompt = tokens("prompt", &request.prompt)?;
        let negative = tokens("negative_prompt", &request.negative_prompt)?;
        for (field, tokens) in [("prompt", &prompt), ("negative_prompt", &negative)] {
            if tokens.truncated > 0 {
                tracing::warn!(field, truncated_tokens = tokens.truncated, "the text is longer than the encoder reads");
            }
        }
        if guided { self.text_encoder.encode(&[&negative, &prompt]) } else { self.text_encoder.encode(&[&prompt]) }
    }
}

/// Classifier-free guidance over `[negative, positive]` halves of the batch.
fn guide(output: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
    let halves = output.chunk(2, 0)?;
    &halves[0] + ((&halves[1] - &halves[0])? * scale)?
}

/// Each row `times` times in a row: the order in which diffusers pairs prompts and images.
fn repeat_rows(rows: &Tensor, times: usize) -> candle_core::Result<Tensor> {
    let (count, tokens, width) = rows.dims3()?;
    rows.unsqueeze(1)?.repeat((1, times, 1, 1))?.reshape((count * times, tokens, width))
}
