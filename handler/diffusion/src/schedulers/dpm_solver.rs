//! DPM-Solver++(2M): Lu et al., "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", 2022.
//!
//! As diffusers' `DPMSolverMultistepScheduler` with order 2, midpoint, a final sigma of zero and a first-order last step.

use super::{
    Scheduler, Setup, StepCoefficients,
    config::{DDPM_BETAS, FLOW, Field, PredictionType, SIGMAS, THRESHOLDING, TRAINING, Use},
    mixed,
    noise_schedule::NoiseLevels,
    times,
};
use crate::{error, noise::Noise};
use candle_core::{DType, Result, Tensor};

pub(super) const KARRAS_SIGMAS: bool = true;
pub(super) const DRAWS: bool = false;
/// The last step is of the first order because the final sigma is zero, so nothing else needs to ask for that.
pub(super) const FIELDS: &[&[Field]] = &[
    &TRAINING,
    &DDPM_BETAS,
    &THRESHOLDING,
    &SIGMAS,
    &FLOW,
    &[
        ("solver_order", "2", Use::Only("2")),
        ("algorithm_type", "dpmsolver++", Use::Only("dpmsolver++")),
        ("solver_type", "midpoint", Use::Only("midpoint, logrho, bh1, bh2")),
        ("lower_order_final", "true", Use::Ignored),
        ("euler_at_final", "false", Use::Ignored),
        ("use_lu_lambdas", "false", Use::Only("false")),
        ("use_dynamic_shifting", "false", Use::Ignored),
        ("lambda_min_clipped", "null", Use::Only("null")),
        // The UNet's output would have channels for the variance.
        ("variance_type", "null", Use::Not("learned, learned_range")),
        ("timestep_spacing", "linspace", Use::Read),
        ("steps_offset", "0", Use::Read),
    ],
];

struct DpmSolver {
    levels: NoiseLevels,
    prediction: PredictionType,
    /// The clean picture predicted one step earlier.
    previous: Option<Tensor>,
    /// The first step of the run.
    first: usize,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    let (levels, prediction) = (NoiseLevels::multistep(setup)?, setup.settings.prediction);
    Ok(Box::new(DpmSolver { levels, prediction, previous: None, first: 0 }))
}

impl Scheduler for DpmSolver {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn coefficients(&self) -> Option<Vec<StepCoefficients>> {
        let coefficients = |step| {
            let Factors { sample, drift, slope, from } = self.factors(step);
            let (clean_by_sample, clean_by_output) = self.prediction.clean_factors(from);
            let (clean, clean_before) = (-drift - slope.unwrap_or(0.0), slope.unwrap_or(0.0));
            StepCoefficients { clean_by_sample, clean_by_output, sample, clean, clean_before }
        };
        Some((0..self.levels.timesteps.len()).map(coefficients).collect())
    }

    fn begin_at(&mut self, step: usize) -> error::Result<()> {
        self.first = step;
        Ok(())
    }

    fn add_noise(&self, sample: &Tensor, noise: &Tensor, step: usize) -> Result<Tensor> {
        mixed(sample, noise, alpha_sigma(self.levels.sigmas[step]))
    }

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let factors = self.factors(step);
        let now = self.prediction.clean(&model_output.to_dtype(DType::F32)?, sample, factors.from)?;
        let mut next = (times(sample, factors.sample)? - times(&now, factors.drift)?)?;
        if let (Some(before), Some(slope)) = (&self.previous, factors.slope) {
            next = (next - times(&(&now - before)?, slope)?)?;
        }
        self.previous = Some(now);
        Ok(next)
    }
}

/// The factors of a step.
struct Factors {
    sample: f32,
    drift: f32,
    /// For the difference of the last two clean pictures. None at the first step and the last.
    slope: Option<f32>,
    /// alpha and sigma before the step.
    from: (f32, f32),
}

impl DpmSolver {
    fn factors(&self, step: usize) -> Factors {
        let sigmas = &self.levels.sigmas;
        let (from, to) = (alpha_sigma(sigmas[step]), alpha_sigma(sigmas[step + 1]));
        let h = lambda(to) - lambda(from);
        let drift = to.0 * ((-h).exp() - 1.0);
        let inner = step > self.first && step + 1 < self.levels.timesteps.len();
        let slope = inner.then(|| {
            let r = (lambda(from) - lambda(alpha_sigma(sigmas[step - 1]))) / h;
            0.5 * drift * (1.0 / r)
        });
        Factors { sample: to.1 / from.1, drift, slope, from }
    }
}

/// Splits a noise level into the factors alpha of the picture and sigma of the noise: `alpha^2 + sigma^2 = 1`.
pub(super) fn alpha_sigma(level: f32) -> (f32, f32) {
    let alpha = 1.0 / (level * level + 1.0).sqrt();
    (alpha, level * alpha)
}

/// Half the log of the signal-to-noise ratio.
pub(super) fn lambda((alpha, sigma): (f32, f32)) -> f32 {
    alpha.ln() - sigma.ln()
}
