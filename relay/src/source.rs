//! The consuming side: opens sessions with the broker and takes deliveries from them.
//!
//! A session is one connection. Nothing is carried over to the next: the broker redelivers what was not acknowledged.
//! Every session has the same prefetch: a quorum queue puts a returned message behind those returned before it, so the
//! order is kept only if the next consumer takes all of them at once.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use futures_util::StreamExt;
use lapin::{
    Channel, Connection, Consumer,
    message::Delivery,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
};
use tokio::time::timeout;
use tracing::debug;

use crate::{
    amqp::{self, Broker, BrokerError, Channels},
    budget::Budget,
    config::Config,
    metrics::Metrics,
    topology::{Topology, is_stream},
    wire::{ConnectionNotes, DeliveryNote},
};

/// From the open connection to the running consumer.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECTION: &str = "relay: consume";
const CONSUMER_TAG: &str = "relay";

/// Opens sessions.
#[derive(Debug)]
pub struct Source {
    broker: Arc<Broker>,
    topology: Topology,
    prefetch: u16,
    budget: Budget,
    /// The queue was checked and is no stream.
    stream_checked: AtomicBool,
}

/// One connection, one channel, one consumer.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
    notes: EndOnDrop,
}

/// Ends the notes however the session ends: otherwise the connection could wait for room that nobody makes.
#[derive(Debug)]
struct EndOnDrop(ConnectionNotes);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// The next event of a session.
#[derive(Debug)]
pub(crate) enum SessionEvent {
    /// A delivery, and what was noted about it.
    Delivery(Box<Delivery>, DeliveryNote),
    /// The consumer was cancelled. The channel may still take acknowledgements.
    Cancelled,
    /// The channel has ended.
    Broken(BrokerError),
}

impl Source {
    /// A source for the configured queue.
    pub fn new(config: &Config, broker: Arc<Broker>, metrics: &Metrics) -> Self {
        let topology = Topology::new(config);
        let limit = usize::try_from(config.prefetch_bytes).unwrap_or(usize::MAX);
        Self {
            broker,
            topology,
            prefetch: config.prefetch,
            budget: Budget::new(limit, metrics.held_bytes()),
            stream_checked: AtomicBool::new(false),
        }
    }

    /// Connects and starts to consume. One attempt: the bridge retries.
    pub async fn open(&self) -> Result<Session, BrokerError> {
        // Connecting is outside OPEN_TIMEOUT: each host has its own connect timeout.
        let notes = ConnectionNotes::within(self.budget.clone());
        let mut channels = Channels::open(&self.broker, CONNECTION, &notes).await?;
        let consuming = timeout(OPEN_TIMEOUT, self.consume(&mut channels)).await;
        let connection = channels.into_connection();
        match consuming.unwrap_or(Err(BrokerError::Timeout(OPEN_TIMEOUT))) {
            Ok((channel, consumer)) => Ok(Session { connection, channel, consumer, notes: EndOnDrop(notes) }),
            Err(err) => {
                amqp::close(connection).await;
                Err(err)
            }
        }
    }

    async fn consume(&self, channels: &mut Channels<'_>) -> Result<(Channel, Consumer), BrokerError> {
        self.topology.ensure(channels).await?;
        self.refuse_stream(channels).await?;
        let channel = channels.get().await?;
        // Without this the broker sends the whole queue at once. It must be answered before the consumer starts.
        channel.basic_qos(self.prefetch, BasicQosOptions::default()).await?;
        let (queue, options) = (self.topology.queue.as_str().into(), BasicConsumeOptions::default());
        let consumer = channel.basic_consume(queue, CONSUMER_TAG.into(), options, FieldTable::default()).await?;
        Ok((channel, consumer))
    }

    /// Checks once that the queue is no stream.
    async fn refuse_stream(&self, channels: &mut Channels<'_>) -> Result<(), BrokerError> {
        if self.stream_checked.load(Ordering::Relaxed) {
            return Ok(());
        }
        if is_stream(channels, &self.topology.queue).await? {
            return Err(BrokerError::Stream(self.topology.queue.clone()));
        }
        self.stream_checked.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Session {
    /// Waits for the next delivery. Safe to cancel.
    pub(crate) async fn next(&mut self) -> SessionEvent {
        match self.consumer.next().await {
            Some(Ok(delivery)) => {
                let note = self.notes.0.take(self.channel.id(), delivery.delivery_tag);
                SessionEvent::Delivery(Box::new(delivery), note)
            }
            Some(Err(err)) => SessionEvent::Broken(err.into()),
            // When the broker cancels a consumer, for instance because its queue moves or is deleted, the stream just
            // ends.
            None if self.is_open() => SessionEvent::Cancelled,
            None => SessionEvent::Broken(BrokerError::ChannelGone),
        }
    }

    /// Whether acknowledgements can still reach the broker.
    pub fn is_open(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }

    /// Stops consuming. Deliveries already taken can still be acknowledged, the others go back to the queue.
    pub async fn cancel(&self) {
        self.notes.0.end();
        let cancel = self.channel.basic_cancel(CONSUMER_TAG.into(), BasicCancelOptions::default());
        if !matches!(timeout(CANCEL_TIMEOUT, cancel).await, Ok(Ok(()))) {
            debug!("the consumer could not be cancelled in order");
        }
    }

    /// Ends the session; what is not acknowledged goes back to the queue.
    pub async fn close(self) {
        self.notes.0.end();
        amqp::close(self.connection).await;
    }
}
