//! How a painting goes on: measures its steps, tells milestones, and stops it when the picture is not wanted or cannot be
//! finished in time.
//!
//! Only steps of the same try speak against it. What was measured of earlier tasks speaks for what follows the last step, and is
//! forgotten as soon as a task was stopped for it.

mod clock;
mod times;

pub use times::{Load, Times};

use crate::{
    engine::Step,
    webhook::progress::{Milestones, Progress},
};
use clock::Clock;
use std::{
    ops::ControlFlow,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// What the backend is told a step takes before one was measured: the Python worker's assumption.
const ASSUMED_STEP: Duration = Duration::from_millis(100);

/// One painting, over all of its tries.
pub struct DeadlineGuard<T, U> {
    task: Load,
    end: Option<Instant>,
    times: Times,
    tell: T,
    is_unwanted: U,
    out_of_time: Arc<AtomicBool>,
    clock: Clock,
    milestones: Milestones,
}

impl<T: Fn(Progress), U: Fn() -> bool> DeadlineGuard<T, U> {
    /// Of a task with so many steps, which has to be done at `end`, if there is such a limit. `tell` tells a milestone; `is_unwanted` says
    /// whether the backend wants the picture no more.
    pub fn new(steps: usize, task: Load, end: Option<Instant>, times: Times, tell: T, is_unwanted: U) -> Self {
        let (clock, milestones) = (Clock::new(steps), Milestones::new(steps));
        Self { task, end, times, tell, is_unwanted, out_of_time: Arc::default(), clock, milestones }
    }

    /// Says, also after the painting, whether it was stopped for want of time.
    pub fn out_of_time(&self) -> Arc<AtomicBool> {
        self.out_of_time.clone()
    }

    /// To be called with each step; whether the painting goes on.
    pub fn step(&mut self, step: Step, now: Instant) -> ControlFlow<()> {
        // A batch that failed may be tried again, one by one, and with it who has left it.
        if (self.is_unwanted)() || self.out_of_time.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        self.clock.note(step, now);
        if self.is_too_late(step, now) {
            self.out_of_time.store(true, Ordering::Relaxed);
            return ControlFlow::Break(());
        }
        let measured = self.clock.per_step();
        let at_once = Load { pictures: step.pictures, ..self.task };
        measured.inspect(|per_step| self.times.note_step(at_once, *per_step));
        let per_step = measured.or_else(|| self.times.step(at_once)).unwrap_or(ASSUMED_STEP);
        if let Some(progress) = self.milestones.reach(self.clock.done(step), per_step.saturating_mul(step.parts as u32))
        {
            (self.tell)(progress);
        }
        ControlFlow::Continue(())
    }

    fn is_too_late(&self, step: Step, now: Instant) -> bool {
        let Some(left) = self.end.map(|end| end.saturating_duration_since(now)) else { return false };
        if self.clock.fits(step, left, self.times.rest(self.task)) {
            return false;
        }
        if self.clock.fits(step, left, Duration::ZERO) {
            // Stopped for what others have needed: the next one of this size finds out for itself.
            self.times.forget_rest(self.task);
        }
        true
    }
}

#[cfg(test)]
mod tests;
