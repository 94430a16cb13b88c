//! Euler's method on the probability-flow ODE: Karras et al., "Elucidating the design space of diffusion-based generative
//! models", 2022, algorithm 2 without churn. As diffusers' `EulerDiscreteScheduler`.

use super::{
    Scheduler, Setup,
    config::{DDPM_BETAS, Field, PredictionType, SIGMAS, TRAINING, Use},
    noise_schedule::NoiseLevels,
    over, times,
};
use crate::{error, noise::Noise};
use candle_core::{DType, Result, Tensor};
use serde::Deserialize;

pub(super) const KARRAS_SIGMAS: bool = true;
pub(super) const DRAWS: bool = false;
pub(super) const FIELDS: &[&[Field]] = &[
    &TRAINING,
    &DDPM_BETAS,
    &SIGMAS,
    &[
        ("interpolation_type", "linear", Use::Only("linear")),
        ("timestep_type", "discrete", Use::Read),
        ("sigma_min", "null", Use::Read),
        ("sigma_max", "null", Use::Read),
        ("timestep_spacing", "linspace", Use::Read),
        ("steps_offset", "0", Use::Read),
    ],
];

/// What the UNet sees of a noise level. Without v-prediction, both are the timestep.
#[derive(PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TimestepType {
    Discrete,
    Continuous,
}

struct Euler {
    levels: NoiseLevels,
    init_noise_sigma: f64,
    prediction: PredictionType,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    let (settings, prediction) = (&setup.settings, setup.settings.prediction);
    let timesteps: TimestepType = settings.choice("timestep_type", "discrete, continuous")?;
    if (timesteps, prediction) == (TimestepType::Continuous, PredictionType::VPrediction) {
        return Err(settings.unsupported("timestep_type", "discrete where the model predicts v"));
    }
    let levels = NoiseLevels::euler(setup)?;
    let init_noise_sigma = levels.init_noise_sigma(settings)?;
    Ok(Box::new(Euler { levels, init_noise_sigma, prediction }))
}

impl Scheduler for Euler {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn init_noise_sigma(&self) -> f64 {
        self.init_noise_sigma
    }

    fn add_noise(&self, sample: &Tensor, noise: &Tensor, step: usize) -> Result<Tensor> {
        sample + times(noise, self.levels.sigmas[step])?
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
