//! PNDM: Liu et al., "Pseudo numerical methods for diffusion models on manifolds", 2022. As diffusers' `PNDMScheduler`, which is the
//! scheduler that SD1.5's own file names.
//!
//! With `skip_prk_steps`, as in that file, it is a linear multistep method (PLMS) whose first step calls the UNet twice. Without, three
//! steps of a Runge-Kutta method come first, of four calls each.

use super::{
    Scheduler, Setup,
    config::{DDPM_BETAS, Field, PredictionType, TRAINING, Use},
    mixed_by_product,
    noise_schedule::too_many_steps,
    over, times,
};
use crate::{
    error::{self, PipelineError},
    noise::Noise,
};
use candle_core::{DType, Result, Tensor};

pub(super) const KARRAS_SIGMAS: bool = false;
pub(super) const DRAWS: bool = false;
pub(super) const FIELDS: &[&[Field]] = &[
    &TRAINING,
    &DDPM_BETAS,
    &[
        ("skip_prk_steps", "false", Use::Read),
        ("set_alpha_to_one", "false", Use::Read),
        ("timestep_spacing", "leading", Use::Read),
        ("steps_offset", "0", Use::Read),
    ],
];

/// The calls of the UNet in one step of the Runge-Kutta method.
const CALLS: usize = 4;
/// The steps of the Runge-Kutta method, and the timesteps that they need.
const PRK_STEPS: usize = 3;

struct Pndm {
    /// One for each call of the UNet.
    timesteps: Vec<f64>,
    calls: Vec<Call>,
    train: Train,
    /// Whether the Runge-Kutta method comes first.
    has_prk: bool,
    prediction: PredictionType,
    /// The last outputs that the multistep method combines, the newest last.
    outputs: Vec<Tensor>,
    /// The sample at the start of a step of several calls, and the sum of the Runge-Kutta method's outputs.
    start: Option<Tensor>,
    sum: Option<Tensor>,
}

/// What the steps of training left of the picture.
struct Train {
    /// alphas_cumprod at each timestep.
    alphas: Vec<f32>,
    /// The same before the first timestep.
    end: f32,
    /// Timesteps of training in one step.
    stride: i64,
}

/// One call of the UNet and what is done with its output.
struct Call {
    method: Method,
    /// alphas_cumprod before and after the step.
    from: f32,
    to: f32,
}

/// The same in timesteps: that of the UNet, and those before and after the step.
struct Plan {
    method: Method,
    at: i64,
    from: i64,
    to: i64,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Method {
    /// A call of the Runge-Kutta method, from 0 to 3 in its step.
    RungeKutta(usize),
    /// The second call of PLMS, which repeats the first step with the mean of two outputs.
    Again,
    Multistep,
}

pub(super) fn build(setup: &Setup) -> error::Result<Box<dyn Scheduler>> {
    let Setup { ref settings, steps, .. } = *setup;
    let spaced = settings.timesteps(steps, steps)?;
    let spaced: Vec<i64> = spaced.into_iter().map(|at| at.round_ties_even() as i64).collect();
    let alphas = settings.alphas_cumprod()?;
    let end = if settings.flag("set_alpha_to_one")? { 1.0 } else { alphas[0] };
    let train = Train { alphas, end, stride: (settings.train / steps) as i64 };
    let has_prk = !settings.flag("skip_prk_steps")?;
    let planned = if has_prk { prk(&spaced, train.stride)? } else { plms(&spaced, train.stride) };
    let calls = train.calls(&planned).ok_or_else(|| too_many_steps(steps, settings.train - 1))?;
    let timesteps = planned.iter().map(|plan| plan.at as f64).collect();
    let prediction = settings.prediction;
    Ok(Box::new(Pndm { timesteps, calls, train, has_prk, prediction, outputs: Vec::new(), start: None, sum: None }))
}

impl Train {
    /// `None` if a timestep is none of training.
    fn calls(&self, planned: &[Plan]) -> Option<Vec<Call>> {
        let call = |plan: &Plan| {
            let from = *self.alphas.get(usize::try_from(plan.from).ok()?)?;
            // Before the first timestep of training there is none.
            let to = usize::try_from(plan.to).map_or(Some(self.end), |to| self.alphas.get(to).copied())?;
            Some(Call { method: plan.method, from, to })
        };
        planned.iter().map(call).collect()
    }
}

/// The calls of the multistep method alone.
fn plms(spaced: &[i64], stride: i64) -> Vec<Plan> {
    let mut calls = multistep(spaced, stride);
    if let [_, second, ..] = *spaced {
        calls.insert(1, Plan { method: Method::Again, at: second, from: second + stride, to: second });
    }
    calls
}

/// The same with the Runge-Kutta method first. Its second and third call are in the middle of a step, its fourth at the end.
fn prk(spaced: &[i64], stride: i64) -> error::Result<Vec<Plan>> {
    if spaced.len() <= PRK_STEPS {
        let limit = format!("the scheduler pndm needs at least {} with this model's scheduler file", PRK_STEPS + 1);
        return Err(PipelineError::Request { field: "num_inference_steps", value: spaced.len().to_string(), limit });
    }
    let half = stride / 2;
    let mut calls = Vec::new();
    for pair in spaced[..=PRK_STEPS].windows(2) {
        let (from, end) = (pair[0], pair[1]);
        let middle = end + half;
        let steps = [(from, from - half), (middle, middle), (middle, end), (end, end)];
        let plan = |(call, (at, to))| Plan { method: Method::RungeKutta(call), at, from, to };
        calls.extend(steps.into_iter().enumerate().map(plan));
    }
    calls.extend(multistep(&spaced[PRK_STEPS..], stride));
    Ok(calls)
}

fn multistep(spaced: &[i64], stride: i64) -> Vec<Plan> {
    spaced.iter().map(|&at| Plan { method: Method::Multistep, at, from: at, to: at - stride }).collect()
}

impl Scheduler for Pndm {
    fn timesteps(&self) -> &[f64] {
        &self.timesteps
    }

    /// The second call repeats the first step here, too, wherever the run begins, and as in diffusers it is taken for a step that ends where
    /// it is called.
    fn begin_at(&mut self, step: usize) -> error::Result<()> {
        if step == 0 {
            return Ok(());
        }
        if self.has_prk {
            let limit = "which begins from an image only where the model's scheduler file has `skip_prk_steps` true: take another one";
            return Err(PipelineError::Request { field: "scheduler", value: "pndm".into(), limit: limit.into() });
        }
        let (stride, rest) = (self.train.stride, self.timesteps.iter().skip(step).map(|&at| at as i64));
        let plan = |(index, at): (usize, i64)| match index {
            1 => Plan { method: Method::Again, at, from: at + stride, to: at },
            _ => Plan { method: Method::Multistep, at, from: at, to: at - stride },
        };
        let planned: Vec<Plan> = rest.enumerate().map(plan).collect();
        let calls = self.train.calls(&planned);
        let most = self.train.alphas.len() - 1;
        self.calls.truncate(step);
        self.calls.extend(calls.ok_or_else(|| too_many_steps(self.timesteps.len() - 1, most))?);
        Ok(())
    }

    fn add_noise(&self, sample: &Tensor, noise: &Tensor, step: usize) -> Result<Tensor> {
        // A timestep of training: the calls were made of them.
        mixed_by_product(sample, noise, self.train.alphas[self.timesteps[step] as usize])
    }

    fn step(&mut self, model_output: &Tensor, step: usize, sample: &Tensor, _: &mut Noise) -> Result<Tensor> {
        let output = model_output.to_dtype(DType::F32)?;
        let (combined, start) = match self.calls[step].method {
            Method::RungeKutta(call) => self.runge_kutta(call, output, sample)?,
            Method::Again => self.again(&output, sample)?,
            Method::Multistep => self.multistep(output, sample)?,
        };
        self.next(&self.calls[step], combined, &start)
    }
}

impl Pndm {
    /// The output to go on with, and the sample to start from.
    fn runge_kutta(&mut self, call: usize, output: Tensor, sample: &Tensor) -> Result<(Tensor, Tensor)> {
        const WEIGHTS: [f64; CALLS] = [1.0 / 6.0, 1.0 / 3.0, 1.0 / 3.0, 1.0 / 6.0];
        if call == 0 {
            self.outputs.push(output.clone());
            self.start = Some(sample.clone());
        }
        let part = times(&output, WEIGHTS[call] as f32)?;
        let sum = match self.sum.take() {
            Some(sum) => (sum + part)?,
            None => part,
        };
        let start = self.start.clone().unwrap_or_else(|| sample.clone());
        if call + 1 == CALLS {
            return Ok((sum, start));
        }
        self.sum = Some(sum);
        Ok((output, start))
    }

    fn again(&mut self, output: &Tensor, sample: &Tensor) -> Result<(Tensor, Tensor)> {
        let start = self.start.take().unwrap_or_else(|| sample.clone());
        let first = self.outputs.last().map_or_else(|| Ok(output.clone()), |first| output + first)?;
        Ok((over(&first, 2.0)?, start))
    }

    fn multistep(&mut self, output: Tensor, sample: &Tensor) -> Result<(Tensor, Tensor)> {
        if self.outputs.len() == 4 {
            self.outputs.remove(0);
        }
        self.outputs.push(output.clone());
        let combined = match self.outputs.as_slice() {
            [before, now] => over(&(times(now, 3.0)? - before)?, 2.0)?,
            [older, before, now] => {
                let sum = ((times(now, 23.0)? - times(before, 16.0)?)? + times(older, 5.0)?)?;
                over(&sum, 12.0)?
            }
            [oldest, older, before, now] => {
                let sum = ((times(now, 55.0)? - times(before, 59.0)?)? + times(older, 37.0)?)?;
                times(&(sum - times(oldest, 9.0)?)?, (1.0 / 24.0) as f32)?
            }
            _ => {
                // The next call may repeat this step.
                self.start = Some(sample.clone());
                output
            }
        };
        Ok((combined, sample.clone()))
    }

    /// Equation 9 of the paper: the sample after the step.
    fn next(&self, &Call { from, to, .. }: &Call, output: Tensor, sample: &Tensor) -> Result<Tensor> {
        let noise = self.prediction.noise(output, sample, (from.sqrt(), (1.0 - from).sqrt()))?;
        let scale = from * (1.0 - to).sqrt() + (from * (1.0 - from) * to).sqrt();
        times(sample, (to / from).sqrt())? - over(&times(&noise, to - from)?, scale)?
    }
}
