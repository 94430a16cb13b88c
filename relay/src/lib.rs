//! Moves messages from a RabbitMQ queue to an SQS queue.
//!
//! The path of a message: [`source`] takes a delivery from the broker, [`entry`] checks that SQS can carry it, [`batch`]
//! groups it with others, [`sink`] sends the batch and gives one verdict per entry, and [`acker`] acknowledges the
//! delivery. A message that SQS can never carry goes to [`dead_letter`] instead. [`flow`] ties these together for one
//! connection to the broker, [`bridge`] for the whole life of the process.
//!
//! [`entry_builder`] says which ids and attributes a message gets in SQS, and [`lanes`] keep the order inside a FIFO group.
//!
//! This crate knows nothing of the function behind the queue: it moves opaque bytes, and looks into a body only where an
//! option names a JSON pointer.

pub mod acker;
pub mod amqp;
pub mod attributes;
mod backoff;
pub mod batch;
pub mod bridge;
mod budget;
pub mod check;
pub mod config;
pub mod dead_letter;
pub mod entry;
pub mod entry_builder;
pub mod error;
pub mod flow;
pub mod health;
pub mod id_source;
pub mod lanes;
pub mod message;
pub mod metrics;
pub mod payload;
pub mod sink;
pub mod source;
mod tags;
mod topology;
mod wire;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{bridge::Bridge, config::Config, error::Error, health::Readiness, metrics::Metrics, sink::SqsSink};

/// Relays messages until `shutdown` is cancelled or SQS says that no message can ever be accepted.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let broker = config.validate()?;
    let readiness = Readiness::default();
    let metrics = Metrics::default();
    let health = health::serve(config.health_addr, readiness.clone(), metrics.clone()).await?;
    info!(
        amqp.hosts = %broker.addresses(),
        amqp.queue = %config.queue,
        amqp.prefetch = config.prefetch,
        amqp.prefetch_bytes = config.prefetch_bytes,
        sqs.queue_url = %config.sqs_queue_url,
        health.addr = %health.addr,
        "relay started"
    );
    let sink = SqsSink::connect(&config).await?;
    let started = Instant::now();
    let bridge = Bridge::new(&config, broker, sink.clone(), readiness, metrics);
    let result = tokio::select! {
        result = bridge.run(&shutdown) => result,
        never = sink.watch() => match never {},
    };
    info!(uptime_s = started.elapsed().as_secs(), "relay ended");
    result
}
