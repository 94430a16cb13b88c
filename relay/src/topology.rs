//! The queue, the dead-letter exchange and its queue: found, or created with `--declare`.
//!
//! What exists is not declared again: a queue of another type or with other arguments is used as it is.

use lapin::{
    Channel, ExchangeKind,
    options::{BasicConsumeOptions, BasicQosOptions, ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::{AMQPValue, FieldTable},
};
use tracing::{info, warn};

use crate::{
    amqp::{self, BrokerError, Channels, is_not_found, is_precondition},
    config::{Binding, Config, QueueType},
};

const QUEUE_TYPE: &str = "x-queue-type";
/// Where in a stream a consumer begins. Only streams know this argument.
const STREAM_OFFSET: &str = "x-stream-offset";
/// The default: new messages only.
const OFFSET_NEXT: &str = "next";
const PROBE_TAG: &str = "relay-look";
const DELIVERY_LIMIT: &str = "x-delivery-limit";
/// As good as no limit. RabbitMQ 4 has a default of 20, counts every lost connection and then drops the message. The -1
/// that it takes for "no limit" does not help: 3.10.8 takes it too, and drops a message at its first redelivery.
const UNLIMITED: i32 = i32::MAX;

/// The names on the broker.
#[derive(Debug, Clone)]
pub(crate) struct Topology {
    pub(crate) queue: String,
    pub(crate) dead_letter_exchange: String,
    pub(crate) declare: bool,
    pub(crate) queue_type: QueueType,
    pub(crate) bindings: Vec<Binding>,
}

impl Topology {
    /// As configured.
    pub(crate) fn new(config: &Config) -> Self {
        Self {
            queue: config.queue.clone(),
            dead_letter_exchange: config.dead_letter_exchange(),
            declare: config.declare,
            queue_type: config.broker.queue_type,
            // They were checked at startup.
            bindings: config.bindings().unwrap_or_default(),
        }
    }

    /// Makes sure that the queue exists. A missing dead-letter exchange is only reported: it is rarely needed.
    pub(crate) async fn ensure(&self, channels: &mut Channels<'_>) -> Result<(), BrokerError> {
        let queue_there = find_queue(channels, &self.queue).await?;
        let exchange_there = find_exchange(channels, &self.dead_letter_exchange).await?;
        if self.declare {
            if !queue_there {
                self.create_queue(channels).await?;
            }
            self.bind(channels).await?;
            return self.ensure_dead_letter(channels, exchange_there).await;
        }
        if !queue_there {
            return Err(BrokerError::QueueMissing(self.queue.clone()));
        }
        if !exchange_there {
            warn!(
                amqp.exchange = self.dead_letter_exchange,
                "the dead-letter exchange does not exist: poison will stay unacknowledged until it does"
            );
        }
        Ok(())
    }

    async fn create_queue(&self, channels: &mut Channels<'_>) -> Result<(), BrokerError> {
        let mut arguments = arguments(self.queue_type);
        if self.queue_type == QueueType::Quorum {
            arguments.insert(DELIVERY_LIMIT.into(), AMQPValue::LongInt(UNLIMITED));
        }
        create_queue(&channels.get().await?, &self.queue, &arguments).await
    }

    async fn bind(&self, channels: &mut Channels<'_>) -> Result<(), BrokerError> {
        for binding in &self.bindings {
            let channel = channels.get().await?;
            let (queue, exchange) = (self.queue.as_str().into(), binding.exchange.as_str().into());
            let (key, options) = (binding.routing_key.as_str().into(), QueueBindOptions::default());
            match channel.queue_bind(queue, exchange, key, options, FieldTable::default()).await {
                Ok(()) => {}
                Err(err) if is_not_found(&err) => return Err(BrokerError::ExchangeMissing(binding.exchange.clone())),
                Err(err) => return Err(err.into()),
            }
        }
        Ok(())
    }

    async fn ensure_dead_letter(&self, channels: &mut Channels<'_>, exchange_there: bool) -> Result<(), BrokerError> {
        let name = &self.dead_letter_exchange;
        let queue_there = find_queue(channels, name).await?;
        let channel = channels.get().await?;
        if !exchange_there {
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            let arguments = FieldTable::default();
            channel.exchange_declare(name.as_str().into(), ExchangeKind::Fanout, options, arguments).await?;
            info!(amqp.exchange = name, "dead-letter exchange created");
        }
        if !queue_there {
            create_queue(&channel, name, &arguments(self.queue_type)).await?;
        }
        let (queue, exchange) = (name.as_str().into(), name.as_str().into());
        channel.queue_bind(queue, exchange, "".into(), QueueBindOptions::default(), FieldTable::default()).await?;
        Ok(())
    }
}

fn arguments(queue_type: QueueType) -> FieldTable {
    let name = match queue_type {
        QueueType::Quorum => "quorum",
        QueueType::Classic => "classic",
    };
    let mut arguments = FieldTable::default();
    arguments.insert(QUEUE_TYPE.into(), AMQPValue::LongString(name.into()));
    arguments
}

async fn create_queue(channel: &Channel, name: &str, arguments: &FieldTable) -> Result<(), BrokerError> {
    channel.queue_declare(name.into(), QueueDeclareOptions::durable(), arguments.clone()).await?;
    info!(amqp.queue = name, "queue created");
    Ok(())
}

pub(crate) async fn find_queue(channels: &mut Channels<'_>, name: &str) -> Result<bool, BrokerError> {
    let channel = channels.get().await?;
    let options = QueueDeclareOptions::durable().passive();
    let found = channel.queue_declare(name.into(), options, FieldTable::default()).await;
    exists(found.map(drop))
}

pub(crate) async fn find_exchange(channels: &mut Channels<'_>, name: &str) -> Result<bool, BrokerError> {
    let channel = channels.get().await?;
    let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
    let arguments = FieldTable::default();
    exists(channel.exchange_declare(name.into(), ExchangeKind::Fanout, options, arguments).await)
}

/// Whether a queue is a stream. AMQP cannot be asked that, but only a stream knows this argument: every other queue
/// refuses a consumer with it before delivering a message.
pub(crate) async fn is_stream(channels: &mut Channels<'_>, queue: &str) -> Result<bool, BrokerError> {
    let channel = channels.get().await?;
    channel.basic_qos(1, BasicQosOptions::default()).await?;
    let mut arguments = FieldTable::default();
    arguments.insert(STREAM_OFFSET.into(), AMQPValue::LongString(OFFSET_NEXT.into()));
    let options = BasicConsumeOptions::default();
    match channel.basic_consume(queue.into(), PROBE_TAG.into(), options, arguments).await {
        Ok(consumer) => {
            // Other brokers may accept any argument for any queue, but then they count the consumer.
            let options = QueueDeclareOptions::durable().passive();
            let counted = channel.queue_declare(queue.into(), options, FieldTable::default()).await?.consumer_count();
            drop(consumer);
            amqp::close_channel(&channel).await;
            Ok(counted == 0)
        }
        Err(err) if is_precondition(&err) && err.to_string().contains(STREAM_OFFSET) => Ok(false),
        Err(err) => Err(err.into()),
    }
}

fn exists(found: lapin::Result<()>) -> Result<bool, BrokerError> {
    match found {
        Ok(()) => Ok(true),
        Err(err) if is_not_found(&err) => Ok(false),
        Err(err) => Err(err.into()),
    }
}
