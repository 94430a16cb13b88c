//! UniPC: Zhao et al., "UniPC: a unified predictor-corrector framework for fast sampling of diffusion models", 2023, of order
//! 2 with B(h) = e^h - 1 over clean pictures. As diffusers' `UniPCMultistepScheduler` with its defaults.
//!
//! Each call of the model first corrects the step before it, then predicts the next.

use super::{
    Scheduler, Setup,
    arithmetic::{over, times},
    config::{Limit, PredictionType},
    dpm_solver::{alpha_sigma, lambda},
    spacing::Levels,
};
use crate::{error, noise::Noise};
use candle_core::{DType, Result, Tensor};

pub(super) const KARRAS_SIGMAS: bool = true;
pub(super) const DRAWS: bool = false;

const LIMITS: [Limit; 15] = [
    ("thresholding", "false"),
    ("solver_order", "2"),
    ("predict_x0", "true"),
    ("solver_type", "bh2, midpoint, heun, logrho"),
    ("lower_order_final", "true"),
    ("disable_corrector", "[]"),
    ("solver_p", "null"),
    ("final_sigmas_type", "zero"),
    ("use_exponential_sigmas", "false"),
    ("use_beta_sigmas", "false"),
    ("use_flow_sigmas", "false"),
    ("use_dynamic_shifting", "false"),
    ("shift_terminal", "null"),
    ("sigma_min", "null"),
    ("sigma_max", "null"),
];

struct UniPc {
    levels: Levels,
    prediction: PredictionType,
    /// The clean pictures of the last two steps, the newer one last.
    clean: Vec<Tensor>,
    /// The sample that the last prediction started from, and the order of that prediction.
    last: Option<(Tensor, usize)>,
}

/// One way from a noise level to the next.
struct Way {
    /// Factor of the sample at its start.
    keep: f32,
    /// Share of the picture at its end.
    alpha: f32,
    /// The negative logarithmic length.
    h: f32,
    /// Where the step before started, in lengths of this way; negative.
    before: Option<f32>,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    setup.config.check(&LIMITS)?;
    let (levels, prediction) = (Levels::multistep(setup)?, setup.config.prediction_type);
    Ok(Box::new(UniPc { levels, prediction, clean: Vec::new(), last: None }))
}

impl Scheduler for UniPc {
    fn timesteps(&self) -> &[f64] {
        &self.levels.timesteps
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
        let order = 2.min(step + 1).min(self.levels.timesteps.len() - step);
        let next = self.predicted(step, &sample, order)?;
        self.last = Some((sample, order));
        Ok(next)
    }
}

impl UniPc {
    /// UniP: the sample after `step`.
    fn predicted(&self, step: usize, sample: &Tensor, order: usize) -> Result<Tensor> {
        let way = self.way(step, order);
        let base = self.straight(&way, sample)?;
        match self.slope(&way)? {
            Some(slope) => base - times(&times(&slope, 0.5)?, way.drift())?,
            None => Ok(base),
        }
    }

    /// UniC: the sample before `step`, once more from where the last prediction started, with what the model said since.
    fn corrected(&self, step: usize, start: &Tensor, now: &Tensor, order: usize) -> Result<Tensor> {
        let way = self.way(step - 1, order);
        let base = self.straight(&way, start)?;
        let change = (now - &self.clean[self.clean.len() - 1])?;
        let change = match (self.slope(&way)?, way.before) {
            (Some(slope), Some(before)) => {
                let (earlier, later) = weights(way.h, before);
                (times(&slope, earlier)? + times(&change, later)?)?
            }
            _ => times(&change, 0.5)?,
        };
        base - times(&change, way.drift())?
    }

    /// The first-order step over a way.
    fn straight(&self, way: &Way, start: &Tensor) -> Result<Tensor> {
        times(start, way.keep)? - times(&self.clean[self.clean.len() - 1], way.drift())?
    }

    /// How the clean picture changed over the way before, as it would over the length of this one.
    fn slope(&self, way: &Way) -> Result<Option<Tensor>> {
        let [older, newer] = self.clean.as_slice() else { return Ok(None) };
        way.before.map(|before| over(&(older - newer)?, before)).transpose()
    }

    fn way(&self, step: usize, order: usize) -> Way {
        let at = |step: usize| alpha_sigma(self.levels.sigmas[step]);
        let (from, to) = (at(step), at(step + 1));
        let length = lambda(to) - lambda(from);
        let before = (order == 2).then(|| (lambda(at(step - 1)) - lambda(from)) / length);
        Way { keep: to.1 / from.1, alpha: to.0, h: -length, before }
    }
}

impl Way {
    /// Factor of the clean picture: with B(h) = e^h - 1 the same for every order.
    fn drift(&self) -> f32 {
        self.alpha * self.h.exp_m1()
    }
}

/// What the earlier and the later change of the clean picture count in the corrector of order 2.
fn weights(h: f32, before: f32) -> (f32, f32) {
    let growth = h.exp_m1();
    let first = growth / h - 1.0;
    let second = first / h - 0.5;
    let (first, second) = (first / growth, second * 2.0 / growth);
    let later = (second - before * first) / (1.0 - before);
    (first - later, later)
}
