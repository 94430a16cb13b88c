//! DDIM: Song et al., "Denoising diffusion implicit models", 2020, without noise (eta 0). As diffusers' `DDIMScheduler`.

use super::{
    Scheduler, Setup,
    config::{PredictionType, TimestepSpacing, unsupported},
    noise_schedule::{DDPM, too_many_steps},
    times,
};
use crate::{error, noise::Noise};
use candle_core::{DType, Result, Tensor};

pub(super) const KARRAS_SIGMAS: bool = false;
pub(super) const DRAWS: bool = false;

struct Ddim {
    timesteps: Vec<f64>,
    /// alphas_cumprod before and after each step.
    alphas: Vec<(f32, f32)>,
    prediction: PredictionType,
    clip: Option<f64>,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    let Setup { config, steps, .. } = *setup;
    config.check(&[("thresholding", "false")])?;
    let spaced = config.timesteps(steps, steps, TimestepSpacing::Leading)?;
    let timesteps: Vec<f64> = spaced.into_iter().map(f64::round_ties_even).collect();
    let train = config.alphas_cumprod(DDPM);
    let end = if config.set_alpha_to_one.unwrap_or(true) { 1.0 } else { train[0] };
    // The same stride for every spacing, as in diffusers. So a step need not end where the next one starts.
    let stride = config.num_train_timesteps / steps;
    let ends = |from: usize| from.checked_sub(stride).map_or(end, |to| train[to]);
    let alphas = timesteps.iter().map(|&at| train.get(at as usize).map(|&alpha| (alpha, ends(at as usize))));
    let alphas: Option<Vec<_>> = alphas.collect();
    let alphas = alphas.ok_or_else(|| too_many_steps(steps, config.num_train_timesteps - 1))?;
    if config.prediction_type == PredictionType::Epsilon && alphas.iter().any(|&(alpha, _)| alpha == 0.0) {
        return Err(unsupported("rescale_betas_zero_snr", "true".into(), "false where the model predicts epsilon"));
    }
    Ok(Box::new(Ddim { timesteps, alphas, prediction: config.prediction_type, clip: config.clip(true) }))
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let output = model_output.to_dtype(DType::F32)?;
        let (from, to) = self.alphas[step];
        let (alpha, sigma) = (from.sqrt(), (1.0 - from).sqrt());
        let clean = self.prediction.clean(&output, sample, (alpha, sigma))?;
        let clean = self.clip.map_or(Ok(clean.clone()), |most| clean.clamp(-most, most))?;
        // From the model's output, even if the clean picture was clipped.
        let noise = match self.prediction {
            PredictionType::Epsilon => output,
            PredictionType::VPrediction => (times(&output, alpha)? + times(sample, sigma)?)?,
        };
        times(&clean, to.sqrt())? + times(&noise, (1.0 - to).sqrt())?
    }
}
