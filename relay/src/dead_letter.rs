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
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout},
};

use crate::{
    amqp::BrokerError,
    amqp::{self, Broker},
    backoff,
    config::Config,
    dead_letter::headers::properties,
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
    way: Mutex<Way>,
    stall: Stall,
}

/// What all messages share on their way to the exchange.
#[derive(Debug, Default)]
struct Way {
    link: Option<Link>,
    /// Failures in a row that were not those of one message.
    failures: u32,
    /// The next try waits for this, whichever message makes it.
    not_before: Option<Instant>,
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
            way: Mutex::default(),
            stall: Stall::new(config.dead_letter_exchange(), config.prefetch.into()),
        }
    }

    /// Ends the connection, if there is one.
    pub async fn close(&self) {
        if let Some(link) = self.way.lock().await.link.take() {
            amqp::close(link.connection).await;
        }
    }

    /// The link as it was, or with another channel, or anew.
    async fn link(&self, before: Option<Link>) -> Result<Link, BrokerError> {
        match before {
            Some(link) if link.is_open() => return Ok(link),
            Some(Link { connection, .. }) if connection.status().connected() => match confirming(&connection).await {
                Ok(channel) => return Ok(Link { connection, channel }),
                // The client gives out no channel's number twice, and a broker may allow few of them.
                Err(_) => amqp::close(connection).await,
            },
            _ => {}
        }
        let connection = self.broker.connect("relay: dead letters").await?;
        let channel = confirming(&connection).await?;
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
        let mut way = self.way.lock().await;
        if let Some(moment) = way.not_before {
            sleep_until(moment).await;
        }
        // Taken out: a publish that is broken off takes its link along, and with it the confirmation still to come.
        let link = match self.link(way.link.take()).await {
            Ok(link) => link,
            Err(err) => {
                way.failed();
                return Err(err);
            }
        };
        let sent = timeout(PUBLISH_TIMEOUT, self.send(&link, poison)).await;
        let result = sent.unwrap_or(Err(BrokerError::Timeout(PUBLISH_TIMEOUT)));
        match result {
            // The broker has answered for this message: nothing of it is still to come.
            Ok(()) | Err(BrokerError::Unroutable(_) | BrokerError::Unconfirmed) => way.works(link),
            // It has ended the channel, for instance because the exchange is not there. The connection is good.
            Err(_) if !link.is_open() && link.connection.status().connected() => {
                way.link = Some(link);
                way.failed();
            }
            // A late confirmation could be taken for the next message's: start anew.
            Err(_) => {
                amqp::close(link.connection).await;
                way.failed();
            }
        }
        result
    }

    fn stuck(&self) -> Stuck<'_> {
        self.stall.count()
    }
}

impl Link {
    fn is_open(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }
}

impl Way {
    fn works(&mut self, link: Link) {
        *self = Self { link: Some(link), ..Self::default() };
    }

    /// Whatever it was, the next message would meet it too: a hundred stuck messages try no more often than one.
    fn failed(&mut self) {
        self.not_before = Some(Instant::now() + backoff::delay(self.failures));
        self.failures = self.failures.saturating_add(1);
    }
}

async fn confirming(connection: &Connection) -> Result<Channel, BrokerError> {
    let open = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok::<_, lapin::Error>(channel)
    };
    Ok(timeout(PUBLISH_TIMEOUT, open).await.map_err(|_| BrokerError::Timeout(PUBLISH_TIMEOUT))??)
}
