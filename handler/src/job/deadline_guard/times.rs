//! Times measured in this process, by the size of what was painted, for the tasks to come.

use std::{
    collections::{HashMap, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

/// So many of the last tasks say how long everything after the last step takes; older ones fade.
const RECENT: usize = 4;
/// One alone may have been held up by something of its own.
const ENOUGH: usize = 2;

/// What times depend on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Load {
    /// Of each picture.
    pub width: usize,
    /// Of each picture.
    pub height: usize,
    /// Of a task; of a step, those that are painted at once.
    pub pictures: usize,
}

/// What was measured. Clones are the same one.
#[derive(Debug, Clone, Default)]
pub struct Times(Arc<Mutex<Measured>>);

#[derive(Debug, Default)]
struct Measured {
    steps: HashMap<Load, Duration>,
    rests: HashMap<Load, VecDeque<Duration>>,
}

impl Times {
    /// Notes how long a step took last.
    pub(super) fn note_step(&self, load: Load, per_step: Duration) {
        self.lock().steps.insert(load, per_step);
    }

    /// How long a step took last.
    pub(super) fn step(&self, load: Load) -> Option<Duration> {
        self.lock().steps.get(&load).copied()
    }

    /// Notes how long a task took from its last step until its pictures were stored.
    pub fn note_rest(&self, load: Load, rest: Duration) {
        let mut measured = self.lock();
        let recent = measured.rests.entry(load).or_default();
        recent.push_back(rest);
        if recent.len() > RECENT {
            recent.pop_front();
        }
    }

    /// The least that recent tasks took for that; none, until several were measured.
    pub(super) fn rest(&self, load: Load) -> Duration {
        let measured = self.lock();
        let recent = measured.rests.get(&load).filter(|recent| recent.len() >= ENOUGH);
        recent.and_then(|recent| recent.iter().min()).copied().unwrap_or_default()
    }

    /// Lets the next tasks find out anew.
    pub(super) fn forget_rest(&self, load: Load) {
        self.lock().rests.remove(&load);
    }

    fn lock(&self) -> MutexGuard<'_, Measured> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOAD: Load = Load { width: 512, height: 512, pictures: 1 };

    #[test]
    fn the_rest_is_the_least_of_several_recent_tasks() {
        let cases: [(&[u64], u64); 5] = [
            (&[], 0),
            (&[300], 0),
            (&[300, 4], 4),
            (&[4, 300], 4),
            // The first has faded.
            (&[1, 5, 6, 7, 8], 5),
        ];
        for (measured, seconds) in cases {
            let times = Times::default();
            measured.iter().for_each(|seconds| times.note_rest(LOAD, Duration::from_secs(*seconds)));
            assert_eq!(times.rest(LOAD), Duration::from_secs(seconds), "{measured:?}");
            assert_eq!(times.rest(Load { pictures: 4, ..LOAD }), Duration::ZERO, "another size");
            times.forget_rest(LOAD);
            assert_eq!(times.rest(LOAD), Duration::ZERO);
        }
    }
}
