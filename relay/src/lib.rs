//! Moves messages from a RabbitMQ queue to an SQS queue.
//!
//! The path of a message: [`source`] takes a delivery from the broker, [`entry`] checks that SQS can carry it, [`batch`]
//! groups it with others, [`sink`] sends the batch and gives one verdict per entry, and [`acker`] acknowledges the
//! delivery. A message that SQS can never carry goes to [`dead_letter`] instead. [`flow`] ties these together for one
//! connection to the broker, [`bridge`] for the whole life of the process.
//!
//! This crate never looks into a body: it moves opaque bytes and knows nothing of the function behind the queue.

pub mod acker;
pub mod amqp;
mod backoff;
pub mod batch;
pub mod bridge;
pub mod check;
pub mod config;
pub mod dead_letter;
pub mod entry;
pub mod error;
pub mod flow;
pub mod health;
pub mod message;
pub mod signal;
pub mod sink;
mod size;
pub mod source;
mod tags;
pub mod telemetry;
mod topology;

use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::info;

use crate::{bridge::Bridge, config::Config, error::Error, health::Readiness, sink::SqsSink};

/// Relays messages until `shutdown` is cancelled or SQS says that no message can ever be accepted.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let broker = config.validate()?;
    let readiness = Readiness::default();
    let health = health::serve(config.health_addr, readiness.clone()).await?;
    info!(
        amqp.hosts = %broker.addresses(),
        amqp.queue = %config.queue,
        amqp.prefetch = config.prefetch,
        sqs.queue_url = %config.sqs_queue_url,
        health.addr = %health.addr,
        "relay started"
    );
    let sink = SqsSink::connect(&config.sqs_queue_url).await;
    let started = Instant::now();
    let result = Bridge::new(&config, broker, sink, readiness).run(&shutdown).await;
    info!(uptime_s = started.elapsed().as_secs(), "relay ended");
    result
}
