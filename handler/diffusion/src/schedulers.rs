//! Schedulers: how the latents move from noise to picture. One file each; a new one is one more file, and one more line in
//! `schedulers!` below.

mod arithmetic;
mod config;
mod ddim;
mod dpm_solver;
mod euler;
mod euler_ancestral;
mod lcm;
mod spacing;
mod training;
mod unipc;

pub use config::{PredictionType, SchedulerConfig};

use crate::{
    error::{PipelineError, Result},
    noise::Noise,
};
use candle_core::Tensor;
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// One run of a scheduler over the steps of one picture. Steps are called in order, from 0.
pub trait Scheduler: Send {
    /// The timestep the UNet is told at each step.
    fn timesteps(&self) -> &[f64];

    /// What unit noise is multiplied with to make the first latents.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// Every step as sums, for a scheduler that sees the latents as they are, draws no noise and looks back one step at most.
    fn sums(&self) -> Option<Vec<Sums>> {
        None
    }

    /// The latents as the UNet wants to see them at `step`; same shape and dtype.
    ///
    /// # Errors
    /// Device or memory.
    fn scale_model_input(&self, sample: &Tensor, _step: usize) -> candle_core::Result<Tensor> {
        Ok(sample.clone())
    }

    /// The latents after `step`, from the UNet's output (same shape) and the f32 latents before it. A stochastic scheduler
    /// draws from `noise`, the stream that drew the first latents: once per step, for all pictures of the batch.
    ///
    /// # Errors
    /// Device or memory.
    fn step(
        &mut self,
        model_output: &Tensor,
        step: usize,
        sample: &Tensor,
        noise: &mut Noise,
    ) -> candle_core::Result<Tensor>;
}

/// The arithmetic of one step: the clean picture from sample and output, and the next sample from sample and clean pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Sums {
    /// What of the sample is in the clean picture.
    pub clean_by_sample: f32,
    /// What of the UNet's output is in the clean picture.
    pub clean_by_output: f32,
    /// What of the sample is in the next.
    pub sample: f32,
    /// What of the clean picture is in the next sample.
    pub clean: f32,
    /// What of the clean picture of the step before is in the next sample.
    pub clean_before: f32,
}

/// What a scheduler is built from.
struct Setup<'a> {
    config: &'a SchedulerConfig,
    /// At least 1, at most as many as training had.
    steps: usize,
    karras_sigmas: bool,
}

/// Makes [`Kind`] of lines `Variant = "name of a task" in module`. The first line is the default. A module has a function
/// `build` and two constants: `KARRAS_SIGMAS`, whether it has the noise levels of Karras et al. as an option, and `DRAWS`, whether it
/// draws noise at its steps.
macro_rules! schedulers {
    ($($(#[$doc:meta])* $kind:ident = $name:literal in $module:ident;)+) => {
        /// Which scheduler a task asks for.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub enum Kind {
            $($(#[$doc])* $kind,)+
        }

        impl Kind {
            /// Every scheduler with the name a task uses.
            pub const NAMES: &[(&str, Self)] = &[$(($name, Self::$kind)),+];

            /// Whether it has the noise levels of Karras et al. as an option.
            pub fn has_karras_sigmas(self) -> bool {
                match self {
                    $(Self::$kind => $module::KARRAS_SIGMAS,)+
                }
            }

            /// Whether it draws noise at its steps, so that pictures of two tasks cannot be painted as one batch.
            pub fn draws(self) -> bool {
                match self {
                    $(Self::$kind => $module::DRAWS,)+
                }
            }

            fn build(self, setup: &Setup) -> Result<Box<dyn Scheduler>> {
                match self {
                    $(Self::$kind => $module::build(setup),)+
                }
            }
        }
    };
}

schedulers! {
    /// DPM-Solver++ of order 2, multistep, midpoint.
    DpmSolverPlusPlus = "dpmsolver++" in dpm_solver;
    /// Euler, deterministic.
    Euler = "euler" in euler;
    /// Euler with new noise at each step.
    EulerAncestral = "euler_ancestral" in euler_ancestral;
    /// DDIM without noise.
    Ddim = "ddim" in ddim;
    /// UniPC of order 2.
    UniPc = "unipc" in unipc;
    /// Latent consistency models: few steps, new noise at each.
    Lcm = "lcm" in lcm;
}

impl Kind {
    /// The names, for an error or a help text.
    pub fn names() -> String {
        Self::NAMES.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ")
    }
}

impl Default for Kind {
    fn default() -> Self {
        Self::NAMES[0].1
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

/// Sets a scheduler up for `steps` steps. `karras_sigmas` asks for the noise levels of Karras et al. or against them; without
/// it the model's file decides, where the scheduler has them.
///
/// # Errors
/// No step, more than the model or the scheduler allows, a wish for Karras's noise levels that the scheduler does not have, or
/// a setting in the model's file that it does not support.
pub fn build(
    kind: Kind,
    karras_sigmas: Option<bool>,
    config: &SchedulerConfig,
    steps: usize,
) -> Result<Box<dyn Scheduler>> {
    if steps == 0 || steps > config.num_train_timesteps {
        return Err(spacing::too_many_steps(steps, config.num_train_timesteps));
    }
    if karras_sigmas == Some(true) && !kind.has_karras_sigmas() {
        let limit = format!("the scheduler {kind} has none");
        return Err(PipelineError::Request { field: "karras_sigmas", value: "true".into(), limit });
    }
    let karras_sigmas = kind.has_karras_sigmas() && karras_sigmas.or(config.use_karras_sigmas).unwrap_or(false);
    kind.build(&Setup { config, steps, karras_sigmas })
}

#[cfg(test)]
mod tests;
