//! One channel of one connection, and another in its place when the broker has closed it: the broker answers a question
//! for what is not there by closing the channel that asked.
//!
//! A broker may allow as few as one channel to a connection (`channel_max`), and the AMQP client never gives out the number of a
//! closed one again. When the numbers are used up, another connection takes the place of the first.

use lapin::{Channel, Connection};

use crate::{
    amqp::BrokerError,
    amqp::{self, Broker},
    wire::Notes,
};

/// A connection with at most one channel.
#[derive(Debug)]
pub(crate) struct Channels<'a> {
    broker: &'a Broker,
    name: &'static str,
    notes: Notes,
    connection: Connection,
    channel: Option<Channel>,
    used: u16,
}

impl<'a> Channels<'a> {
    /// Connects to the broker, which shows the connection under `name`; `notes` are those of all its deliveries.
    pub(crate) async fn open(broker: &'a Broker, name: &'static str, notes: &Notes) -> Result<Self, BrokerError> {
        let connection = broker.connect_noting(name, notes).await?;
        Ok(Self::on(connection, broker, name, notes))
    }

    /// Those of a connection that has had none yet.
    pub(crate) fn on(connection: Connection, broker: &'a Broker, name: &'static str, notes: &Notes) -> Self {
        Self { broker, name, notes: notes.clone(), connection, channel: None, used: 0 }
    }

    /// The channel: that of before, if it is still open.
    pub(crate) async fn get(&mut self) -> Result<Channel, BrokerError> {
        if let Some(channel) = self.channel.as_ref().filter(|channel| channel.status().connected()) {
            return Ok(channel.clone());
        }
        if self.used >= self.connection.configuration().channel_max() {
            let next = self.broker.connect_noting(self.name, &self.notes).await?;
            amqp::close(std::mem::replace(&mut self.connection, next)).await;
            self.used = 0;
        }
        self.used += 1;
        let channel = self.connection.create_channel().await?;
        self.channel = Some(channel.clone());
        Ok(channel)
    }

    /// The connection, with whatever was opened on it.
    pub(crate) fn into_connection(self) -> Connection {
        self.connection
    }
}
