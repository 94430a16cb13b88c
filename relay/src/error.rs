//! Errors, named by what is to be done about them.
//!
//! What is retried for ever never becomes an [`Error`]: these are the ends of the process.

use std::{io, net::SocketAddr};

use crate::{amqp::BrokerError, config::ConfigError, exit};

/// Why the relay ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option is missing or wrong: a person must correct it.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The health endpoint cannot listen.
    #[error("--health-addr {addr}: cannot listen, choose another address (RELAY_HEALTH_ADDR)")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// What the system said.
        source: io::Error,
    },
    /// At the start the broker refuses what only a person can correct.
    #[error("{0}")]
    Refused(BrokerError),
    /// `--check` found this many things wrong, and has printed them.
    #[error("{0} of the checks failed")]
    Check(usize),
    /// SQS refuses every message, and would refuse it again.
    #[error(transparent)]
    Stop(#[from] Stop),
}

impl Error {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => exit::USAGE,
            Self::Refused(_) | Self::Check(_) | Self::Stop(_) => exit::UNAVAILABLE,
            Self::Listen { .. } => exit::FAILURE,
        }
    }
}

/// A refusal by SQS that holds for every message, such as a queue that does not exist or access denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("SQS refuses every message: {0}")]
pub struct Stop(
    /// The error code that SQS gave, and a sentence for it.
    pub String,
);
