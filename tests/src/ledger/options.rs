//! The options of a ledger run, and the fault scenarios.

use crate::paths::repo;
use clap::{Args, ValueEnum};
use std::{fmt, path::PathBuf, time::Duration};

/// What breaks during a run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Scenario {
    /// Nothing
    None,
    /// The broker stops in order and starts again
    BrokerRestart,
    /// The broker is killed with -9 and starts again
    BrokerKill,
    /// The relay's connections to the broker are cut, again and again
    BrokerCut,
    /// Nothing passes between relay and broker, and nobody is told
    BrokerHalfOpen,
    /// Bytes trickle between relay and broker
    BrokerSlow,
    /// The broker cancels the consumer: the drained queue is deleted and declared again
    BrokerCancel,
    /// The broker closes the channel because SQS, and so each ack, is late
    BrokerAckTimeout,
    /// The broker raises its memory alarm and blocks whoever publishes
    BrokerBlocked,
    /// The relay is killed with -9 every few seconds and started again
    RelayKill,
    /// The relay's connections to SQS are cut, and refused for a while
    SqsCut,
    /// Nothing passes between relay and SQS, and nobody is told
    SqsHalfOpen,
    /// Bytes trickle between relay and SQS
    SqsSlow,
    /// SQS throttles every request
    SqsThrottle,
    /// SQS answers 500 and 503
    #[value(name = "sqs-500")]
    Sqs500,
    /// SQS accepts only half of each batch
    SqsPartial,
    /// SQS throttles half of the entries of each batch, and calls that the sender's fault
    SqsThrottleEntries,
    /// SQS refuses the entries of one group for their own fault: they are dead-lettered, and the others arrive
    SqsSenderFault,
    /// SQS takes batches and the answers are lost: as a 500, with the connection, or by coming too late
    SqsLostResponse,
    /// All of them at random, on both sides and the relay at once, for --seconds
    Random,
}

/// The type of the RabbitMQ queue.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum QueueType {
    /// One node keeps it.
    Classic,
    /// Raft keeps it.
    Quorum,
}

/// Which bridge.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum BridgeKind {
    /// The relay.
    Relay,
    /// pika and boto3, one `send_message` and one ack for each message.
    Python,
    /// pika and boto3, one `send_message_batch` and one ack for ten messages.
    PythonBatch,
}

/// The options of one run.
#[derive(Debug, Clone, Args)]
pub struct Options {
    /// How many numbered messages to publish
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    pub messages: u64,
    /// What to break
    #[arg(long, value_enum, default_value_t = Scenario::None)]
    pub fault: Scenario,
    /// Repeats the random choices of an earlier run
    #[arg(long, default_value_t = u64::from(std::process::id()))]
    pub seed: u64,
    /// Send to a FIFO queue, with the group taken from the body
    #[arg(long)]
    pub fifo: bool,
    /// How long faults are played, and messages flow, in the fault `random`
    #[arg(long, default_value_t = 60)]
    pub seconds: u64,
    /// How long any other fault lasts, in milliseconds; messages flow for twice as long
    #[arg(long, default_value_t = 5_000)]
    pub hold_ms: u64,
    /// How long to wait for the last message before what is missing counts as lost, in seconds
    #[arg(long, default_value_t = 180)]
    pub patience: u64,
    /// How many groups the messages belong to
    #[arg(long, default_value_t = 10, value_parser = clap::value_parser!(u64).range(1..))]
    pub groups: u64,
    /// Bytes in a body, unless its own fields need more
    #[arg(long, default_value_t = 1_024)]
    pub size: usize,
    /// The type of the RabbitMQ queue
    #[arg(long, value_enum, default_value_t = QueueType::Classic)]
    pub queue_type: QueueType,
    /// How many unacknowledged messages the bridge may hold
    #[arg(long, default_value_t = 1_000)]
    pub prefetch: u16,
    /// Seconds between heartbeats to the broker
    #[arg(long, default_value_t = 5)]
    pub heartbeat: u16,
    /// How long each answer of SQS takes, in milliseconds
    #[arg(long, default_value_t = 0)]
    pub latency_ms: u64,
    /// Fill the queue first, use no proxies, and measure
    #[arg(long, conflicts_with_all = ["fault", "fifo"])]
    pub bench: bool,
    /// Publish so many messages a second, use no proxies, and measure how long each is on its way
    #[arg(long, conflicts_with_all = ["fault", "bench"], value_parser = clap::value_parser!(u32).range(1..=10_000))]
    pub pace: Option<u32>,
    /// The relay's --linger-ms, if it is not to be its own default
    #[arg(long)]
    pub linger_ms: Option<u64>,
    /// What moves the messages
    #[arg(long, value_enum, default_value_t = BridgeKind::Relay)]
    pub bridge: BridgeKind,
    /// The Python for the Python bridges
    #[arg(long, default_value_os_t = repo().join("target/bench-venv/bin/python"))]
    pub python: PathBuf,
    /// Name of the queues on both sides
    #[arg(long, default_value = "ledger")]
    pub name: String,
}

impl Scenario {
    /// Whether messages may arrive twice: a response is lost, a connection breaks, or something is killed.
    pub fn may_duplicate(self) -> bool {
        !matches!(
            self,
            Self::None
                | Self::SqsThrottle
                | Self::SqsThrottleEntries
                | Self::Sqs500
                | Self::SqsPartial
                | Self::SqsSenderFault
                | Self::SqsSlow
                | Self::BrokerSlow
                | Self::BrokerCancel
                | Self::BrokerBlocked
        )
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.to_possible_value().as_ref().map_or("?", |value| value.get_name()))
    }
}

impl QueueType {
    pub(super) fn as_str(self) -> &'static str {
        match self {
            Self::Classic => "classic",
            Self::Quorum => "quorum",
        }
    }
}

impl Options {
    pub(super) fn hold(&self) -> Duration {
        Duration::from_millis(self.hold_ms)
    }

    pub(super) fn patience(&self) -> Duration {
        Duration::from_secs(self.patience)
    }

    /// How long messages flow.
    pub(super) fn span(&self) -> Duration {
        match self.fault {
            Scenario::None => Duration::ZERO,
            Scenario::Random => Duration::from_secs(self.seconds),
            _ => self.hold() * 2,
        }
    }
}
