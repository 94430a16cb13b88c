//! Which finished step tells the backend of progress. Pure arithmetic; sending is done elsewhere.

use schemars::JsonSchema;
use serde::Serialize;
use std::time::Duration;

/// Percentages the backend hears of.
pub const MILESTONES: [usize; 5] = [0, 25, 50, 75, 90];

/// How far a painting is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Progress {
    /// Finished steps.
    pub current_step: usize,
    /// Steps in all.
    pub total_steps: usize,
    /// `100 * current_step / total_steps`, rounded down.
    pub progress_percent: usize,
    /// Seconds that the remaining steps will take, rounded down.
    pub estimated_seconds: u64,
}

/// Fires each milestone once, at the first finished step that reaches it.
///
/// ```
/// use handler::webhook::progress::Milestones;
/// use std::time::Duration;
///
/// let mut milestones = Milestones::new(50);
/// let told = (0..=50).filter_map(|step| milestones.reach(step, Duration::from_secs(1)));
/// let told: Vec<_> = told.map(|progress| (progress.current_step, progress.estimated_seconds)).collect();
/// assert_eq!(told, [(0, 50), (13, 37), (25, 25), (38, 12), (45, 5)]);
/// ```
#[derive(Debug)]
pub struct Milestones {
    total_steps: usize,
    passed: usize,
}

impl Milestones {
    /// For a painting of `total_steps` steps.
    pub fn new(total_steps: usize) -> Self {
        Self { total_steps, passed: 0 }
    }

    /// Tells whether `current_step` finished steps reach a milestone that no earlier step has reached. A step that
    /// reaches several is told once.
    pub fn reach(&mut self, current_step: usize, per_step: Duration) -> Option<Progress> {
        let reached = MILESTONES.iter().filter(|&&percent| 100 * current_step >= percent * self.total_steps).count();
        if reached <= self.passed {
            return None;
        }
        self.passed = reached;
        let remaining = self.total_steps.saturating_sub(current_step);
        Some(Progress {
            current_step,
            total_steps: self.total_steps,
            progress_percent: 100 * current_step / self.total_steps,
            estimated_seconds: per_step.mul_f64(remaining as f64).as_secs(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_milestone_fires_once_at_the_first_step_that_reaches_it() {
        let cases: [(usize, &[usize]); 5] = [
            (50, &[0, 13, 25, 38, 45]),
            (20, &[0, 5, 10, 15, 18]),
            (7, &[0, 2, 4, 6, 7]),
            (2, &[0, 1, 2]),
            (1, &[0, 1]),
        ];
        for (total, steps) in cases {
            let mut milestones = Milestones::new(total);
            let told = (0..=total).filter(|&step| milestones.reach(step, Duration::ZERO).is_some());
            assert_eq!(told.collect::<Vec<_>>(), steps, "{total} steps");
        }
    }

    #[test]
    fn percent_and_estimate_follow_the_seed() {
        let told = Milestones::new(50).reach(13, Duration::from_millis(100)).unwrap();
        assert_eq!((told.progress_percent, told.estimated_seconds), (26, 3));
    }
}
