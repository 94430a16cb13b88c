//! Progress of a task: which finished steps are reported, and reporting them in order without holding up the painting.

use super::{Backend, Subject, WebhookError};
use crate::task::Task;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// Percentages that are reported to the backend.
pub const MILESTONES: [usize; 5] = [0, 25, 50, 75, 90];

/// How far the painting is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Progress {
    /// Finished steps.
    pub current_step: usize,
    /// All steps.
    pub total_steps: usize,
    /// `100 * current_step / total_steps`, rounded down.
    pub progress_percent: usize,
    /// Seconds that the remaining steps will take, rounded down.
    pub estimated_seconds: u64,
}

/// Reports each milestone once, at the first finished step that reaches it.
///
/// ```
/// use handler::webhook::progress::Milestones;
/// use std::time::Duration;
///
/// let mut milestones = Milestones::new(50);
/// let reported = (0..=50).filter_map(|step| milestones.reach(step, Duration::from_secs(1)));
/// let reported: Vec<_> = reported.map(|progress| (progress.current_step, progress.estimated_seconds)).collect();
/// assert_eq!(reported, [(0, 50), (13, 37), (25, 25), (38, 12), (45, 5)]);
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

    /// The progress to report if `current_step` finished steps reach a milestone that no earlier step reached. A step that
    /// reaches several is reported once.
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

/// How long the end of a task waits for progress that is not sent yet.
const PROGRESS_GRACE: Duration = Duration::from_secs(2);

/// Sends the progress of one task. Reporting never blocks and never fails.
pub struct ProgressReporter {
    sender: mpsc::UnboundedSender<Progress>,
    /// Ends with the task: nothing is sent for a task that was given back meanwhile.
    sending: AbortOnDropHandle<()>,
    unwanted: Arc<AtomicBool>,
}

impl ProgressReporter {
    /// A function that reports progress, from any thread.
    pub fn sender(&self) -> impl Fn(Progress) + Send + use<> {
        let sender = self.sender.clone();
        move |progress| {
            // Fails once the task is over, when progress no longer matters.
            let _ = sender.send(progress);
        }
    }

    /// A function that says, from any thread, whether the backend no longer wants the picture.
    pub fn is_unwanted(&self) -> impl Fn() -> bool + Send + use<> {
        let unwanted = self.unwanted.clone();
        move || unwanted.load(Ordering::Relaxed)
    }

    /// Waits until the reports are sent, so that the backend gets complete or failed last. Gives up on a slow backend.
    pub async fn finish(self) {
        drop(self.sender);
        let mut sending = self.sending;
        if timeout(PROGRESS_GRACE, &mut sending).await.is_err() {
            sending.abort();
            // Wait for the end, so that nothing of the task runs on. The error only says that it was aborted.
            let _ = sending.await;
        }
    }
}

impl Backend {
    /// Starts to send the progress of a task, in order, beside the painting. A status of 409 or 410 means that the
    /// picture is no longer wanted.
    pub fn progress(&self, task: &Task) -> ProgressReporter {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Progress>();
        let (backend, subject) = (self.clone(), Subject::task(task));
        let unwanted = Arc::new(AtomicBool::new(false));
        let flag = unwanted.clone();
        let sending = async move {
            while let Some(progress) = receiver.recv().await {
                match backend.send(&subject.base, &subject.progress(progress), 0).await {
                    Ok(()) => {}
                    Err(WebhookError::Unwanted { .. }) => {
                        flag.store(true, Ordering::Relaxed);
                        return;
                    }
                    Err(error) => {
                        let generation_id = subject.generation_id;
                        tracing::warn!(%error, generation_id, "progress was not delivered");
                    }
                }
            }
        };
        let sending = AbortOnDropHandle::new(tokio::spawn(sending.in_current_span()));
        ProgressReporter { sender, sending, unwanted }
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
            let reported = (0..=total).filter(|&step| milestones.reach(step, Duration::ZERO).is_some());
            assert_eq!(reported.collect::<Vec<_>>(), steps, "{total} steps");
        }
    }

    #[test]
    fn percent_and_estimate_follow_the_seed() {
        let reported = Milestones::new(50).reach(13, Duration::from_millis(100)).unwrap();
        assert_eq!((reported.progress_percent, reported.estimated_seconds), (26, 3));
    }
}
