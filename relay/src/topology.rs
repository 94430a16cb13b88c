//! The queue, the dead-letter exchange and its queue: looked for, or created when asked to.
//!
//! Refuses to redeclare what exists: a queue of another type or with other arguments is taken as it is.

use lapin::{
    Channel, Connection, ExchangeKind,
    options::{ExchangeDeclareOptions, QueueBindOptions, QueueDeclareOptions},
    types::FieldTable,
};
use tracing::{info, warn};

use crate::{amqp::is_not_found, error::BrokerError};

/// The names on the broker.
#[derive(Debug, Clone)]
pub(crate) struct Topology {
    pub(crate) queue: String,
    pub(crate) dead_letter_exchange: String,
    pub(crate) declare: bool,
}

impl Topology {
    /// Makes sure that the queue is there. A missing dead-letter exchange is only told: most days nobody needs it.
    pub(crate) async fn ensure(&self, connection: &Connection) -> Result<(), BrokerError> {
        let queue_there = find_queue(connection, &self.queue).await?;
        let exchange_there = find_exchange(connection, &self.dead_letter_exchange).await?;
        if self.declare {
            if !queue_there {
                create_queue(&connection.create_channel().await?, &self.queue).await?;
            }
            return self.ensure_dead_letter(connection, exchange_there).await;
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

    async fn ensure_dead_letter(&self, connection: &Connection, exchange_there: bool) -> Result<(), BrokerError> {
        let name = &self.dead_letter_exchange;
        let queue_there = find_queue(connection, name).await?;
        let channel = connection.create_channel().await?;
        if !exchange_there {
            let options = ExchangeDeclareOptions { durable: true, ..Default::default() };
            let arguments = FieldTable::default();
            channel.exchange_declare(name.as_str().into(), ExchangeKind::Fanout, options, arguments).await?;
            info!(amqp.exchange = name, "dead-letter exchange created");
        }
        if !queue_there {
            create_queue(&channel, name).await?;
        }
        let (queue, exchange) = (name.as_str().into(), name.as_str().into());
        channel.queue_bind(queue, exchange, "".into(), QueueBindOptions::default(), FieldTable::default()).await?;
        Ok(())
    }
}

async fn create_queue(channel: &Channel, name: &str) -> Result<(), BrokerError> {
    let options = QueueDeclareOptions::durable();
    channel.queue_declare(name.into(), options, FieldTable::default()).await?;
    info!(amqp.queue = name, "queue created");
    Ok(())
}

/// Looks on a channel of its own, because the broker closes the channel of whoever looks for what is not there.
async fn find_queue(connection: &Connection, name: &str) -> Result<bool, BrokerError> {
    let channel = connection.create_channel().await?;
    let options = QueueDeclareOptions::durable().passive();
    let found = channel.queue_declare(name.into(), options, FieldTable::default()).await;
    existence(found.map(drop))
}

async fn find_exchange(connection: &Connection, name: &str) -> Result<bool, BrokerError> {
    let channel = connection.create_channel().await?;
    let options = ExchangeDeclareOptions { passive: true, ..Default::default() };
    let arguments = FieldTable::default();
    existence(channel.exchange_declare(name.into(), ExchangeKind::Fanout, options, arguments).await)
}

fn existence(found: lapin::Result<()>) -> Result<bool, BrokerError> {
    match found {
        Ok(()) => Ok(true),
        Err(err) if is_not_found(&err) => Ok(false),
        Err(err) => Err(err.into()),
    }
}
