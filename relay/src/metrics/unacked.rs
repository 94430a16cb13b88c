//! A message and a batch as long as they count.
//!
//! Refuses to be forgotten: each counts as gone when it is dropped, however that happens.

use std::{
    fmt,
    time::{Duration, Instant, SystemTime},
};

use prometheus_client::metrics::gauge::Gauge;

use super::{Cause, Metrics};
use crate::entry::Reason;

/// A message that claims to be older has a wrong clock or another unit in its timestamp.
const MAX_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// How far ahead a publisher's clock may be; AMQP counts in whole seconds.
const MAX_SKEW: Duration = Duration::from_secs(5);

/// One unacknowledged message. It counts as gone when this is dropped, however that happens.
pub struct Unacked {
    pub(super) metrics: Metrics,
    pub(super) number: u64,
    pub(super) since: Instant,
    pub(super) published: Option<SystemTime>,
}

/// One batch on its way to SQS.
#[derive(Debug)]
pub struct InFlight {
    pub(super) metrics: Metrics,
    pub(super) since: Instant,
}

/// One dead letter that has come back. It counts as held until this is dropped.
#[derive(Debug)]
pub(crate) struct Held(Gauge);

impl Unacked {
    /// SQS accepted it.
    pub(crate) fn sent(&self) {
        self.metrics.0.series.sent.inc();
        if let Some(age) = self.published.and_then(|published| age(published, SystemTime::now())) {
            self.metrics.0.series.end_to_end.observe(age.as_secs_f64());
        }
    }

    /// SQS did not accept it, and it will be sent again.
    pub(crate) fn retried(&self, cause: &Cause) {
        self.metrics.0.series.retries.get_or_create(&[("cause", cause.word)]).inc();
    }

    /// It was dead-lettered before and came back, and waits until the answer is dropped.
    pub(crate) fn held(&self) -> Held {
        let series = &self.metrics.0.series;
        series.returned.inc();
        series.held.inc();
        Held(series.held.clone())
    }

    /// The dead-letter exchange has it.
    pub(crate) fn dead_lettered(&self, reason: &Reason) {
        self.metrics.0.series.dead_lettered.get_or_create(&[("reason", reason.as_str())]).inc();
    }

    /// The broker was told to forget it.
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
        self.metrics.open().since.remove(&self.number);
    }
}

impl Drop for Held {
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

/// How old a message is, if its timestamp can be right.
fn age(published: SystemTime, now: SystemTime) -> Option<Duration> {
    match now.duration_since(published) {
        Ok(age) => (age <= MAX_AGE).then_some(age),
        Err(ahead) => (ahead.duration() <= MAX_SKEW).then_some(Duration::ZERO),
    }
}

#[cfg(test)]
mod tests;
