//! The consuming side: opens connections to the broker and takes deliveries from them.
//!
//! Each connection is a generation. Refuses to carry anything from one generation to the next: what was delivered on a
//! broken one will be delivered again, and its ackers cannot do harm.

use std::time::Duration;

use futures_util::StreamExt;
use lapin::{
    Channel, Connection, Consumer,
    message::Delivery,
    options::{BasicCancelOptions, BasicConsumeOptions, BasicQosOptions},
    types::FieldTable,
    uri::AMQPUri,
};
use tokio::time::timeout;
use tracing::debug;

use crate::{amqp, config::Config, error::BrokerError, topology::Topology};

/// From the first packet to the first delivery that may come.
const OPEN_TIMEOUT: Duration = Duration::from_secs(20);
const CANCEL_TIMEOUT: Duration = Duration::from_secs(2);
const CONSUMER_TAG: &str = "relay";

/// Opens generations.
#[derive(Debug)]
pub struct Source {
    uri: AMQPUri,
    topology: Topology,
    prefetch: u16,
}

/// One connection, one channel, one consumer.
#[derive(Debug)]
pub struct Generation {
    connection: Connection,
    channel: Channel,
    consumer: Consumer,
}

/// What a generation gives next.
#[derive(Debug)]
pub enum Intake {
    /// A message.
    Delivery(Box<Delivery>),
    /// No more messages, but the channel may still take acknowledgements.
    Cancelled,
    /// The channel has ended.
    Broken(BrokerError),
}

impl Source {
    /// A source for the configured queue.
    pub fn new(config: &Config, uri: AMQPUri) -> Self {
        let topology = Topology {
            queue: config.queue.clone(),
            dead_letter_exchange: config.dead_letter_exchange(),
            declare: config.declare,
        };
        Self { uri, topology, prefetch: config.prefetch }
    }

    /// Connects and starts to consume. One try: the bridge repeats it.
    pub async fn open(&self) -> Result<Generation, BrokerError> {
        timeout(OPEN_TIMEOUT, self.try_open()).await.map_err(|_| BrokerError::Timeout(OPEN_TIMEOUT))?
    }

    async fn try_open(&self) -> Result<Generation, BrokerError> {
        let connection = amqp::connect(&self.uri, "relay: consume").await?;
        self.topology.ensure(&connection).await?;
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
        Ok(Generation { connection, channel, consumer })
    }
}

impl Generation {
    /// Waits for the next delivery. Safe to cancel.
    pub async fn next(&mut self) -> Intake {
        match self.consumer.next().await {
            Some(Ok(delivery)) => Intake::Delivery(Box::new(delivery)),
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
