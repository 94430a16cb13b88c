//! The safety checker of a pipeline: where its files are, how it gets on the device and leaves it, and what it says of a picture.

mod files;
mod preprocessing;
mod resize;
#[cfg(test)]
pub(crate) mod tests;

pub(super) use files::{CHECKER, settings_of, shapes};
pub use files::{CheckerInspection, inspect_safety_checker, safety_checker_parameters};

use super::{Compute, Pipeline, networks::MIN_FREE};
use crate::{
    error::{PipelineError, Result},
    gpu::{Dtype, Gpu, Placed},
    loading::config::ModelIndex,
    models::safety_checker::SafetyChecker,
    ops::params::Params,
};
use candle_core::Tensor;
use files::{Files, Opened};
use image::{Rgb, RgbImage};
use preprocessing::pixels;
use std::{
    path::{Path, PathBuf},
    sync::Arc,
    time::Instant,
};

/// Which safety checker is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SafetySource {
    /// None.
    #[default]
    None,
    /// `safety_checker/` and `feature_extractor/` of the model folder, if its `model_index.json` names a checker and `safety_checker/` is
    /// there. A checkpoint has none.
    OfModel,
    /// Those of a folder. It has `safety_checker/` and `feature_extractor/` as a model folder, or the files of both itself.
    Folder(PathBuf),
}

/// What the safety checker says of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Whether any concept has a score above 0. Special care alone never flags.
    pub nsfw: bool,
    /// For each concept: cosine of picture and concept, minus the concept's threshold, plus 0.01 if special care was called for, rounded
    /// to three digits.
    pub concepts: Vec<f32>,
    /// The same for the concepts that call for special care. The first one above 0 adds 0.01 to all scores after it.
    pub special_care: Vec<f32>,
}

/// A safety checker on its device.
pub(super) struct SafetyNetwork {
    opened: Opened,
    gpu: Option<OnGpu>,
    /// None while it is not on the GPU.
    network: Option<SafetyChecker>,
}

struct OnGpu {
    gpu: Gpu,
    dtype: Dtype,
    /// Whether it stays on the GPU between two checks.
    stays: bool,
    placed: Option<Arc<Placed>>,
}

impl SafetyNetwork {
    /// Loads the checker that the source names, or none. On a GPU it stays there if at least `spare` bytes are free beside it. Otherwise
    /// it comes for each check.
    pub(super) fn load(
        (model, index): (&Path, &ModelIndex),
        source: &SafetySource,
        compute: &Compute,
        spare: usize,
    ) -> Result<Option<Self>> {
        let Some(files) = Files::find(model, index, source)? else { return Ok(None) };
        let clock = Instant::now();
        let opened = files.told(|| files.open())?;
        let gpu = match compute {
            Compute::Cpu => None,
            Compute::Gpu(gpu, dtype) => {
                let numbers: usize =
                    shapes(&opened.config)?.iter().map(|(_, dims)| dims.iter().product::<usize>()).sum();
                let stays = gpu.free_bytes()? >= numbers * dtype.bytes() + spare;
                Some(OnGpu { gpu: gpu.clone(), dtype: *dtype, stays, placed: None })
            }
        };
        let mut network = Self { opened, gpu, network: None };
        match &network.gpu {
            None => network.enter()?,
            Some(OnGpu { gpu, stays, .. }) => {
                let (gpu, stays) = (gpu.clone(), *stays);
                // Creates everything that is created on first use.
                match stays.then(|| network.check(&RgbImage::from_pixel(1, 1, Rgb([127; 3])))) {
                    Some(Err(error)) if error.is_out_of_memory() => network.shrink()?,
                    Some(Err(error)) => return Err(error),
                    None | Some(Ok(_)) => {}
                }
                gpu.note("safety_checker", clock);
            }
        }
        Ok(Some(network))
    }

    /// What it says of a picture.
    pub(super) fn check(&mut self, picture: &RgbImage) -> Result<Verdict> {
        self.enter()?;
        let verdict = match &self.network {
            Some(network) => verdict(network, &pixels(picture, &self.opened.preprocessing)?),
            None => Err(candle_core::Error::msg("the safety checker is not on its device").into()),
        };
        let left = self.leave();
        let verdict = verdict?;
        left.map(|()| verdict)
    }

    /// The same on the CPU, where it is loaded for these pictures alone.
    pub(super) fn check_on_cpu(&self, pictures: &[RgbImage]) -> Result<Vec<Verdict>> {
        let Opened { config, preprocessing, weights } = &self.opened;
        let network = SafetyChecker::new(config, Params::on_cpu(weights))?;
        pictures.iter().map(|picture| verdict(&network, &pixels(picture, preprocessing)?)).collect()
    }

    /// From now on it is on the GPU for its checks alone.
    pub(super) fn shrink(&mut self) -> Result<()> {
        if let Some(on_gpu) = &mut self.gpu {
            on_gpu.stays = false;
        }
        self.leave()
    }

    /// Brings it to its device.
    fn enter(&mut self) -> Result<()> {
        let Opened { config, weights, .. } = &self.opened;
        match &mut self.gpu {
            None if self.network.is_some() => {}
            None => self.network = Some(SafetyChecker::new(config, Params::on_cpu(weights))?),
            Some(on_gpu) => {
                on_gpu.gpu.enter()?;
                match &on_gpu.placed {
                    Some(placed) => placed.restore(weights)?,
                    None => {
                        let placed = Placed::new(&on_gpu.gpu, on_gpu.dtype)?;
                        let network = SafetyChecker::new(config, Params::on_gpu(weights, &placed))?;
                        // What was cleared for it must not be cleared after it came.
                        on_gpu.gpu.synchronize()?;
                        placed.fill(weights, None)?;
                        (on_gpu.placed, self.network) = (Some(placed), Some(network));
                    }
                }
            }
        }
        Ok(())
    }

    /// Leaves the GPU unless it stays there.
    fn leave(&self) -> Result<()> {
        if let Some(OnGpu { stays: false, placed: Some(placed), gpu, .. }) = &self.gpu {
            gpu.enter()?;
            placed.offload()?;
        }
        Ok(())
    }
}

fn verdict(network: &SafetyChecker, pixels: &Tensor) -> Result<Verdict> {
    let scores = network.scores(&network.cosines(pixels)?);
    let nsfw = scores.concepts.iter().any(|&score| score > 0.0);
    Ok(Verdict { nsfw, concepts: scores.concepts, special_care: scores.special_care })
}

impl Pipeline {
    /// Loads another safety checker, or none.
    ///
    /// # Errors
    /// A missing or broken file, or a checker that is not supported. The error names the file and the field or tensor. Then there is none.
    pub fn load_safety_checker(&mut self, source: &SafetySource) -> Result<()> {
        self.safety = None;
        let model = (self.networks.model().folder.as_path(), &self.index);
        // If networks leave the GPU because memory is short, the checker does not stay there.
        let spare = if self.networks.offloads() { usize::MAX / 2 } else { MIN_FREE };
        self.safety = SafetyNetwork::load(model, source, &self.compute, spare)?;
        Ok(())
    }

    /// Whether a safety checker is loaded.
    pub fn has_safety_checker(&self) -> bool {
        self.safety.is_some()
    }

    /// What the safety checker says of each picture. If memory runs out, other networks leave the GPU, so that LoRAs may have to be set
    /// again. If it is still too little, the CPU looks at the pictures.
    ///
    /// # Errors
    /// No safety checker is loaded, or the device fails or has too little memory.
    pub fn check_safety(&mut self, pictures: &[RgbImage]) -> Result<Vec<Verdict>> {
        let none = || PipelineError::from(candle_core::Error::msg("no safety checker is loaded"));
        let check = |safety: &mut SafetyNetwork| pictures.iter().map(|picture| safety.check(picture)).collect();
        let too_large = |checked: &Result<Vec<Verdict>>| matches!(checked, Err(error) if error.is_out_of_memory());
        let mut checked = check(self.safety.as_mut().ok_or_else(none)?);
        for without_unet in [false, true] {
            if too_large(&checked) {
                tracing::warn!(without_unet, "out of memory for the safety checker: once more, with less beside it");
                if without_unet {
                    self.make_room_for_pixels()?
                } else {
                    self.shrink()?
                }
                checked = check(self.safety.as_mut().ok_or_else(none)?);
            }
        }
        if too_large(&checked) {
            tracing::warn!("no room for the safety checker on the GPU: the CPU looks at the pictures");
            return self.safety.as_ref().ok_or_else(none)?.check_on_cpu(pictures);
        }
        checked
    }
}
