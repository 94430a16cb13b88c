//! Messages of finished tasks are deleted together: up to ten with one request, while their tasks' places are taken again.
//!
//! A request on its way makes those that finish meanwhile wait for the next one. SQS judges each message on its own: those that it
//! did not delete are tried again until they can be seen by others. Then the queue brings them again, and the picture that stands is
//! announced again.

#[cfg(test)]
mod tests;

use super::Queue;
use std::{future::pending, time::Duration};
use tokio::{
    sync::mpsc,
    task::JoinHandle,
    time::{Instant, sleep_until, timeout},
};

/// SQS' limit of a batch.
const MOST: usize = 10;
/// How long a deletion waits for others.
const LINGER: Duration = Duration::from_millis(5);
/// Before a deletion is tried again; it doubles.
const FIRST_DELAY: Duration = Duration::from_millis(100);
const LONGEST_DELAY: Duration = Duration::from_secs(5);
/// How long the end of the process waits for deletions.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// A message to delete.
#[derive(Debug)]
pub struct Deletion {
    receipt: String,
    /// When others can see it.
    until: Instant,
    due: Instant,
    failures: u32,
}

/// Deletes in the background.
#[derive(Debug)]
pub struct Deletions {
    sender: Deleter,
    task: JoinHandle<()>,
}

/// The way to hand a message over for deletion.
pub type Deleter = mpsc::UnboundedSender<Deletion>;

/// What SQS did not delete: the message's place in the batch, what it said, and whether trying again could help.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) index: usize,
    pub(super) cause: String,
    pub(super) is_final: bool,
}

impl Deletion {
    /// Of a message that stays invisible until then.
    pub fn new(receipt: &str, until: Instant) -> Self {
        Self { receipt: receipt.to_string(), until, due: Instant::now() + LINGER, failures: 0 }
    }

    pub(super) fn receipt(&self) -> &str {
        &self.receipt
    }

    /// Whether it goes with a request that is made now.
    fn is_due(&self) -> bool {
        self.due <= Instant::now() + LINGER
    }

    /// When to try again, if there is time.
    fn again(mut self) -> Option<Self> {
        let delay = FIRST_DELAY.saturating_mul(1 << self.failures.min(10)).min(LONGEST_DELAY);
        self.failures += 1;
        self.due = Instant::now() + delay;
        (self.due < self.until).then_some(self)
    }
}

impl Deletions {
    /// Begins to wait for messages.
    pub fn start(queue: Queue) -> Self {
        let (sender, finished) = mpsc::unbounded_channel();
        Self { sender, task: tokio::spawn(work(queue, finished)) }
    }

    /// Where to hand messages over.
    pub fn deleter(&self) -> Deleter {
        self.sender.clone()
    }

    /// Deletes what was handed over, once nobody hands over any more.
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

async fn work(queue: Queue, mut finished: mpsc::UnboundedReceiver<Deletion>) {
    let mut waiting: Vec<Deletion> = Vec::new();
    let mut is_open = true;
    while is_open || !waiting.is_empty() {
        let first = waiting.iter().map(|deletion| deletion.due).min();
        let is_full = waiting.iter().filter(|deletion| deletion.is_due()).count() >= MOST;
        let ready = async {
            match first {
                _ if is_full => {}
                Some(due) => sleep_until(due).await,
                None => pending().await,
            }
        };
        tokio::select! {
            // What has come while a request was on its way goes with the next one.
            biased;
            next = finished.recv(), if is_open && !is_full => {
                is_open = next.is_some();
                waiting.extend(next);
                continue;
            }
            () = ready => {}
        }
        waiting.sort_by_key(|deletion| deletion.due);
        let count = waiting.iter().take(MOST).filter(|deletion| deletion.is_due()).count();
        let batch = waiting.drain(..count).collect();
        waiting.extend(attempt(&queue, batch).await);
    }
}

/// Tries once; those to try again.
async fn attempt(queue: &Queue, batch: Vec<Deletion>) -> Vec<Deletion> {
    let refusals = queue.delete(&batch).await;
    let mut batch: Vec<Option<Deletion>> = batch.into_iter().map(Some).collect();
    let mut again = Vec::new();
    for Refusal { index, cause, is_final } in refusals {
        let Some(deletion) = batch.get_mut(index).and_then(Option::take) else { continue };
        match deletion.again().filter(|_| !is_final) {
            Some(deletion) => again.push(deletion),
            None => tracing::warn!(cause, "the message of a finished task was not deleted: it comes again"),
        }
    }
    again
}
