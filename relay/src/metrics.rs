//! What `/metrics` shows: counters, gauges and histograms in OpenMetrics text, which Prometheus reads.
//!
//! Labels have few values: a reason or a cause comes from a fixed list, never from a service or a message.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use prometheus_client::{
    encoding::text,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry},
};

pub(crate) mod cause;

pub use cause::RetryCause;

use crate::{entry::PoisonReason, metrics::cause::CAUSES};

const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
const LONG_SECONDS: [f64; 12] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 86_400.0];
const ENTRIES: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
const BYTES: [f64; 7] = [256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

type Label = [(&'static str, &'static str); 1];

/// An older timestamp comes from a wrong clock or is in another unit.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How far ahead a publisher's clock may be; AMQP counts in whole seconds.
const MAX_SKEW: Duration = Duration::from_secs(5);

/// The metrics of the process. Clones share them.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    series: Series,
    consumed_before: AtomicBool,
    unacked: Mutex<UnackedSince>,
}

/// When each unacknowledged message was received, in that order.
#[derive(Debug, Default)]
struct UnackedSince {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

impl Metrics {
    /// A message was received; `published` is its AMQP timestamp.
    pub(crate) fn receive(&self, published: Option<u64>) -> Unacked {
        self.0.series.received.inc();
        let published = published.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        let mut unacked = self.unacked_since();
        let (number, since) = (unacked.next, Instant::now());
        unacked.next += 1;
        unacked.since.insert(number, since);
        drop(unacked);
        Unacked { metrics: self.clone(), number, since, published }
    }

    /// A batch is sent to SQS.
    pub(crate) fn start_batch(&self, entries: usize, bytes: usize) -> InFlight {
        self.0.series.batch_entries.observe(entries as f64);
        self.0.series.batch_bytes.observe(bytes as f64);
        self.0.series.in_flight.inc();
        InFlight { metrics: self.clone(), since: Instant::now() }
    }

    /// The gauge of the bytes held.
    pub(crate) fn held_bytes(&self) -> Gauge {
        self.0.series.held_bytes.clone()
    }

    /// Consuming begins, for the first time or again.
    pub(crate) fn consuming(&self) {
        if self.0.consumed_before.swap(true, Ordering::Relaxed) {
            self.0.series.reconnects.inc();
        }
    }

    /// Those of the queue with messages that cancel tasks, under names of their own.
    pub fn of_cancels() -> Self {
        Self(Arc::new(Inner { series: Series::of_cancels(), ..Inner::default() }))
    }

    /// Brings the gauges up to date that are set for a scrape.
    fn refresh(&self, broker_ready: bool, sqs_ready: bool) {
        let unacked = self.unacked_since();
        let age = unacked.since.first_key_value().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let held = unacked.since.len();
        drop(unacked);
        self.0.series.oldest.set(age.as_secs_f64());
        self.0.series.unacked.set(i64::try_from(held).unwrap_or(i64::MAX));
        self.0.series.broker_ready.set(broker_ready.into());
        self.0.series.sqs_ready.set(sqs_ready.into());
    }

    fn unacked_since(&self) -> MutexGuard<'_, UnackedSince> {
        // A panic cannot leave it half changed.
        self.0.unacked.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The text for a scrape: of each queue its metrics, whether the relay consumes there, and whether the other side answers.
pub(crate) fn encode<'a>(queues: impl Iterator<Item = (&'a Metrics, bool, bool)>) -> Result<String, fmt::Error> {
    let mut text = String::new();
    for (metrics, broker_ready, sqs_ready) in queues {
        metrics.refresh(broker_ready, sqs_ready);
        text::encode_registry(&mut text, &metrics.0.series.registry)?;
    }
    text::encode_eof(&mut text)?;
    Ok(text)
}

/// How many returned dead letters are held, from the text of a scrape.
pub(crate) fn held(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("relay_held_messages ")?.parse().ok())
}

/// One unacknowledged message. It counts until this is dropped.
pub struct Unacked {
    metrics: Metrics,
    number: u64,
    since: Instant,
    published: Option<SystemTime>,
}

/// One batch in flight. It counts until this is dropped.
#[derive(Debug)]
pub struct InFlight {
    metrics: Metrics,
    since: Instant,
}

/// One returned dead letter that is held. It counts until this is dropped.
#[derive(Debug)]
pub(crate) struct HeldDeadLetter(Gauge);

impl Unacked {
    /// SQS accepted it.
    pub(crate) fn sent(&self) {
        self.metrics.0.series.sent.inc();
        if let Some(age) = self.published.and_then(|published| age(published, SystemTime::now())) {
            self.metrics.0.series.end_to_end.observe(age.as_secs_f64());
        }
    }

    /// SQS did not accept it, and it will be retried.
    pub(crate) fn retried(&self, cause: &RetryCause) {
        self.metrics.0.series.retries.get_or_create(&[("cause", cause.label)]).inc();
    }

    /// It was dead-lettered before and came back. It counts as held until the answer is dropped.
    pub(crate) fn held(&self) -> HeldDeadLetter {
        let series = &self.metrics.0.series;
        series.returned.inc();
        series.held.inc();
        HeldDeadLetter(series.held.clone())
    }

    /// The dead-letter exchange has it.
    pub(crate) fn dead_lettered(&self, reason: &PoisonReason) {
        self.metrics.0.series.dead_lettered.get_or_create(&[("reason", reason.as_str())]).inc();
    }

    /// It was acknowledged.
    pub(crate) fn acked(self) {
        self.metrics.0.series.acked.inc();
        self.metrics.0.series.to_ack.observe(self.since.elapsed().as_secs_f64());
    }
}

impl fmt::Debug for Unacked {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Unacked").field(&self.number).finish()
    }
}

impl Drop for Unacked {
    fn drop(&mut self) {
        self.metrics.unacked_since().since.remove(&self.number);
    }
}

impl Drop for HeldDeadLetter {
    fn drop(&mut self) {
        self.0.dec();
    }
}

impl InFlight {
    /// The verdicts are in.
    pub(crate) fn answered(self) {
        self.metrics.0.series.request.observe(self.since.elapsed().as_secs_f64());
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.metrics.0.series.in_flight.dec();
    }
}

/// The age of a message, if its timestamp is plausible.
fn age(published: SystemTime, now: SystemTime) -> Option<Duration> {
    match now.duration_since(published) {
        Ok(age) => (age <= MAX_AGE).then_some(age),
        Err(ahead) => (ahead.duration() <= MAX_SKEW).then_some(Duration::ZERO),
    }
}

/// All series. They are registered at the start: a rate needs the zero before the first value.
#[derive(Debug)]
struct Series {
    registry: Registry,
    received: Counter,
    sent: Counter,
    acked: Counter,
    dead_lettered: Family<Label, Counter>,
    returned: Counter,
    held: Gauge,
    retries: Family<Label, Counter>,
    reconnects: Counter,
    in_flight: Gauge,
    unacked: Gauge,
    held_bytes: Gauge,
    batch_entries: Histogram,
    batch_bytes: Histogram,
    request: Histogram,
    oldest: Gauge<f64, AtomicU64>,
    to_ack: Histogram,
    end_to_end: Histogram,
    broker_ready: Gauge,
    sqs_ready: Gauge,
}

impl Default for Series {
    /// All at zero.
    fn default() -> Self {
        let mut all = Registry::with_prefix("relay");
        let r = &mut all;
        r.register("build", "The version of the relay", Info::new([("version", env!("CARGO_PKG_VERSION"))]));
        let mut series = Self {
            received: Counter::default().register(r, "received", "Messages taken from the broker"),
            sent: Counter::default().register(r, "sent", "Entries that SQS accepted"),
            acked: Counter::default().register(r, "acked", "Messages acknowledged to the broker"),
            dead_lettered: Family::default().register(r, "dead_lettered", "Messages moved to the dead-letter exchange"),
            returned: Counter::default().register(
                r,
                "returned_dead_letters",
                "Dead letters that came back and that SQS still cannot carry",
            ),
            held: Gauge::default().register(r, "held_messages", "Those of them that wait now"),
            retries: Family::default().register(
                r,
                "retries",
                "Entries that SQS did not accept and that are sent again",
            ),
            reconnects: Counter::default().register(r, "reconnects", "Times that consuming began again"),
            in_flight: Gauge::default().register(r, "in_flight_batches", "Batches on their way to SQS"),
            unacked: Gauge::default().register(r, "unacked_messages", "Messages held and not acknowledged"),
            held_bytes: Gauge::default().register(r, "held_bytes", "Bytes of the messages held and not acknowledged"),
            batch_entries: Histogram::new(ENTRIES).register(r, "batch_entries", "Entries in a batch"),
            batch_bytes: Histogram::new(BYTES).register(r, "batch_bytes", "Bytes in a batch as SQS counts them"),
            request: Histogram::new(SECONDS).register(
                r,
                "sqs_request_duration_seconds",
                "From sending a batch to the verdicts on its entries",
            ),
            oldest: Gauge::default().register(r, "oldest_unacked_age_seconds", "Age of the oldest message held, or 0"),
            to_ack: Histogram::new(SECONDS).register(
                r,
                "delivery_to_ack_seconds",
                "From a message's delivery to its acknowledgement",
            ),
            end_to_end: Histogram::new(LONG_SECONDS).register(
                r,
                "end_to_end_seconds",
                "From a message's AMQP timestamp to its acceptance by SQS",
            ),
            broker_ready: Gauge::default().register(r, "broker_ready", "Whether the relay consumes"),
            sqs_ready: Gauge::default().register(r, "sqs_ready", "Whether SQS answers"),
            registry: Registry::default(),
        };
        // Without a zero, the rate of a counter is missing until its second value.
        for cause in CAUSES {
            drop(series.retries.get_or_create(&[("cause", cause)]));
        }
        for reason in PoisonReason::FOR_SQS {
            drop(series.dead_lettered.get_or_create(&[("reason", reason)]));
        }
        series.registry = all;
        series
    }
}

impl Series {
    /// All at zero. Those of batches and of SQS have no meaning there, and are not shown.
    fn of_cancels() -> Self {
        let mut all = Registry::with_prefix("relay_cancel");
        let r = &mut all;
        let series = Self {
            received: Counter::default().register(r, "received", "Messages taken from the queue of cancels"),
            sent: Counter::default().register(r, "stored", "Markers of cancelled tasks that S3 took"),
            acked: Counter::default().register(r, "acked", "Cancels acknowledged to the broker"),
            dead_lettered: Family::default().register(r, "dead_lettered", "Cancels moved to the dead-letter exchange"),
            returned: Counter::default().register(
                r,
                "returned_dead_letters",
                "Dead letters that came back to the queue of cancels and that still cancel nothing",
            ),
            held: Gauge::default().register(r, "held_messages", "Those of them that wait now"),
            retries: Family::default().register(r, "retries", "Markers that S3 did not take and that are sent again"),
            reconnects: Counter::default().register(r, "reconnects", "Times that consuming cancels began again"),
            in_flight: Gauge::default(),
            unacked: Gauge::default().register(r, "unacked_messages", "Cancels held and not acknowledged"),
            held_bytes: Gauge::default(),
            batch_entries: Histogram::new(ENTRIES),
            batch_bytes: Histogram::new(BYTES),
            request: Histogram::new(SECONDS).register(
                r,
                "s3_request_duration_seconds",
                "From storing up to ten markers to the last answer",
            ),
            oldest: Gauge::default().register(r, "oldest_unacked_age_seconds", "Age of the oldest cancel held, or 0"),
            to_ack: Histogram::new(SECONDS).register(
                r,
                "delivery_to_ack_seconds",
                "From a cancel's delivery to its acknowledgement",
            ),
            end_to_end: Histogram::new(LONG_SECONDS).register(
                r,
                "end_to_end_seconds",
                "From a cancel's AMQP timestamp to its marker in S3",
            ),
            broker_ready: Gauge::default().register(r, "broker_ready", "Whether the relay consumes cancels"),
            sqs_ready: Gauge::default().register(r, "s3_ready", "Whether S3 takes markers"),
            registry: Registry::default(),
        };
        for cause in CAUSES {
            drop(series.retries.get_or_create(&[("cause", cause)]));
        }
        for reason in PoisonReason::FOR_CANCELS {
            drop(series.dead_lettered.get_or_create(&[("reason", reason)]));
        }
        Self { registry: all, ..series }
    }
}

/// Registers a metric and gives it back.
trait Register: Metric + Clone {
    fn register(self, registry: &mut Registry, name: &str, help: &str) -> Self {
        registry.register(name, help, self.clone());
        self
    }
}

impl<M: Metric + Clone> Register for M {}

#[cfg(test)]
mod tests;
