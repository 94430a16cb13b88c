//! Publishes poison messages to the dead-letter exchange and waits for the publisher confirm.
//!
//! It has a connection of its own: a broker short of memory stops reading from connections that publish, and
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
    message::{Envelope, Poison},
};

pub mod headers;

/// From the publish to the confirm, and for opening a channel.
const PUBLISH_TIMEOUT: Duration = Duration::from_secs(15);

/// Where poison messages go.
pub trait PoisonSink: Send + Sync + 'static {
    /// Publishes a copy. `Ok` only after the confirm.
    fn publish(&self, poison: &Poison) -> impl Future<Output = Result<(), BrokerError>> + Send;

    /// Counts a message that could not be dead-lettered yet, until the guard is dropped.
    fn stuck(&self) -> StuckGuard<'_>;
}

/// Publishes to the dead-letter exchange. Connects when it is first needed.
#[derive(Debug)]
pub struct DeadLetterPublisher {
    broker: Arc<Broker>,
    exchange: String,
    queue: String,
    state: Mutex<PublisherState>,
    stuck: StuckMessages,
}

/// What all messages share.
#[derive(Debug, Default)]
struct PublisherState {
    open: Option<ConfirmChannel>,
    /// Failures in a row that were not about one message.
    failures: u32,
    /// The next attempt waits until then, for whichever message it is.
    not_before: Option<Instant>,
}

#[derive(Debug)]
struct ConfirmChannel {
    connection: Connection,
    channel: Channel,
}

impl DeadLetterPublisher {
    /// A publisher for poison from the configured queue.
    pub fn new(config: &Config, broker: Arc<Broker>) -> Self {
        Self {
            broker,
            exchange: config.dead_letter_exchange(),
            queue: config.queue.clone(),
            state: Mutex::default(),
            stuck: StuckMessages::new(config.dead_letter_exchange(), config.prefetch.into()),
        }
    }

    /// Closes the connection, if there is one.
    pub async fn close(&self) {
        if let Some(open) = self.state.lock().await.open.take() {
            amqp::close(open.connection).await;
        }
    }

    /// The channel as it was if it is open, else a new one, on a new connection if needed.
    async fn channel(&self, before: Option<ConfirmChannel>) -> Result<ConfirmChannel, BrokerError> {
        match before {
            Some(open) if open.is_open() => return Ok(open),
            Some(ConfirmChannel { connection, .. }) if connection.status().connected() => {
                match open_channel(&connection).await {
                    Ok(channel) => return Ok(ConfirmChannel { connection, channel }),
                    // The client uses no channel number twice, and a broker may allow few of them.
                    Err(_) => amqp::close(connection).await,
                }
            }
            _ => {}
        }
        let connection = self.broker.connect("relay: dead letters").await?;
        let channel = open_channel(&connection).await?;
        Ok(ConfirmChannel { connection, channel })
    }

    async fn send(&self, open: &ConfirmChannel, poison: &Poison) -> Result<(), BrokerError> {
        let envelope: &Envelope = &poison.delivery.envelope;
        let frame_max = open.connection.configuration().frame_max() as usize;
        let confirmation = open
            .channel
            .basic_publish(
                self.exchange.as_str().into(),
                envelope.routing_key.as_str().into(),
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

impl PoisonSink for DeadLetterPublisher {
    /// `Ok` only after the broker has confirmed that a queue took the copy.
    ///
    /// One message at a time: the client attributes a returned message to the next confirm, so with two in flight the
    /// unroutable one could be taken for the other.
    async fn publish(&self, poison: &Poison) -> Result<(), BrokerError> {
        let mut state = self.state.lock().await;
        if let Some(moment) = state.not_before {
            sleep_until(moment).await;
        }
        // Taken out: a cancelled publish drops its channel, and with it the confirm still to come.
        let open = match self.channel(state.open.take()).await {
            Ok(open) => open,
            Err(err) => {
                state.failed();
                return Err(err);
            }
        };
        let sent = timeout(PUBLISH_TIMEOUT, self.send(&open, poison)).await;
        let result = sent.unwrap_or(Err(BrokerError::Timeout(PUBLISH_TIMEOUT)));
        match result {
            // The broker has answered for this message: no confirm is outstanding.
            Ok(()) | Err(BrokerError::Unroutable(_) | BrokerError::Unconfirmed) => state.works(open),
            // The broker has closed the channel, for instance because the exchange does not exist. The connection is
            // good.
            Err(_) if !open.is_open() && open.connection.status().connected() => {
                state.open = Some(open);
                state.failed();
            }
            // A late confirm could be taken for the next message's: reconnect.
            Err(_) => {
                amqp::close(open.connection).await;
                state.failed();
            }
        }
        result
    }

    fn stuck(&self) -> StuckGuard<'_> {
        self.stuck.count()
    }
}

impl ConfirmChannel {
    fn is_open(&self) -> bool {
        self.connection.status().connected() && self.channel.status().connected()
    }
}

impl PublisherState {
    fn works(&mut self, open: ConfirmChannel) {
        *self = Self { open: Some(open), ..Self::default() };
    }

    /// The next message would fail the same way: a hundred stuck messages retry no more often than one.
    fn failed(&mut self) {
        self.not_before = Some(Instant::now() + backoff::delay(self.failures));
        self.failures = self.failures.saturating_add(1);
    }
}

async fn open_channel(connection: &Connection) -> Result<Channel, BrokerError> {
    let open = async {
        let channel = connection.create_channel().await?;
        channel.confirm_select(ConfirmSelectOptions::default()).await?;
        Ok::<_, lapin::Error>(channel)
    };
    Ok(timeout(PUBLISH_TIMEOUT, open).await.map_err(|_| BrokerError::Timeout(PUBLISH_TIMEOUT))??)
}

/// Counts the messages that could not be dead-lettered yet. When they fill the prefetch, the relay stands still.
#[derive(Debug)]
pub struct StuckMessages {
    exchange: String,
    prefetch: usize,
    stuck: AtomicUsize,
    reported: AtomicBool,
}

/// One stuck message. It counts until this is dropped.
#[derive(Debug)]
pub struct StuckGuard<'a>(&'a AtomicUsize);

impl StuckMessages {
    /// No message is stuck yet. The broker delivers at most `prefetch` of them.
    pub(crate) fn new(exchange: String, prefetch: usize) -> Self {
        Self { exchange, prefetch, stuck: AtomicUsize::new(0), reported: AtomicBool::new(false) }
    }

    /// Counts one more. Warns once when they fill the prefetch: then the broker delivers nothing more.
    pub(crate) fn count(&self) -> StuckGuard<'_> {
        let count = self.stuck.fetch_add(1, Ordering::Relaxed) + 1;
        if count >= self.prefetch && !self.reported.swap(true, Ordering::Relaxed) {
            warn!(
                messages = count,
                amqp.exchange = self.exchange,
                "every message that the broker may have out here waits for the dead-letter exchange: the relay stands \
                 still until the exchange takes them"
            );
        }
        StuckGuard(&self.stuck)
    }
}

impl Drop for StuckGuard<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::{io, sync::Mutex};

    use super::*;

    /// Keeps the log lines.
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
    fn only_a_whole_prefetch_of_stuck_messages_is_reported_and_only_once() {
        let lines = Lines::default();
        let writer = lines.clone();
        let subscriber = tracing_subscriber::fmt().with_writer(move || writer.clone()).with_ansi(false).finish();
        let reported = || String::from_utf8(lines.0.lock().unwrap().clone()).unwrap().lines().count();
        tracing::subscriber::with_default(subscriber, || {
            let stuck = StuckMessages::new("ex".to_owned(), 3);
            let held: Vec<StuckGuard<'_>> = (0..2).map(|_| stuck.count()).collect();
            drop(held);
            // Messages that got through in the meantime do not count.
            let held: Vec<StuckGuard<'_>> = (0..2).map(|_| stuck.count()).collect();
            assert_eq!(reported(), 0);
            let _last = stuck.count();
            assert_eq!(reported(), 1);
            drop(held);
            let _again: Vec<StuckGuard<'_>> = (0..5).map(|_| stuck.count()).collect();
            assert_eq!(reported(), 1);
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        assert!(text.contains("messages=3") && text.contains("the relay stands still"), "{text}");
    }
}
