//! The consuming side: opens connections to the broker and takes deliveries from them.
//!
//! Each connection is a generation. Refuses to carry anything from one generation to the next: what was delivered on a
//! broken one will be delivered again, and its ackers cannot do harm.

use std::{sync::Arc, time::Duration};

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
    amqp::{self, Broker},
    config::Config,
    error::BrokerError,
    topology::Topology,
    wire::Notes,
};

/// From the open connection to the first delivery that may come.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
const CONSUMER_TAG: &str = "relay";

/// Opens generations.
#[derive(Debug)]
pub struct Source {
    broker: Arc<Broker>,
    topology: Topology,
    prefetch: u16,
}

/// One connection, one channel, one consumer.
#[derive(Debug)]
pub struct Generation {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
    notes: Notes,
}

/// What a generation gives next.
#[derive(Debug)]
pub enum Intake {
    /// A message, and which of its strings are not UTF-8 and were mended, in words.
    Delivery(Box<Delivery>, Option<String>),
    /// No more messages, but the channel may still take acknowledgements.
    Cancelled,
    /// The channel has ended.
    Broken(BrokerError),
}

impl Source {
    /// A source for the configured queue.
    pub fn new(config: &Config, broker: Arc<Broker>) -> Self {
        let topology = Topology::new(config);
        Self { broker, topology, prefetch: config.prefetch }
    }

    /// Connects and starts to consume. One try: the bridge repeats it.
    pub async fn open(&self) -> Result<Generation, BrokerError> {
        // Each host has a time of its own for this.
        let notes = Notes::default();
        let connection = self.broker.connect_noting("relay: consume", &notes).await?;
        let consuming = timeout(OPEN_TIMEOUT, self.consume(&connection)).await;
        match consuming.unwrap_or(Err(BrokerError::Timeout(OPEN_TIMEOUT))) {
            Ok((channel, consumer)) => Ok(Generation { connection, channel, consumer, notes }),
            Err(err) => {
                amqp::close(connection).await;
                Err(err)
            }
        }
    }

    async fn consume(&self, connection: &Connection) -> Result<(Channel, Consumer), BrokerError> {
        self.topology.ensure(connection).await?;
        let channel = connection.create_channel().await?;
        // Without this the broker sends the whole queue at once. It must be answered before the consumer starts.
        channel.basic_qos(self.prefetch, BasicQosOptions::default()).await?;
        let consumer = channel
            .basic_consume(
                self.topology.queue.as_str().into(),
                CONSUMER_TAG.into(),
                BasicConsumeOptions::default(),
                FieldTable::default(),
            )
            .await?;
        Ok((channel, consumer))
    }
}

impl Generation {
    /// Waits for the next delivery. Safe to cancel.
    pub async fn next(&mut self) -> Intake {
        match self.consumer.next().await {
            Some(Ok(delivery)) => {
                let mended = self.notes.take(self.channel.id(), delivery.delivery_tag);
                Intake::Delivery(Box::new(delivery), mended)
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

    /// Asks the broker for no more deliveries. Those already out can still be acknowledged.
    pub async fn cancel(&self) {
        let cancel = self.channel.basic_cancel(CONSUMER_TAG.into(), BasicCancelOptions::default());
        if !matches!(timeout(CANCEL_TIMEOUT, cancel).await, Ok(Ok(()))) {
            debug!("the consumer could not be cancelled in order");
        }
    }

    /// Ends the generation; what is not acknowledged goes back to the queue.
    pub async fn close(self) {
        amqp::close(self.connection).await;
    }
}
