//! DPM-Solver++(2M): Lu et al., "DPM-Solver++: fast solver for guided sampling of diffusion probabilistic models", 2022.
//!
//! As diffusers' `DPMSolverMultistepScheduler` with order 2, midpoint, a final sigma of zero and a first-order last step.

use super::{
    Scheduler,
    config::{PredictionType, SchedulerConfig, TimestepSpacing, interpolate},
};
use candle_core::{DType, Result, Tensor};

pub(super) struct DpmSolver {
    timesteps: Vec<f64>,
    /// One more than steps; the last is zero.
    sigmas: Vec<f64>,
    prediction: PredictionType,
    /// The clean picture predicted one step earlier.
    previous: Option<Tensor>,
}

impl DpmSolver {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Self {
        let spaced = config.timesteps(steps, steps + 1, TimestepSpacing::Linspace);
        let timesteps: Vec<f64> = spaced.into_iter().map(f64::round_ties_even).collect();
        let train = config.train_sigmas();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&at| f64::from(interpolate(&train, at) as f32)).collect();
        sigmas.push(0.0);
        Self { timesteps, sigmas, prediction: config.prediction_type, previous: None }
    }

    /// The clean picture that the model's output means.
    fn predicted(&self, output: &Tensor, step: usize, sample: &Tensor) -> Result<Tensor> {
        let (alpha, sigma) = alpha_sigma(self.sigmas[step]);
        match self.prediction {
            PredictionType::Epsilon => (sample - (output * sigma)?)? / alpha,
            PredictionType::VPrediction => (sample * alpha)? - (output * sigma)?,
        }
    }
}

impl Scheduler for DpmSolver {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        1.0
    }

    fn scale_model_input(&self, sample: &Tensor, _: usize) -> Result<Tensor> {
        Ok(sample.clone())
    }

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor) -> Result<Tensor> {
        let now = self.predicted(&model_output.to_dtype(DType::F32)?, step, sample)?;
        let (alpha_to, sigma_to) = alpha_sigma(self.sigmas[step + 1]);
        let (alpha_from, sigma_from) = alpha_sigma(self.sigmas[step]);
        let h = lambda(alpha_to, sigma_to) - lambda(alpha_from, sigma_from);
        let drift = alpha_to * (-h).exp_m1();
        let last = step + 1 == self.timesteps.len();
        let mut next = ((sample * (sigma_to / sigma_from))? - (&now * drift)?)?;
        if let (Some(before), false) = (&self.previous, last) {
            let (alpha_before, sigma_before) = alpha_sigma(self.sigmas[step - 1]);
            let r = (lambda(alpha_from, sigma_from) - lambda(alpha_before, sigma_before)) / h;
            let slope = ((&now - before)? / r)?;
            next = (next - (slope * (0.5 * drift))?)?;
        }
        self.previous = Some(now);
        Ok(next)
    }
}

/// Splits a noise level into the factors of picture and noise: `alpha^2 + sigma^2 = 1`.
fn alpha_sigma(level: f64) -> (f64, f64) {
    let alpha = 1.0 / (level * level + 1.0).sqrt();
    (alpha, level * alpha)
}

/// Half the log of the signal-to-noise ratio.
fn lambda(alpha: f64, sigma: f64) -> f64 {
    alpha.ln() - sigma.ln()
}
