//! The files of a safety checker: where they are, whether they fit each other, and what a look at them finds.

use super::SafetySource;
use crate::{
    error::{PipelineError, Result},
    loading::{
        CHECKER_FILES,
        config::{ModelIndex, PreprocessorConfig, SafetyCheckerConfig, read_json},
        is_checkpoint, safety_checker_name,
        weights::Weights,
    },
    models::safety_checker::SafetyChecker,
    ops::params::{Params, ShapeRecorder, Shapes},
    pipeline::inspection,
};
use serde_json::{Map, Value};
use std::{
    path::{Path, PathBuf},
    sync::PoisonError,
};

/// The folders inside a model folder.
pub(in crate::pipeline) const CHECKER: &str = "safety_checker";
const EXTRACTOR: &str = "feature_extractor";

/// What was found in a safety checker that can be loaded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckerInspection {
    /// Its folder.
    pub folder: PathBuf,
    /// Tensors of the network.
    pub tensors: usize,
    /// Tensors that the network does not read: their number, and the first by name.
    pub unread: Option<(usize, String)>,
}

/// The folders with the files of a checker.
pub(super) struct Files {
    checker: PathBuf,
    extractor: PathBuf,
    /// The folder that was asked for, if it is not the model's.
    own: Option<PathBuf>,
}

/// Settings and weights of a checker that fit each other.
pub(super) struct Opened {
    pub(super) config: SafetyCheckerConfig,
    pub(super) preprocessing: PreprocessorConfig,
    pub(super) weights: Weights,
}

/// Checks the safety checker that a source names without reading its weights: settings, and the names and shapes of all tensors. None if
/// there is none.
///
/// # Errors
/// A missing or broken file, or a checker that is not supported. The error names the file and the field or tensor.
pub fn inspect_safety_checker(model: &Path, source: &SafetySource) -> Result<Option<CheckerInspection>> {
    let Some(files) = Files::find(model, &ModelIndex::load(model)?, source)? else { return Ok(None) };
    files.told(|| {
        let config = files.settings()?.0;
        let needed = shapes(&config)?;
        let unread = inspection::unread_of(CHECKER, &Weights::open(&files.checker, &CHECKER_FILES)?, &needed)?;
        Ok(Some(CheckerInspection { folder: files.checker.clone(), tensors: needed.len(), unread }))
    })
}

/// Names and shapes of the tensors of a safety checker with the settings in the content of its `config.json`.
///
/// # Errors
/// A setting is not supported.
pub fn safety_checker_parameters(config: &Map<String, Value>) -> Result<Shapes> {
    shapes(&SafetyCheckerConfig::from_object(config)?)
}

pub(in crate::pipeline) fn shapes(config: &SafetyCheckerConfig) -> Result<Shapes> {
    let shapes = ShapeRecorder::default();
    SafetyChecker::new(config, Params::recording(&shapes))?;
    Ok(std::mem::take(&mut *shapes.lock().unwrap_or_else(PoisonError::into_inner)))
}

/// The number of parameters of a checker with these settings.
pub(super) fn parameters_of(config: &SafetyCheckerConfig) -> Result<usize> {
    Ok(shapes(config)?.iter().map(|(_, dims)| dims.iter().product::<usize>()).sum())
}

/// The settings of the checker in a model folder.
pub(in crate::pipeline) fn settings_of(model: &Path) -> Result<SafetyCheckerConfig> {
    Ok(Files::inside(model).settings()?.0)
}

impl Files {
    fn inside(folder: &Path) -> Self {
        Self { checker: folder.join(CHECKER), extractor: folder.join(EXTRACTOR), own: None }
    }

    pub(super) fn find(model: &Path, index: &ModelIndex, source: &SafetySource) -> Result<Option<Self>> {
        match source {
            SafetySource::None => Ok(None),
            SafetySource::OfModel if is_checkpoint(model) => Ok(None),
            SafetySource::OfModel => {
                let there = model.join(CHECKER).is_dir() && index.has_safety_checker()?;
                Ok(there.then(|| Self::inside(model)))
            }
            SafetySource::Folder(folder) => {
                if !folder.is_dir() {
                    let reason =
                        "there is no such folder: give that of a safety checker, or of a model with one".into();
                    return Err(PipelineError::ModelFile { path: folder.clone(), reason });
                }
                let inside = Self::inside(folder);
                Ok(Some(if inside.checker.is_dir() {
                    Self { own: Some(folder.clone()), ..inside }
                } else {
                    Self { checker: folder.clone(), extractor: folder.clone(), own: Some(folder.clone()) }
                }))
            }
        }
    }

    /// The settings of network and pictures, which fit each other.
    fn settings(&self) -> Result<(SafetyCheckerConfig, PreprocessorConfig)> {
        let config = SafetyCheckerConfig::from_object(&read_json(&self.checker.join("config.json"))?)?;
        let path = self.extractor.join("preprocessor_config.json");
        let preprocessing = if path.exists() {
            read_json(&path)?
        } else {
            tracing::info!(file = %path.display(), "not there: pictures are prepared for the safety checker as CLIP's are by default");
            Map::new()
        };
        let preprocessing = PreprocessorConfig::from_object(&preprocessing)?;
        preprocessing.check_size(config.vision.image_size)?;
        Ok((config, preprocessing))
    }

    pub(super) fn parameters(&self) -> Result<usize> {
        parameters_of(&self.settings()?.0)
    }

    pub(super) fn open(&self) -> Result<Opened> {
        let (config, preprocessing) = self.settings()?;
        let weights = Weights::open(&self.checker, &CHECKER_FILES)?;
        inspection::fits(CHECKER, &weights, &shapes(&config)?)?;
        Ok(Opened { config, preprocessing, weights: weights.renamed(safety_checker_name) })
    }

    /// An error of a folder of its own says which one it is.
    pub(super) fn told<T>(&self, work: impl FnOnce() -> Result<T>) -> Result<T> {
        work().map_err(|error| match &self.own {
            Some(folder) => PipelineError::SafetyChecker { folder: folder.clone(), source: Box::new(error) },
            None => error,
        })
    }
}
