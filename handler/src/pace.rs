//! How a painting goes on: measures its steps, tells milestones, and stops it when the picture is not wanted or cannot be
//! finished in time.

use crate::progress::{Milestones, Progress};
use std::{
    collections::HashMap,
    ops::ControlFlow,
    sync::{Arc, Mutex, OnceLock, PoisonError},
    time::{Duration, Instant},
};

/// What the backend is told a step takes before one was measured: the Python worker's assumption.
const ASSUMED_STEP: Duration = Duration::from_millis(100);
/// What decoding, upload and webhook are taken to need before they were measured.
const ASSUMED_REST: Duration = Duration::from_secs(2);

/// What the time of a step depends on: width, height, pictures at once.
pub type Load = (usize, usize, usize);

/// Times measured in this process, for the next painting.
#[derive(Debug, Clone, Default)]
pub struct Times(Arc<Mutex<Measured>>);

#[derive(Debug, Default)]
struct Measured {
    steps: HashMap<Load, Duration>,
    /// From the last step to the backend's answer.
    rest: Option<Duration>,
}

/// One painting.
pub struct Pace<T, U> {
    /// Denoising steps.
    pub steps: usize,
    /// What a step's time depends on.
    pub load: Load,
    /// Measured times.
    pub times: Times,
    /// When the invocation ends, if it does.
    pub deadline: Option<Instant>,
    /// Tells a milestone.
    pub tell: T,
    /// Whether the backend wants the picture no more.
    pub is_unwanted: U,
    /// Filled with what was left of the invocation when that did not suffice.
    pub out_of_time: Arc<OnceLock<Duration>>,
}

impl Times {
    /// Notes how long everything after the last step took.
    pub fn note_rest(&self, rest: Duration) {
        self.lock().rest = Some(rest);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Measured> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<T: Fn(Progress), U: Fn() -> bool> Pace<T, U> {
    /// What the painting calls with the number of finished steps, before the first and after each.
    pub fn into_callback(self) -> impl FnMut(usize) -> ControlFlow<()> {
        let mut milestones = Milestones::new(self.steps);
        let mut first = None;
        move |finished| {
            if (self.is_unwanted)() {
                return ControlFlow::Break(());
            }
            let (per_step, rest) = self.measure(finished, *first.get_or_insert_with(Instant::now));
            if let Some(left) = self.too_little(finished, per_step, rest) {
                // The first time is the only one: the painting ends here.
                let _ = self.out_of_time.set(left);
                return ControlFlow::Break(());
            }
            if let Some(progress) = milestones.reach(finished, per_step.unwrap_or(ASSUMED_STEP)) {
                (self.tell)(progress);
            }
            ControlFlow::Continue(())
        }
    }

    /// The time of a step, if one was measured, and of everything after the last one.
    fn measure(&self, finished: usize, first: Instant) -> (Option<Duration>, Duration) {
        let mut times = self.times.lock();
        if finished > 0 {
            times.steps.insert(self.load, first.elapsed() / finished as u32);
        }
        (times.steps.get(&self.load).copied(), times.rest.unwrap_or(ASSUMED_REST))
    }

    /// What is left of the invocation, if the steps that are missing and what follows them need more.
    fn too_little(&self, finished: usize, per_step: Option<Duration>, rest: Duration) -> Option<Duration> {
        let missing = self.steps.checked_sub(finished).filter(|missing| *missing > 0)?;
        let left = self.deadline?.saturating_duration_since(Instant::now());
        let needed = per_step.unwrap_or_default().saturating_mul(missing as u32).saturating_add(rest);
        (needed > left).then_some(left)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::{cell::RefCell, thread::sleep};

    const LOAD: Load = (512, 512, 1);

    fn pace<T: Fn(Progress), U: Fn() -> bool>(
        times: &Times,
        left: Option<Duration>,
        tell: T,
        is_unwanted: U,
    ) -> Pace<T, U> {
        let deadline = left.map(|left| Instant::now() + left);
        Pace { steps: 10, load: LOAD, times: times.clone(), deadline, tell, is_unwanted, out_of_time: Arc::default() }
    }

    /// Finished steps when it ended.
    fn run(pace: Pace<impl Fn(Progress), impl Fn() -> bool>, step: Duration) -> usize {
        let steps = pace.steps;
        let mut callback = pace.into_callback();
        (0..=steps)
            .find(|finished| {
                sleep(if *finished > 0 { step } else { Duration::ZERO });
                callback(*finished).is_break()
            })
            .unwrap_or(steps + 1)
    }

    #[test]
    fn a_painting_that_cannot_be_finished_in_time_stops_at_the_first_step_that_shows_it() {
        let times = Times::default();
        times.note_rest(Duration::from_millis(10));
        let (slow, time) = (Duration::from_millis(150), Duration::from_secs(1));
        let short = pace(&times, Some(time), |_| {}, || false);
        let out_of_time = short.out_of_time.clone();
        assert_eq!(run(short, slow), 1, "ten steps of 150 ms do not fit into a second");
        assert!(out_of_time.get().is_some_and(|left| *left < time));
        // Measured now: the next one does not even start.
        assert_eq!(run(pace(&times, Some(time), |_| {}, || false), slow), 0);
        assert_eq!(run(pace(&times, Some(Duration::from_secs(60)), |_| {}, || false), Duration::ZERO), 11);
        assert_eq!(run(pace(&times, None, |_| {}, || false), Duration::ZERO), 11);
    }

    #[test]
    fn another_size_is_measured_anew() {
        let times = Times::default();
        times.lock().steps.insert(LOAD, Duration::from_secs(3600));
        times.note_rest(Duration::ZERO);
        let other = Pace { load: (768, 768, 1), ..pace(&times, Some(Duration::from_secs(60)), |_| {}, || false) };
        assert_eq!(run(other, Duration::ZERO), 11);
    }

    #[test]
    fn a_finished_painting_is_never_given_up() {
        let times = Times::default();
        times.note_rest(Duration::from_secs(1));
        let mut callback = pace(&times, Some(Duration::ZERO), |_| {}, || false).into_callback();
        assert!(callback(10).is_continue());
        assert!(callback(9).is_break());
    }

    #[test]
    fn milestones_are_told_until_the_picture_is_unwanted() {
        let told = RefCell::new(vec![]);
        let unwanted = RefCell::new(false);
        let times = Times::default();
        let tell = |progress: Progress| told.borrow_mut().push(progress.current_step);
        let mut callback = pace(&times, None, tell, || *unwanted.borrow()).into_callback();
        assert!((0..=5).all(|finished| callback(finished).is_continue()));
        *unwanted.borrow_mut() = true;
        assert!(callback(6).is_break());
        assert_eq!(*told.borrow(), [0, 3, 5]);
    }
}
