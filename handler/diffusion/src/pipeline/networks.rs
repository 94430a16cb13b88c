//! The three networks of a model on their device: they compute the prompt's embedding, the noise of one step, and pixels.

mod encoding;
mod on_gpu;

use encoding::Encoder;
use on_gpu::Here;

use super::{
    beside::Beside,
    gpu_state::GpuState,
    graphs::RecordedDenoiser,
    guidance::{Guidance, guide},
    residence::{Residence, Sizes},
};
use crate::{
    error::Result,
    gpu::{Dtype, Gpu},
    loading::config::{TextEncoderConfig, UnetConfig, VaeConfig},
    loading::weights::Weights,
    lora::{LoraError, MergePlan},
    models::text_encoder::{AddedEmbeddings, TextEncoder},
    models::unet::{Prepared, Unet},
    models::vae::{DecodeMemory, VaeDecoder},
    offload::Offload,
    ops::params::{Params, ShapeRecorder, Shapes},
    ops::{Array, Folded, Instructions, Packed, Step, on_pool},
    prompt::tokenizer::Tokens,
    schedulers::StepCoefficients,
};
use candle_core::{DType, Tensor};
use std::{
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
};

/// The device of the networks: the CPU, or a GPU.
#[derive(Clone)]
pub enum Compute {
    /// All cores, in f32.
    Cpu,
    /// All cores. Products and convolutions multiply bf16 numbers by these instructions; sums and all else are f32.
    CpuBf16(Instructions),
    /// One GPU, with the dtype of weights and activations.
    Gpu(Gpu, Dtype),
}

impl Compute {
    /// The dtype of activations between operations.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Cpu | Self::CpuBf16(_) | Self::Gpu(_, Dtype::F32) => DType::F32,
            Self::Gpu(_, Dtype::F16) => DType::F16,
            Self::Gpu(_, Dtype::BF16) => DType::BF16,
        }
    }

    /// The GPU, if it is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match self {
            Self::Cpu | Self::CpuBf16(_) => None,
            Self::Gpu(gpu, _) => Some(gpu),
        }
    }
}

/// Names and shapes of the tensors of text encoder, UNet and VAE decoder, in diffusers' names. Reads only the model folder's JSON files.
///
/// # Errors
/// A missing or broken JSON file, or an unsupported model.
pub fn parameters(model: &Path) -> Result<[Shapes; 3]> {
    Ok(parameters_by_folder(model)?.map(|(_, shapes)| shapes))
}

/// The same with the folders of the networks inside the model folder.
pub(super) fn parameters_by_folder(model: &Path) -> Result<[(&'static str, Shapes); 3]> {
    let shapes = [(); 3].map(|()| ShapeRecorder::default());
    let [text, unet, vae] = shapes.each_ref().map(Params::recording);
    TextEncoder::new(&TextEncoderConfig::load(model)?, text)?;
    Unet::new(&UnetConfig::load(model)?, unet)?;
    VaeDecoder::new(&VaeConfig::load(model)?, vae)?;
    let [text, unet, vae] =
        shapes.map(|shapes| std::mem::take(&mut *shapes.lock().unwrap_or_else(PoisonError::into_inner)));
    Ok([("text_encoder", text), ("unet", unet), ("vae", vae)])
}

/// The settings and base weights of the networks. They never change.
pub(crate) struct Model {
    /// The model folder or the checkpoint.
    pub folder: PathBuf,
    pub text_config: TextEncoderConfig,
    pub text_weights: Weights,
    pub unet_config: UnetConfig,
    pub unet_weights: Weights,
    pub vae_config: VaeConfig,
    pub vae_weights: Weights,
}

/// Text encoder, UNet and VAE.
pub(crate) struct Networks {
    model: Model,
    text_encoder: TextEncoder,
    added_embeddings: AddedEmbeddings,
    unet: Arc<Unet>,
    vae: VaeDecoder,
    /// None before the first run that begins from a picture.
    encoder: Option<Encoder>,
    /// Copies inputs to the device.
    inputs: Params,
    state: DeviceState,
}

enum DeviceState {
    /// With the weights of products in bf16, if they are.
    Cpu(Option<Packed>),
    Gpu(Box<GpuState>),
}

/// Predicts the noise at each step of one run: the UNet with guidance.
pub(crate) enum Denoiser<'a> {
    Cpu {
        unet: &'a Unet,
        prepared: Prepared,
        guidance_scale: Option<f64>,
    },
    /// With what the steps need besides the UNet's own weights, which leaves afterwards if it must.
    Gpu {
        recorded: RecordedDenoiser<'a>,
        _ahead: Here,
    },
}

impl Networks {
    /// On a GPU, while the weights are being copied, a picture of the first size is computed to create everything that is created on
    /// first use.
    /// `beside` is loaded with them, and memory is reckoned for it.
    pub(crate) fn new(
        model: Model,
        compute: &Compute,
        offload: Offload,
        sizes: Sizes,
        beside: Option<&mut dyn Beside>,
    ) -> Result<Self> {
        match compute {
            Compute::Cpu | Compute::CpuBf16(_) => {
                let packed = match compute {
                    Compute::CpuBf16(instructions) => Some(Packed::new(*instructions)),
                    _ => None,
                };
                let all =
                    [("text_encoder", &model.text_weights), ("unet", &model.unet_weights), ("vae", &model.vae_weights)];
                let [text, unet, vae] = all.map(|(name, weights)| on_cpu(name, weights, packed.as_ref()));
                Ok(Self {
                    inputs: text.clone(),
                    text_encoder: TextEncoder::new(&model.text_config, text)?,
                    added_embeddings: AddedEmbeddings::new(),
                    unet: Unet::new(&model.unet_config, unet)?.into(),
                    vae: VaeDecoder::new(&model.vae_config, vae)?,
                    encoder: None,
                    model,
                    state: DeviceState::Cpu(packed),
                })
            }
            Compute::Gpu(gpu, dtype) => {
                gpu.enter()?;
                let checker = beside.as_deref().map_or(Ok(0), Beside::parameters)?;
                let residence = Residence::new(gpu, *dtype, model.unet_weights.parameters(), checker)?;
                Self::on_gpu(model, residence, offload, sizes, beside)
            }
        }
    }

    pub(crate) fn model(&self) -> &Model {
        &self.model
    }

    /// Applies a plan to the base weights. Removes what earlier plans changed.
    ///
    /// # Errors
    /// There is not enough memory, or reading the base fails. Then the weights are in an unknown state until another plan is applied.
    pub(crate) fn apply(&mut self, plan: MergePlan) -> std::result::Result<(), LoraError> {
        let Model { text_weights, unet_weights, .. } = &self.model;
        match &mut self.state {
            DeviceState::Cpu(packed) => {
                let overlays = plan.merge(unet_weights, text_weights)?;
                let (text, unet) =
                    (text_weights.with_overlay(overlays.text_encoder), unet_weights.with_overlay(overlays.unet));
                let [text, unet] = [("text_encoder", text), ("unet", unet)]
                    .map(|(name, weights)| on_cpu(name, &weights, packed.as_ref()));
                self.text_encoder = TextEncoder::new(&self.model.text_config, text)?;
                self.unet = Unet::new(&self.model.unet_config, unet)?.into();
            }
            DeviceState::Gpu(state) => {
                let text = state.apply(plan, text_weights, unet_weights)?;
                self.text_encoder.embed_from(&text);
            }
        }
        Ok(())
    }

    /// From now on, these are the embeddings of added tokens, each of the encoder's width.
    pub(crate) fn add_embeddings(&mut self, added: AddedEmbeddings) {
        self.added_embeddings = added;
    }

    /// The prompts' embeddings, `[prompts, tokens, hidden_size]`, without the text encoder's last `skip` layers.
    pub(crate) fn embed(&self, prompts: &[&Tokens], skip: usize) -> Result<Array> {
        let _here = self.here(|residence| &residence.text)?;
        self.text_encoder.encode(prompts, skip, &self.added_embeddings)
    }

    /// How many layers the text encoder has.
    pub(crate) fn text_layers(&self) -> usize {
        self.text_encoder.layers()
    }

    /// See [`crate::pipeline::Pipeline::unet_output_guided`].
    pub(crate) fn unet_output(
        &self,
        latents: &Tensor,
        timestep: f64,
        guidance_scale: Option<f64>,
        context: &Tensor,
    ) -> Result<Tensor> {
        let prepared = self.prepare(&[timestep], guidance_scale, &self.inputs.on_device(context)?, 1, 1, &[])?;
        let _ahead = self.ahead_of(context.dim(1)?)?;
        self.bring_unet()?;
        let step = match &self.state {
            DeviceState::Cpu(_) => Step::Index(0),
            DeviceState::Gpu(state) => {
                let counter = state.residence.gpu().scratch(&[1], Dtype::F32)?;
                state.residence.gpu().clear(&counter)?;
                Step::Counter(counter)
            }
        };
        let latents = self.inputs.map_on_device(latents)?;
        let forward = || self.unet.forward(&latents, &step, &prepared);
        let output = match &self.state {
            DeviceState::Cpu(_) => forward()?,
            DeviceState::Gpu(state) => state.residence.unet.pass(|| forward().map_err(candle_core::Error::wrap))?,
        };
        Ok(output.to_map(self.model.unet_config.out_channels)?)
    }

    /// See [`crate::pipeline::Pipeline::vae_output`].
    pub(crate) fn vae_output(&self, latents: &Tensor, memory: DecodeMemory) -> Result<Tensor> {
        let _here = self.here(|residence| &residence.vae)?;
        let latents = (latents / self.model.vae_config.scaling_factor)?;
        let channels = self.model.vae_config.out_channels;
        let DecodeMemory::Bands { rows } = memory else {
            return Ok(self.vae.decode(&self.inputs.map_on_device(&latents)?)?.to_map(channels)?);
        };
        let mut pictures = Vec::new();
        for index in 0..latents.dim(0)? {
            let (own, mut bands) = (self.inputs.map_on_device(&latents.narrow(0, index, 1)?)?, Vec::new());
            self.vae.decode_in_bands(&own, rows, &mut |band| {
                bands.push(band.to_map(channels)?);
                Ok(())
            })?;
            pictures.push(Tensor::cat(&bands, 2)?);
        }
        Ok(Tensor::cat(&pictures, 0)?)
    }

    /// Prepares the steps of a run for latents of the size of `noise`. `context` has the prompts' embeddings: with classifier-free
    /// guidance the negative ones and then the others, else the others alone. Each is for as many pictures, which follow one another. `coefficients` are those of the scheduler, if it has them.
    pub(crate) fn denoiser(
        &self,
        timesteps: &[f64],
        context: &Array,
        guidance: Guidance,
        noise: &Tensor,
        coefficients: Option<&[StepCoefficients]>,
    ) -> Result<Denoiser<'_>> {
        let guidance_scale = guidance.classifier_free();
        let (batch, [prompts, tokens]) = (noise.dim(0)? * guidance.copies(), context.sequences()?);
        if prompts == 0 || !batch.is_multiple_of(prompts) {
            return Err(candle_core::Error::Msg(format!("{prompts} prompts for a batch of {batch}")).bt().into());
        }
        let room = match &self.state {
            DeviceState::Cpu(_) => Vec::new(),
            DeviceState::Gpu(state) => {
                state.residence.gpu().enter()?;
                state.recordings.room(prompts, tokens)?
            }
        };
        let prepared =
            self.prepare(timesteps, guidance.embedded(), context, guidance.copies(), batch / prompts, &room)?;
        Ok(match &self.state {
            DeviceState::Cpu(_) => Denoiser::Cpu { unet: &self.unet, prepared, guidance_scale },
            DeviceState::Gpu(state) => {
                let ahead = self.ahead_of(tokens)?;
                let (recordings, steps) = (&state.recordings, timesteps.len());
                let recorded = recordings.denoiser(prepared, steps, guidance_scale, noise, coefficients)?;
                self.bring_unet()?;
                Denoiser::Gpu { recorded, _ahead: ahead }
            }
        })
    }

    /// What all steps share. See [`Unet::prepare`].
    fn prepare(
        &self,
        timesteps: &[f64],
        guidance_scale: Option<f64>,
        context: &Array,
        copies: usize,
        times: usize,
        room: &[Folded],
    ) -> Result<Prepared> {
        let _here = self.here(|residence| &residence.ahead)?;
        self.unet.prepare(timesteps, guidance_scale, context, copies, times, room)
    }

    /// The pixels of one picture's latents `[1, channels, height, width]`: bytes `[height, width, 3]`, with height and width.
    pub(crate) fn pixels(&self, latents: &Tensor, memory: DecodeMemory) -> Result<(Vec<u8>, usize, usize)> {
        match &self.state {
            DeviceState::Cpu(_) => {
                let pixels = on_pool(|| self.vae_output(latents, memory))?;
                let pixels = ((pixels / 2.0)? + 0.5)?.clamp(0f32, 1f32)?.squeeze(0)?.permute((1, 2, 0))?;
                let (height, width, _) = pixels.dims3()?;
                let levels = pixels.flatten_all()?.to_vec1::<f32>()?;
                Ok((levels.into_iter().map(|level| (level * 255.0).round_ties_even() as u8).collect(), height, width))
            }
            DeviceState::Gpu(state) => {
                let here = self.here(|residence| &residence.vae)?;
                let factor = self.model.vae_config.scaling_factor;
                let pixels = state.recordings.pixels(&self.vae, latents, factor, memory)?;
                drop(here);
                state.tidy()?;
                Ok(pixels)
            }
        }
    }

    /// Makes the GPU's context current on this thread.
    fn enter(&self) -> Result<()> {
        if let DeviceState::Gpu(state) = &self.state {
            state.residence.gpu().enter()?;
        }
        Ok(())
    }
}

/// The parameters of a network on the CPU, with products in bf16 if `packed` is there.
fn on_cpu(network: &'static str, weights: &Weights, packed: Option<&Packed>) -> Params {
    match packed {
        None => Params::on_cpu(weights),
        Some(packed) => Params::on_cpu_in_bf16(weights, &packed.of(network)),
    }
}

impl Denoiser<'_> {
    /// Goes back to the first step, for other latents.
    pub(crate) fn rewind(&mut self) -> Result<()> {
        match self {
            Self::Cpu { .. } => Ok(()),
            Self::Gpu { recorded, .. } => Ok(recorded.rewind()?),
        }
    }

    /// The UNet's output for `latents` at that step, after guidance. Both are f32 on the CPU. Steps must come in order from 0.
    pub(crate) fn predict(&mut self, latents: &Tensor, step: usize) -> Result<Tensor> {
        match self {
            Self::Cpu { unet, prepared, guidance_scale } => {
                let input = Array::Cpu(latents.contiguous()?);
                let forward = || unet.forward(&input, &Step::Index(step), prepared);
                let output = on_pool(forward)?.to_tensor()?;
                Ok(guidance_scale.map_or(Ok(output.clone()), |scale| guide(&output, scale))?)
            }
            Self::Gpu { recorded, .. } => Ok(recorded.predict(latents)?),
        }
    }
}
