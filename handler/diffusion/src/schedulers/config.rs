//! `scheduler/scheduler_config.json`, read for any scheduler as diffusers' `from_config` does.
//!
//! If a field is absent or null, the scheduler has its own default. A field that diffusers' scheduler does not know is ignored. A
//! field that it knows must have a value that is supported here.

use super::{over, times};
use crate::{
    error::{PipelineError, Result},
    loading,
};
use candle_core::Tensor;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::path::Path;

/// The file inside the model folder.
const FILE: &str = "scheduler/scheduler_config.json";
/// The values that every scheduler supports.
const COMMON: [Limit; 4] = [
    ("prediction_type", "epsilon, v_prediction"),
    ("beta_schedule", "linear, scaled_linear"),
    ("timestep_spacing", "linspace, leading, trailing"),
    ("trained_betas", "null"),
];

/// A field and the values that it may have.
pub(super) type Limit = (&'static str, &'static str);

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

/// How the betas of training grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BetaSchedule {
    Linear,
    ScaledLinear,
}

/// How the timesteps of a run are picked from those of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TimestepSpacing {
    Linspace,
    Leading,
    Trailing,
}

/// The scheduler settings of a model folder.
#[derive(Debug, Clone, Deserialize)]
pub struct SchedulerConfig {
    /// Timesteps of training, 1000 for SD1.5.
    #[serde(default = "thousand")]
    pub num_train_timesteps: usize,
    /// What the UNet predicts.
    #[serde(default)]
    pub prediction_type: PredictionType,
    pub(super) beta_start: Option<f64>,
    pub(super) beta_end: Option<f64>,
    pub(super) beta_schedule: Option<BetaSchedule>,
    pub(super) rescale_betas_zero_snr: Option<bool>,
    pub(super) timestep_spacing: Option<TimestepSpacing>,
    #[serde(default)]
    pub(super) steps_offset: usize,
    pub(super) use_karras_sigmas: Option<bool>,
    pub(super) set_alpha_to_one: Option<bool>,
    clip_sample: Option<bool>,
    clip_sample_range: Option<f64>,
    pub(super) original_inference_steps: Option<usize>,
    pub(super) timestep_scaling: Option<f64>,
    #[serde(flatten)]
    others: Map<String, Value>,
}

impl SchedulerConfig {
    /// Reads the file of a model folder.
    ///
    /// # Errors
    /// File, JSON, or a setting that no scheduler here supports.
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
    /// As [`SchedulerConfig::load`].
    pub fn from_json(value: Value) -> Result<Self> {
        if let Some(fields) = value.as_object() {
            check(fields, &COMMON)?;
        }
        let config: Self =
            serde_json::from_value(value).map_err(|source| PipelineError::Json { path: FILE.into(), source })?;
        match config.num_train_timesteps {
            0 | 1 => Err(unsupported("num_train_timesteps", config.num_train_timesteps.to_string(), "2 and more")),
            _ => Ok(config),
        }
    }

    /// Checks fields that only some schedulers know.
    ///
    /// # Errors
    /// The first field with an unsupported value.
    pub(super) fn check(&self, limits: &[Limit]) -> Result<()> {
        check(&self.others, limits)
    }

    /// The largest absolute value in the clean picture. None if it is not clipped.
    pub(super) fn clip(&self, default: bool) -> Option<f64> {
        self.clip_sample.unwrap_or(default).then(|| self.clip_sample_range.unwrap_or(1.0))
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
}

/// The error for a value of a field in the file.
pub(super) fn unsupported(field: &'static str, value: String, supported: &'static str) -> PipelineError {
    PipelineError::Unsupported { file: FILE, field, value, supported }
}

fn check(fields: &Map<String, Value>, limits: &[Limit]) -> Result<()> {
    for (field, supported) in limits {
        let value = fields.get(*field).filter(|value| !value.is_null());
        let text = value.map(|value| value.as_str().map_or_else(|| value.to_string(), str::to_string));
        if let Some(text) = text.filter(|text| !supported.split(", ").any(|known| known == text)) {
            return Err(unsupported(field, text, supported));
        }
    }
    Ok(())
}

fn thousand() -> usize {
    1000
}
