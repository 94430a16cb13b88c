//! The consuming side: opens connections to the broker and takes deliveries from them.
//!
//! Each connection is a session. No delivery is carried from one to the next: what was delivered on a
//! broken one will be delivered again, and its ackers cannot do harm. Every one has the same
//! prefetch: what comes back to a quorum queue goes behind what came back before, so that the order stays only where the next
//! consumer takes all of it at once.

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
    wire::{Note, Notes},
};

/// From the open connection to the first delivery that may come.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
const CONNECTION: &str = "relay: consume";
const CONSUMER_TAG: &str = "relay";

/// Opens generations.
#[derive(Debug)]
pub struct Source {
    broker: Arc<Broker>,
    topology: Topology,
    prefetch: u16,
    budget: Budget,
    /// Looked at and found to be none.
    is_no_stream: AtomicBool,
}

/// One connection, one channel, one consumer.
#[derive(Debug)]
pub struct Session {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
    notes: EndOnDrop,
}

/// Whatever becomes of the client's side, the connection must not wait for room that nobody makes.
#[derive(Debug)]
struct EndOnDrop(Notes);

impl Drop for EndOnDrop {
    fn drop(&mut self) {
        self.0.end();
    }
}

/// What a session gives next.
#[derive(Debug)]
pub(crate) enum Intake {
    /// A message, and what is known of it.
    Delivery(Box<Delivery>, Note),
    /// No more messages, but the channel may still take acknowledgements.
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
            is_no_stream: AtomicBool::new(false),
        }
    }

    /// Connects and starts to consume. One try: the bridge repeats it.
    pub async fn open(&self) -> Result<Session, BrokerError> {
        // Each host has a time of its own for this.
        let notes = Notes::within(self.budget.clone());
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

    /// Looks once whether the queue is a stream.
    async fn refuse_stream(&self, channels: &mut Channels<'_>) -> Result<(), BrokerError> {
        if self.is_no_stream.load(Ordering::Relaxed) {
            return Ok(());
        }
        if is_stream(channels, &self.topology.queue).await? {
            return Err(BrokerError::Stream(self.topology.queue.clone()));
        }
        self.is_no_stream.store(true, Ordering::Relaxed);
        Ok(())
    }
}

impl Session {
    /// Waits for the next delivery. Safe to cancel.
    pub(crate) async fn next(&mut self) -> Intake {
        match self.consumer.next().await {
            Some(Ok(delivery)) => {
                let note = self.notes.0.take(self.channel.id(), delivery.delivery_tag);
                Intake::Delivery(Box::new(delivery), note)
            }
            Some(Err(err)) => Intake::Broken(err.into()),
            // The broker cancels a consumer, for instance when its queue moves or goes, only by ending the stream.
            None if self.is_open() => Intake::Cancelled,
            None => Intake::Broken(BrokerError::ChannelGone),
        }
    }

    /// Whether acknowledgements can still reach the broker.
    pub fn is_open(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }

    /// Asks the broker for no more deliveries. Those already taken can still be acknowledged, the others go back.
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
