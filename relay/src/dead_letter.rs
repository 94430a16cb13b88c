//! Publishes poison to the dead-letter exchange, on a connection of its own.
//!
//! Refuses to acknowledge: it only says whether the broker has confirmed the copy. Without that the message stays where
//! it is. A connection of its own, because a broker short of memory stops reading from connections that publish, and
//! acknowledgements must not wait behind that.

use std::{
    future::Future,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    time::Duration,
};

use lapin::{
    Channel, Confirmation, Connection,
    options::{BasicPublishOptions, ConfirmSelectOptions},
};
use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until, timeout},
};
use tracing::warn;

use crate::{
    amqp::{self, Broker, BrokerError},
    backoff,
    config::Config,
    dead_letter::headers::properties,
    message::{Origin, Poison},
};

pub mod headers;

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

/// How many messages are stuck on their way to one exchange.
#[derive(Debug)]
pub struct Stall {
    exchange: String,
    prefetch: usize,
    stuck: AtomicUsize,
    told: AtomicBool,
}

/// One message that could not be buried yet. It counts until it is dropped.
#[derive(Debug)]
pub struct Stuck<'a>(&'a AtomicUsize);

impl Stall {
    /// None is stuck; the broker may have `prefetch` messages out.
    pub(crate) fn new(exchange: String, prefetch: usize) -> Self {
        Self { exchange, prefetch, stuck: AtomicUsize::new(0), told: AtomicBool::new(false) }
    }

    /// Counts one more. When they fill the prefetch, the broker delivers nothing more, and that is told, once.
    pub(crate) fn count(&self) -> Stuck<'_> {
        let count = self.stuck.fetch_add(1, Ordering::Relaxed) + 1;
        if count >= self.prefetch && !self.told.swap(true, Ordering::Relaxed) {
            warn!(
                messages = count,
                amqp.exchange = self.exchange,
                "every message that the broker may have out here waits for the dead-letter exchange: the relay stands \
                 still until the exchange takes them"
            );
        }
        Stuck(&self.stuck)
    }
}

impl Drop for Stuck<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use super::*;

    /// Keeps the lines.
    #[derive(Debug, Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_stall_is_told_once_and_only_when_the_whole_prefetch_is_stuck() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        let told = || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap().lines().count();
        tracing::subscriber::with_default(subscriber, || {
            let stall = Stall::new("ex".to_owned(), 3);
            let held: Vec<Stuck<'_>> = (0..2).map(|_| stall.count()).collect();
            drop(held);
            // What got through in the meantime does not count.
            let held: Vec<Stuck<'_>> = (0..2).map(|_| stall.count()).collect();
            assert_eq!(told(), 0);
            let _last = stall.count();
            assert_eq!(told(), 1);
            drop(held);
            let _again: Vec<Stuck<'_>> = (0..5).map(|_| stall.count()).collect();
            assert_eq!(told(), 1);
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("messages=3") && text.contains("the relay stands still"), "{text}");
    }
}
