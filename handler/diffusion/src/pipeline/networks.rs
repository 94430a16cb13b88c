//! The three networks of a model on their device: they compute the prompt's embedding, the noise of one step, and pixels.

use super::{
    fit::{Offload, Shortage},
    gpu_state::GpuState,
    graphs::{RecordedDenoiser, Recordings},
    guidance::{Guidance, guide},
    residence::{Extent, Footprint, Residence},
};
use crate::{
    error::{PipelineError, Result},
    gpu::{Dtype, Gpu, GpuError, Placed},
    loading::config::{TextEncoderConfig, UnetConfig, VaeConfig},
    loading::{is_checkpoint, weights::Weights},
    lora::{LoraError, MergePlan},
    models::text_encoder::{AddedEmbeddings, TextEncoder},
    models::unet::{Prepared, Unet},
    models::vae::{DecodeMemory, VaeDecoder},
    ops::params::{Params, ShapeRecorder, Shapes},
    ops::{Array, Step},
    prompt::tokenizer::Tokens,
    schedulers::StepCoefficients,
};
use candle_core::{DType, Device, Tensor};
use std::{
    ops::ControlFlow,
    panic::resume_unwind,
    path::{Path, PathBuf},
    sync::{Arc, PoisonError},
    thread,
    time::Instant,
};

/// The subfolder of the model with the settings that were tuned for GPUs. For a checkpoint, the ending of such a folder's name.
const TUNED: &str = "tuned";

/// The device of the networks: the CPU in f32, or a GPU.
#[derive(Clone)]
pub enum Compute {
    /// All cores.
    Cpu,
    /// One GPU, with the dtype of weights and activations.
    Gpu(Gpu, Dtype),
}

impl Compute {
    /// The dtype of weights and activations.
    pub fn dtype(&self) -> DType {
        match self {
            Self::Cpu | Self::Gpu(_, Dtype::F32) => DType::F32,
            Self::Gpu(_, Dtype::F16) => DType::F16,
            Self::Gpu(_, Dtype::BF16) => DType::BF16,
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

/// Where the settings that were tuned for GPUs are: in the model folder, or beside a checkpoint.
fn tuned(model: &Path) -> PathBuf {
    if is_checkpoint(model) { model.with_extension(TUNED) } else { model.join(TUNED) }
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

/// Text encoder, UNet and VAE decoder.
pub(crate) struct Networks {
    model: Model,
    text_encoder: TextEncoder,
    added_embeddings: AddedEmbeddings,
    unet: Arc<Unet>,
    vae: VaeDecoder,
    /// Copies inputs to the device.
    inputs: Params,
    state: DeviceState,
}

enum DeviceState {
    Cpu,
    Gpu(GpuState),
}

/// Predicts the noise at each step of one run: the UNet with guidance.
pub(crate) enum Denoiser<'a> {
    Cpu { unet: &'a Unet, prepared: Prepared, guidance_scale: Option<f64> },
    Gpu(RecordedDenoiser<'a>),
}

impl Networks {
    /// On a GPU, `size` is the height and width of the first latents. While the weights are being copied, a picture of that size is
    /// computed to create everything that is created on first use.
    pub(crate) fn new(model: Model, compute: &Compute, offload: Offload, size: (usize, usize)) -> Result<Self> {
        match compute {
            Compute::Cpu => {
                let [text, unet, vae] =
                    [&model.text_weights, &model.unet_weights, &model.vae_weights].map(Params::on_cpu);
                Ok(Self {
                    inputs: text.clone(),
                    text_encoder: TextEncoder::new(&model.text_config, text)?,
                    added_embeddings: AddedEmbeddings::new(),
                    unet: Unet::new(&model.unet_config, unet)?.into(),
                    vae: VaeDecoder::new(&model.vae_config, vae)?,
                    model,
                    state: DeviceState::Cpu,
                })
            }
            Compute::Gpu(gpu, dtype) => Self::on_gpu(model, gpu, *dtype, offload, size),
        }
    }

    fn on_gpu(model: Model, gpu: &Gpu, dtype: Dtype, offload: Offload, size: (usize, usize)) -> Result<Self> {
        gpu.enter()?;
        let mut residence = Residence::new(gpu, dtype, model.unet_weights.parameters())?;
        let Residence { text, ahead, unet, vae, .. } = &residence;
        let unet_params = Params::on_gpu(&model.unet_weights, unet).with_section(ahead);
        let on_gpu = Arc::new(Unet::new(&model.unet_config, unet_params)?);
        let recordings = Recordings::new(gpu, dtype, on_gpu.clone(), unet.clone());
        let inputs = Params::on_gpu(&model.text_weights, text);
        let text_encoder = TextEncoder::new(&model.text_config, inputs.clone())?;
        let decoder = VaeDecoder::new(&model.vae_config, Params::on_gpu(&model.vae_weights, vae))?;
        // Until here there are addresses, and no memory behind them.
        let extent = Extent { latents: size, images: 1 };
        residence.settle((&model.unet_config, &model.vae_config), extent, offload)?;
        let is_whole = residence.is_whole();
        let mut networks = Self {
            inputs,
            text_encoder,
            added_embeddings: AddedEmbeddings::new(),
            unet: on_gpu,
            vae: decoder,
            state: DeviceState::Gpu(GpuState { residence, changed: Default::default(), recordings }),
            model,
        };
        if is_whole {
            networks.load_beside(gpu, size)?
        } else {
            networks.load_first(gpu, size)?
        }
        if let DeviceState::Gpu(state) = &mut networks.state {
            state.tidy()?;
        }
        Ok(networks)
    }

    /// Copies the weights while a picture is computed with the memory's old content.
    fn load_beside(&self, gpu: &Gpu, size: (usize, usize)) -> Result<()> {
        self.weights().into_iter().try_for_each(|(placed, _)| placed.clear_padding())?;
        gpu.synchronize()?;
        thread::scope(|scope| {
            let filling = scope.spawn(|| {
                let clock = Instant::now();
                gpu.enter()?;
                self.weights().into_iter().try_for_each(|(placed, weights)| placed.fill(weights, None))?;
                gpu.note("weights", clock);
                Ok::<_, GpuError>(())
            });
            gpu.open_libraries()?;
            let mut filling = Some(filling);
            let mut join = || match filling.take() {
                Some(filling) => filling.join().unwrap_or_else(|panic| resume_unwind(panic)),
                None => Ok(()),
            };
            if !gpu.tune_with(&tuned(&self.model.folder))? {
                // Tuning measures times, which copying would disturb.
                join()?;
            }
            self.warm_up(gpu, size)?;
            join().map_err(PipelineError::from)
        })
    }

    /// Copies the weights, one network after the other, and then computes a picture: there is no memory to do both.
    fn load_first(&self, gpu: &Gpu, size: (usize, usize)) -> Result<()> {
        gpu.carry_by_few();
        gpu.open_libraries()?;
        let clock = Instant::now();
        for (placed, weights) in self.weights() {
            placed.clear_padding()?;
            placed.fill(weights, None)?;
        }
        gpu.note("weights", clock);
        gpu.tune_with(&tuned(&self.model.folder))?;
        self.warm_up(gpu, size)
    }

    /// The networks on the GPU with the base weights of each, the largest first. On a CPU none.
    fn weights(&self) -> Vec<(&Placed, &Weights)> {
        let Model { text_weights, unet_weights, vae_weights, .. } = &self.model;
        match &self.state {
            DeviceState::Cpu => Vec::new(),
            DeviceState::Gpu(GpuState { residence, .. }) => {
                vec![(&*residence.unet, unet_weights), (&*residence.text, text_weights), (&*residence.vae, vae_weights)]
            }
        }
    }

    /// Computes a picture, so that everything is there that is made at first use.
    fn warm_up(&self, gpu: &Gpu, (height, width): (usize, usize)) -> Result<()> {
        let clock = Instant::now();
        let length = self.model.text_config.max_position_embeddings;
        let tokens = Tokens { ids: vec![0; length], truncated: 0, weights: vec![1.0; length] };
        let guidance = Guidance::of(&self.model.unet_config, 1.5);
        let prompts = if guidance.classifier_free().is_some() { 2 } else { 1 };
        let context = self.embed(&[&tokens; 2][..prompts])?;
        let noise = Tensor::zeros((1, self.model.unet_config.in_channels, height, width), DType::F32, &Device::Cpu)?;
        gpu.synchronize()?;
        gpu.note("rehearse_text", clock);
        let clock = Instant::now();
        let coefficients =
            StepCoefficients { clean_by_sample: 0.0, clean_by_output: 0.0, sample: 1.0, clean: 0.0, clean_before: 0.0 };
        let denoiser = self.denoiser(&[0.0; 2], &context, guidance, &noise, Some(&[coefficients; 2]))?;
        if let Denoiser::Gpu(mut recorded) = denoiser {
            let _ = recorded.run(&noise, 2, &mut |_| ControlFlow::Continue(()))?;
        }
        gpu.note("rehearse_step", clock);
        let clock = Instant::now();
        self.pixels(&noise, self.decoding(width))?;
        gpu.note("rehearse_vae", clock);
        Ok(gpu.note_firsts()?)
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
            DeviceState::Cpu => {
                let overlays = plan.merge(unet_weights, text_weights)?;
                let (text, unet) =
                    (text_weights.with_overlay(overlays.text_encoder), unet_weights.with_overlay(overlays.unet));
                self.text_encoder = TextEncoder::new(&self.model.text_config, Params::on_cpu(&text))?;
                self.unet = Unet::new(&self.model.unet_config, Params::on_cpu(&unet))?.into();
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

    /// The prompts' embeddings, `[prompts, tokens, hidden_size]`.
    pub(crate) fn embed(&self, prompts: &[&Tokens]) -> Result<Array> {
        let _here = self.here(|residence| &residence.text)?;
        self.text_encoder.encode(prompts, &self.added_embeddings)
    }

    /// Brings a part of the networks to the GPU, if it is away, until the result is dropped. A part of the UNet may have to leave for it.
    fn here(&self, part: impl Fn(&Residence) -> &Arc<Placed>) -> Result<Here> {
        self.enter()?;
        let DeviceState::Gpu(state) = &self.state else { return Ok(Here(None)) };
        state.residence.unet.leave()?;
        state.tidy()?;
        // Before it comes, so that it leaves after an error, too.
        let here = Here(Some(part(&state.residence).clone()));
        part(&state.residence).come()?;
        Ok(here)
    }

    /// Frees memory: recordings, scratch memory, and from now on less of the networks stays on the GPU, so that pictures of this size fit.
    ///
    /// # Errors
    /// They cannot fit, or the device fails.
    pub(crate) fn shrink(&mut self, extent: Extent) -> Result<()> {
        self.enter()?;
        if let DeviceState::Gpu(state) = &mut self.state {
            state.recordings.clear()?;
            state.residence.shrink((&self.model.unet_config, &self.model.vae_config), extent)?;
        }
        Ok(())
    }

    /// How latents of this size are decoded as the networks lie now.
    fn decoding(&self, width: usize) -> DecodeMemory {
        let factor = self.model.vae_config.factor();
        match self.footprint() {
            Some(Footprint { in_bands: true, .. }) => DecodeMemory::bands(width * factor),
            _ => DecodeMemory::Whole,
        }
    }

    /// All that can leave the GPU leaves while it is not in use.
    pub(crate) fn lend_all(&mut self) -> Result<()> {
        self.enter()?;
        if let DeviceState::Gpu(state) = &mut self.state {
            state.recordings.clear()?;
            state.residence.lend_all()?;
        }
        Ok(())
    }

    /// What the networks need, against what is free now. None on a CPU.
    pub(crate) fn shortage(&self) -> Option<Shortage> {
        match &self.state {
            DeviceState::Cpu => None,
            DeviceState::Gpu(state) => state.residence.shortage().ok(),
        }
    }

    /// How the networks lie in the GPU's memory. None on a CPU.
    pub(crate) fn footprint(&self) -> Option<Footprint> {
        match &self.state {
            DeviceState::Cpu => None,
            DeviceState::Gpu(state) => Some(state.residence.footprint()),
        }
    }

    /// See [`crate::pipeline::Pipeline::unet_output_guided`].
    pub(crate) fn unet_output(
        &self,
        latents: &Tensor,
        timestep: f64,
        guidance_scale: Option<f64>,
        context: &Tensor,
    ) -> Result<Tensor> {
        let prepared = self.prepare(&[timestep], guidance_scale, &self.inputs.on_device(context)?)?;
        self.bring_unet()?;
        let step = match &self.state {
            DeviceState::Cpu => Step::Index(0),
            DeviceState::Gpu(state) => {
                let counter = state.residence.gpu().scratch(&[1], Dtype::F32)?;
                state.residence.gpu().clear(&counter)?;
                Step::Counter(counter)
            }
        };
        let latents = self.inputs.map_on_device(latents)?;
        let forward = || self.unet.forward(&latents, &step, &prepared);
        let output = match &self.state {
            DeviceState::Cpu => forward()?,
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
    /// guidance the negative ones and then the others, else the others alone. `coefficients` are those of the scheduler, if it has them.
    pub(crate) fn denoiser(
        &self,
        timesteps: &[f64],
        context: &Array,
        guidance: Guidance,
        noise: &Tensor,
        coefficients: Option<&[StepCoefficients]>,
    ) -> Result<Denoiser<'_>> {
        let prepared = self.prepare(timesteps, guidance.embedded(), context)?;
        let guidance_scale = guidance.classifier_free();
        Ok(match &self.state {
            DeviceState::Cpu => Denoiser::Cpu { unet: &self.unet, prepared, guidance_scale },
            DeviceState::Gpu(state) => {
                let (recordings, steps) = (&state.recordings, timesteps.len());
                let recorded = recordings.denoiser(prepared, steps, guidance_scale, noise, coefficients)?;
                self.bring_unet()?;
                Denoiser::Gpu(recorded)
            }
        })
    }

    /// What all steps share.
    fn prepare(&self, timesteps: &[f64], guidance_scale: Option<f64>, context: &Array) -> Result<Prepared> {
        let _here = self.here(|residence| &residence.ahead)?;
        self.unet.prepare(timesteps, guidance_scale, context)
    }

    /// Brings what is away of the UNet. It stays until pixels are made.
    fn bring_unet(&self) -> Result<()> {
        if let DeviceState::Gpu(state) = &self.state {
            state.tidy()?;
            state.residence.unet.come()?;
        }
        Ok(())
    }

    /// The pixels of one picture's latents `[1, channels, height, width]`: bytes `[height, width, 3]`, with height and width.
    pub(crate) fn pixels(&self, latents: &Tensor, memory: DecodeMemory) -> Result<(Vec<u8>, usize, usize)> {
        match &self.state {
            DeviceState::Cpu => {
                let pixels = self.vae_output(latents, memory)?;
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

/// A part of the networks that is on the GPU for as long as this lives.
struct Here(Option<Arc<Placed>>);

impl Drop for Here {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.as_ref().map(|placed| placed.leave()) {
            tracing::warn!(%error, "weights that are not in use stay on the GPU");
        }
    }
}

impl Denoiser<'_> {
    /// The UNet's output for `latents` at that step, after guidance. Both are f32 on the CPU. Steps must come in order from 0.
    pub(crate) fn predict(&mut self, latents: &Tensor, step: usize) -> Result<Tensor> {
        match self {
            Self::Cpu { unet, prepared, guidance_scale } => {
                let input = if guidance_scale.is_some() {
                    Tensor::cat(&[latents, latents], 0)?
                } else {
                    latents.contiguous()?
                };
                let output = unet.forward(&Array::Cpu(input), &Step::Index(step), prepared)?;
                let output = output.to_tensor()?;
                Ok(guidance_scale.map_or(Ok(output.clone()), |scale| guide(&output, scale))?)
            }
            Self::Gpu(recorded) => Ok(recorded.predict(latents)?),
        }
    }
}
