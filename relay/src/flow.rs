//! The messages of one session: collects them into batches, sends and settles these, and retries failures.
//!
//! Dropping a flow is safe: the broker redelivers what was not acknowledged. Everything held here is unacknowledged, so
//! the prefetch and its byte limit bound it.

mod dispatch;

use std::{
    collections::{BTreeMap, VecDeque},
    sync::Arc,
    time::Duration,
};

use lapin::message::Delivery;
use tokio::{
    task::{JoinError, JoinSet},
    time::{Instant, sleep, sleep_until},
};
use tracing::{Instrument, error, info, info_span, warn};

use crate::{
    acker::ChannelAcks,
    backoff::Backoff,
    batch::BatchItem,
    dead_letter::{DeadLetterPublisher, PoisonSink, headers::dead_lettered_before},
    entry::PoisonReason,
    entry_builder::EntryBuilder,
    error::Stop,
    flow::dispatch::{BatchOutcome, acknowledge, dead_letter, dispatch},
    health::Readiness,
    lanes::Lanes,
    message::{Message, Poison},
    metrics::{Metrics, cause::PAYLOAD_BUCKET},
    sink::Sink,
    wire::DeliveryNote,
};

/// The settings of a flow.
#[derive(Debug, Clone)]
pub struct FlowOptions {
    /// Turns a delivery into an entry.
    pub builder: EntryBuilder,
    /// How long a message waits for others to share its batch.
    pub linger: Duration,
    /// How many batches may be in flight to SQS at once.
    pub max_in_flight: usize,
    /// How long to wait before a retry.
    pub backoff: Backoff,
}

/// The messages of one session.
#[derive(Debug)]
pub struct Flow<S, D = DeadLetterPublisher> {
    sink: Arc<S>,
    publisher: Arc<D>,
    readiness: Readiness,
    metrics: Metrics,
    acks: ChannelAcks,
    options: Arc<FlowOptions>,
    lanes: Lanes<Message>,
    ready: VecDeque<Vec<Message>>,
    in_flight: usize,
    acknowledging: usize,
    held_dead_letters: usize,
    jobs: JoinSet<JobResult>,
}

/// The result of a background job.
#[derive(Debug)]
enum JobResult {
    Sent(BatchOutcome),
    Acknowledged,
    DeadLettered,
    HoldOver(Poison),
    RetryDue(Vec<Message>),
}

/// Why a flow cannot continue.
#[derive(Debug)]
pub enum FlowError {
    /// SQS or S3 refuses every message.
    Stop(Stop),
    /// A job panicked before it settled its messages. They are redelivered to the next session.
    JobFailed(JoinError),
}

impl<S: Sink, D: PoisonSink> Flow<S, D> {
    /// An empty flow.
    pub fn new(
        sink: Arc<S>,
        publisher: Arc<D>,
        readiness: Readiness,
        metrics: Metrics,
        options: Arc<FlowOptions>,
    ) -> Self {
        Self {
            sink,
            publisher,
            readiness,
            metrics,
            acks: ChannelAcks::default(),
            lanes: Lanes::new(options.linger),
            options,
            ready: VecDeque::new(),
            in_flight: 0,
            acknowledging: 0,
            held_dead_letters: 0,
            jobs: JoinSet::new(),
        }
    }

    /// Takes over a delivery. One with repaired strings is poison: SQS only gets messages exactly as they were
    /// published.
    pub(crate) fn accept(&mut self, delivery: Delivery, note: DeliveryNote) {
        let accepted = Message::from_delivery(delivery, note.held, &self.acks, &self.metrics, &self.options.builder);
        match (accepted, note.repaired) {
            (Ok(message), Some(strings)) => {
                self.dead_letter(message.into_poison(PoisonReason::PropertyNotUtf8(strings)))
            }
            (Ok(message), None) => {
                self.ready.extend(self.lanes.push(message, Instant::now()));
                self.send_ready();
            }
            (Err(poison), _) => self.dead_letter(poison),
        }
    }

    /// Sends everything collected, without waiting for the linger time.
    pub fn flush(&mut self) {
        self.ready.extend(self.lanes.flush());
        self.send_ready();
    }

    /// Waits until a job ends, and handles its result, or until the oldest message has lingered long enough, and sends
    /// its batch. Waits for ever if there is neither. Safe to cancel.
    pub async fn advance(&mut self) -> Result<(), FlowError> {
        let deadline = self.lanes.deadline();
        let lingered = async move {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let done = tokio::select! {
            Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => done.map_err(FlowError::JobFailed)?,
            () = lingered => {
                self.flush();
                return Ok(());
            }
        };
        match done {
            JobResult::DeadLettered => Ok(()),
            JobResult::HoldOver(poison) => {
                self.held_dead_letters -= 1;
                self.publish_dead_letter(poison);
                Ok(())
            }
            JobResult::Acknowledged => {
                self.acknowledging -= 1;
                Ok(())
            }
            JobResult::RetryDue(messages) => {
                for message in messages {
                    self.ready.extend(self.lanes.retry(message, Instant::now()));
                }
                self.send_ready();
                Ok(())
            }
            JobResult::Sent(outcome) => {
                self.in_flight -= 1;
                let settled = self.handle_outcome(outcome);
                self.send_ready();
                settled
            }
        }
    }

    /// Whether every message is settled, except held dead letters: a shutdown does not wait for those.
    pub fn is_idle(&self) -> bool {
        self.jobs.len() == self.held_dead_letters && self.ready.is_empty() && self.lanes.is_empty()
    }

    /// Drops everything that is not in flight. Only batches in flight can still be settled.
    pub fn discard_unsent(&mut self) {
        self.ready.clear();
        self.lanes.clear();
    }

    /// Whether a batch or the acknowledgement of one is in flight.
    pub fn is_sending(&self) -> bool {
        self.in_flight + self.acknowledging > 0
    }

    fn send_ready(&mut self) {
        while self.in_flight < self.options.max_in_flight {
            let Some(batch) = self.ready.pop_front() else { return };
            let bytes: usize = batch.iter().map(BatchItem::size).sum();
            let span = info_span!("batch", batch.entries = batch.len(), batch.bytes = bytes);
            let (sink, options) = (Arc::clone(&self.sink), Arc::clone(&self.options));
            let in_flight = self.metrics.start_batch(batch.len(), bytes);
            let job = async move {
                let outcome = dispatch(&*sink, batch, &options.builder).await;
                in_flight.answered();
                JobResult::Sent(outcome)
            };
            self.jobs.spawn(job.instrument(span));
            self.in_flight += 1;
        }
    }

    fn handle_outcome(&mut self, outcome: BatchOutcome) -> Result<(), FlowError> {
        if outcome.answered.is_some_and(|answered| self.readiness.note_sqs(answered)) {
            info!("{} answers again", self.sink.service());
        }
        // In a job of its own, because an acknowledgement waits a little for older ones.
        self.jobs.spawn(async move {
            acknowledge(outcome.accepted).await;
            JobResult::Acknowledged
        });
        self.acknowledging += 1;
        for poison in outcome.poison {
            self.dead_letter(poison);
        }
        if let Some(stop) = outcome.stop {
            return Err(FlowError::Stop(stop));
        }
        for lane in outcome.lanes {
            self.ready.extend(self.lanes.settle(&lane));
        }
        for message in outcome.offloaded {
            self.ready.extend(self.lanes.retry(message, Instant::now()));
        }
        // Grouped by attempt, so that a message that has failed for hours does not delay the others of its batch.
        let mut groups: BTreeMap<(u32, &str), (String, Vec<Message>)> = BTreeMap::new();
        for (message, cause) in outcome.retry {
            let (_, messages) = groups.entry((message.attempts, cause.label)).or_insert((cause.text, vec![]));
            messages.push(message);
        }
        for ((attempt, word), (cause, messages)) in groups {
            let delay = (self.options.backoff)(attempt.saturating_sub(1));
            let (count, retry_ms) = (messages.len(), delay.as_millis());
            if word == PAYLOAD_BUCKET {
                // An error, because nothing else shows the problem: all other messages get through.
                error!(messages = count, attempt, retry_ms, cause, "not taken by the payload bucket, trying again");
            } else {
                warn!(
                    messages = count,
                    attempt,
                    retry_ms,
                    cause,
                    "not accepted by {}, trying again",
                    self.sink.service()
                );
            }
            let rest = async move {
                sleep(delay).await;
                JobResult::RetryDue(messages)
            };
            self.jobs.spawn(rest);
        }
        Ok(())
    }

    /// Dead-letters a message. One that was dead-lettered before is held first, longer each time: if the exchange leads
    /// back to the queue, it would otherwise go round as fast as the broker can carry it.
    fn dead_letter(&mut self, poison: Poison) {
        let before = dead_lettered_before(&poison.delivery.envelope.properties);
        if before == 0 {
            return self.publish_dead_letter(poison);
        }
        let delay = (self.options.backoff)(u32::try_from(before - 1).unwrap_or(u32::MAX));
        poison.delivery.span.in_scope(|| {
            warn!(
                reason = poison.reason.as_str(),
                count = before,
                hold_ms = delay.as_millis(),
                "a dead letter has come back, and {} still cannot carry it; it is held, then dead-lettered again. \
                 Unless somebody published it again, the dead-letter exchange leads back to the queue: correct its bindings",
                self.sink.service()
            );
        });
        let held = poison.delivery.unacked.held();
        self.held_dead_letters += 1;
        self.jobs.spawn(async move {
            sleep(delay).await;
            drop(held);
            JobResult::HoldOver(poison)
        });
    }

    fn publish_dead_letter(&mut self, poison: Poison) {
        let span = poison.delivery.span.clone();
        let (publisher, backoff) = (Arc::clone(&self.publisher), self.options.backoff);
        let job = async move {
            dead_letter(&*publisher, poison, backoff).await;
            JobResult::DeadLettered
        };
        self.jobs.spawn(job.instrument(span));
    }
}

#[cfg(test)]
mod tests;
