//! Errors, named by what is to be done about them.
//!
//! What is retried for ever never becomes an [`Error`]: these are the ends of the process.

use std::{io, net::SocketAddr};

use crate::config::ConfigError;

/// `EX_USAGE` of sysexits.
const EXIT_USAGE: u8 = 64;
/// `EX_UNAVAILABLE` of sysexits.
const EXIT_UNAVAILABLE: u8 = 69;
const EXIT_FAILURE: u8 = 1;

/// Why the relay ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option is missing or wrong: a person must correct it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The health endpoint cannot listen.
    #[error("--health-addr {addr}: cannot listen")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// SQS refuses every message, and would refuse it again.
    #[error(transparent)]
    Stop(#[from] Stop),
}

impl Error {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => EXIT_USAGE,
            Self::Stop(_) => EXIT_UNAVAILABLE,
            Self::Listen { .. } => EXIT_FAILURE,
        }
    }
}

/// A refusal by SQS that holds for every message, such as a queue that does not exist or access denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("SQS refuses every message: {code}: {message}")]
pub struct Stop {
    /// The error code that SQS gave.
    pub code: String,
    /// Its explanation.
    pub message: String,
}

/// Why the broker's side does not work now. Always tried again.
#[derive(Debug, thiserror::Error)]
pub enum BrokerError {
    /// The queue is not there, and the relay was not asked to create it.
    #[error("queue {0:?} does not exist; create it, or start the relay with --declare")]
    QueueMissing(String),
    /// The broker took too long to answer.
    #[error("the broker did not answer within {0:?}")]
    Timeout(std::time::Duration),
    /// A dead-lettered message reached no queue.
    #[error("exchange {0:?} routes to no queue")]
    Unroutable(String),
    /// The broker refused to take a dead-lettered message.
    #[error("the broker did not confirm the message")]
    Unconfirmed,
    /// The delivery's channel has ended: it will be delivered again.
    #[error("the delivery's channel has ended")]
    ChannelGone,
    /// Anything that the client or the broker reports. It never holds the URI.
    #[error(transparent)]
    Amqp(#[from] lapin::Error),
}
