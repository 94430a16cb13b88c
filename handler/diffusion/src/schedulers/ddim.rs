//! DDIM: Song et al., "Denoising diffusion implicit models", 2020, without noise (eta 0). As diffusers' `DDIMScheduler`.

use super::{
    Scheduler, Setup,
    config::{DDPM_BETAS, Field, PredictionType, THRESHOLDING, TRAINING, Use},
    mixed_by_product,
    noise_schedule::too_many_steps,
    times,
};
use crate::{error, noise::Noise};
use candle_core::{DType, Result, Tensor};

pub(super) const KARRAS_SIGMAS: bool = false;
pub(super) const DRAWS: bool = false;
pub(super) const FIELDS: &[&[Field]] = &[
    &TRAINING,
    &DDPM_BETAS,
    &THRESHOLDING,
    &[
        ("clip_sample", "true", Use::Read),
        ("clip_sample_range", "1.0", Use::Read),
        ("set_alpha_to_one", "true", Use::Read),
        ("timestep_spacing", "leading", Use::Read),
        ("steps_offset", "0", Use::Read),
        ("rescale_betas_zero_snr", "false", Use::Read),
    ],
];

struct Ddim {
    timesteps: Vec<f64>,
    /// alphas_cumprod before and after each step.
    alphas: Vec<(f32, f32)>,
    prediction: PredictionType,
    clip: Option<f64>,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    let Setup { ref settings, steps, .. } = *setup;
    let spaced = settings.timesteps(steps, steps)?;
    let timesteps: Vec<f64> = spaced.into_iter().map(f64::round_ties_even).collect();
    let train = settings.alphas_cumprod()?;
    let end = if settings.flag("set_alpha_to_one")? { 1.0 } else { train[0] };
    // The same stride for every spacing, as in diffusers. So a step need not end where the next one starts.
    let stride = settings.train / steps;
    let ends = |from: usize| from.checked_sub(stride).map_or(end, |to| train[to]);
    let alphas = timesteps.iter().map(|&at| train.get(at as usize).map(|&alpha| (alpha, ends(at as usize))));
    let alphas: Option<Vec<_>> = alphas.collect();
    let alphas = alphas.ok_or_else(|| too_many_steps(steps, settings.train - 1))?;
    if settings.prediction == PredictionType::Epsilon && alphas.iter().any(|&(alpha, _)| alpha == 0.0) {
        return Err(settings.unsupported("rescale_betas_zero_snr", "false where the model predicts epsilon"));
    }
    Ok(Box::new(Ddim { timesteps, alphas, prediction: settings.prediction, clip: settings.clip()? }))
}

impl Scheduler for Ddim {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    fn add_noise(&self, sample: &Tensor, noise: &Tensor, step: usize) -> Result<Tensor> {
        mixed_by_product(sample, noise, self.alphas[step].0)
    }

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let output = model_output.to_dtype(DType::F32)?;
        let (from, to) = self.alphas[step];
        let (alpha, sigma) = (from.sqrt(), (1.0 - from).sqrt());
        let clean = self.prediction.clean(&output, sample, (alpha, sigma))?;
        let clean = self.clip.map_or(Ok(clean.clone()), |most| clean.clamp(-most, most))?;
        // From the model's output, even if the clean picture was clipped.
        let noise = self.prediction.noise(output, sample, (alpha, sigma))?;
        times(&clean, to.sqrt())? + times(&noise, (1.0 - to).sqrt())?
    }
}
