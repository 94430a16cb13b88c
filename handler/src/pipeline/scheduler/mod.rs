//! Schedulers: how the latents move from noise to picture. One file each; a new one is added in [`Kind`] and [`build`].

mod config;
mod dpm_solver;
mod euler;

pub use config::{PredictionType, SchedulerConfig};

use super::error::{PipelineError, Result};
use candle_core::Tensor;
use dpm_solver::DpmSolver;
use euler::Euler;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// One run of a scheduler over the steps of one picture. Steps are called in order, from 0.
pub trait Scheduler: Send {
    /// The timestep the UNet is told at each step.
    fn timesteps(&self) -> &[f64];

    /// What unit noise is multiplied with to make the first latents.
    fn init_noise_sigma(&self) -> f64;

    /// The latents as the UNet wants to see them at `step`; same shape and dtype.
    ///
    /// # Errors
    /// Device or memory.
    fn scale_model_input(&self, sample: &Tensor, step: usize) -> candle_core::Result<Tensor>;

    /// The latents after `step`, from the UNet's output (same shape) and the f32 latents before it.
    ///
    /// # Errors
    /// Device or memory.
    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor) -> candle_core::Result<Tensor>;
}

/// Which scheduler a task asks for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub enum Kind {
    /// DPM-Solver++ of order 2, multistep, midpoint.
    #[default]
    DpmSolverPlusPlus,
    /// Euler, deterministic.
    Euler,
}

impl Kind {
    /// Every scheduler with the name a task uses.
    pub const NAMES: [(&'static str, Self); 2] = [("dpmsolver++", Self::DpmSolverPlusPlus), ("euler", Self::Euler)];

    /// The names, for an error or a help text.
    pub fn names() -> String {
        Self::NAMES.map(|(name, _)| name).join(", ")
    }
}

impl FromStr for Kind {
    type Err = String;

    fn from_str(name: &str) -> std::result::Result<Self, String> {
        let found = Self::NAMES.iter().find(|(known, _)| *known == name);
        found.map(|(_, kind)| *kind).ok_or_else(|| format!("unknown scheduler, known: {}", Self::names()))
    }
}

impl TryFrom<String> for Kind {
    type Error = String;

    fn try_from(name: String) -> std::result::Result<Self, String> {
        name.parse()
    }
}

impl From<Kind> for String {
    fn from(kind: Kind) -> Self {
        kind.to_string()
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let found = Kind::NAMES.iter().find(|(_, kind)| kind == self);
        f.write_str(found.map_or("", |(name, _)| name))
    }
}

/// Sets a scheduler up for `steps` steps.
///
/// # Errors
/// More steps than the model was trained with, or none.
pub fn build(kind: Kind, config: &SchedulerConfig, steps: usize) -> Result<Box<dyn Scheduler>> {
    let most = config.num_train_timesteps;
    if steps == 0 || steps > most {
        let (value, limit) = (steps.to_string(), format!("the model allows 1 to {most}"));
        return Err(PipelineError::Request { field: "num_inference_steps", value, limit });
    }
    Ok(match kind {
        Kind::DpmSolverPlusPlus => Box::new(DpmSolver::new(config, steps)),
        Kind::Euler => Box::new(Euler::new(config, steps)),
    })
}
