//! Euler's method with ancestral sampling: each step removes more noise than it should and then adds new noise (Song et al.,
//! "Score-based generative modeling through stochastic differential equations", 2021). As diffusers'
//! `EulerAncestralDiscreteScheduler`.

use super::{
    Scheduler, Setup,
    config::{DDPM_BETAS, Field, PredictionType, TRAINING, Use},
    euler::{derivative, scaled},
    noise_schedule::NoiseLevels,
    times,
};
use crate::{error, noise::Noise};
use candle_core::{DType, Result, Tensor};

pub(super) const KARRAS_SIGMAS: bool = false;
pub(super) const DRAWS: bool = true;
pub(super) const FIELDS: &[&[Field]] = &[
    &TRAINING,
    &DDPM_BETAS,
    &[
        ("timestep_spacing", "linspace", Use::Read),
        ("steps_offset", "0", Use::Read),
        ("rescale_betas_zero_snr", "false", Use::Read),
    ],
];

struct EulerAncestral {
    levels: NoiseLevels,
    init_noise_sigma: f64,
    prediction: PredictionType,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    let levels = NoiseLevels::euler(setup)?;
    let init_noise_sigma = levels.init_noise_sigma(&setup.settings)?;
    Ok(Box::new(EulerAncestral { levels, init_noise_sigma, prediction: setup.settings.prediction }))
}

impl Scheduler for EulerAncestral {
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

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let output = model_output.to_dtype(DType::F32)?;
        let (from, to) = (self.levels.sigmas[step], self.levels.sigmas[step + 1]);
        let up = (to.powi(2) * (from.powi(2) - to.powi(2)) / from.powi(2)).sqrt();
        let down = (to.powi(2) - up.powi(2)).max(0.0).sqrt();
        let slope = derivative(self.prediction, &output, sample, from)?;
        (sample + times(&slope, down - from)?)? + times(&noise.draw_like(sample)?, up)?
    }
}
