//! Noise schedules: how much noise the model saw at each timestep of training, and which timesteps and noise levels a run takes
//! from them. Rounded to f32 where torch rounds.

use super::{Setup, config::Settings};
use crate::error::{PipelineError, Result};
use serde::Deserialize;

/// sigma would be infinite where alphas_cumprod is 0. diffusers takes 2^-24 instead of 0.
const MAX_SIGMA: f32 = 4096.0;
/// Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, equation 5.
const RHO: f64 = 7.0;

/// How the betas of training grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum BetaSchedule {
    Linear,
    ScaledLinear,
}

/// How the timesteps of a run are picked from those of training.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
enum TimestepSpacing {
    Linspace,
    Leading,
    Trailing,
}

/// The timesteps of a run, noisiest first, and the noise level sigma at each, with a last sigma of zero.
pub(super) struct NoiseLevels {
    pub(super) timesteps: Vec<f64>,
    pub(super) sigmas: Vec<f32>,
}

impl NoiseLevels {
    /// For DPM-Solver and UniPC: whole timesteps, the first ones of a spacing with one more than `steps`.
    pub(super) fn multistep(setup: &Setup) -> Result<Self> {
        let train = floats(&setup.settings.sigmas()?);
        let (timesteps, sigmas) = if setup.karras_sigmas {
            let sigmas = setup.karras(train[train.len() - 1], train[0])?;
            (sigmas.iter().map(|&sigma| timestep(sigma, &train)).collect(), sigmas)
        } else {
            let timesteps = setup.settings.timesteps(setup.steps, setup.steps + 1)?;
            let timesteps: Vec<f64> = timesteps.into_iter().map(f64::round_ties_even).collect();
            let sigmas = timesteps.iter().map(|&at| interpolate(&train, at)).collect();
            (timesteps, sigmas)
        };
        let timesteps = timesteps.into_iter().map(f64::round_ties_even).collect();
        Ok(Self { timesteps, sigmas: ending_in_zero(sigmas) })
    }

    /// For Euler's methods: timesteps with fractions.
    pub(super) fn euler(setup: &Setup) -> Result<Self> {
        let train = floats(&setup.settings.sigmas()?);
        let timesteps = setup.settings.timesteps(setup.steps, setup.steps)?;
        let mut timesteps: Vec<f64> = timesteps.into_iter().map(|at| f64::from(at as f32)).collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&at| interpolate(&train, at)).collect();
        if setup.karras_sigmas {
            sigmas = setup.karras(sigmas[0], sigmas[sigmas.len() - 1])?;
            timesteps = sigmas.iter().map(|&sigma| f64::from(timestep(sigma, &train) as f32)).collect();
        }
        Ok(Self { timesteps, sigmas: ending_in_zero(sigmas) })
    }

    /// The standard deviation of the first latents, for Euler's methods.
    pub(super) fn init_noise_sigma(&self, settings: &Settings) -> Result<f64> {
        let most = self.sigmas.iter().copied().fold(0.0, f32::max);
        Ok(f64::from(match settings.timestep_spacing()? {
            TimestepSpacing::Leading => (most * most + 1.0).sqrt(),
            TimestepSpacing::Linspace | TimestepSpacing::Trailing => most,
        }))
    }
}

impl Setup<'_> {
    /// The noise levels of Karras et al. between these two, or those that the file names. diffusers reads them there for all classes.
    fn karras(&self, most: f64, least: f64) -> Result<Vec<f64>> {
        let most = self.settings.named_number("sigma_max")?.unwrap_or(most);
        Ok(karras(most, self.settings.named_number("sigma_min")?.unwrap_or(least), self.steps))
    }
}

impl Settings<'_> {
    /// The timesteps of a run, noisiest first. `points` is the number of timesteps that linspace and leading make: `steps` for most
    /// schedulers, one more for the multistep ones, which drop the last.
    pub(super) fn timesteps(&self, steps: usize, points: usize) -> Result<Vec<f64>> {
        let train = self.train;
        let spaced: Vec<f64> = match self.timestep_spacing()? {
            TimestepSpacing::Linspace => {
                let gap = (train - 1) as f64 / (points - 1).max(1) as f64;
                (0..points).rev().map(|index| index as f64 * gap).collect()
            }
            TimestepSpacing::Leading => {
                let gap = train / points;
                if gap == 0 {
                    return Err(too_many_steps(steps, train - 1));
                }
                let offset = self.count("steps_offset")?;
                (0..points).rev().map(|index| (index * gap + offset) as f64).collect()
            }
            TimestepSpacing::Trailing => {
                let gap = train as f64 / steps as f64;
                (0..steps).map(|index| (train as f64 - index as f64 * gap).round_ties_even() - 1.0).collect()
            }
        };
        Ok(spaced.into_iter().take(steps).collect())
    }

    /// diffusers' `alphas_cumprod`: the cumulative product of `1 - beta`, which is how much of the picture is left at each timestep of
    /// training.
    pub(super) fn alphas_cumprod(&self) -> Result<Vec<f32>> {
        let alphas = cumulative_product(self.betas()?.into_iter().map(|beta| 1.0 - beta));
        Ok(if self.flag("rescale_betas_zero_snr")? { zero_terminal_snr(&alphas) } else { alphas })
    }

    /// The noise level sigma at each timestep of training: `sqrt((1 - a) / a)` for `a` of [`Settings::alphas_cumprod`].
    fn sigmas(&self) -> Result<Vec<f32>> {
        let sigma = |alpha: f32| if alpha == 0.0 { MAX_SIGMA } else { ((1.0 - alpha) / alpha).sqrt() };
        Ok(self.alphas_cumprod()?.into_iter().map(sigma).collect())
    }

    /// The variance of the noise that training added at each timestep.
    fn betas(&self) -> Result<Vec<f32>> {
        if let Some(betas) = self.trained_betas()? {
            return Ok(betas);
        }
        let (start, end) = (self.beta("beta_start")?, self.beta("beta_end")?);
        let linspace = |start: f64, end: f64| linspace(start as f32, end as f32, self.train);
        Ok(match self.choice("beta_schedule", "linear, scaled_linear")? {
            BetaSchedule::Linear => linspace(start, end),
            BetaSchedule::ScaledLinear => {
                linspace(start.sqrt(), end.sqrt()).into_iter().map(|root| root * root).collect()
            }
        })
    }

    fn trained_betas(&self) -> Result<Option<Vec<f32>>> {
        const SUPPORTED: &str = "null, or num_train_timesteps numbers between 0 and 1";
        let Some(betas) = self.numbers("trained_betas", SUPPORTED)? else { return Ok(None) };
        if betas.len() != self.train || !betas.iter().all(|&beta| is_beta(beta)) {
            return Err(self.unsupported("trained_betas", SUPPORTED));
        }
        Ok(Some(betas.into_iter().map(|beta| beta as f32).collect()))
    }

    fn beta(&self, name: &'static str) -> Result<f64> {
        let beta = self.number(name)?;
        if is_beta(beta) { Ok(beta) } else { Err(self.unsupported(name, "numbers between 0 and 1")) }
    }

    fn timestep_spacing(&self) -> Result<TimestepSpacing> {
        self.choice("timestep_spacing", "linspace, leading, trailing")
    }
}

/// Whether a variance leaves something of the picture and adds some noise.
fn is_beta(beta: f64) -> bool {
    beta > 0.0 && beta < 1.0
}

/// The error for more steps than `most`.
pub(super) fn too_many_steps(steps: usize, most: usize) -> PipelineError {
    let (value, limit) = (steps.to_string(), format!("the model and its scheduler allow 1 to {most}"));
    PipelineError::Request { field: "num_inference_steps", value, limit }
}

/// The noise levels of Karras et al. between the largest and the smallest, closer together the less noise there is.
fn karras(most: f64, least: f64, steps: usize) -> Vec<f64> {
    let (from, to) = (most.powf(RHO.recip()), least.powf(RHO.recip()));
    let gap = 1.0 / (steps - 1).max(1) as f64;
    (0..steps).map(|index| (from + index as f64 * gap * (to - from)).powf(RHO)).collect()
}

/// The timestep of training with this noise level, with its fraction.
fn timestep(sigma: f64, train: &[f64]) -> f64 {
    let log = |sigma: f64| f64::from((sigma as f32).ln());
    let sigma = sigma.max(1e-10).ln();
    let below = train.iter().rposition(|&trained| log(trained) <= sigma).unwrap_or(0).min(train.len() - 2);
    let (low, high) = (log(train[below]), log(train[below + 1]));
    below as f64 + ((low - sigma) / (low - high)).clamp(0.0, 1.0)
}

/// The value at a fractional index, between its two neighbours.
fn interpolate(values: &[f64], at: f64) -> f64 {
    let last = values.len() - 1;
    let below = (at.max(0.0) as usize).min(last);
    let above = (below + 1).min(last);
    values[below] + (values[above] - values[below]) * (at - below as f64).clamp(0.0, 1.0)
}

fn ending_in_zero(sigmas: Vec<f64>) -> Vec<f32> {
    sigmas.into_iter().chain([0.0]).map(|sigma| sigma as f32).collect()
}

fn floats(values: &[f32]) -> Vec<f64> {
    values.iter().copied().map(f64::from).collect()
}

/// torch's `linspace`, which computes each number from the nearer end.
fn linspace(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count - 1) as f32;
    let from_start = (0..count / 2).map(|index| step.mul_add(index as f32, start));
    let from_end = (count / 2..count).map(|index| step.mul_add(-((count - 1 - index) as f32), end));
    from_start.chain(from_end).collect()
}

/// torch's `cumprod` on the CPU: computed in f64, each product rounded to f32.
fn cumulative_product(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1.0;
    let mut multiply = |factor: f32| {
        product *= f64::from(factor);
        product as f32
    };
    factors.map(&mut multiply).collect()
}

/// Shifts and scales the schedule so that nothing of the picture is left at its end: Lin et al., "Common diffusion noise schedules
/// and sample steps are flawed", 2023, algorithm 1.
fn zero_terminal_snr(alphas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas.iter().map(|alpha| alpha.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let stretch = first / (first - last);
    let squares: Vec<f32> = roots.iter().map(|root| ((root - last) * stretch).powi(2)).collect();
    let factors =
        (0..squares.len()).map(|index| if index == 0 { squares[0] } else { squares[index] / squares[index - 1] });
    // The paper computes it by way of beta, which rounds once more.
    cumulative_product(factors.map(|factor| 1.0 - (1.0 - factor)))
}
