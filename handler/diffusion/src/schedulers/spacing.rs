//! The timesteps of a run and their noise levels.

use super::{
    Setup,
    config::{SchedulerConfig, TimestepSpacing},
};
use crate::error::{PipelineError, Result};

/// Karras et al., "Elucidating the design space of diffusion-based generative models", 2022, equation 5.
const RHO: f64 = 7.0;

/// The timesteps of a run, noisiest first, and the noise level sigma at each; one sigma more, which is zero.
pub(super) struct Levels {
    pub(super) timesteps: Vec<f64>,
    pub(super) sigmas: Vec<f32>,
}

impl Levels {
    /// As DPM-Solver and UniPC take them: whole timesteps out of one more than there are steps.
    pub(super) fn multistep(setup: &Setup) -> Result<Self> {
        let train = floats(&setup.config.sigmas());
        let (timesteps, sigmas) = if setup.karras_sigmas {
            let sigmas = karras(train[train.len() - 1], train[0], setup.steps);
            (sigmas.iter().map(|&sigma| timestep(sigma, &train)).collect(), sigmas)
        } else {
            let timesteps = setup.config.timesteps(setup.steps, setup.steps + 1, TimestepSpacing::Linspace)?;
            let timesteps: Vec<f64> = timesteps.into_iter().map(f64::round_ties_even).collect();
            let sigmas = timesteps.iter().map(|&at| interpolate(&train, at)).collect();
            (timesteps, sigmas)
        };
        let timesteps = timesteps.into_iter().map(f64::round_ties_even).collect();
        Ok(Self { timesteps, sigmas: ending_in_zero(sigmas) })
    }

    /// As Euler's methods take them: timesteps with fractions.
    pub(super) fn euler(setup: &Setup) -> Result<Self> {
        let train = floats(&setup.config.sigmas());
        let timesteps = setup.config.timesteps(setup.steps, setup.steps, TimestepSpacing::Linspace)?;
        let mut timesteps: Vec<f64> = timesteps.into_iter().map(|at| f64::from(at as f32)).collect();
        let mut sigmas: Vec<f64> = timesteps.iter().map(|&at| interpolate(&train, at)).collect();
        if setup.karras_sigmas {
            sigmas = karras(sigmas[0], sigmas[sigmas.len() - 1], setup.steps);
            timesteps = sigmas.iter().map(|&sigma| f64::from(timestep(sigma, &train) as f32)).collect();
        }
        Ok(Self { timesteps, sigmas: ending_in_zero(sigmas) })
    }

    /// What Euler's methods multiply unit noise with.
    pub(super) fn init_noise_sigma(&self, config: &SchedulerConfig) -> f64 {
        let most = self.sigmas.iter().copied().fold(0.0, f32::max);
        f64::from(match config.timestep_spacing {
            Some(TimestepSpacing::Leading) => (most * most + 1.0).sqrt(),
            Some(TimestepSpacing::Linspace | TimestepSpacing::Trailing) | None => most,
        })
    }
}

impl SchedulerConfig {
    /// The timesteps of a run, noisiest first. `points` is the number of parts that linspace and leading divide into:
    /// `steps` for most schedulers, one more for the multistep ones, which drop the last.
    pub(super) fn timesteps(&self, steps: usize, points: usize, default: TimestepSpacing) -> Result<Vec<f64>> {
        let train = self.num_train_timesteps;
        let spaced: Vec<f64> = match self.timestep_spacing.unwrap_or(default) {
            TimestepSpacing::Linspace => {
                let gap = (train - 1) as f64 / (points - 1).max(1) as f64;
                (0..points).rev().map(|index| index as f64 * gap).collect()
            }
            TimestepSpacing::Leading => {
                let gap = train / points;
                if gap == 0 {
                    return Err(too_many_steps(steps, train - 1));
                }
                (0..points).rev().map(|index| (index * gap + self.steps_offset) as f64).collect()
            }
            TimestepSpacing::Trailing => {
                let gap = train as f64 / steps as f64;
                (0..steps).map(|index| (train as f64 - index as f64 * gap).round_ties_even() - 1.0).collect()
            }
        };
        Ok(spaced.into_iter().take(steps).collect())
    }
}

/// An error about the number of steps.
pub(super) fn too_many_steps(steps: usize, most: usize) -> PipelineError {
    let (value, limit) = (steps.to_string(), format!("the model and its scheduler allow 1 to {most}"));
    PipelineError::Request { field: "num_inference_steps", value, limit }
}

/// Noise levels between the largest and the smallest, closer together where there is little noise.
fn karras(most: f64, least: f64, steps: usize) -> Vec<f64> {
    let (from, to) = (most.powf(RHO.recip()), least.powf(RHO.recip()));
    let gap = 1.0 / (steps - 1).max(1) as f64;
    (0..steps).map(|index| (from + index as f64 * gap * (to - from)).powf(RHO)).collect()
}

/// The timestep of training, with its fraction, that has this noise level.
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
