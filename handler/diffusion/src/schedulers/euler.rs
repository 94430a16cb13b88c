//! Euler's method on the probability-flow ODE: Karras et al., "Elucidating the design space of diffusion-based generative
//! models", 2022, algorithm 2 without churn. As diffusers' `EulerDiscreteScheduler`.

use super::{
    Scheduler, Setup,
    config::{Limit, PredictionType},
    noise_schedule::NoiseLevels,
    over, times,
};
use crate::{error, noise::Noise};
use candle_core::{DType, Result, Tensor};

pub(super) const KARRAS_SIGMAS: bool = true;
pub(super) const DRAWS: bool = false;

const LIMITS: [Limit; 7] = [
    ("interpolation_type", "linear"),
    ("timestep_type", "discrete"),
    ("final_sigmas_type", "zero"),
    ("use_exponential_sigmas", "false"),
    ("use_beta_sigmas", "false"),
    ("sigma_min", "null"),
    ("sigma_max", "null"),
];

struct Euler {
    levels: NoiseLevels,
    init_noise_sigma: f64,
    prediction: PredictionType,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    setup.config.check(&LIMITS)?;
    let levels = NoiseLevels::euler(setup)?;
    let init_noise_sigma = levels.init_noise_sigma(setup.config);
    Ok(Box::new(Euler { levels, init_noise_sigma, prediction: setup.config.prediction_type }))
}

impl Scheduler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn scale_model_input(&self, sample: &Tensor, step: usize) -> Result<Tensor> {
        scaled(sample, self.levels.sigmas[step])
    }

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let output = model_output.to_dtype(DType::F32)?;
        let sigmas = &self.levels.sigmas;
        let slope = derivative(self.prediction, &output, sample, sigmas[step])?;
        sample + times(&slope, sigmas[step + 1] - sigmas[step])?
    }
}

/// The sample with a variance of about 1, as the UNet expects it.
pub(super) fn scaled(sample: &Tensor, sigma: f32) -> Result<Tensor> {
    over(sample, (sigma * sigma + 1.0).sqrt())
}

/// The derivative of the sample by sigma: `(sample - clean) / sigma`.
pub(super) fn derivative(prediction: PredictionType, output: &Tensor, sample: &Tensor, sigma: f32) -> Result<Tensor> {
    let squared = sigma * sigma + 1.0;
    let clean = match prediction {
        PredictionType::Epsilon => (sample - times(output, sigma)?)?,
        PredictionType::VPrediction => (times(output, -sigma / squared.sqrt())? + over(sample, squared)?)?,
    };
    over(&(sample - clean)?, sigma)
}
