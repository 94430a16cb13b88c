//! DPM-Solver++(2M): Lu et al., "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", 2022.
//!
//! As diffusers' `DPMSolverMultistepScheduler` with order 2, midpoint, a final sigma of zero and a first-order last step.

use super::{
    Scheduler, Setup,
    arithmetic::times,
    config::{Limit, PredictionType},
    spacing::Levels,
};
use crate::pipeline::{error, noise::Noise};
use candle_core::{DType, Result, Tensor};

pub(super) const KARRAS_SIGMAS: bool = true;

const LIMITS: [Limit; 12] = [
    ("thresholding", "false"),
    ("solver_order", "2"),
    ("algorithm_type", "dpmsolver++, deis"),
    ("solver_type", "midpoint, logrho, bh1, bh2"),
    ("final_sigmas_type", "zero"),
    ("use_exponential_sigmas", "false"),
    ("use_beta_sigmas", "false"),
    ("use_lu_lambdas", "false"),
    ("use_flow_sigmas", "false"),
    ("use_dynamic_shifting", "false"),
    ("lambda_min_clipped", "null"),
    ("variance_type", "null"),
];

struct DpmSolver {
    levels: Levels,
    prediction: PredictionType,
    /// The clean picture predicted one step earlier.
    previous: Option<Tensor>,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    setup.config.check(&LIMITS)?;
    let (levels, prediction) = (Levels::multistep(setup)?, setup.config.prediction_type);
    Ok(Box::new(DpmSolver { levels, prediction, previous: None }))
}

impl Scheduler for DpmSolver {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let sigmas = &self.levels.sigmas;
        let from = alpha_sigma(sigmas[step]);
        let to = alpha_sigma(sigmas[step + 1]);
        let now = self.prediction.clean(&model_output.to_dtype(DType::F32)?, sample, from)?;
        let h = lambda(to) - lambda(from);
        let drift = to.0 * ((-h).exp() - 1.0);
        let last = step + 1 == self.levels.timesteps.len();
        let mut next = (times(sample, to.1 / from.1)? - times(&now, drift)?)?;
        if let (Some(before), false) = (&self.previous, last) {
            let r = (lambda(from) - lambda(alpha_sigma(sigmas[step - 1]))) / h;
            let slope = times(&(&now - before)?, 1.0 / r)?;
            next = (next - times(&slope, 0.5 * drift)?)?;
        }
        self.previous = Some(now);
        Ok(next)
    }
}

/// Splits a noise level into the factors of picture and noise: `alpha^2 + sigma^2 = 1`.
pub(super) fn alpha_sigma(level: f32) -> (f32, f32) {
    let alpha = 1.0 / (level * level + 1.0).sqrt();
    (alpha, level * alpha)
}

/// Half the log of the signal-to-noise ratio.
pub(super) fn lambda((alpha, sigma): (f32, f32)) -> f32 {
    alpha.ln() - sigma.ln()
}
