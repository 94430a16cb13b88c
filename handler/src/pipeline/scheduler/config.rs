//! `scheduler/scheduler_config.json`, read for any scheduler as diffusers' `from_config` does, and the noise schedule in it.

use crate::pipeline::{
    config::read_json,
    error::{PipelineError, Result},
};
use serde::Deserialize;
use std::path::Path;

/// What the UNet predicts.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PredictionType {
    /// The noise.
    #[default]
    Epsilon,
    /// The velocity (Salimans & Ho, "Progressive distillation for fast sampling of diffusion models", 2022).
    VPrediction,
}

/// How the timesteps of a run are picked from those of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum TimestepSpacing {
    Linspace,
    Leading,
    Trailing,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BetaSchedule {
    #[default]
    Linear,
    ScaledLinear,
}

/// The scheduler settings of a model folder. Fields that only other schedulers know are ignored.
#[derive(Debug, Clone, Deserialize)]
pub struct SchedulerConfig {
    /// Timesteps of training, 1000 for SD1.5.
    #[serde(default = "thousand")]
    pub num_train_timesteps: usize,
    /// What the UNet predicts.
    #[serde(default)]
    pub prediction_type: PredictionType,
    #[serde(default = "beta_start")]
    beta_start: f64,
    #[serde(default = "beta_end")]
    beta_end: f64,
    #[serde(default)]
    beta_schedule: BetaSchedule,
    #[serde(default)]
    timestep_spacing: Option<TimestepSpacing>,
    #[serde(default)]
    steps_offset: usize,
}

impl SchedulerConfig {
    /// Reads the file of a model folder.
    ///
    /// # Errors
    /// File, JSON, or a setting no scheduler here supports.
    pub fn load(model: &Path) -> Result<Self> {
        let config: Self = read_json(&model.join("scheduler/scheduler_config.json"))?;
        if config.num_train_timesteps < 2 {
            return Err(PipelineError::Unsupported {
                file: "scheduler/scheduler_config.json",
                field: "num_train_timesteps",
                value: config.num_train_timesteps.to_string(),
                supported: "2 and more",
            });
        }
        Ok(config)
    }

    /// The noise level sigma of each training timestep: `sqrt((1 - a) / a)`, `a` the cumulative product of `1 - beta`.
    ///
    /// Rounded to f32 where torch rounds.
    pub(super) fn train_sigmas(&self) -> Vec<f64> {
        let mut product = 1f32;
        let alphas = self.betas().into_iter().map(|beta| {
            product *= 1.0 - beta;
            product
        });
        alphas.map(|alpha| f64::from(((1.0 - alpha) / alpha).sqrt())).collect()
    }

    fn betas(&self) -> Vec<f32> {
        let line = |start: f64, end: f64| {
            let step = (end - start) / (self.num_train_timesteps - 1) as f64;
            (0..self.num_train_timesteps).map(move |index| (start + step * index as f64) as f32)
        };
        match self.beta_schedule {
            BetaSchedule::Linear => line(self.beta_start, self.beta_end).collect(),
            BetaSchedule::ScaledLinear => {
                line(self.beta_start.sqrt(), self.beta_end.sqrt()).map(|root| root * root).collect()
            }
        }
    }

    /// The timesteps of a run, noisiest first. `points` is the number of parts that linspace and leading divide into:
    /// `steps` for most schedulers, one more for DPM-Solver, which drops the last.
    pub(super) fn timesteps(&self, steps: usize, points: usize, default: TimestepSpacing) -> Vec<f64> {
        let train = self.num_train_timesteps;
        let spaced: Vec<f64> = match self.timestep_spacing.unwrap_or(default) {
            TimestepSpacing::Linspace => {
                let gap = (train - 1) as f64 / (points - 1).max(1) as f64;
                (0..points).rev().map(|index| index as f64 * gap).collect()
            }
            TimestepSpacing::Leading => {
                let gap = train / points;
                (0..points).rev().map(|index| (index * gap + self.steps_offset) as f64).collect()
            }
            TimestepSpacing::Trailing => {
                let gap = train as f64 / steps as f64;
                (0..steps).map(|index| (train as f64 - index as f64 * gap).round_ties_even() - 1.0).collect()
            }
        };
        spaced.into_iter().take(steps).collect()
    }

    /// Whether the first latents are scaled by the largest sigma itself.
    pub(super) fn starts_at_max_sigma(&self, default: TimestepSpacing) -> bool {
        self.timestep_spacing.unwrap_or(default) != TimestepSpacing::Leading
    }
}

/// The value at a fractional index, between its two neighbours.
pub(super) fn interpolate(values: &[f64], at: f64) -> f64 {
    let last = values.len() - 1;
    let below = (at.max(0.0) as usize).min(last);
    let above = (below + 1).min(last);
    values[below] + (values[above] - values[below]) * (at - below as f64).clamp(0.0, 1.0)
}

fn thousand() -> usize {
    1000
}
fn beta_start() -> f64 {
    0.0001
}
fn beta_end() -> f64 {
    0.02
}
