//! UniPC: Zhao et al., "UniPC: a unified predictor-corrector framework for fast sampling of diffusion models", 2023, of order
//! 2 with B(h) = e^h - 1 over clean pictures. As diffusers' `UniPCMultistepScheduler` with its defaults.
//!
//! Each output of the model first corrects the previous step, then predicts the next.

use super::{
    Scheduler, Setup,
    config::{DDPM_BETAS, FLOW, Field, PredictionType, SIGMAS, THRESHOLDING, TRAINING, Use},
    dpm_solver::{alpha_sigma, lambda},
    mixed,
    noise_schedule::NoiseLevels,
    over, times,
};
use crate::{error, noise::Noise};
use candle_core::{DType, Result, Tensor};

pub(super) const KARRAS_SIGMAS: bool = true;
pub(super) const DRAWS: bool = false;
pub(super) const FIELDS: &[&[Field]] = &[
    &TRAINING,
    &DDPM_BETAS,
    &THRESHOLDING,
    &SIGMAS,
    &FLOW,
    &[
        ("solver_order", "2", Use::Only("2")),
        ("predict_x0", "true", Use::Only("true")),
        ("solver_type", "bh2", Use::Only("bh2, midpoint, heun, logrho")),
        ("lower_order_final", "true", Use::Only("true")),
        ("disable_corrector", "[]", Use::Only("[]")),
        ("solver_p", "null", Use::Only("null")),
        ("use_dynamic_shifting", "false", Use::Only("false")),
        ("shift_terminal", "null", Use::Only("null")),
        ("sigma_min", "null", Use::Read),
        ("sigma_max", "null", Use::Read),
        ("timestep_spacing", "linspace", Use::Read),
        ("steps_offset", "0", Use::Read),
    ],
];

struct UniPc {
    levels: NoiseLevels,
    prediction: PredictionType,
    /// The clean pictures of the last two steps, the newer one last.
    clean: Vec<Tensor>,
    /// The sample that the last prediction started from, and the order of that prediction.
    last: Option<(Tensor, usize)>,
    /// The first step of the run.
    first: usize,
}

/// The interval between two noise levels.
struct Interval {
    /// The factor of the sample at its start.
    sample: f32,
    /// alpha at its end.
    alpha: f32,
    /// The negative of its length in [`lambda`].
    h: f32,
    /// The start of the previous interval, relative to this one's start and length. Negative.
    before: Option<f32>,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    let (levels, prediction) = (NoiseLevels::multistep(setup)?, setup.settings.prediction);
    Ok(Box::new(UniPc { levels, prediction, clean: Vec::new(), last: None, first: 0 }))
}

impl Scheduler for UniPc {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
    }

    fn begin_at(&mut self, step: usize) -> error::Result<()> {
        self.first = step;
        Ok(())
    }

    fn add_noise(&self, sample: &Tensor, noise: &Tensor, step: usize) -> Result<Tensor> {
        mixed(sample, noise, alpha_sigma(self.levels.sigmas[step]))
    }

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let from = alpha_sigma(self.levels.sigmas[step]);
        let now = self.prediction.clean(&model_output.to_dtype(DType::F32)?, sample, from)?;
        let sample = match &self.last {
            Some((start, order)) => self.corrected(step, start, &now, *order)?,
            None => sample.clone(),
        };
        if self.clean.len() == 2 {
            self.clean.remove(0);
        }
        self.clean.push(now);
        let order = 2.min(step + 1 - self.first).min(self.levels.timesteps.len() - step);
        let next = self.predicted(step, &sample, order)?;
        self.last = Some((sample, order));
        Ok(next)
    }
}

impl UniPc {
    /// UniP: the sample after `step`.
    fn predicted(&self, step: usize, sample: &Tensor, order: usize) -> Result<Tensor> {
        let interval = self.interval(step, order);
        let base = self.first_order(&interval, sample)?;
        match self.slope(&interval)? {
            Some(slope) => base - times(&times(&slope, 0.5)?, interval.drift())?,
            None => Ok(base),
        }
    }

    /// UniC: the sample before `step`, computed again from the start of the last prediction with the model's new output.
    fn corrected(&self, step: usize, start: &Tensor, now: &Tensor, order: usize) -> Result<Tensor> {
        let interval = self.interval(step - 1, order);
        let base = self.first_order(&interval, start)?;
        let change = (now - &self.clean[self.clean.len() - 1])?;
        let change = match (self.slope(&interval)?, interval.before) {
            (Some(slope), Some(before)) => {
                let (earlier, later) = weights(interval.h, before);
                (times(&slope, earlier)? + times(&change, later)?)?
            }
            _ => times(&change, 0.5)?,
        };
        base - times(&change, interval.drift())?
    }

    /// The first-order step over an interval.
    fn first_order(&self, interval: &Interval, start: &Tensor) -> Result<Tensor> {
        times(start, interval.sample)? - times(&self.clean[self.clean.len() - 1], interval.drift())?
    }

    /// The change of the clean picture over the previous interval, scaled to the length of this one.
    fn slope(&self, interval: &Interval) -> Result<Option<Tensor>> {
        let [older, newer] = self.clean.as_slice() else { return Ok(None) };
        interval.before.map(|before| over(&(older - newer)?, before)).transpose()
    }

    fn interval(&self, step: usize, order: usize) -> Interval {
        let at = |step: usize| alpha_sigma(self.levels.sigmas[step]);
        let (from, to) = (at(step), at(step + 1));
        let length = lambda(to) - lambda(from);
        let before = (order == 2).then(|| (lambda(at(step - 1)) - lambda(from)) / length);
        Interval { sample: to.1 / from.1, alpha: to.0, h: -length, before }
    }
}

impl Interval {
    /// The factor of the clean picture. With B(h) = e^h - 1 it is the same for every order.
    fn drift(&self) -> f32 {
        self.alpha * self.h.exp_m1()
    }
}

/// The weights of the earlier and the later change of the clean picture in the corrector of order 2.
fn weights(h: f32, before: f32) -> (f32, f32) {
    let growth = h.exp_m1();
    let first = growth / h - 1.0;
    let second = first / h - 0.5;
    let (first, second) = (first / growth, second * 2.0 / growth);
    let later = (second - before * first) / (1.0 - before);
    (first - later, later)
}
