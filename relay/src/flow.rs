//! The messages of one session: gathered, sent, settled, and those that failed sent again.
//!
//! How a session ends is decided elsewhere; this only holds its messages. To drop a flow is safe: everything that was not
//! acknowledged is delivered again. It holds no more than the prefetch and its bytes allow, because all it holds is unacknowledged.

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
    acker::Acks,
    batch::Weigh,
    dead_letter::{DeadLetter, PoisonSink, headers::dead_lettered_before},
    entry::Reason,
    entry_builder::EntryBuilder,
    error::Stop,
    flow::dispatch::{Outcome, acknowledge, bury, dispatch},
    health::Readiness,
    lanes::Lanes,
    message::{Message, Poison},
    metrics::{Metrics, cause::PAYLOAD_BUCKET},
    sink::Sink,
    wire::Note,
};

/// The wait after so many failures in a row, counted from 0.
pub type Backoff = fn(u32) -> Duration;

/// How a flow is to work.
#[derive(Debug, Clone)]
pub struct FlowOptions {
    /// What becomes of a delivery.
    pub builder: EntryBuilder,
    /// How long a message waits for others to share its batch.
    pub linger: Duration,
    /// How many batches may be on their way to SQS at once.
    pub max_in_flight: usize,
    /// How long what failed rests.
    pub backoff: Backoff,
}

/// The messages of one session.
#[derive(Debug)]
pub struct Flow<S, D = DeadLetter> {
    sink: Arc<S>,
    dead_letter: Arc<D>,
    readiness: Readiness,
    metrics: Metrics,
    acks: Acks,
    options: Arc<FlowOptions>,
    lanes: Lanes<Message>,
    ready: VecDeque<Vec<Message>>,
    in_flight: usize,
    acknowledging: usize,
    holding: usize,
    jobs: JoinSet<Done>,
}

/// What a job leaves behind.
#[derive(Debug)]
enum Done {
    Sent(Outcome),
    Acknowledged,
    Buried,
    Held(Poison),
    Rested(Vec<Message>),
}

/// Why a flow cannot go on.
#[derive(Debug)]
pub enum Halt {
    /// SQS refuses everything.
    Stop(Stop),
    /// A job ended without settling its messages. A new session gets them again.
    Lost(JoinError),
}

impl<S: Sink, D: PoisonSink> Flow<S, D> {
    /// An empty one.
    pub fn new(
        sink: Arc<S>,
        dead_letter: Arc<D>,
        readiness: Readiness,
        metrics: Metrics,
        options: Arc<FlowOptions>,
    ) -> Self {
        Self {
            sink,
            dead_letter,
            readiness,
            metrics,
            acks: Acks::default(),
            lanes: Lanes::new(options.linger),
            options,
            ready: VecDeque::new(),
            in_flight: 0,
            acknowledging: 0,
            holding: 0,
            jobs: JoinSet::new(),
        }
    }

    /// Takes a delivery over. One with strings that were not UTF-8 is poison: SQS gets no message that is not as it was sent.
    pub(crate) fn accept(&mut self, delivery: Delivery, note: Note) {
        let accepted = Message::accept(delivery, note.held, &self.acks, &self.metrics, &self.options.builder);
        match (accepted, note.mended) {
            (Ok(message), Some(strings)) => self.give_up(message.into_poison(Reason::PropertyNotUtf8(strings))),
            (Ok(message), None) => {
                self.ready.extend(self.lanes.push(message, Instant::now()));
                self.launch();
            }
            (Err(poison), _) => self.give_up(poison),
        }
    }

    /// Sends what has gathered, ready or not.
    pub fn flush(&mut self) {
        self.ready.extend(self.lanes.flush());
        self.launch();
    }

    /// Waits until a job ends, and settles what it leaves behind, or until the oldest message has waited long enough,
    /// and sends it. For ever when there is neither. Safe to cancel.
    pub async fn advance(&mut self) -> Result<(), Halt> {
        let deadline = self.lanes.deadline();
        let lingered = async move {
            match deadline {
                Some(deadline) => sleep_until(deadline).await,
                None => std::future::pending().await,
            }
        };
        let done = tokio::select! {
            Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => done.map_err(Halt::Lost)?,
            () = lingered => {
                self.flush();
                return Ok(());
            }
        };
        match done {
            Done::Buried => Ok(()),
            Done::Held(poison) => {
                self.holding -= 1;
                self.bury(poison);
                Ok(())
            }
            Done::Acknowledged => {
                self.acknowledging -= 1;
                Ok(())
            }
            Done::Rested(messages) => {
                for message in messages {
                    self.ready.extend(self.lanes.again(message, Instant::now()));
                }
                self.launch();
                Ok(())
            }
            Done::Sent(outcome) => {
                self.in_flight -= 1;
                let settled = self.apply(outcome);
                self.launch();
                settled
            }
        }
    }

    /// Whether every message is settled, but for dead letters that came back: nobody waits for those.
    pub fn is_idle(&self) -> bool {
        self.jobs.len() == self.holding && self.ready.is_empty() && self.lanes.is_empty()
    }

    /// Sends nothing more; only what is on its way can still be settled.
    pub fn halt(&mut self) {
        self.ready.clear();
        self.lanes.clear();
    }

    /// Whether a batch is on its way, or the acknowledgement of one.
    pub fn is_sending(&self) -> bool {
        self.in_flight + self.acknowledging > 0
    }

    fn launch(&mut self) {
        while self.in_flight < self.options.max_in_flight {
            let Some(batch) = self.ready.pop_front() else { return };
            let bytes: usize = batch.iter().map(Weigh::weight).sum();
            let span = info_span!("batch", batch.entries = batch.len(), batch.bytes = bytes);
            let (sink, options) = (Arc::clone(&self.sink), Arc::clone(&self.options));
            let in_flight = self.metrics.batch(batch.len(), bytes);
            let job = async move {
                let outcome = dispatch(&*sink, batch, &options.builder).await;
                in_flight.answered();
                Done::Sent(outcome)
            };
            self.jobs.spawn(job.instrument(span));
            self.in_flight += 1;
        }
    }

    fn apply(&mut self, outcome: Outcome) -> Result<(), Halt> {
        if outcome.answered.is_some_and(|answered| self.readiness.note_sqs(answered)) {
            info!("SQS answers again");
        }
        // Beside the next batch: an acknowledgement waits a little for older ones.
        self.jobs.spawn(async move {
            acknowledge(outcome.accepted).await;
            Done::Acknowledged
        });
        self.acknowledging += 1;
        for poison in outcome.poison {
            self.give_up(poison);
        }
        if let Some(stop) = outcome.stop {
            return Err(Halt::Stop(stop));
        }
        for lane in outcome.lanes {
            self.ready.extend(self.lanes.settle(&lane));
        }
        for message in outcome.moved {
            self.ready.extend(self.lanes.again(message, Instant::now()));
        }
        // One that has failed for hours must not let the others of its batch wait as long.
        let mut alike: BTreeMap<(u32, &str), (String, Vec<Message>)> = BTreeMap::new();
        for (message, cause) in outcome.retry {
            let (_, messages) = alike.entry((message.attempts, cause.word)).or_insert((cause.text, vec![]));
            messages.push(message);
        }
        for ((attempt, word), (cause, messages)) in alike {
            let delay = (self.options.backoff)(attempt.saturating_sub(1));
            let (count, retry_ms) = (messages.len(), delay.as_millis());
            if word == PAYLOAD_BUCKET {
                // An alarm: nobody else notices, as all other messages pass.
                error!(messages = count, attempt, retry_ms, cause, "not taken by the payload bucket, trying again");
            } else {
                warn!(messages = count, attempt, retry_ms, cause, "not accepted by SQS, trying again");
            }
            let rest = async move {
                sleep(delay).await;
                Done::Rested(messages)
            };
            self.jobs.spawn(rest);
        }
        Ok(())
    }

    /// Dead-letters a message, but one that was dead-lettered before not at once: an exchange that leads back to the queue
    /// would make of it as many dead letters as the broker can carry. It waits longer each time that it comes.
    fn give_up(&mut self, poison: Poison) {
        let before = dead_lettered_before(&poison.ticket.origin.properties);
        if before == 0 {
            return self.bury(poison);
        }
        let delay = (self.options.backoff)(u32::try_from(before - 1).unwrap_or(u32::MAX));
        poison.ticket.span.in_scope(|| {
            warn!(
                reason = poison.reason.as_str(),
                count = before,
                hold_ms = delay.as_millis(),
                "a dead letter has come back, and SQS still cannot carry it; it is held, then dead-lettered again. \
                 Unless somebody published it again, the dead-letter exchange leads back to the queue: correct its bindings"
            );
        });
        let held = poison.ticket.unacked.held();
        self.holding += 1;
        self.jobs.spawn(async move {
            sleep(delay).await;
            drop(held);
            Done::Held(poison)
        });
    }

    fn bury(&mut self, poison: Poison) {
        let span = poison.ticket.span.clone();
        let (dead_letter, backoff) = (Arc::clone(&self.dead_letter), self.options.backoff);
        let job = async move {
            bury(&*dead_letter, poison, backoff).await;
            Done::Buried
        };
        self.jobs.spawn(job.instrument(span));
    }
}

#[cfg(test)]
mod tests;
