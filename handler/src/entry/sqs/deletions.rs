//! Deletes the messages of finished tasks in the background, up to ten with one request.
//!
//! Messages that finish while a request is on its way go with the next one. SQS answers for each message: one that was not deleted is
//! retried until it becomes visible to others. Then the queue redelivers it, and `complete` is sent again.

use super::Queue;
use std::{future::pending, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

/// Most messages of a request, the limit of SQS.
const MAX_BATCH: usize = 10;
/// How long a deletion waits for others to join its request.
const BATCH_WAIT: Duration = Duration::from_millis(5);
/// Before the first retry; doubles with each.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// How long the end of the process waits for deletions.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// A message to delete.
#[derive(Debug)]
pub struct Deletion {
    receipt: String,
    /// When the message becomes visible to others.
    visible_at: Instant,
    due: Instant,
    failures: u32,
}

/// Deletes in the background.
#[derive(Debug)]
pub struct Deletions {
    sender: Deleter,
    task: JoinHandle<()>,
}

/// Hands messages over for deletion.
pub type Deleter = mpsc::UnboundedSender<Deletion>;

/// A message that was not deleted: its index in the batch, why, and whether a retry is useless.
#[derive(Debug)]
pub(super) struct DeleteFailure {
    pub(super) index: usize,
    pub(super) cause: String,
    pub(super) is_final: bool,
}

impl Deletion {
    /// Of a message that stays invisible until `visible_at`.
    pub fn new(receipt: &str, visible_at: Instant) -> Self {
        Self { receipt: receipt.to_string(), visible_at, due: Instant::now() + BATCH_WAIT, failures: 0 }
    }

    pub(super) fn receipt(&self) -> &str {
        &self.receipt
    }

    /// Whether it goes with a request that is sent now.
    fn is_due(&self) -> bool {
        self.due <= Instant::now() + BATCH_WAIT
    }

    /// Schedules a retry; none if others would see the message by then.
    fn retry(mut self) -> Option<Self> {
        let delay = FIRST_DELAY.saturating_mul(1 << self.failures.min(10)).min(LONGEST_DELAY);
        self.failures += 1;
        self.due = Instant::now() + delay;
        (self.due < self.visible_at).then_some(self)
    }
}

impl Deletions {
    /// Starts the background task.
    pub fn start(queue: Queue) -> Self {
        let (sender, finished) = mpsc::unbounded_channel();
        Self { sender, task: tokio::spawn(run(queue, finished)) }
    }

    /// A handle to hand messages over.
    pub fn deleter(&self) -> Deleter {
        self.sender.clone()
    }

    /// Deletes what was handed over and ends. Waits until all [`Deleter`]s are dropped.
    pub async fn finish(self) {
        drop(self.sender);
        if timeout(DRAIN_LIMIT, self.task).await.is_err() {
            tracing::warn!(
                limit_s = DRAIN_LIMIT.as_secs(),
                "messages of finished tasks were not deleted: they come again"
            );
        }
    }
}

async fn run(queue: Queue, mut finished: mpsc::UnboundedReceiver<Deletion>) {
    let mut waiting: Vec<Deletion> = Vec::new();
    let mut is_open = true;
    while is_open || !waiting.is_empty() {
        let first = waiting.iter().map(|deletion| deletion.due).min();
        let is_full = waiting.iter().filter(|deletion| deletion.is_due()).count() >= MAX_BATCH;
        let ready = async {
            match first {
                _ if is_full => {}
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        tokio::select! {
            // Biased: first takes in what has finished meanwhile.
            biased;
            next = finished.recv(), if is_open && !is_full => {
                is_open = next.is_some();
                waiting.extend(next);
                continue;
            }
            () = ready => {}
        }
        waiting.sort_by_key(|deletion| deletion.due);
        let count = waiting.iter().take(MAX_BATCH).filter(|deletion| deletion.is_due()).count();
        let batch = waiting.drain(..count).collect();
        waiting.extend(attempt(&queue, batch).await);
    }
}

/// Sends one request. Returns the deletions to retry.
async fn attempt(queue: &Queue, batch: Vec<Deletion>) -> Vec<Deletion> {
    let failures = queue.delete(&batch).await;
    let mut batch: Vec<Option<Deletion>> = batch.into_iter().map(Some).collect();
    let mut again = Vec::new();
    for DeleteFailure { index, cause, is_final } in failures {
        let Some(deletion) = batch.get_mut(index).and_then(Option::take) else { continue };
        match deletion.retry().filter(|_| !is_final) {
            Some(deletion) => again.push(deletion),
            None => tracing::warn!(cause, "the message of a finished task was not deleted: it comes again"),
        }
    }
    again
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deletion_is_tried_again_ever_later_and_not_once_others_can_see_the_message() {
        let mut deletion = Deletion::new("receipt", Instant::now() + Duration::from_secs(3600));
        for delay in [100, 200, 400, 800, 1600, 3200, 5000, 5000].map(Duration::from_millis) {
            let before = Instant::now();
            deletion = deletion.retry().unwrap();
            assert!((before + delay..=Instant::now() + delay).contains(&deletion.due), "{delay:?}");
        }
        let until = Instant::now() + FIRST_DELAY;
        assert!(Deletion::new("receipt", until).retry().is_none(), "others see the message by then");
    }
}
