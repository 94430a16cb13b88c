//! What `/metrics` shows: counters, gauges and histograms in the OpenMetrics text that Prometheus reads.
//!
//! Refuses labels without bounds: a reason or a cause is one of a few words, never what a service or a message said.

use std::{
    collections::BTreeMap,
    fmt,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, Instant, UNIX_EPOCH},
};

use prometheus_client::{encoding::text, metrics::gauge::Gauge};

pub(crate) mod cause;
mod series;
mod unacked;

pub use cause::Cause;
use series::Series;
pub use unacked::{InFlight, Unacked};

/// The measurements of the process. Clones are the same ones.
#[derive(Debug, Clone, Default)]
pub struct Metrics(Arc<Inner>);

#[derive(Debug, Default)]
struct Inner {
    series: Series,
    consumed_before: AtomicBool,
    open: Mutex<Open>,
}

/// When each unacknowledged message came, in the order of coming.
#[derive(Debug, Default)]
struct Open {
    next: u64,
    since: BTreeMap<u64, Instant>,
}

impl Metrics {
    /// A message came; `published` is its AMQP timestamp.
    pub(crate) fn receive(&self, published: Option<u64>) -> Unacked {
        self.0.series.received.inc();
        let published = published.and_then(|seconds| UNIX_EPOCH.checked_add(Duration::from_secs(seconds)));
        let mut open = self.open();
        let (number, since) = (open.next, Instant::now());
        open.next += 1;
        open.since.insert(number, since);
        drop(open);
        Unacked { metrics: self.clone(), number, since, published }
    }

    /// A batch leaves for SQS.
    pub(crate) fn batch(&self, entries: usize, bytes: usize) -> InFlight {
        self.0.series.batch_entries.observe(entries as f64);
        self.0.series.batch_bytes.observe(bytes as f64);
        self.0.series.in_flight.inc();
        InFlight { metrics: self.clone(), since: Instant::now() }
    }

    /// What shows the bytes held.
    pub(crate) fn held_bytes(&self) -> Gauge {
        self.0.series.held_bytes.clone()
    }

    /// Consuming begins, for the first time or again.
    pub(crate) fn consuming(&self) {
        if self.0.consumed_before.swap(true, Ordering::Relaxed) {
            self.0.series.reconnects.inc();
        }
    }

    /// The text for a scrape.
    pub fn encode(&self, broker_ready: bool, sqs_ready: bool) -> Result<String, fmt::Error> {
        let open = self.open();
        let age = open.since.first_key_value().map_or(Duration::ZERO, |(_, since)| since.elapsed());
        let held = open.since.len();
        drop(open);
        self.0.series.oldest.set(age.as_secs_f64());
        self.0.series.unacked.set(i64::try_from(held).unwrap_or(i64::MAX));
        self.0.series.broker_ready.set(broker_ready.into());
        self.0.series.sqs_ready.set(sqs_ready.into());
        let mut text = String::new();
        text::encode(&mut text, &self.0.series.registry)?;
        Ok(text)
    }

    fn open(&self) -> MutexGuard<'_, Open> {
        // Nothing in there can be half done.
        self.0.open.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How many dead letters that came back are held, by the text of a scrape.
pub(crate) fn held(text: &str) -> Option<u64> {
    text.lines().find_map(|line| line.strip_prefix("relay_held_messages ")?.parse().ok())
}

#[cfg(test)]
mod tests;
