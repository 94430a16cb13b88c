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
mod painting;
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
pub use painting::{Latents, Watch, WatchParts};
pub use preview::PreviewMap;
pub use request::{Request, StartImage, steps_of_strength};
pub use residence::{Footprint, foresee};
#[cfg(test)]
pub(crate) use safety::tests as safety_tests;
pub use safety::{CheckerInspection, SafetySource, Verdict, inspect_safety_checker, safety_checker_parameters};
pub use start::filling;

use crate::{
    error::Result,
    loading::{
        config::{ModelIndex, TextEncoderConfig, UnetConfig, VaeConfig, check_together},
        is_checkpoint,
    },
    lora::{self, AppliedLora, Dora, LoraError, Target},
    prompt::inversion::{AppliedInversion, InversionError},
    prompt::tokenizer::Tokenizer,
    schedulers::{self, SchedulerConfig},
};
use beside::Beside;
use candle_core::DType;
use inversions::Inversions;
use networks::{Model, Networks};
use residence::{Extent, Sizes};
use safety::SafetyNetwork;
use std::path::Path;

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
    /// It cannot fit ([`PipelineError::Memory`](crate::error::PipelineError::Memory)), or the device fails.
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
}
