//! Watches a painting: measures its steps, reports milestones, and stops it if the backend cancels it or it cannot be finished in time.
//!
//! The time of the remaining steps is estimated from steps of the same attempt only. The time after the last step is estimated from
//! earlier tasks; the estimate is dropped once a task was stopped because of it.

use crate::{
    engine::{Preview, Step},
    webhook::progress::{Milestones, Progress},
};
use std::{
    collections::VecDeque,
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant},
};

/// The time of a step for progress webhooks, before one was measured: the Python worker's assumption.
const ASSUMED_STEP: Duration = Duration::from_millis(100);
/// How many of the last tasks count for the time after the last step.
const RECENT: usize = 4;
/// Tasks to measure before that time is estimated: a single one may have been delayed by chance.
const ENOUGH: usize = 2;
/// How many sizes and numbers of pictures are remembered: those of the last tasks, however many sizes a backend asks for.
const REMEMBERED: usize = 64;

/// Watches one painting over all of its attempts.
pub struct DeadlineGuard<T, U> {
    task: Workload,
    end: Option<Instant>,
    timings: Timings,
    report: T,
    is_unwanted: U,
    out_of_time: Arc<AtomicBool>,
    clock: StepClock,
    milestones: Milestones,
}

impl<T: Fn(Progress, &mut Preview<'_>), U: Fn() -> bool> DeadlineGuard<T, U> {
    /// For a task of the milestones' steps that must be done at `end`, if there is a limit. `report` gets the milestones, and what gives a preview; `is_unwanted` says
    /// whether the backend has cancelled the task.
    pub fn new(
        milestones: Milestones,
        task: Workload,
        end: Option<Instant>,
        timings: Timings,
        report: T,
        is_unwanted: U,
    ) -> Self {
        let clock = StepClock::new(milestones.total_steps());
        Self { task, end, timings, report, is_unwanted, out_of_time: Arc::default(), clock, milestones }
    }

    /// Whether the painting was stopped for lack of time; can be read after it.
    pub fn out_of_time(&self) -> Arc<AtomicBool> {
        self.out_of_time.clone()
    }

    /// To be called with each step. Decides whether the painting goes on.
    pub fn step(&mut self, step: Step, now: Instant, preview: &mut Preview<'_>) -> ControlFlow<()> {
        // A failed batch is painted again one by one, also the tasks that were stopped in it.
        if (self.is_unwanted)() || self.out_of_time.load(Ordering::Relaxed) {
            return ControlFlow::Break(());
        }
        self.clock.note(step, now);
        if self.is_too_late(step, now) {
            self.out_of_time.store(true, Ordering::Relaxed);
            return ControlFlow::Break(());
        }
        let measured = self.clock.per_step();
        let at_once = Workload { pictures: step.pictures, ..self.task };
        measured.inspect(|per_step| self.timings.record_step(at_once, *per_step));
        let per_step = measured.or_else(|| self.timings.step(at_once)).unwrap_or(ASSUMED_STEP);
        if let Some(progress) = self.milestones.reach(self.clock.done(step), per_step.saturating_mul(step.parts as u32))
        {
            (self.report)(progress, preview);
        }
        ControlFlow::Continue(())
    }

    fn is_too_late(&self, step: Step, now: Instant) -> bool {
        let Some(left) = self.end.map(|end| end.saturating_duration_since(now)) else { return false };
        if self.clock.fits(step, left, self.timings.finishing(self.task)) {
            return false;
        }
        if self.clock.fits(step, left, Duration::ZERO) {
            // Stopped only because of the estimate: the next task of this size shall measure anew.
            self.timings.forget_finishing(self.task);
        }
        true
    }
}

/// Measures the steps of one attempt. The first step of each part is left out: it includes planning and recording the networks. Callers
/// pass the time, so that tests need not sleep.
#[derive(Debug)]
struct StepClock {
    /// Steps of each part.
    steps: usize,
    last: Option<Instant>,
    sum: Duration,
    count: u32,
}

impl StepClock {
    fn new(steps: usize) -> Self {
        Self { steps, last: None, sum: Duration::ZERO, count: 0 }
    }

    /// Notes a step that has just finished. Step 0 of the first part begins a new attempt.
    fn note(&mut self, step: Step, now: Instant) {
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

    /// The mean time of a step in this attempt, once one was measured.
    fn per_step(&self) -> Option<Duration> {
        self.sum.checked_div(self.count)
    }

    /// Finished steps of the attempt, as if all parts ran at once.
    fn done(&self, step: Step) -> usize {
        (step.part * self.steps + step.finished) / step.parts.max(1)
    }

    /// Whether the remaining steps of all parts, and `finishing` after them, fit into the time that is left. Before a step is measured any
    /// time suffices, and a painting whose steps are all done always fits.
    fn fits(&self, step: Step, left: Duration, finishing: Duration) -> bool {
        let missing = (step.parts * self.steps).saturating_sub(step.part * self.steps + step.finished);
        match self.per_step() {
            _ if missing == 0 => true,
            None => !left.is_zero(),
            Some(per_step) => per_step.saturating_mul(missing as u32).saturating_add(finishing) <= left,
        }
    }
}

/// What the time of a step depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workload {
    /// Pixels of each picture.
    pub width: usize,
    /// Pixels of each picture.
    pub height: usize,
    /// Pictures of a task; of a step, those of its batch.
    pub pictures: usize,
}

/// Times measured in this process, for the tasks to come. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Timings(Arc<Mutex<Measured>>);

#[derive(Debug, Default)]
struct Measured {
    steps: Remembered<Duration>,
    finishing: Remembered<VecDeque<Duration>>,
}

/// What was measured for the last workloads, the one that was measured last at the end.
#[derive(Debug, Default)]
struct Remembered<V>(VecDeque<(Workload, V)>);

impl<V: Default> Remembered<V> {
    fn get(&self, workload: Workload) -> Option<&V> {
        self.0.iter().find(|(known, _)| *known == workload).map(|(_, measured)| measured)
    }

    /// Changes what is known of a workload, which is nothing at first.
    fn change(&mut self, workload: Workload, change: impl FnOnce(&mut V)) {
        let mut measured = self.remove(workload).unwrap_or_default();
        change(&mut measured);
        if self.0.len() >= REMEMBERED {
            self.0.pop_front();
        }
        self.0.push_back((workload, measured));
    }

    fn remove(&mut self, workload: Workload) -> Option<V> {
        let place = self.0.iter().position(|(known, _)| *known == workload)?;
        self.0.remove(place).map(|(_, measured)| measured)
    }
}

impl Timings {
    /// Records the time of a step.
    fn record_step(&self, workload: Workload, per_step: Duration) {
        self.lock().steps.change(workload, |known| *known = per_step);
    }

    /// The last recorded time of a step.
    fn step(&self, workload: Workload) -> Option<Duration> {
        self.lock().steps.get(workload).copied()
    }

    /// Records how long a task took from its last step until its pictures were stored.
    pub fn record_finishing(&self, workload: Workload, time: Duration) {
        self.lock().finishing.change(workload, |recent| {
            recent.push_back(time);
            if recent.len() > RECENT {
                recent.pop_front();
            }
        });
    }

    /// The shortest such time of recent tasks; zero until several were measured.
    fn finishing(&self, workload: Workload) -> Duration {
        let measured = self.lock();
        let recent = measured.finishing.get(workload).filter(|recent| recent.len() >= ENOUGH);
        recent.and_then(|recent| recent.iter().min()).copied().unwrap_or_default()
    }

    /// Drops these times, so that the next tasks measure anew.
    fn forget_finishing(&self, workload: Workload) {
        self.lock().finishing.remove(workload);
    }

    fn lock(&self) -> MutexGuard<'_, Measured> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests;
