//! The noise schedule of training: how much noise the model saw at each timestep.

use super::config::SchedulerConfig;
use serde::Deserialize;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum BetaSchedule {
    Linear,
    ScaledLinear,
}

/// The variance of the noise that training added at each timestep: from where to where, and in which line.
#[derive(Debug, Clone, Copy)]
pub(super) struct Betas(f64, f64, BetaSchedule);

/// What most schedulers take if the file does not say.
pub(super) const DDPM: Betas = Betas(0.0001, 0.02, BetaSchedule::Linear);
/// What LCM takes if the file does not say.
pub(super) const STABLE_DIFFUSION: Betas = Betas(0.00085, 0.012, BetaSchedule::ScaledLinear);

/// Where nothing of the picture is left, sigma would be infinite. diffusers takes 2^-24 of it.
const MOST: f32 = 4096.0;

impl SchedulerConfig {
    /// How much of the picture is left at each training timestep: the cumulative product of `1 - beta`.
    ///
    /// Rounded to f32 where torch rounds.
    pub(super) fn alphas(&self, default: Betas) -> Vec<f32> {
        let alphas = cumulative_product(self.betas(default).into_iter().map(|beta| 1.0 - beta));
        if self.rescale_betas_zero_snr == Some(true) { zero_terminal_snr(&alphas) } else { alphas }
    }

    /// The noise level sigma of each training timestep: `sqrt((1 - a) / a)`, `a` of [`SchedulerConfig::alphas`].
    pub(super) fn sigmas(&self) -> Vec<f32> {
        let sigma = |alpha: f32| ((1.0 - alpha) / alpha).sqrt();
        self.alphas(DDPM).into_iter().map(|alpha| if alpha == 0.0 { MOST } else { sigma(alpha) }).collect()
    }

    fn betas(&self, Betas(start, end, schedule): Betas) -> Vec<f32> {
        let (start, end) = (self.beta_start.unwrap_or(start), self.beta_end.unwrap_or(end));
        let line = |start: f64, end: f64| line(start as f32, end as f32, self.num_train_timesteps);
        match self.beta_schedule.unwrap_or(schedule) {
            BetaSchedule::Linear => line(start, end),
            BetaSchedule::ScaledLinear => line(start.sqrt(), end.sqrt()).into_iter().map(|root| root * root).collect(),
        }
    }
}

/// `count` numbers in equal steps, as torch's linspace rounds them: from the nearer end.
fn line(start: f32, end: f32, count: usize) -> Vec<f32> {
    let step = (end - start) / (count - 1) as f32;
    let from_start = (0..count / 2).map(|index| step.mul_add(index as f32, start));
    let from_end = (count / 2..count).map(|index| step.mul_add(-((count - 1 - index) as f32), end));
    from_start.chain(from_end).collect()
}

/// As torch multiplies on the CPU: in f64, each product rounded.
fn cumulative_product(factors: impl Iterator<Item = f32>) -> Vec<f32> {
    let mut product = 1.0;
    let mut multiply = |factor: f32| {
        product *= f64::from(factor);
        product as f32
    };
    factors.map(&mut multiply).collect()
}

/// Moves and stretches the schedule so that nothing of the picture is left at its end: Lin et al., "Common diffusion noise
/// schedules and sample steps are flawed", 2023, algorithm 1.
fn zero_terminal_snr(alphas: &[f32]) -> Vec<f32> {
    let roots: Vec<f32> = alphas.iter().map(|alpha| alpha.sqrt()).collect();
    let (first, last) = (roots[0], roots[roots.len() - 1]);
    let stretch = first / (first - last);
    let squares: Vec<f32> = roots.iter().map(|root| ((root - last) * stretch).powi(2)).collect();
    let factors =
        (0..squares.len()).map(|index| if index == 0 { squares[0] } else { squares[index] / squares[index - 1] });
    // By way of beta, as there: one more rounding.
    cumulative_product(factors.map(|factor| 1.0 - (1.0 - factor)))
}
