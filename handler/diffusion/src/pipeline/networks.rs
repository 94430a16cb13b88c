//! The three networks of a model on their device: they compute the prompt's embedding, the noise of one step, and pixels.

use super::{
    gpu_state::GpuState,
    graphs::{RecordedDenoiser, Recordings},
    guidance::{Guidance, guide},
};
use crate::{
    error::{PipelineError, Result},
    gpu::{Dtype, Gpu, GpuError, Placed},
    loading::config::{TextEncoderConfig, UnetConfig, VaeConfig},
    loading::{is_checkpoint, weights::Weights},
    lora::{LoraError, MergePlan},
    models::text_encoder::{AddedEmbeddings, TextEncoder},
    models::unet::{Prepared, Unet},
    models::vae::VaeDecoder,
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

/// If less memory than this is free after loading, in bytes, networks are offloaded: a picture of 768x768 needs 1.1 GiB.
pub(super) const MIN_FREE: usize = 1536 << 20;

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

/// Whether text encoder and VAE leave the GPU while they are not in use. They are read from the model's files when they are needed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Offload {
    /// If there is little free memory after loading.
    #[default]
    Auto,
    /// Always.
    Always,
    /// Never.
    Never,
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
            Compute::Gpu(gpu, dtype) => {
                gpu.enter()?;
                let [text, unet, vae] = [(); 3].map(|()| Placed::new(gpu, *dtype));
                let (text, unet, vae) = (text?, unet?, vae?);
                let on_gpu = Unet::new(&model.unet_config, Params::on_gpu(&model.unet_weights, &unet))?;
                let on_gpu = Arc::new(on_gpu);
                let mut networks = Self {
                    inputs: Params::on_gpu(&model.text_weights, &text),
                    text_encoder: TextEncoder::new(&model.text_config, Params::on_gpu(&model.text_weights, &text))?,
                    added_embeddings: AddedEmbeddings::new(),
                    unet: on_gpu.clone(),
                    vae: VaeDecoder::new(&model.vae_config, Params::on_gpu(&model.vae_weights, &vae))?,
                    state: DeviceState::Gpu(GpuState {
                        text: text.clone(),
                        unet: unet.clone(),
                        vae: vae.clone(),
                        // Nothing may leave while it is being copied.
                        offloads: false,
                        changed: Default::default(),
                        recordings: Recordings::new(gpu, *dtype, on_gpu),
                    }),
                    model,
                };
                let weights = &networks.model;
                gpu.synchronize()?;
                thread::scope(|scope| {
                    let filling = scope.spawn(|| {
                        let clock = Instant::now();
                        let sources = [
                            (&unet, &weights.unet_weights),
                            (&text, &weights.text_weights),
                            (&vae, &weights.vae_weights),
                        ];
                        gpu.enter()?;
                        sources.into_iter().try_for_each(|(placed, weights)| placed.fill(weights, None))?;
                        gpu.note("weights", clock);
                        Ok::<_, GpuError>(())
                    });
                    gpu.open_libraries()?;
                    let mut filling = Some(filling);
                    let mut join = || match filling.take() {
                        Some(filling) => filling.join().unwrap_or_else(|panic| resume_unwind(panic)),
                        None => Ok(()),
                    };
                    if !gpu.tune_with(&tuned(&networks.model.folder))? {
                        // Tuning measures times, which copying would disturb.
                        join()?;
                    }
                    networks.warm_up(gpu, size)?;
                    join().map_err(PipelineError::from)
                })?;
                if let DeviceState::Gpu(state) = &mut networks.state {
                    state.offloads = match offload {
                        Offload::Auto => gpu.free_bytes()? < MIN_FREE,
                        Offload::Always => true,
                        Offload::Never => false,
                    };
                }
                networks.offload_idle()?;
                Ok(networks)
            }
        }
    }

    /// Computes a picture with the memory's old content as weights.
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
        self.pixels(&noise)?;
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
        self.enter()?;
        if let DeviceState::Gpu(state) = &self.state {
            state.text.restore(&self.model.text_weights)?;
        }
        let embedded = self.text_encoder.encode(prompts, &self.added_embeddings)?;
        self.offload_idle()?;
        Ok(embedded)
    }

    /// Frees memory: recordings, scratch memory, and from now on each network that is not in use.
    pub(crate) fn shrink(&mut self) -> Result<()> {
        if let DeviceState::Gpu(state) = &mut self.state {
            state.recordings.clear()?;
            state.offloads = true;
        }
        self.offload_idle()
    }

    pub(crate) fn offloads(&self) -> bool {
        matches!(&self.state, DeviceState::Gpu(state) if state.offloads)
    }

    /// Removes the UNet from the GPU until it is needed again. Changes by LoRAs are lost.
    pub(crate) fn offload_unet(&mut self) -> Result<()> {
        if let DeviceState::Gpu(state) = &mut self.state {
            state.unet.offload()?;
            state.changed[1].clear();
        }
        Ok(())
    }

    /// If offloading is on, removes VAE and text encoder from the GPU. A text encoder that a LoRA has changed stays.
    fn offload_idle(&self) -> Result<()> {
        if let DeviceState::Gpu(state) = &self.state
            && state.offloads
        {
            state.vae.offload()?;
            if state.changed[0].is_empty() {
                state.text.offload()?;
            }
        }
        Ok(())
    }

    /// See [`crate::pipeline::Pipeline::unet_output_guided`].
    pub(crate) fn unet_output(
        &self,
        latents: &Tensor,
        timestep: f64,
        guidance_scale: Option<f64>,
        context: &Tensor,
    ) -> Result<Tensor> {
        self.enter()?;
        self.load_unet()?;
        let prepared = self.unet.prepare(&[timestep], guidance_scale, &self.inputs.on_device(context)?)?;
        let step = match &self.state {
            DeviceState::Cpu => Step::Index(0),
            DeviceState::Gpu(state) => {
                let counter = state.unet.gpu().scratch(&[1], Dtype::F32)?;
                state.unet.gpu().clear(&counter)?;
                Step::Counter(counter)
            }
        };
        let output = self.unet.forward(&self.inputs.map_on_device(latents)?, &step, &prepared)?;
        Ok(output.to_map(self.model.unet_config.out_channels)?)
    }

    /// See [`crate::pipeline::Pipeline::vae_output`].
    pub(crate) fn vae_output(&self, latents: &Tensor) -> Result<Tensor> {
        self.enter()?;
        if let DeviceState::Gpu(state) = &self.state {
            state.vae.restore(&self.model.vae_weights)?;
        }
        let latents = (latents / self.model.vae_config.scaling_factor)?;
        Ok(self.vae.decode(&self.inputs.map_on_device(&latents)?)?.to_map(self.model.vae_config.out_channels)?)
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
        self.load_unet()?;
        let prepared = self.unet.prepare(timesteps, guidance.embedded(), context)?;
        let guidance_scale = guidance.classifier_free();
        Ok(match &self.state {
            DeviceState::Cpu => Denoiser::Cpu { unet: &self.unet, prepared, guidance_scale },
            DeviceState::Gpu(state) => {
                let (recordings, steps) = (&state.recordings, timesteps.len());
                Denoiser::Gpu(recordings.denoiser(prepared, steps, guidance_scale, noise, coefficients)?)
            }
        })
    }

    /// The pixels of one picture's latents `[1, channels, height, width]`: bytes `[height, width, 3]`, with height and width.
    pub(crate) fn pixels(&self, latents: &Tensor) -> Result<(Vec<u8>, usize, usize)> {
        match &self.state {
            DeviceState::Cpu => {
                let pixels = self.vae_output(latents)?;
                let pixels = ((pixels / 2.0)? + 0.5)?.clamp(0f32, 1f32)?.squeeze(0)?.permute((1, 2, 0))?;
                let (height, width, _) = pixels.dims3()?;
                let levels = pixels.flatten_all()?.to_vec1::<f32>()?;
                Ok((levels.into_iter().map(|level| (level * 255.0).round_ties_even() as u8).collect(), height, width))
            }
            DeviceState::Gpu(state) => {
                self.enter()?;
                state.vae.restore(&self.model.vae_weights)?;
                let pixels = state.recordings.pixels(&self.vae, latents, self.model.vae_config.scaling_factor)?;
                self.offload_idle()?;
                Ok(pixels)
            }
        }
    }

    /// Loads the UNet again if it was offloaded.
    fn load_unet(&self) -> Result<()> {
        if let DeviceState::Gpu(state) = &self.state {
            state.unet.restore(&self.model.unet_weights)?;
        }
        Ok(())
    }

    /// Makes the GPU's context current on this thread.
    fn enter(&self) -> Result<()> {
        if let DeviceState::Gpu(state) = &self.state {
            state.unet.gpu().enter()?;
        }
        Ok(())
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
