//! Schedulers: how the latents move from noise to picture. Each has a file, and a line in `schedulers!` below.

mod config;
mod ddim;
mod dpm_solver;
mod euler;
mod euler_ancestral;
mod lcm;
mod noise_schedule;
mod pndm;
mod unipc;

pub use config::{PredictionType, SchedulerConfig};

use crate::{
    error::{PipelineError, Result},
    noise::Noise,
};
use candle_core::Tensor;
use config::{Field, Settings};
use serde::{Deserialize, Serialize};
use std::{fmt, str::FromStr};

/// One run of a scheduler over the steps of one picture. Here, a step is one call of the UNet. Most schedulers make as many as a request
/// has steps, PNDM a few more. Steps are called in order, from 0.
pub trait Scheduler: Send {
    /// The UNet's timestep at each of its calls, at least as many as the request has steps.
    fn timesteps(&self) -> &[f64];

    /// The standard deviation of the first latents: unit noise is multiplied with it.
    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    /// The coefficients of every step, so that a GPU can compute the steps itself. Only for a scheduler that does not scale the model's
    /// input, draws no noise, and needs no clean picture but those of this step and the one before.
    fn coefficients(&self) -> Option<Vec<StepCoefficients>> {
        None
    }

    /// Lets the run begin at that step and not at the first, as diffusers' `set_begin_index`. To be called before any step.
    ///
    /// # Errors
    /// The scheduler can only begin at the first step.
    fn begin_at(&mut self, _step: usize) -> Result<()> {
        Ok(())
    }

    /// The latents of a picture with unit noise added, as a run has them before `step`. All are f32 and of one shape. With all of the noise
    /// it is not `init_noise_sigma` times that: something of the picture is left, as in diffusers.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    fn add_noise(&self, sample: &Tensor, noise: &Tensor, step: usize) -> candle_core::Result<Tensor>;

    /// The UNet's input for the latents at `step`, of the same shape and dtype.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    fn scale_model_input(&self, sample: &Tensor, _step: usize) -> candle_core::Result<Tensor> {
        Ok(sample.clone())
    }

    /// The latents after `step`, from the UNet's output and the f32 latents `sample` before it, all of one shape. A stochastic scheduler
    /// draws from `noise` once per step, for all pictures of the batch. It is the stream that drew the first latents.
    ///
    /// # Errors
    /// The device fails or has too little memory.
    fn step(
        &mut self,
        model_output: &Tensor,
        step: usize,
        sample: &Tensor,
        noise: &mut Noise,
    ) -> candle_core::Result<Tensor>;
}

/// One step as linear combinations: the clean picture of sample and UNet output, and the next sample of sample and clean pictures.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepCoefficients {
    /// The factor of the sample in the clean picture.
    pub clean_by_sample: f32,
    /// The factor of the UNet's output in the clean picture.
    pub clean_by_output: f32,
    /// The factor of the sample in the next sample.
    pub sample: f32,
    /// The factor of the clean picture in the next sample.
    pub clean: f32,
    /// The factor of the previous step's clean picture in the next sample.
    pub clean_before: f32,
}

/// A number of steps that finds what a setting does to every scheduler.
const USUAL_STEPS: usize = 20;

/// What a scheduler is built from.
struct Setup<'a> {
    settings: Settings<'a>,
    /// At least 1, at most as many as training had.
    steps: usize,
    karras_sigmas: bool,
}

/// Makes [`Kind`] of lines `Variant = "name in a request" in module`. The first line is the default. A module has a function
/// `build` and three constants: `KARRAS_SIGMAS`, whether it has the noise levels of Karras et al. as an option; `DRAWS`, whether it
/// draws noise at its steps; and `FIELDS`, those of its constructor in diffusers.
macro_rules! schedulers {
    ($($(#[$doc:meta])* $kind:ident = $name:literal in $module:ident;)+) => {
        /// A scheduler.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
        #[serde(into = "String", try_from = "String")]
        pub enum Kind {
            $($(#[$doc])* $kind,)+
        }

        impl Kind {
            /// Every scheduler with its name in a request.
            pub const NAMES: &[(&str, Self)] = &[$(($name, Self::$kind)),+];

            /// Whether it has the noise levels of Karras et al. as an option.
            pub fn has_karras_sigmas(self) -> bool {
                match self {
                    $(Self::$kind => $module::KARRAS_SIGMAS,)+
                }
            }

            /// Whether it draws noise at its steps. Then two requests cannot be painted as one batch.
            pub fn draws(self) -> bool {
                match self {
                    $(Self::$kind => $module::DRAWS,)+
                }
            }

            fn fields(self) -> &'static [&'static [Field]] {
                match self {
                    $(Self::$kind => $module::FIELDS,)+
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
    /// PNDM, which SD1.5's own file names.
    Pndm = "pndm" in pndm;
}

impl Kind {
    /// The names, separated by commas, for an error or a help text.
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

/// Sets a scheduler up for `steps` steps. `karras_sigmas` switches the noise levels of Karras et al. on or off. Without it, the
/// model's file decides.
///
/// # Errors
/// No steps, or more than the model or the scheduler allows; Karras's noise levels for a scheduler without them; or a setting in the
/// model's file that the scheduler does not support.
pub fn build(
    kind: Kind,
    karras_sigmas: Option<bool>,
    config: &SchedulerConfig,
    steps: usize,
) -> Result<Box<dyn Scheduler>> {
    let settings = config.settings(kind.fields())?;
    if steps == 0 || steps > settings.train {
        return Err(noise_schedule::too_many_steps(steps, settings.train));
    }
    if karras_sigmas == Some(true) && !kind.has_karras_sigmas() {
        let limit = format!("the scheduler {kind} has none");
        return Err(PipelineError::Request { field: "karras_sigmas", value: "true".into(), limit });
    }
    let named = settings.flag("use_karras_sigmas")?;
    let karras_sigmas = kind.has_karras_sigmas() && karras_sigmas.unwrap_or(named);
    kind.build(&Setup { settings, steps, karras_sigmas })
}

/// Whether a scheduler can paint with the model's file, whatever a request asks for.
///
/// # Errors
/// The first setting of the file that the scheduler does not support.
pub fn check(kind: Kind, config: &SchedulerConfig) -> Result<()> {
    match build(kind, None, config, USUAL_STEPS) {
        // Another number of steps may be possible.
        Ok(_) | Err(PipelineError::Request { .. }) => Ok(()),
        Err(error) => Err(error),
    }
}

/// [`check`] for every scheduler, with its name in a request. The first is the default.
pub fn check_all(config: &SchedulerConfig) -> impl Iterator<Item = (&'static str, Result<()>)> {
    Kind::NAMES.iter().map(|(name, kind)| (*name, check(*kind, config)))
}

/// `alpha` of a sample and `sigma` of noise.
fn mixed(sample: &Tensor, noise: &Tensor, (alpha, sigma): (f32, f32)) -> candle_core::Result<Tensor> {
    times(sample, alpha)? + times(noise, sigma)?
}

/// A sample with noise where `alpha` is alphas_cumprod.
fn mixed_by_product(sample: &Tensor, noise: &Tensor, alpha: f32) -> candle_core::Result<Tensor> {
    mixed(sample, noise, (alpha.sqrt(), (1.0 - alpha).sqrt()))
}

/// `tensor * factor`, rounded as torch rounds it.
fn times(tensor: &Tensor, factor: f32) -> candle_core::Result<Tensor> {
    tensor * f64::from(factor)
}

/// `tensor / divisor`, rounded as torch rounds it. A multiplication with the reciprocal would round twice.
fn over(tensor: &Tensor, divisor: f32) -> candle_core::Result<Tensor> {
    tensor.broadcast_div(&Tensor::new(divisor, tensor.device())?)
}

#[cfg(test)]
mod tests;
