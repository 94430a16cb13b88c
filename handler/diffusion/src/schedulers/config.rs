//! `scheduler/scheduler_config.json`, read for any scheduler as diffusers does when a pipeline has loaded it and its scheduler is
//! replaced: `SCHEDULER.from_config(pipeline.scheduler.config)`.
//!
//! The pipeline's constructor changes two fields that the file may name. Then a field goes to the scheduler's own constructor if that
//! knows it. A field that the file does not name has that constructor's default, whatever class the file is of.

use super::{over, times};
use crate::{
    error::{MAX_NAME, PipelineError, Result, cut},
    loading,
};
use candle_core::Tensor;
use serde::{Deserialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use std::path::Path;

/// The file inside the model folder.
const FILE: &str = "scheduler/scheduler_config.json";
const PREDICTIONS: &str = "epsilon, v_prediction";

/// A field of a scheduler's constructor in diffusers: its name, its default, and what is done with it here. The default is as in JSON,
/// without the quotation marks of a text.
pub(super) type Field = (&'static str, &'static str, Use);

/// What is done with a field.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Use {
    /// It is read.
    Read,
    /// It must have one of these values, which paint the same.
    Only(&'static str),
    /// It must not have one of these values. All others paint the same.
    Not(&'static str),
    /// All values paint the same, as in diffusers.
    Ignored,
}

/// The fields of every constructor, but for those whose default or use differs.
pub(super) const TRAINING: [Field; 3] = [
    ("num_train_timesteps", "1000", Use::Read),
    ("trained_betas", "null", Use::Read),
    ("prediction_type", "epsilon", Use::Read),
];
/// The betas of every scheduler but LCM.
pub(super) const DDPM_BETAS: [Field; 3] =
    [("beta_start", "0.0001", Use::Read), ("beta_end", "0.02", Use::Read), ("beta_schedule", "linear", Use::Read)];
/// Dynamic thresholding of the clean picture, which is not for latents.
pub(super) const THRESHOLDING: [Field; 3] = [
    ("thresholding", "false", Use::Only("false")),
    ("dynamic_thresholding_ratio", "0.995", Use::Ignored),
    ("sample_max_value", "1.0", Use::Ignored),
];
/// The noise levels of schedulers that have those of Karras et al.
pub(super) const SIGMAS: [Field; 5] = [
    ("use_karras_sigmas", "false", Use::Read),
    ("use_exponential_sigmas", "false", Use::Only("false")),
    ("use_beta_sigmas", "false", Use::Only("false")),
    ("final_sigmas_type", "zero", Use::Only("zero")),
    ("rescale_betas_zero_snr", "false", Use::Read),
];
/// Flow matching. Without it, the two others have no effect.
pub(super) const FLOW: [Field; 3] = [
    ("use_flow_sigmas", "false", Use::Only("false")),
    ("flow_shift", "1.0", Use::Ignored),
    ("time_shift_type", "exponential", Use::Ignored),
];

/// What the UNet predicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    #[default]
    Epsilon,
    /// The velocity v (Salimans & Ho, "Progressive distillation for fast sampling of diffusion models", 2022).
    VPrediction,
}

/// The scheduler settings of a model folder: the fields that its file names.
#[derive(Debug, Clone)]
pub struct SchedulerConfig {
    named: Map<String, Value>,
}

impl SchedulerConfig {
    /// Reads the file of a model folder. Whether a scheduler supports its settings, [`super::check`] tells.
    ///
    /// # Errors
    /// File or JSON.
    pub fn load(model: &Path) -> Result<Self> {
        // Python writes minus infinity, a default in some files, in a way that is not JSON. It means no limit.
        let text = loading::settings(model, FILE)?.replace("-Infinity", "null");
        let failed = |source| PipelineError::Json { path: model.join(FILE), source };
        let value = serde_json::from_str(&text).map_err(failed)?;
        Self::from_json(value)
    }

    /// Reads the content of the file.
    ///
    /// # Errors
    /// It is no JSON object.
    pub fn from_json(value: Value) -> Result<Self> {
        let mut named: Map<String, Value> =
            serde_json::from_value(value).map_err(|source| PipelineError::Json { path: FILE.into(), source })?;
        // A list of fields that have their default only because nobody named them.
        if let Some(Value::Array(defaults)) = named.remove("_use_default_values") {
            named.retain(|name, _| !defaults.iter().any(|default| default == name));
        }
        // Two fields of outdated files are changed by StableDiffusionPipeline's constructor. A default is not: what it changes there,
        // `from_config` does not take over.
        if let Some(offset) = named.get_mut("steps_offset") {
            *offset = 1.into();
        }
        if let Some(clip @ Value::Bool(true)) = named.get_mut("clip_sample") {
            *clip = false.into();
        }
        Ok(Self { named })
    }

    /// The arguments of a constructor with these fields.
    ///
    /// # Errors
    /// A field with a value that is not supported.
    pub(super) fn settings(&self, fields: &'static [&'static [Field]]) -> Result<Settings<'_>> {
        let mut settings = Settings { named: &self.named, fields, train: 0, prediction: PredictionType::default() };
        for (name, _, usage) in fields.iter().copied().flatten() {
            let value = shown(&settings.value(name));
            let listed = |list: &str| list.split(", ").any(|known| known == value);
            match usage {
                Use::Only(supported) if !listed(supported) => return Err(unsupported(name, value, supported)),
                Use::Not(refused) if listed(refused) => return Err(unsupported(name, value, "any other value")),
                Use::Read | Use::Only(_) | Use::Not(_) | Use::Ignored => {}
            }
        }
        settings.train = settings.count("num_train_timesteps")?;
        settings.prediction = settings.choice("prediction_type", PREDICTIONS)?;
        match settings.train {
            0 | 1 => Err(settings.unsupported("num_train_timesteps", "2 and more")),
            _ => Ok(settings),
        }
    }
}

/// The arguments of one scheduler's constructor.
pub(super) struct Settings<'a> {
    named: &'a Map<String, Value>,
    fields: &'static [&'static [Field]],
    /// Timesteps of training, at least 2.
    pub(super) train: usize,
    /// What the UNet predicts.
    pub(super) prediction: PredictionType,
}

impl Settings<'_> {
    /// A switch. Null is off, as in Python, and so is a field that the constructor does not know.
    pub(super) fn flag(&self, name: &'static str) -> Result<bool> {
        match self.value(name) {
            Value::Null => Ok(false),
            value => value.as_bool().ok_or_else(|| self.unsupported(name, "true, false")),
        }
    }

    /// A number.
    pub(super) fn number(&self, name: &'static str) -> Result<f64> {
        self.value(name).as_f64().ok_or_else(|| self.unsupported(name, "a number"))
    }

    /// A number of things.
    pub(super) fn count(&self, name: &'static str) -> Result<usize> {
        let count = self.value(name).as_u64().and_then(|count| usize::try_from(count).ok());
        count.ok_or_else(|| self.unsupported(name, "a whole number"))
    }

    /// One of the `supported` texts.
    pub(super) fn choice<T: DeserializeOwned>(&self, name: &'static str, supported: &'static str) -> Result<T> {
        serde_json::from_value(self.value(name)).map_err(|_| self.unsupported(name, supported))
    }

    /// A list of numbers, or null.
    pub(super) fn numbers(&self, name: &'static str, supported: &'static str) -> Result<Option<Vec<f64>>> {
        self.choice(name, supported)
    }

    /// A positive number that diffusers reads if the file names it, even where the constructor does not know it.
    pub(super) fn named_number(&self, name: &'static str) -> Result<Option<f64>> {
        let Some(value) = self.named.get(name).filter(|value| !value.is_null()) else { return Ok(None) };
        let number = value.as_f64().filter(|&number| number > 0.0);
        number.map(Some).ok_or_else(|| unsupported(name, shown(value), "null and positive numbers"))
    }

    /// The largest absolute value in the clean picture. None if it is not clipped.
    pub(super) fn clip(&self) -> Result<Option<f64>> {
        self.flag("clip_sample")?.then(|| self.number("clip_sample_range")).transpose()
    }

    /// The error for the value of a field.
    pub(super) fn unsupported(&self, name: &'static str, supported: &'static str) -> PipelineError {
        unsupported(name, shown(&self.value(name)), supported)
    }

    /// What the file names, else the default. Null if the constructor does not know the field.
    fn value(&self, name: &str) -> Value {
        let Some((_, default, _)) = self.fields.iter().copied().flatten().find(|(known, ..)| *known == name) else {
            return Value::Null;
        };
        let default = serde_json::from_str(default).unwrap_or_else(|_| Value::from(*default));
        match self.named.get(name) {
            // A switch that is null is off.
            Some(Value::Null) if default.is_boolean() => false.into(),
            Some(value) => value.clone(),
            None => default,
        }
    }
}

impl PredictionType {
    /// The clean picture (diffusers' `pred_original_sample`) for the UNet's output, where `sample` is `alpha` of it plus `sigma` of noise.
    pub(super) fn clean(
        self,
        output: &Tensor,
        sample: &Tensor,
        (alpha, sigma): (f32, f32),
    ) -> candle_core::Result<Tensor> {
        match self {
            Self::Epsilon => over(&(sample - times(output, sigma)?)?, alpha),
            Self::VPrediction => times(sample, alpha)? - times(output, sigma)?,
        }
    }

    /// The factors of sample and output in [`PredictionType::clean`].
    pub(super) fn clean_factors(self, (alpha, sigma): (f32, f32)) -> (f32, f32) {
        match self {
            Self::Epsilon => (1.0 / alpha, -sigma / alpha),
            Self::VPrediction => (alpha, -sigma),
        }
    }

    /// The noise in `sample` for the UNet's output, as in [`PredictionType::clean`].
    pub(super) fn noise(
        self,
        output: Tensor,
        sample: &Tensor,
        (alpha, sigma): (f32, f32),
    ) -> candle_core::Result<Tensor> {
        match self {
            Self::Epsilon => Ok(output),
            Self::VPrediction => times(&output, alpha)? + times(sample, sigma)?,
        }
    }
}

/// The error for a value of a field in the file.
fn unsupported(field: &'static str, value: String, supported: &'static str) -> PipelineError {
    PipelineError::Unsupported { file: FILE, field, value, supported }
}

/// A value in an error message: a text without quotation marks.
fn shown(value: &Value) -> String {
    let text = value.as_str().map_or_else(|| value.to_string(), str::to_string);
    cut(&text, MAX_NAME).into_owned()
}
