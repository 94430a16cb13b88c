//! The errors that end the process, and the exit codes. What is retried is no [`Error`].

use std::{io, net::SocketAddr};

use settings::BadVariable;

use crate::amqp::BrokerError;

/// `EX_USAGE` of sysexits.
pub(crate) const EXIT_USAGE: u8 = 64;
/// `EX_UNAVAILABLE` of sysexits.
pub(crate) const EXIT_UNAVAILABLE: u8 = 69;
pub(crate) const EXIT_FAILURE: u8 = 1;

/// Every exit code except those of signals, with its text in `--help`.
pub(crate) const EXIT_CODES: [(u8, &str); 4] = [
    (0, "ended by a signal, in order; --check found all well"),
    (EXIT_FAILURE, "anything else, such as a health address that is taken"),
    (EXIT_USAGE, "an option or a variable is missing or wrong; standard error names it"),
    (EXIT_UNAVAILABLE, "SQS, the first broker or --cancel-bucket refuses for good; --check found something wrong"),
];

/// Why the relay ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An option is missing or wrong.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The health endpoint cannot listen.
    #[error("--health-addr {addr}: cannot listen, choose another address (RELAY_HEALTH_ADDR)")]
    Listen {
        /// The address asked for.
        addr: SocketAddr,
        /// The operating system's error.
        source: io::Error,
    },
    /// At startup the broker refused something that only a person can correct.
    #[error("{0}")]
    BrokerRefused(BrokerError),
    /// So many of the checks failed. They are already printed.
    #[error("{0} of the checks failed")]
    ChecksFailed(usize),
    /// SQS or S3 refuses every message, now and later.
    #[error(transparent)]
    Stop(#[from] Stop),
}

impl Error {
    /// The exit code of the process.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Config(_) => EXIT_USAGE,
            Self::BrokerRefused(_) | Self::ChecksFailed(_) | Self::Stop(_) => EXIT_UNAVAILABLE,
            Self::Listen { .. } => EXIT_FAILURE,
        }
    }
}

/// A refusal by SQS or S3 that holds for every message, such as a queue that does not exist or access denied.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{service} refuses every message: {why}")]
pub struct Stop {
    /// Who refuses.
    pub service: &'static str,
    /// The error code and what it means.
    pub why: String,
}

impl Stop {
    /// A refusal by SQS.
    pub fn of_sqs(why: impl Into<String>) -> Self {
        Self { service: "SQS", why: why.into() }
    }
}

/// An option that a person must correct.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line or the environment cannot be parsed.
    #[error("{0}")]
    Usage(String),
    /// One option has a value that cannot work.
    #[error("error: {option}: {problem}")]
    Invalid {
        /// The option as on the command line, or the variable.
        option: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl From<BadVariable> for ConfigError {
    fn from(bad: BadVariable) -> Self {
        Self::Invalid { option: bad.name, problem: bad.problem }
    }
}
