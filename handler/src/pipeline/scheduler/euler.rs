//! Euler's method on the probability-flow ODE: Karras et al., "Elucidating the design space of diffusion-based generative
//! models", 2022, algorithm 2 without churn. As diffusers' `EulerDiscreteScheduler`.

use super::{
    Scheduler,
    config::{PredictionType, SchedulerConfig, TimestepSpacing, interpolate},
};
use candle_core::{DType, Result, Tensor};

pub(super) struct Euler {
    timesteps: Vec<f64>,
    /// One more than steps; the last is zero.
    sigmas: Vec<f64>,
    init_noise_sigma: f64,
    prediction: PredictionType,
}

impl Euler {
    pub(super) fn new(config: &SchedulerConfig, steps: usize) -> Self {
        let spacing = TimestepSpacing::Linspace;
        let spaced = config.timesteps(steps, steps, spacing);
        let timesteps: Vec<f64> = spaced.into_iter().map(|at| f64::from(at as f32)).collect();
        let train = config.train_sigmas();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&at| f64::from(interpolate(&train, at) as f32)).collect();
        sigmas.push(0.0);
        let most = sigmas.iter().copied().fold(0.0, f64::max);
        let init_noise_sigma = if config.starts_at_max_sigma(spacing) { most } else { most.hypot(1.0) };
        Self { timesteps, sigmas, init_noise_sigma, prediction: config.prediction_type }
    }
}

impl Scheduler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, sample: &Tensor, step: usize) -> Result<Tensor> {
        sample / self.sigmas[step].hypot(1.0)
    }

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor) -> Result<Tensor> {
        let output = model_output.to_dtype(DType::F32)?;
        let sigma = self.sigmas[step];
        let derivative = match self.prediction {
            PredictionType::Epsilon => output,
            PredictionType::VPrediction => {
                let squared = sigma * sigma + 1.0;
                let clean = ((output * (-sigma / squared.sqrt()))? + (sample / squared)?)?;
                ((sample - clean)? / sigma)?
            }
        };
        sample + (derivative * (self.sigmas[step + 1] - sigma))?
    }
}
