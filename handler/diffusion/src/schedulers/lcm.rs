//! LCM: Luo et al., "Latent consistency models: synthesizing high-resolution images with few-step inference", 2023. As
//! diffusers' `LCMScheduler`: each step predicts the clean picture and adds new noise for the next one.
//!
//! Its timesteps are picked from those of the distillation, so it ignores `timestep_spacing`.

use super::{
    Scheduler, Setup,
    config::{PredictionType, unsupported},
    noise_schedule::{STABLE_DIFFUSION, too_many_steps},
    times,
};
use crate::{error, noise::Noise};
use candle_core::{DType, Result, Tensor};

pub(super) const KARRAS_SIGMAS: bool = false;
pub(super) const DRAWS: bool = true;

/// Standard deviation of the data in the boundary condition.
const SIGMA_DATA: f32 = 0.5;

struct Lcm {
    timesteps: Vec<f64>,
    /// alphas_cumprod at each timestep.
    alphas: Vec<f32>,
    prediction: PredictionType,
    clip: Option<f64>,
    timestep_scaling: f64,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    let Setup { config, steps, .. } = *setup;
    config.check(&[("thresholding", "false")])?;
    let (train, original) = (config.num_train_timesteps, config.original_inference_steps.unwrap_or(50));
    if original == 0 || original > train {
        return Err(unsupported("original_inference_steps", original.to_string(), "1 to num_train_timesteps"));
    }
    if steps > original {
        return Err(too_many_steps(steps, original));
    }
    let picked = (0..steps).map(|index| (index as f64 * (original as f64 / steps as f64)) as usize);
    let timesteps: Vec<usize> = picked.map(|index| (original - index) * (train / original) - 1).collect();
    let alphas = config.alphas_cumprod(STABLE_DIFFUSION);
    let alphas: Vec<f32> = timesteps.iter().map(|&at| alphas[at]).collect();
    if config.prediction_type == PredictionType::Epsilon && alphas.contains(&0.0) {
        return Err(unsupported("rescale_betas_zero_snr", "true".into(), "false where the model predicts epsilon"));
    }
    Ok(Box::new(Lcm {
        timesteps: timesteps.into_iter().map(|at| at as f64).collect(),
        alphas,
        prediction: config.prediction_type,
        clip: config.clip(false),
        timestep_scaling: config.timestep_scaling.unwrap_or(10.0),
    }))
}

impl Scheduler for Lcm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor, noise: &mut Noise) -> Result<Tensor> {
        let output = model_output.to_dtype(DType::F32)?;
        let alpha = self.alphas[step];
        let clean = self.prediction.clean(&output, sample, (alpha.sqrt(), (1.0 - alpha).sqrt()))?;
        let clean = self.clip.map_or(Ok(clean.clone()), |most| clean.clamp(-most, most))?;
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
