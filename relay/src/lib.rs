//! Moves messages from a RabbitMQ queue to an SQS queue.
//!
//! The path of a message: [`source`] takes a delivery from the broker, [`entry`] checks that SQS can carry it, [`batch`]
//! groups it with others, [`sink`] sends the batch and gives one verdict per entry, and [`acker`] acknowledges the
//! delivery. A message that SQS can never carry goes to [`dead_letter`] instead. [`flow`] ties these together for one
//! connection to the broker, [`bridge`] for the whole life of the process. The same serves a second queue, of messages that
//! cancel tasks: their sink is [`cancels`].
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
pub mod bucket;
mod budget;
pub mod cancels;
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

use crate::{
    bridge::Bridge,
    cancels::MarkerSink,
    config::Config,
    error::{ConfigError, Error},
    health::Watched,
    sink::SqsSink,
};

/// Relays messages until `shutdown` is cancelled or SQS says that no message can ever be accepted.
pub async fn run(config: Config, shutdown: CancellationToken) -> Result<(), Error> {
    let broker = config.validate()?;
    let cancels = config.cancels()?;
    let tasks = Watched::default();
    let watched = cancels.as_ref().map(|_| Watched::of_cancels());
    let health = health::serve(config.health_addr, tasks.clone(), watched.clone()).await?;
    info!(
        amqp.hosts = %broker.addresses(),
        amqp.queue = %config.queue,
        amqp.cancel_queue = cancels.as_ref().map(|options| options.relay.queue.as_str()),
        amqp.prefetch = config.prefetch,
        amqp.prefetch_bytes = config.prefetch_bytes,
        sqs.queue_url = %config.sqs_queue_url,
        health.addr = %health.addr,
        "relay started"
    );
    let shared = settings::sdk_config().await.map_err(ConfigError::from)?;
    let sink = SqsSink::new(&config, &shared);
    let started = Instant::now();
    let bridge = Bridge::new(&config, broker, sink.clone(), tasks);
    let other = match cancels.zip(watched) {
        Some((options, watched)) => {
            let markers = MarkerSink::new(&options, &shared);
            Some(Bridge::new(&options.relay, options.relay.validate()?, markers, watched))
        }
        None => None,
    };
    // If one of them cannot go on, the other ends in order, too.
    let ending = shutdown.child_token();
    let tasks = async {
        let result = bridge.run(&ending).await;
        ending.cancel();
        result
    };
    let cancels = async {
        let Some(other) = &other else { return Ok(()) };
        let result = other.run(&ending).await;
        ending.cancel();
        result
    };
    let result = tokio::select! {
        (tasks, cancels) = async { tokio::join!(tasks, cancels) } => tasks.and(cancels),
        never = sink.watch() => match never {},
    };
    info!(uptime_s = started.elapsed().as_secs(), "relay ended");
    result
}
