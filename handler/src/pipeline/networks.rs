//! The three networks of a model where they compute, and how each is run: the prompt's embedding, the noise of one step, pixels.

use super::{
    compute::Compute,
    config::{TextEncoderConfig, UnetConfig, VaeConfig},
    error::Result,
    graphs::{self, Recorded},
    ops::{Array, Step},
    params::Params,
    text_encoder::TextEncoder,
    tokenizer::Tokens,
    unet::{Prepared, Unet},
    vae::VaeDecoder,
    weights::{Tensors, Weights},
};
use crate::{gpu::Placed, lora::Overlays};
use candle_core::Tensor;
use std::sync::Arc;

/// What the networks are made from. The base never changes.
pub(super) struct Model {
    pub text_config: TextEncoderConfig,
    pub text_weights: Weights,
    pub unet_config: UnetConfig,
    pub unet_weights: Weights,
    pub vae_config: VaeConfig,
    pub vae_weights: Weights,
}

/// Text encoder, UNet and VAE decoder.
pub(super) struct Networks {
    model: Model,
    text_encoder: TextEncoder,
    unet: Unet,
    vae: VaeDecoder,
    place: Place,
}

enum Place {
    Cpu,
    Gpu(OnGpu),
}

/// Where the tensors lie, which ones a LoRA has changed, and what was recorded.
struct OnGpu {
    text: Arc<Placed>,
    unet: Arc<Placed>,
    changed: [Vec<String>; 2],
    recorded: Recorded,
}

/// What one picture's steps are predicted with.
pub(super) enum Steps<'a> {
    Cpu { unet: &'a Unet, prepared: Prepared, guidance_scale: Option<f64> },
    Gpu(graphs::Steps<'a>),
}

impl Networks {
    pub(super) fn new(model: Model, compute: &Compute) -> Result<Self> {
        match compute {
            Compute::Cpu => {
                let [text, unet, vae] = [&model.text_weights, &model.unet_weights, &model.vae_weights].map(Params::on_cpu);
                Ok(Self {
                    text_encoder: TextEncoder::new(&model.text_config, text)?,
                    unet: Unet::new(&model.unet_config, unet)?,
                    vae: VaeDecoder::new(&model.vae_config, vae)?,
                    model,
                    place: Place::Cpu,
                })
            }
            Compute::Gpu(gpu, dtype) => {
                gpu.enter()?;
                let [text, unet, vae] = [(); 3].map(|()| Placed::new(gpu, *dtype));
                let networks = Self {
                    text_encoder: TextEncoder::new(&model.text_config, Params::on_gpu(&model.text_weights, &text))?,
                    unet: Unet::new(&model.unet_config, Params::on_gpu(&model.unet_weights, &unet))?,
                    vae: VaeDecoder::new(&model.vae_config, Params::on_gpu(&model.vae_weights, &vae))?,
                    place: Place::Gpu(OnGpu {
                        text: text.clone(),
                        unet: unet.clone(),
                        changed: Default::default(),
                        recorded: Recorded::new(gpu, *dtype),
                    }),
                    model,
                };
                let weights = &networks.model;
                let filled = std::thread::scope(|scope| {
                    let libraries = scope.spawn(|| gpu.open_libraries());
                    let sources = [(&unet, &weights.unet_weights), (&text, &weights.text_weights), (&vae, &weights.vae_weights)];
                    let filled = sources.into_iter().try_for_each(|(placed, weights)| placed.fill(weights, None));
                    filled.and(libraries.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
                });
                filled?;
                Ok(networks)
            }
        }
    }

    pub(super) fn model(&self) -> &Model {
        &self.model
    }

    /// Puts these tensors over the base, and no others.
    pub(super) fn overlay(&mut self, overlays: Overlays) -> Result<()> {
        let text_weights = self.model.text_weights.with_overlay(overlays.text_encoder);
        let unet_weights = self.model.unet_weights.with_overlay(overlays.unet);
        match &mut self.place {
            Place::Cpu => {
                self.text_encoder = TextEncoder::new(&self.model.text_config, Params::on_cpu(&text_weights))?;
                self.unet = Unet::new(&self.model.unet_config, Params::on_cpu(&unet_weights))?;
            }
            Place::Gpu(on_gpu) => {
                on_gpu.overlay([&text_weights, &unet_weights])?;
                self.text_encoder.embed_from(&text_weights);
            }
        }
        Ok(())
    }

    /// The prompts' embeddings, `[prompts, tokens, hidden_size]`.
    pub(super) fn embed(&self, prompts: &[&Tokens]) -> Result<Array> {
        self.enter()?;
        self.text_encoder.encode(prompts)
    }

    /// Gets ready for the steps of `images` pictures of one size of latents. `context` is the prompts' embedding: negative and
    /// positive with guidance, else the positive alone.
    pub(super) fn steps(
        &self,
        timesteps: &[f64],
        context: &Array,
        guidance_scale: Option<f64>,
        noise: &Tensor,
    ) -> Result<Steps<'_>> {
        let (images, ..) = noise.dims4()?;
        let context = context.repeat_rows(images)?;
        let prepared = self.unet.prepare(timesteps, &context)?;
        Ok(match &self.place {
            Place::Cpu => Steps::Cpu { unet: &self.unet, prepared, guidance_scale },
            Place::Gpu(on_gpu) => {
                Steps::Gpu(on_gpu.recorded.steps(&self.unet, prepared, timesteps.len(), guidance_scale, noise)?)
            }
        })
    }

    /// Pixels of one picture's latents, `[1, channels, height, width]`, as bytes `[height, width, 3]`, with height and width.
    pub(super) fn pixels(&self, latents: &Tensor) -> Result<(Vec<u8>, usize, usize)> {
        let factor = self.model.vae_config.scaling_factor;
        match &self.place {
            Place::Cpu => {
                let pixels = self.vae.decode(&Array::Cpu((latents / factor)?))?.to_tensor()?;
                let pixels = ((pixels / 2.0)? + 0.5)?.clamp(0f32, 1f32)?.squeeze(0)?.permute((1, 2, 0))?;
                let (height, width, _) = pixels.dims3()?;
                let levels = pixels.flatten_all()?.to_vec1::<f32>()?;
                Ok((levels.into_iter().map(|level| (level * 255.0).round_ties_even() as u8).collect(), height, width))
            }
            Place::Gpu(on_gpu) => {
                self.enter()?;
                Ok(on_gpu.recorded.pixels(&self.vae, latents, factor)?)
            }
        }
    }

    fn enter(&self) -> Result<()> {
        if let Place::Gpu(on_gpu) = &self.place {
            on_gpu.unet.gpu().enter()?;
        }
        Ok(())
    }
}

impl OnGpu {
    /// Writes what is new and what is no longer changed; every address stays, and so does what was recorded.
    fn overlay(&mut self, weights: [&Weights; 2]) -> std::result::Result<(), crate::gpu::GpuError> {
        self.unet.gpu().enter()?;
        for ((placed, weights), changed) in [&self.text, &self.unet].into_iter().zip(weights).zip(&mut self.changed) {
            let now: Vec<String> = names(weights.overlay()).into_iter().filter(|name| placed.has(name)).collect();
            let mut all = now.clone();
            all.extend(changed.iter().filter(|name| !weights.overlay().contains_key(*name)).cloned());
            placed.fill(weights, Some(&all))?;
            *changed = now;
        }
        Ok(())
    }
}

fn names(tensors: &Tensors) -> Vec<String> {
    tensors.keys().cloned().collect()
}

impl Steps<'_> {
    /// The noise that the UNet sees in `latents` at that step, after guidance; both f32 on the CPU. Steps go in order from 0.
    pub(super) fn predict(&mut self, latents: &Tensor, step: usize) -> Result<Tensor> {
        match self {
            Self::Cpu { unet, prepared, guidance_scale } => {
                let input = if guidance_scale.is_some() { Tensor::cat(&[latents, latents], 0)? } else { latents.contiguous()? };
                let output = unet.forward(&Array::Cpu(input), &Step::Index(step), prepared)?;
                let output = output.to_tensor()?;
                Ok(guidance_scale.map_or(Ok(output.clone()), |scale| guide(&output, scale))?)
            }
            Self::Gpu(steps) => Ok(steps.predict(latents)?),
        }
    }
}

/// Classifier-free guidance over `[negative, positive]` halves of the batch.
fn guide(output: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
    let halves = output.chunk(2, 0)?;
    &halves[0] + ((&halves[1] - &halves[0])? * scale)?
}
