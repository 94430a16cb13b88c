//! Publishes poison to the dead-letter exchange, on a connection of its own.
//!
//! Refuses to acknowledge: it only says whether the broker has confirmed the copy. Without that the message stays where
//! it is. A connection of its own, because a broker short of memory stops reading from connections that publish, and
//! acknowledgements must not wait behind that.

use std::{future::Future, sync::Arc, time::Duration};

use lapin::{
    Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::{sync::Mutex, time::timeout};

use crate::{
    amqp::{self, Broker},
    config::Config,
    dead_letter::headers::properties,
    error::BrokerError,
    message::{Origin, Poison},
};

pub mod headers;
mod stall;

pub use stall::{Stall, Stuck};

/// From the publish to the confirmation.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(15);

/// Where poison goes.
pub trait PoisonSink: Send + Sync + 'static {
    /// Publishes a copy; `Ok` only when that is confirmed.
    fn publish(&self, poison: &Poison) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Counts a message that could not be buried, until the answer is dropped.
    fn stuck(&self) -> Stuck<'_>;
}

/// The way to the dead-letter exchange. Connects when it is first needed.
#[derive(Debug)]
pub struct DeadLetter {
    broker: Arc<Broker>,
    exchange: String,
    queue: String,
    link: Mutex<Option<Link>>,
    stall: Stall,
}

#[derive(Debug)]
struct Link {
    connection: Connection,
    channel: Channel,
}

impl DeadLetter {
    /// The way from the configured queue to its exchange.
    pub fn new(config: &Config, broker: Arc<Broker>) -> Self {
        Self {
            broker,
            exchange: config.dead_letter_exchange(),
            queue: config.queue.clone(),
            link: Mutex::new(None),
            stall: Stall::new(config.dead_letter_exchange(), config.prefetch.into()),
        }
    }

    /// Ends the connection, if there is one.
    pub async fn close(&self) {
        if let Some(link) = self.link.lock().await.take() {
            amqp::close(link.connection).await;
        }
    }

    async fn connect(&self) -> Result<Link, BrokerError> {
        let connection = self.broker.connect("relay: dead letters").await?;
        let open = async {
            let channel = connection.create_channel().await?;
            channel.confirm_select(ConfirmSelectOptions::default()).await?;
            Ok::<_, lapin::Error>(channel)
        };
        let channel = timeout(PUBLISH_TIMEOUT, open).await.map_err(|_| BrokerError::Timeout(PUBLISH_TIMEOUT))??;
        Ok(Link { connection, channel })
    }

    async fn send(&self, link: &Link, poison: &Poison) -> Result<(), BrokerError> {
        let origin: &Origin = &poison.ticket.origin;
        let frame_max = link.connection.configuration().frame_max() as usize;
        let confirmation = link
            .channel
            .basic_publish(
                self.exchange.as_str().into(),
                origin.routing_key.as_str().into(),
                BasicPublishOptions { mandatory: true, ..Default::default() },
                &poison.body,
                properties(&self.queue, poison, frame_max),
            )
            .await?
            .await?;
        match confirmation {
            Confirmation::Ack(None) => Ok(()),
            Confirmation::Ack(Some(_)) => Err(BrokerError::Unroutable(self.exchange.clone())),
            Confirmation::Nack(_) | Confirmation::NotRequested => Err(BrokerError::Unconfirmed),
        }
    }
}

impl PoisonSink for DeadLetter {
    /// `Ok` only when the broker has confirmed that a queue took the copy.
    ///
    /// One at a time: the client ties a returned message to whatever confirmation comes next, so with two on the way
    /// the one that reached no queue could pass for the other.
    async fn publish(&self, poison: &Poison) -> Result<(), BrokerError> {
        let mut slot = self.link.lock().await;
        let link = match slot.take() {
            Some(link) if link.channel.status().connected() => link,
            _ => self.connect().await?,
        };
        let sent = timeout(PUBLISH_TIMEOUT, self.send(&link, poison)).await;
        let result = sent.unwrap_or(Err(BrokerError::Timeout(PUBLISH_TIMEOUT)));
        // After a failure a late confirmation could be taken for the next message's: start anew.
        match result {
            Ok(()) => *slot = Some(link),
            Err(_) => amqp::close(link.connection).await,
        }
        result
    }

    fn stuck(&self) -> Stuck<'_> {
        self.stall.count()
    }
}
