//! Progress of a task: which finished steps are reported, and reporting them in order without holding up the painting.

use super::{Backend, Subject, WebhookError};
use crate::{picture::preview, task::Task};
use image::RgbImage;
use schemars::JsonSchema;
use serde::Serialize;
use std::{
    fmt,
    str::FromStr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::Instrument;

/// Percentages that are reported to the backend by default, as the Python worker did.
pub const MILESTONES: [usize; 5] = [0, 25, 50, 75, 90];

/// Percentages at which progress is reported, in ascending order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Marks(Arc<[usize]>);

impl Default for Marks {
    fn default() -> Self {
        Self(MILESTONES.into())
    }
}

impl FromStr for Marks {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            "must be whole percentages from 0 to 100, each larger than the one before, like 0,25,50,75,90, or every:N for 0, N, 2 N and so \
             on below 100, with N from 1 to 100"
                .to_string()
        };
        let is_plain = |text: &str| text.len() <= 3 && text.bytes().all(|digit| digit.is_ascii_digit());
        let number = |text: &str| text.parse().ok().filter(|number: &usize| is_plain(text) && *number <= 100);
        if let Some(step) = text.strip_prefix("every:") {
            let step = number(step).filter(|step| *step > 0).ok_or_else(wrong)?;
            return Ok(Self((0..100).step_by(step).collect()));
        }
        let marks: Vec<usize> = text.split(',').map(number).collect::<Option<_>>().ok_or_else(wrong)?;
        let is_ascending = marks.windows(2).all(|pair| pair[0] < pair[1]);
        is_ascending.then(|| Self(marks.into())).ok_or_else(wrong)
    }
}

impl fmt::Display for Marks {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.iter().map(usize::to_string).collect::<Vec<_>>().join(","))
    }
}

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
/// use handler::webhook::progress::{Marks, Milestones};
/// use std::time::Duration;
///
/// let mut milestones = Milestones::new(50, &Marks::default());
/// let reported = (0..=50).filter_map(|step| milestones.reach(step, Duration::from_secs(1)));
/// let reported: Vec<_> = reported.map(|progress| (progress.current_step, progress.estimated_seconds)).collect();
/// assert_eq!(reported, [(0, 50), (13, 37), (25, 25), (38, 12), (45, 5)]);
/// ```
#[derive(Debug)]
pub struct Milestones {
    marks: Marks,
    total_steps: usize,
    passed: usize,
}

impl Milestones {
    /// For a painting of `total_steps` steps.
    pub fn new(total_steps: usize, marks: &Marks) -> Self {
        Self { marks: marks.clone(), total_steps, passed: 0 }
    }

    /// All steps.
    pub fn total_steps(&self) -> usize {
        self.total_steps
    }

    /// The progress to report if `current_step` finished steps reach a milestone that no earlier step reached. A step that
    /// reaches several is reported once.
    pub fn reach(&mut self, current_step: usize, per_step: Duration) -> Option<Progress> {
        let reached = self.marks.0.iter().filter(|&&percent| 100 * current_step >= percent * self.total_steps).count();
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
    sender: mpsc::UnboundedSender<(Progress, Option<RgbImage>)>,
    /// Ends with the task: nothing is sent for a task that was given back meanwhile.
    sending: AbortOnDropHandle<()>,
    unwanted: Arc<AtomicBool>,
}

impl ProgressReporter {
    /// A function that reports progress, and what is to be seen of the picture, from any thread.
    pub fn sender(&self) -> impl Fn(Progress, Option<RgbImage>) + Send + use<> {
        let sender = self.sender.clone();
        move |progress, picture| {
            // Fails once the task is over, when progress no longer matters.
            let _ = sender.send((progress, picture));
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
        let (sender, mut receiver) = mpsc::unbounded_channel::<(Progress, Option<RgbImage>)>();
        let (backend, subject) = (self.clone(), Subject::task(task));
        let unwanted = Arc::new(AtomicBool::new(false));
        let flag = unwanted.clone();
        let sending = async move {
            while let Some((progress, picture)) = receiver.recv().await {
                // A small picture takes less than a millisecond.
                let preview = picture.as_ref().and_then(preview);
                match backend.send(&subject.base, &subject.progress(progress, preview.as_deref()), 0).await {
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
            let mut milestones = Milestones::new(total, &Marks::default());
            let reported = (0..=total).filter(|&step| milestones.reach(step, Duration::ZERO).is_some());
            assert_eq!(reported.collect::<Vec<_>>(), steps, "{total} steps");
        }
    }

    #[test]
    fn marks_are_a_list_or_every_so_many_percent() {
        let at = |text: &str, total: usize| {
            let mut milestones = Milestones::new(total, &text.parse().unwrap());
            (0..=total).filter(|&step| milestones.reach(step, Duration::ZERO).is_some()).collect::<Vec<_>>()
        };
        assert_eq!(at("0,25,50,75,90", 50), [0, 13, 25, 38, 45]);
        assert_eq!(at("50,100", 20), [10, 20]);
        assert_eq!(at("every:10", 20), [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]);
        assert_eq!(at("every:1", 3), [0, 1, 2, 3]);
        assert_eq!(at("every:100", 3), [0]);
        assert_eq!("every:40".parse::<Marks>().unwrap().to_string(), "0,40,80");
        assert_eq!("0,25,50,75,90".parse(), Ok(Marks::default()));
        for bad in [
            "",
            "0,",
            "101",
            "-1",
            "5,5",
            "50,25",
            "1.5",
            "0, 50",
            "every:0",
            "every:101",
            "every:",
            "every",
            "+5",
            "0000",
        ] {
            let error = bad.parse::<Marks>().unwrap_err();
            assert!(error.contains("every:N"), "{bad}: {error}");
        }
    }

    #[test]
    fn percent_and_estimate_follow_the_seed() {
        let reported = Milestones::new(50, &Marks::default()).reach(13, Duration::from_millis(100)).unwrap();
        assert_eq!((reported.progress_percent, reported.estimated_seconds), (26, 3));
    }
}
