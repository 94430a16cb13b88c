//! The three networks of a model where they compute, and how each is run: the prompt's embedding, the noise of one step, pixels.

use crate::{
    error::{PipelineError, Result},
    loading::config::{TextEncoderConfig, UnetConfig, VaeConfig},
    loading::weights::Weights,
    models::text_encoder::TextEncoder,
    models::unet::{Prepared, Unet},
    models::vae::VaeDecoder,
    ops::params::{Asked, Params, Shapes},
    ops::{Array, Step},
    pipeline::compute::{Compute, Offload},
    pipeline::graphs::{self, Recorded},
    prompt::tokenizer::Tokens,
    schedulers::Sums,
};
use crate::{
    gpu::{Dtype, Gpu, GpuError, Placed, Product},
    lora::{LoraError, LowRank, Plan},
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

/// With less memory left than this once the weights are there, in bytes, networks take turns: a picture of 768x768 needs 1.1 GiB.
const SPARE: usize = 1536 << 20;

/// What was tuned for a GPU lies in this folder of the model.
const TUNED: &str = "tuned";

/// Names and shapes of the tensors that text encoder, UNet and VAE decoder of a model folder take, in diffusers' names. Only JSON
/// files are read.
///
/// # Errors
/// A missing or broken JSON file, or a model of another kind.
pub fn parameters(model: &Path) -> Result<[Shapes; 3]> {
    let asked = [(); 3].map(|()| Asked::default());
    let [text, unet, vae] = asked.each_ref().map(Params::listed);
    TextEncoder::new(&TextEncoderConfig::load(model)?, text)?;
    Unet::new(&UnetConfig::load(model)?, unet)?;
    VaeDecoder::new(&VaeConfig::load(model)?, vae)?;
    Ok(asked.map(|asked| std::mem::take(&mut *asked.lock().unwrap_or_else(PoisonError::into_inner))))
}

/// What the networks are made from. The base never changes.
pub(crate) struct Model {
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
    unet: Arc<Unet>,
    vae: VaeDecoder,
    /// Brings tensors where the networks compute.
    device: Params,
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
    vae: Arc<Placed>,
    /// Whether text encoder and VAE leave the GPU while they have nothing to do.
    offloads: bool,
    changed: [Vec<String>; 2],
    recorded: Recorded,
}

/// What one picture's steps are predicted with.
pub(crate) enum Steps<'a> {
    Cpu { unet: &'a Unet, prepared: Prepared, guidance_scale: Option<f64> },
    Gpu(graphs::Steps<'a>),
}

impl Networks {
    /// On a GPU, `size` is the height and width of the latents that are expected first: a picture of them is rehearsed while the
    /// weights are on their way, which brings everything up that is made on first use.
    pub(crate) fn new(model: Model, compute: &Compute, offload: Offload, size: (usize, usize)) -> Result<Self> {
        match compute {
            Compute::Cpu => {
                let [text, unet, vae] =
                    [&model.text_weights, &model.unet_weights, &model.vae_weights].map(Params::on_cpu);
                Ok(Self {
                    device: text.clone(),
                    text_encoder: TextEncoder::new(&model.text_config, text)?,
                    unet: Unet::new(&model.unet_config, unet)?.into(),
                    vae: VaeDecoder::new(&model.vae_config, vae)?,
                    model,
                    place: Place::Cpu,
                })
            }
            Compute::Gpu(gpu, dtype) => {
                gpu.enter()?;
                let [text, unet, vae] = [(); 3].map(|()| Placed::new(gpu, *dtype));
                let (text, unet, vae) = (text?, unet?, vae?);
                let on_gpu = Unet::new(&model.unet_config, Params::on_gpu(&model.unet_weights, &unet))?;
                let on_gpu = Arc::new(on_gpu);
                let mut networks = Self {
                    device: Params::on_gpu(&model.text_weights, &text),
                    text_encoder: TextEncoder::new(&model.text_config, Params::on_gpu(&model.text_weights, &text))?,
                    unet: on_gpu.clone(),
                    vae: VaeDecoder::new(&model.vae_config, Params::on_gpu(&model.vae_weights, &vae))?,
                    place: Place::Gpu(OnGpu {
                        text: text.clone(),
                        unet: unet.clone(),
                        vae: vae.clone(),
                        // Nothing leaves while it is still on its way.
                        offloads: false,
                        changed: Default::default(),
                        recorded: Recorded::new(gpu, *dtype, on_gpu),
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
                    if !gpu.tune_with(&networks.model.folder.join(TUNED))? {
                        // Times are taken, which nothing must disturb.
                        join()?;
                    }
                    networks.rehearse(gpu, size)?;
                    join().map_err(PipelineError::from)
                })?;
                if let Place::Gpu(on_gpu) = &mut networks.place {
                    on_gpu.offloads = match offload {
                        Offload::Auto => gpu.free_bytes()? < SPARE,
                        Offload::Always => true,
                        Offload::Never => false,
                    };
                }
                networks.spare()?;
                Ok(networks)
            }
        }
    }

    /// Paints nothing, with whatever lies where the weights will be.
    fn rehearse(&self, gpu: &Gpu, (height, width): (usize, usize)) -> Result<()> {
        let clock = Instant::now();
        let length = self.model.text_config.max_position_embeddings;
        let nothing = Tokens { ids: vec![0; length], truncated: 0, weights: vec![1.0; length] };
        let context = self.embed(&[&nothing, &nothing])?;
        let noise = Tensor::zeros((1, self.model.unet_config.in_channels, height, width), DType::F32, &Device::Cpu)?;
        gpu.synchronize()?;
        gpu.note("rehearse_text", clock);
        let clock = Instant::now();
        let sums = Sums { clean_by_sample: 0.0, clean_by_output: 0.0, sample: 1.0, clean: 0.0, clean_before: 0.0 };
        let mut steps = self.steps(&[0.0; 2], &context, Some(1.5), &noise, Some(&[sums; 2]))?;
        if let Steps::Gpu(steps) = &mut steps {
            let _ = steps.run(&noise, 2, &mut |_| ControlFlow::Continue(()))?;
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

    /// Brings the base's tensors as a plan wants them, and no others.
    ///
    /// # Errors
    /// Memory, or the disk. What is in force then is for another plan to say.
    pub(crate) fn apply(&mut self, plan: Plan) -> std::result::Result<(), LoraError> {
        let Model { text_weights, unet_weights, .. } = &self.model;
        match &mut self.place {
            Place::Cpu => {
                let overlays = plan.merge(unet_weights, text_weights)?;
                let (text, unet) =
                    (text_weights.with_overlay(overlays.text_encoder), unet_weights.with_overlay(overlays.unet));
                self.text_encoder =
                    TextEncoder::new(&self.model.text_config, Params::on_cpu(&text)).map_err(arithmetic)?;
                self.unet = Unet::new(&self.model.unet_config, Params::on_cpu(&unet)).map_err(arithmetic)?.into();
            }
            Place::Gpu(on_gpu) => {
                let text = on_gpu.apply(plan, text_weights, unet_weights)?;
                self.text_encoder.embed_from(&text);
            }
        }
        Ok(())
    }

    /// The prompts' embeddings, `[prompts, tokens, hidden_size]`.
    pub(crate) fn embed(&self, prompts: &[&Tokens]) -> Result<Array> {
        self.enter()?;
        if let Place::Gpu(on_gpu) = &self.place {
            on_gpu.text.restore(&self.model.text_weights)?;
        }
        let embedded = self.text_encoder.encode(prompts)?;
        self.spare()?;
        Ok(embedded)
    }

    /// Gives back what memory it can: recordings, scratch memory, and from now on each network that has nothing to do.
    pub(crate) fn shrink(&mut self) -> Result<()> {
        if let Place::Gpu(on_gpu) = &mut self.place {
            on_gpu.recorded.forget()?;
            on_gpu.offloads = true;
        }
        self.spare()
    }

    pub(crate) fn offloads(&self) -> bool {
        matches!(&self.place, Place::Gpu(on_gpu) if on_gpu.offloads)
    }

    /// Lets the UNet leave until it is needed again, with what LoRAs have changed in it.
    pub(crate) fn dismiss_unet(&mut self) -> Result<()> {
        if let Place::Gpu(on_gpu) = &mut self.place {
            on_gpu.unet.offload()?;
            on_gpu.changed[1].clear();
        }
        Ok(())
    }

    /// Lets go of what has nothing to do, where memory is short. A text encoder that a LoRA has changed stays.
    fn spare(&self) -> Result<()> {
        if let Place::Gpu(on_gpu) = &self.place
            && on_gpu.offloads
        {
            on_gpu.vae.offload()?;
            if on_gpu.changed[0].is_empty() {
                on_gpu.text.offload()?;
            }
        }
        Ok(())
    }

    /// The UNet's output for latents at one timestep, `context` the prompts' embedding for each of them; f32 on the CPU.
    pub(crate) fn output(&self, latents: &Tensor, timestep: f64, context: &Tensor) -> Result<Tensor> {
        self.enter()?;
        self.call_unet()?;
        let prepared = self.unet.prepare(&[timestep], &self.device.on_device(context)?)?;
        let step = self.first_step()?;
        let output = self.unet.forward(&self.device.map_on_device(latents)?, &step, &prepared)?;
        Ok(output.to_map(self.model.unet_config.out_channels)?)
    }

    /// The VAE decoder's output for latents: `[batch, 3, height, width]`, about -1 to 1, f32 on the CPU.
    pub(crate) fn decoded(&self, latents: &Tensor) -> Result<Tensor> {
        self.enter()?;
        if let Place::Gpu(on_gpu) = &self.place {
            on_gpu.vae.restore(&self.model.vae_weights)?;
        }
        let latents = (latents / self.model.vae_config.scaling_factor)?;
        Ok(self.vae.decode(&self.device.map_on_device(&latents)?)?.to_map(self.model.vae_config.out_channels)?)
    }

    fn first_step(&self) -> Result<Step> {
        Ok(match &self.place {
            Place::Cpu => Step::Index(0),
            Place::Gpu(on_gpu) => {
                let counter = on_gpu.unet.gpu().scratch(&[1], Dtype::F32)?;
                on_gpu.unet.gpu().clear(&counter)?;
                Step::Counter(counter)
            }
        })
    }

    /// Gets ready for the steps of pictures of one size of latents. `context` is the prompts' embedding for each of them: the
    /// negatives and then the positives with guidance, else the positives alone. `sums` are those of the scheduler, if it has them.
    pub(crate) fn steps(
        &self,
        timesteps: &[f64],
        context: &Array,
        guidance_scale: Option<f64>,
        noise: &Tensor,
        sums: Option<&[Sums]>,
    ) -> Result<Steps<'_>> {
        self.call_unet()?;
        let prepared = self.unet.prepare(timesteps, context)?;
        Ok(match &self.place {
            Place::Cpu => Steps::Cpu { unet: &self.unet, prepared, guidance_scale },
            Place::Gpu(on_gpu) => {
                let recorded = &on_gpu.recorded;
                Steps::Gpu(recorded.steps(prepared, timesteps.len(), guidance_scale, noise, sums)?)
            }
        })
    }

    /// Pixels of one picture's latents, `[1, channels, height, width]`, as bytes `[height, width, 3]`, with height and width.
    pub(crate) fn pixels(&self, latents: &Tensor) -> Result<(Vec<u8>, usize, usize)> {
        let factor = self.model.vae_config.scaling_factor;
        match &self.place {
            Place::Cpu => {
                let pixels = self.decoded(latents)?;
                let pixels = ((pixels / 2.0)? + 0.5)?.clamp(0f32, 1f32)?.squeeze(0)?.permute((1, 2, 0))?;
                let (height, width, _) = pixels.dims3()?;
                let levels = pixels.flatten_all()?.to_vec1::<f32>()?;
                Ok((levels.into_iter().map(|level| (level * 255.0).round_ties_even() as u8).collect(), height, width))
            }
            Place::Gpu(on_gpu) => {
                self.enter()?;
                on_gpu.vae.restore(&self.model.vae_weights)?;
                let pixels = on_gpu.recorded.pixels(&self.vae, latents, factor)?;
                self.spare()?;
                Ok(pixels)
            }
        }
    }

    /// Brings the UNet back if it has left.
    fn call_unet(&self) -> Result<()> {
        if let Place::Gpu(on_gpu) = &self.place {
            on_gpu.unet.restore(&self.model.unet_weights)?;
        }
        Ok(())
    }

    fn enter(&self) -> Result<()> {
        if let Place::Gpu(on_gpu) = &self.place {
            on_gpu.unet.gpu().enter()?;
        }
        Ok(())
    }
}

impl OnGpu {
    /// Restores what the last plan changed, then changes what this one does; every address stays, and so does what was recorded.
    /// Products are added on the GPU, the rest is merged on the CPU. Gives the text encoder's weights.
    fn apply(&mut self, mut plan: Plan, text: &Weights, unet: &Weights) -> std::result::Result<Weights, LoraError> {
        let gpu = self.unet.gpu();
        gpu.enter().and_then(|()| gpu.synchronize()).map_err(on_device)?;
        self.text.restore(text).and_then(|()| self.unet.restore(unet)).map_err(on_device)?;
        for ((placed, weights), changed) in [(&self.text, text), (&self.unet, unet)].into_iter().zip(&mut self.changed)
        {
            placed.fill(weights, Some(changed)).map_err(on_device)?;
            changed.clear();
        }
        let low_rank =
            plan.take_low_rank(|of_unet, name| if of_unet { &self.unet } else { &self.text }.takes_products(name));
        for (placed, of_unet) in [(&self.text, false), (&self.unet, true)] {
            let ours: Vec<_> = low_rank.iter().filter(|product| product.of_unet == of_unet).collect();
            self.changed[usize::from(of_unet)].extend(ours.iter().map(|product| product.name.clone()));
            add_products(placed, &ours)?;
        }
        // What is left goes by other streams.
        self.unet.gpu().synchronize().map_err(on_device)?;
        let overlays = plan.merge(unet, text)?;
        let (text, unet) = (text.with_overlay(overlays.text_encoder), unet.with_overlay(overlays.unet));
        for ((placed, weights), changed) in
            [(&self.text, &text), (&self.unet, &unet)].into_iter().zip(&mut self.changed)
        {
            let merged: Vec<String> = weights.overlay().keys().filter(|name| placed.has(name)).cloned().collect();
            // First, so that what was half written is restored, too.
            changed.extend(merged.iter().cloned());
            placed.fill(weights, Some(&merged)).map_err(on_device)?;
        }
        Ok(text)
    }
}

/// Adds products to matrices where they lie.
fn add_products(placed: &Placed, products: &[&LowRank]) -> std::result::Result<(), LoraError> {
    let of = |product: &&LowRank| Product {
        name: product.name.clone(),
        rows: product.rows,
        columns: product.columns,
        rank: product.rank,
    };
    let write = |index: usize, left: &mut [f32], right: &mut [f32]| {
        products[index].write(left, right).map_err(|error| GpuError::Unavailable(error.to_string()))
    };
    placed.add_products(&products.iter().map(of).collect::<Vec<_>>(), &write).map_err(on_device)
}

fn on_device(error: GpuError) -> LoraError {
    candle_core::Error::from(error).into()
}

fn arithmetic(error: PipelineError) -> LoraError {
    match error {
        PipelineError::Candle(error) => error.into(),
        other => candle_core::Error::Msg(other.to_string()).into(),
    }
}

impl Steps<'_> {
    /// The noise that the UNet sees in `latents` at that step, after guidance; both f32 on the CPU. Steps go in order from 0.
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
            Self::Gpu(steps) => Ok(steps.predict(latents)?),
        }
    }
}

/// Classifier-free guidance over `[negative, positive]` halves of the batch.
fn guide(output: &Tensor, scale: f64) -> candle_core::Result<Tensor> {
    let halves = output.chunk(2, 0)?;
    &halves[0] + ((&halves[1] - &halves[0])? * scale)?
}
