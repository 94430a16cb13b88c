//! The clock of a painting: how long a step takes in this try, and how many are missing. Pure: whoever asks brings the time.

use crate::engine::Step;
use std::time::{Duration, Instant};

/// Measures from step to step. The first step of each part is left out: networks are planned and recorded in it.
#[derive(Debug)]
pub(super) struct Clock {
    /// Of each part.
    steps: usize,
    last: Option<Instant>,
    sum: Duration,
    count: u32,
}

impl Clock {
    pub(super) fn new(steps: usize) -> Self {
        Self { steps, last: None, sum: Duration::ZERO, count: 0 }
    }

    /// Notes a step that has just been finished; with none of the first part finished, a new try begins.
    pub(super) fn note(&mut self, step: Step, now: Instant) {
        match (step.finished, self.last) {
            (0, _) if step.part == 0 => *self = Self::new(self.steps),
            (2.., Some(last)) => {
                self.sum += now.saturating_duration_since(last);
                self.count += 1;
            }
            _ => {}
        }
        self.last = Some(now);
    }

    /// The mean time of a step in this try, once one was measured.
    pub(super) fn per_step(&self) -> Option<Duration> {
        self.sum.checked_div(self.count)
    }

    /// Steps of the whole try that are finished, as if all parts went on at once.
    pub(super) fn done(&self, step: Step) -> usize {
        (step.part * self.steps + step.finished) / step.parts.max(1)
    }

    /// Whether what is missing fits into the time that is left: the steps, those of the parts to come too, and the rest after them. While
    /// nothing is measured any time will do, and a painting whose steps are all done is always finished.
    pub(super) fn fits(&self, step: Step, left: Duration, rest: Duration) -> bool {
        let missing = (step.parts * self.steps).saturating_sub(step.part * self.steps + step.finished);
        match self.per_step() {
            _ if missing == 0 => true,
            None => !left.is_zero(),
            Some(per_step) => per_step.saturating_mul(missing as u32).saturating_add(rest) <= left,
        }
    }
}
