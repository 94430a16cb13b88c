//! The networks of a model on a GPU: how they are loaded, and what comes and leaves with the phases of a picture.

use super::{Denoiser, DeviceState, Model, Networks};
use crate::{
    error::Result,
    gpu::{Gpu, Placed},
    loading::weights::Weights,
    models::{
        text_encoder::{AddedEmbeddings, TextEncoder},
        unet::Unet,
        vae::{DecodeMemory, VaeDecoder},
    },
    offload::{Offload, Shortage},
    ops::{Prompts, params::Params},
    pipeline::{
        beside::Beside,
        fit::CheckerPlace,
        gpu_state::GpuState,
        graphs::Recordings,
        guidance::Guidance,
        residence::{Extent, Footprint, Residence, Sizes},
    },
    prompt::tokenizer::Tokens,
    schedulers::StepCoefficients,
};
use candle_core::{DType, Device, Tensor};
use std::{ops::ControlFlow, panic::resume_unwind, sync::Arc, thread, time::Instant};

impl Networks {
    pub(super) fn on_gpu(
        model: Model,
        mut residence: Residence,
        offload: Offload,
        sizes: Sizes,
        mut beside: Option<&mut dyn Beside>,
    ) -> Result<Self> {
        let (gpu, dtype) = (&residence.gpu().clone(), residence.unet.dtype());
        let Residence { text, ahead, unet, vae, .. } = &residence;
        let tokens = model.text_config.max_position_embeddings;
        let unet_params = Params::on_gpu(&model.unet_weights, unet).with_section(ahead).for_prompts_of(tokens);
        let on_gpu = Arc::new(Unet::new(&model.unet_config, unet_params)?);
        let recordings = Recordings::new(gpu, dtype, on_gpu.clone(), [unet, ahead].map(Arc::clone));
        let inputs = Params::on_gpu(&model.text_weights, text);
        let text_encoder = TextEncoder::new(&model.text_config, inputs.clone())?;
        let decoder = VaeDecoder::new(&model.vae_config, Params::on_gpu(&model.vae_weights, vae))?;
        // Until here there are addresses, and no memory behind them.
        residence.settle((&model.unet_config, &model.vae_config), sizes, offload)?;
        let is_whole = residence.is_whole();
        if let Some(beside) = beside.as_deref_mut() {
            beside.settle(residence.checker_place())?;
        }
        let beside = beside.as_deref();
        let mut networks = Self {
            inputs,
            text_encoder,
            added_embeddings: AddedEmbeddings::new(),
            unet: on_gpu,
            vae: decoder,
            encoder: None,
            state: DeviceState::Gpu(Box::new(GpuState { residence, changed: Default::default(), recordings })),
            model,
        };
        if is_whole {
            networks.load_beside(gpu, sizes.first, beside)?
        } else {
            networks.load_first(gpu, sizes.first, beside)?
        }
        if let DeviceState::Gpu(state) = &mut networks.state {
            state.tidy()?;
        }
        Ok(networks)
    }

    /// Copies the weights while a picture is computed with the memory's old content.
    fn load_beside(&self, gpu: &Gpu, size: (usize, usize), beside: Option<&dyn Beside>) -> Result<()> {
        self.weights().into_iter().try_for_each(|(placed, _)| placed.clear_padding())?;
        gpu.synchronize()?;
        thread::scope(|scope| {
            let filling = scope.spawn(|| {
                let clock = Instant::now();
                gpu.enter()?;
                self.weights().into_iter().try_for_each(|(placed, weights)| placed.fill(weights, None))?;
                gpu.note("weights", clock);
                fill(gpu, beside)
            });
            self.warm_up(gpu, size)?;
            filling.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }

    /// Copies the weights, one network after the other, and then computes a picture: there is no memory to do both.
    fn load_first(&self, gpu: &Gpu, size: (usize, usize), beside: Option<&dyn Beside>) -> Result<()> {
        gpu.carry_by_few();
        let clock = Instant::now();
        for (placed, weights) in self.weights() {
            placed.clear_padding()?;
            placed.fill(weights, None)?;
        }
        gpu.note("weights", clock);
        fill(gpu, beside)?;
        self.warm_up(gpu, size)
    }

    /// The networks on the GPU with the base weights of each, the largest first. On a CPU none.
    fn weights(&self) -> Vec<(&Placed, &Weights)> {
        let Model { text_weights, unet_weights, vae_weights, .. } = &self.model;
        match &self.state {
            DeviceState::Cpu(_) => Vec::new(),
            DeviceState::Gpu(state) => {
                let residence = &state.residence;
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
        let context = self.embed(&[&tokens; 2][..prompts], 0)?;
        let noise = Tensor::zeros((1, self.model.unet_config.in_channels, height, width), DType::F32, &Device::Cpu)?;
        gpu.synchronize()?;
        gpu.note("rehearse_text", clock);
        let clock = Instant::now();
        let coefficients =
            StepCoefficients { clean_by_sample: 0.0, clean_by_output: 0.0, sample: 1.0, clean: 0.0, clean_before: 0.0 };
        let denoiser = self.denoiser(&[0.0; 2], &context, guidance, &noise, Some(&[coefficients; 2]))?;
        if let Denoiser::Gpu { mut recorded, .. } = denoiser {
            let _ = recorded.run(&noise, 2, &mut |_, _| ControlFlow::Continue(()))?;
        }
        gpu.note("rehearse_step", clock);
        let clock = Instant::now();
        self.pixels(&noise, self.decoding((height, width)))?;
        gpu.note("rehearse_vae", clock);
        Ok(())
    }

    /// Brings a part of the networks to the GPU, if it is away, until the result is dropped. A part of the UNet may have to leave for it.
    pub(super) fn here(&self, part: impl Fn(&Residence) -> &Arc<Placed>) -> Result<Here> {
        self.enter()?;
        let DeviceState::Gpu(state) = &self.state else { return Ok(Here(None)) };
        state.residence.unet.leave()?;
        state.tidy()?;
        // Before it comes, so that it leaves after an error, too.
        let here = Here(Some(part(&state.residence).clone()));
        part(&state.residence).come()?;
        Ok(here)
    }

    /// Brings what the steps for prompts of so many tokens need besides the UNet's own weights, if anything, until the result is dropped.
    pub(super) fn ahead_of(&self, tokens: usize) -> Result<Here> {
        if Prompts::fold(tokens) { Ok(Here(None)) } else { self.here(|residence| &residence.ahead) }
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

    /// How latents of this height and width are decoded as the networks lie now.
    pub(crate) fn decoding(&self, (height, width): (usize, usize)) -> DecodeMemory {
        let (config, factor) = (&self.model.vae_config, self.model.vae_config.factor());
        match &self.state {
            DeviceState::Cpu(_) => DecodeMemory::Whole,
            DeviceState::Gpu(state) => state.residence.decoding(config, (width * factor, height * factor)),
        }
    }

    /// Makes room for the safety checker: what is lent of the UNet leaves, and scratch memory that only the decoder used.
    pub(crate) fn make_way_for_checker(&self) -> Result<()> {
        self.enter()?;
        if let DeviceState::Gpu(state) = &self.state {
            state.residence.unet.leave()?;
            state.tidy()?;
        }
        Ok(())
    }

    /// Where a safety checker looks at pictures. On a CPU it is there.
    pub(crate) fn checker_place(&self) -> CheckerPlace {
        match &self.state {
            DeviceState::Cpu(_) => CheckerPlace::Stays,
            DeviceState::Gpu(state) => state.residence.checker_place(),
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
            DeviceState::Cpu(_) => None,
            DeviceState::Gpu(state) => state.residence.shortage().ok(),
        }
    }

    /// How the networks lie in the GPU's memory. None on a CPU.
    pub(crate) fn footprint(&self) -> Option<Footprint> {
        match &self.state {
            DeviceState::Cpu(_) => None,
            DeviceState::Gpu(state) => Some(state.residence.footprint(self.model.vae_config.factor())),
        }
    }

    /// Brings what is away of the UNet. It stays until pixels are made.
    pub(super) fn bring_unet(&self) -> Result<()> {
        if let DeviceState::Gpu(state) = &self.state {
            state.tidy()?;
            state.residence.unet.come()?;
        }
        Ok(())
    }
}

/// Fills what is loaded beside the networks.
fn fill(gpu: &Gpu, beside: Option<&dyn Beside>) -> Result<()> {
    let Some(beside) = beside else { return Ok(()) };
    let clock = Instant::now();
    beside.fill()?;
    gpu.note("weights_beside", clock);
    Ok(())
}

/// A part of the networks that is on the GPU for as long as this lives.
pub(crate) struct Here(Option<Arc<Placed>>);

impl Drop for Here {
    fn drop(&mut self) {
        if let Some(Err(error)) = self.0.as_ref().map(|placed| placed.leave()) {
            tracing::warn!(%error, "weights that are not in use stay on the GPU");
        }
    }
}
