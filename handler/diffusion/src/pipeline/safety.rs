//! The safety checker of a pipeline: where its files are, how it gets on the device and leaves it, and what it says of a picture.

mod files;
mod preprocessing;
#[cfg(test)]
pub(crate) mod tests;

pub(super) use files::{CHECKER, settings_of, shapes};
pub use files::{CheckerInspection, inspect_safety_checker, safety_checker_parameters};

use super::{Compute, Pipeline, beside::Beside, fit::CheckerPlace};
use crate::{
    error::{PipelineError, Result},
    gpu::{Dtype, Gpu, Placed, Stay},
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
    time::{Duration, Instant},
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
    /// When the GPU last had no room for it.
    crowded_out: Option<Instant>,
}

struct OnGpu {
    gpu: Gpu,
    dtype: Dtype,
    place: CheckerPlace,
    placed: Option<Arc<Placed>>,
}

/// For how long the CPU looks at pictures after the GPU had no room.
const CROWDED: Duration = Duration::from_secs(60);
/// Bytes in which its memory comes and leaves.
const PAGE: usize = 8 << 20;

/// The number of parameters of the safety checker that a source names, 0 if there is none. Reads only JSON files.
pub(super) fn checker_parameters(model: &Path, source: &SafetySource) -> Result<usize> {
    match Files::find(model, &ModelIndex::load(model)?, source)? {
        Some(files) => files.told(|| files.parameters()),
        None => Ok(0),
    }
}

impl SafetyNetwork {
    /// Opens the checker that the source names, or none. On a GPU nothing of it is there before [`SafetyNetwork::settle`].
    pub(super) fn open(
        (model, index): (&Path, &ModelIndex),
        source: &SafetySource,
        compute: &Compute,
    ) -> Result<Option<Self>> {
        let Some(files) = Files::find(model, index, source)? else { return Ok(None) };
        let opened = files.told(|| files.open())?;
        let gpu = match compute {
            // In f32 in any case.
            Compute::Cpu | Compute::CpuBf16(_) => None,
            Compute::Gpu(gpu, dtype) => {
                Some(OnGpu { gpu: gpu.clone(), dtype: *dtype, place: CheckerPlace::Comes, placed: None })
            }
        };
        Ok(Some(Self { opened, gpu, network: None, crowded_out: None }))
    }

    /// Brings it to where it is to be. If it comes to the GPU for each look, it is not read before the first.
    pub(super) fn load(&mut self, place: CheckerPlace) -> Result<()> {
        if self.gpu.is_some() {
            self.settle(place)?;
            self.fill()?;
        }
        self.rehearse()
    }

    /// Creates everything that is created on first use, if it stays on its device.
    pub(super) fn rehearse(&mut self) -> Result<()> {
        let clock = Instant::now();
        let Some(on_gpu) = &self.gpu else { return self.enter() };
        if on_gpu.place == CheckerPlace::Stays {
            let gpu = on_gpu.gpu.clone();
            match self.check(&RgbImage::from_pixel(1, 1, Rgb([127; 3]))) {
                Err(error) if error.is_out_of_memory() => self.shrink()?,
                checked => drop(checked?),
            }
            gpu.note("rehearse_safety", clock);
        }
        Ok(())
    }

    /// Whether the CPU looks at the pictures.
    pub(super) fn is_on_cpu(&self) -> bool {
        let crowded = || self.crowded_out.is_some_and(|since| since.elapsed() < CROWDED);
        self.gpu.as_ref().is_some_and(|on_gpu| on_gpu.place == CheckerPlace::Cpu || crowded())
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
        match &mut self.gpu {
            Some(on_gpu) if on_gpu.place == CheckerPlace::Stays => on_gpu.place = CheckerPlace::Comes,
            _ => return Ok(()),
        }
        if let Some(OnGpu { placed: Some(placed), gpu, .. }) = &self.gpu {
            gpu.enter()?;
            placed.settle(&vec![Stay::Lent; placed.pages().1], 0)?;
        }
        Ok(())
    }

    /// Brings it to its device.
    fn enter(&mut self) -> Result<()> {
        match &self.gpu {
            None if self.network.is_some() => {}
            None => {
                let Opened { config, weights, .. } = &self.opened;
                self.network = Some(SafetyChecker::new(config, Params::on_cpu(weights))?);
            }
            Some(on_gpu) => {
                on_gpu.gpu.enter()?;
                if let Some(placed) = &on_gpu.placed {
                    placed.come()?;
                    return Ok(());
                }
                self.take_memory()?;
                if let Err(error) = self.fill() {
                    self.give_memory_back()?;
                    return Err(error);
                }
            }
        }
        Ok(())
    }

    /// Places its tensors, with memory behind them.
    fn take_memory(&mut self) -> Result<()> {
        let Some(on_gpu) = &mut self.gpu else { return Ok(()) };
        let placed = Placed::new(&on_gpu.gpu, on_gpu.dtype, PAGE)?;
        let network = SafetyChecker::new(&self.opened.config, Params::on_gpu(&self.opened.weights, &placed))?;
        let stay = if on_gpu.place == CheckerPlace::Stays { Stay::Kept } else { Stay::Lent };
        let taken = placed.settle(&vec![stay; placed.pages().1], 0).and_then(|()| placed.come());
        let taken = taken.and_then(|_| placed.clear_padding()).and_then(|()| on_gpu.gpu.synchronize());
        (on_gpu.placed, self.network) = (Some(placed), Some(network));
        if let Err(error) = taken {
            self.give_memory_back()?;
            return Err(error.into());
        }
        Ok(())
    }

    /// Forgets its tensors. None of their memory stays taken.
    fn give_memory_back(&mut self) -> Result<()> {
        self.network = None;
        let placed = self.gpu.as_mut().and_then(|on_gpu| on_gpu.placed.take());
        placed.map_or(Ok(()), |placed| Ok(placed.settle(&vec![Stay::Lent; placed.pages().1], 0)?))
    }

    /// Leaves the GPU unless it stays there.
    fn leave(&self) -> Result<()> {
        if let Some(OnGpu { placed: Some(placed), gpu, .. }) = &self.gpu {
            gpu.enter()?;
            // Pages that stay are not lent.
            placed.leave()?;
        }
        Ok(())
    }
}

impl Beside for SafetyNetwork {
    fn parameters(&self) -> Result<usize> {
        files::parameters_of(&self.opened.config)
    }

    fn settle(&mut self, place: CheckerPlace) -> Result<()> {
        let Some(on_gpu) = &mut self.gpu else { return Ok(()) };
        on_gpu.place = place;
        if place != CheckerPlace::Stays {
            return Ok(());
        }
        on_gpu.gpu.enter()?;
        match self.take_memory() {
            Err(error) if error.is_out_of_memory() => self.shrink(),
            taken => taken,
        }
    }

    fn fill(&self) -> Result<()> {
        match self.gpu.as_ref().and_then(|on_gpu| on_gpu.placed.as_ref()) {
            Some(placed) => Ok(placed.fill(&self.opened.weights, None)?),
            None => Ok(()),
        }
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
        self.safety = SafetyNetwork::open(model, source, &self.compute)?;
        let place = self.networks.checker_place();
        self.safety.as_mut().map_or(Ok(()), |safety| safety.load(place))
    }

    /// Whether a safety checker is loaded.
    pub fn has_safety_checker(&self) -> bool {
        self.safety.is_some()
    }

    /// What the safety checker says of each picture. If memory runs out on a GPU, other networks leave it meanwhile. If it is still too
    /// little, the CPU looks at the pictures.
    ///
    /// # Errors
    /// No safety checker is loaded, or the device fails or has too little memory.
    pub fn check_safety(&mut self, pictures: &[RgbImage]) -> Result<Vec<Verdict>> {
        let none = || PipelineError::from(candle_core::Error::msg("no safety checker is loaded"));
        let safety = self.safety.as_mut().ok_or_else(none)?;
        if safety.is_on_cpu() {
            return safety.check_on_cpu(pictures);
        }
        let check = |safety: &mut SafetyNetwork| pictures.iter().map(|picture| safety.check(picture)).collect();
        let too_large = |checked: &Result<Vec<Verdict>>| matches!(checked, Err(error) if error.is_out_of_memory());
        self.networks.make_way_for_checker()?;
        let mut checked = check(safety);
        if too_large(&checked) {
            tracing::warn!("out of memory for the safety checker: once more, with nothing beside it");
            safety.shrink()?;
            self.networks.lend_all()?;
            self.networks.make_way_for_checker()?;
            checked = check(safety);
        }
        if too_large(&checked) {
            tracing::warn!("no room for the safety checker on the GPU: for a minute the CPU looks at the pictures");
            safety.crowded_out = Some(Instant::now());
            return safety.check_on_cpu(pictures);
        }
        checked
    }
}
