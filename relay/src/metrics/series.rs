//! The series of `/metrics` and their names.
//!
//! Refuses a series that only comes to be with its first value: a rate needs the zero before it.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram, info::Info},
    registry::{Metric, Registry},
};

use super::cause::CAUSES;

const SECONDS: [f64; 14] = [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 60.0];
const LONG_SECONDS: [f64; 12] = [0.01, 0.05, 0.1, 0.5, 1.0, 5.0, 15.0, 60.0, 300.0, 1_800.0, 7_200.0, 86_400.0];
const ENTRIES: [f64; 10] = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0];
const BYTES: [f64; 7] = [256.0, 1_024.0, 4_096.0, 16_384.0, 65_536.0, 262_144.0, 1_048_576.0];

type Label = [(&'static str, &'static str); 1];

/// All of them.
#[derive(Debug)]
pub(super) struct Series {
    pub(super) registry: Registry,
    pub(super) received: Counter,
    pub(super) sent: Counter,
    pub(super) acked: Counter,
    pub(super) dead_lettered: Family<Label, Counter>,
    pub(super) returned: Counter,
    pub(super) held: Gauge,
    pub(super) retries: Family<Label, Counter>,
    pub(super) reconnects: Counter,
    pub(super) in_flight: Gauge,
    pub(super) unacked: Gauge,
    pub(super) held_bytes: Gauge,
    pub(super) batch_entries: Histogram,
    pub(super) batch_bytes: Histogram,
    pub(super) request: Histogram,
    pub(super) oldest: Gauge<f64, AtomicU64>,
    pub(super) to_ack: Histogram,
    pub(super) end_to_end: Histogram,
    pub(super) broker_ready: Gauge,
    pub(super) sqs_ready: Gauge,
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
        // A rate of a counter that is not there yet is nothing, not zero.
        for cause in CAUSES {
            drop(series.retries.get_or_create(&[("cause", cause)]));
        }
        series.registry = all;
        series
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
