//! LCM: Luo et al., "Latent consistency models: synthesizing high-resolution images with few-step inference", 2023. As
//! diffusers' `LCMScheduler`: each step predicts the clean picture and adds new noise for the next one.
//!
//! Its timesteps are picked from those of the distillation, so it ignores `timestep_spacing`.

use super::{
    Scheduler, Setup,
    config::{Field, PredictionType, THRESHOLDING, TRAINING, Use},
    mixed_by_product,
    noise_schedule::too_many_steps,
    times,
};
use crate::{error, noise::Noise};
use candle_core::{DType, Result, Tensor};

pub(super) const KARRAS_SIGMAS: bool = false;
pub(super) const DRAWS: bool = true;
pub(super) const FIELDS: &[&[Field]] = &[
    &TRAINING,
    &THRESHOLDING,
    &[
        ("beta_start", "0.00085", Use::Read),
        ("beta_end", "0.012", Use::Read),
        ("beta_schedule", "scaled_linear", Use::Read),
        ("original_inference_steps", "50", Use::Read),
        // The pipeline's constructor turns it off where a file turns it on.
        ("clip_sample", "false", Use::Only("false")),
        ("clip_sample_range", "1.0", Use::Ignored),
        ("set_alpha_to_one", "true", Use::Ignored),
        ("steps_offset", "0", Use::Ignored),
        ("timestep_spacing", "leading", Use::Ignored),
        ("timestep_scaling", "10.0", Use::Read),
        ("rescale_betas_zero_snr", "false", Use::Read),
    ],
];

/// Standard deviation of the data in the boundary condition.
const SIGMA_DATA: f32 = 0.5;

struct Lcm {
    timesteps: Vec<f64>,
    /// alphas_cumprod at each timestep.
    alphas: Vec<f32>,
    prediction: PredictionType,
    timestep_scaling: f64,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    let Setup { ref settings, steps, .. } = *setup;
    let (train, original) = (settings.train, settings.count("original_inference_steps")?);
    if original == 0 || original > train {
        return Err(settings.unsupported("original_inference_steps", "1 to num_train_timesteps"));
    }
    if steps > original {
        return Err(too_many_steps(steps, original));
    }
    let picked = (0..steps).map(|index| (index as f64 * (original as f64 / steps as f64)) as usize);
    let timesteps: Vec<usize> = picked.map(|index| (original - index) * (train / original) - 1).collect();
    let alphas = settings.alphas_cumprod()?;
    let alphas: Vec<f32> = timesteps.iter().map(|&at| alphas[at]).collect();
    if settings.prediction == PredictionType::Epsilon && alphas.contains(&0.0) {
        return Err(settings.unsupported("rescale_betas_zero_snr", "false where the model predicts epsilon"));
    }
    Ok(Box::new(Lcm {
        timesteps: timesteps.into_iter().map(|at| at as f64).collect(),
        alphas,
        prediction: settings.prediction,
        timestep_scaling: settings.number("timestep_scaling")?,
    }))
}

impl Scheduler for Lcm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, sample: &Tensor, noise: &Tensor, step: usize) -> Result<Tensor> {
        mixed_by_product(sample, noise, self.alphas[step])
    }

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let output = model_output.to_dtype(DType::F32)?;
        let alpha = self.alphas[step];
        let clean = self.prediction.clean(&output, sample, (alpha.sqrt(), (1.0 - alpha).sqrt()))?;
        let scaled = (self.timesteps[step] * self.timestep_scaling) as f32;
        let squares = scaled * scaled + SIGMA_DATA * SIGMA_DATA;
        let (skip, out) = (SIGMA_DATA * SIGMA_DATA / squares, scaled / squares.sqrt());
        let denoised = (times(&clean, out)? + times(sample, skip)?)?;
        match self.alphas.get(step + 1) {
            Some(next) => times(&denoised, next.sqrt())? + times(&noise.draw_like(sample)?, (1.0 - next).sqrt())?,
            None => Ok(denoised),
        }
    }
}
