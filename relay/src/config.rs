//! The command line: options, each a flag and an environment variable, their checks, and the text of `--help`.
//!
//! The AMQP password is never shown, not in `--help`, `Debug` or an error.

use std::{
    ffi::OsString,
    io::{self, Write},
    net::SocketAddr,
    path::PathBuf,
    time::Duration,
};

use clap::{
    Arg, ArgMatches, Command, CommandFactory, FromArgMatches, Parser, ValueEnum, builder::BoolishValueParser,
    value_parser,
};
use clap_complete::Shell;
use settings::{socket, stray_whitespace};

mod broker;
mod cancel;

pub(crate) use broker::Binding;
pub use broker::{AmqpUrl, BrokerOptions, QueueType};
use broker::{check_name, invalid, redact};
pub use cancel::{CancelOptions, CancelQueue};

use crate::{
    amqp::Broker,
    attributes::{self, Attributes},
    error::{ConfigError, EXIT_CODES},
    id_source::IdSource,
};

/// Options whose parser trims whitespace itself.
const FREE: [&str; 2] = ["amqp-url", "attributes"];

const NAME: &str = "relay";
const COMPLETIONS: &str = "completions";
const SHELL: &str = "shell";
const MAN: &str = "man";
const FOLDER: &str = "folder";

const EXAMPLES: &str = "Examples:
  relay --check
      look whether broker, queue and SQS are as they must be, configured by the environment
  relay --declare --health-addr 0.0.0.0:9100
      create what is missing in the broker, and move messages until SIGTERM
  relay completions bash > ~/.local/share/bash-completion/completions/relay
      complete this command line from now on
  relay man ~/.local/share/man/man1
      read the manual with man relay
";

const ENVIRONMENT: &str = "Environment:
  Each option shows its variable, if it has one, in brackets; a flag wins over it.
  AWS_REGION, AWS_ENDPOINT_URL and the others of the AWS SDK say where SQS and S3 are, and who we are.
  AWS_CA_BUNDLE and SSL_CERT_FILE say whom TLS trusts, HTTPS_PROXY and NO_PROXY what goes by a proxy.
  RUST_LOG filters log lines, as in RUST_LOG=relay=debug.
";

const SEE_ALSO: &str = "
See also:
  docs/OPERATIONS.md      failures, metrics, what others get wrong
  docs/CONFIGURATION.md   every option of both binaries
  handler --help          what takes the messages from SQS";

/// Moves messages from a RabbitMQ queue to an SQS queue, and acknowledges each one only after SQS has accepted it.
#[derive(Debug, Clone, Parser)]
#[command(name = "relay", version)]
pub struct Config {
    /// Where RabbitMQ is: amqp://user:password@host:port/vhost, or amqps://; several with commas, later ones as host:port
    #[arg(long, help_heading = "Broker", env = "AMQP_URL", hide_env_values = true)]
    pub amqp_url: AmqpUrl,
    /// The queue to consume
    #[arg(long, help_heading = "Broker", env = "AMQP_QUEUE", default_value = "image_generation")]
    pub queue: String,
    /// How many messages the broker may hand out before they are acknowledged
    #[arg(long, help_heading = "Broker", env = "AMQP_PREFETCH", default_value_t = 100, value_parser = value_parser!(u16).range(1..))]
    pub prefetch: u16,
    /// While so many bytes of messages are held, no further one is read; this bounds the memory, up to the largest message
    #[arg(long, help_heading = "Broker", env = "AMQP_PREFETCH_BYTES", default_value_t = 128 << 20, value_parser = value_parser!(u64).range(1..))]
    pub prefetch_bytes: u64,
    /// How to reach the broker, and what to create there.
    #[command(flatten)]
    pub broker: BrokerOptions,
    /// Create the durable queue, and the dead-letter exchange with its queue, where they are missing
    #[arg(long, help_heading = "Broker", env = "RELAY_DECLARE", value_parser = BoolishValueParser::new())]
    pub declare: bool,
    /// The exchange for messages that SQS can never carry [default: QUEUE.dead-letter]
    #[arg(long, help_heading = "Broker", env = "AMQP_DEAD_LETTER_EXCHANGE")]
    pub dead_letter_exchange: Option<String>,
    /// The queue to send to
    #[arg(long, help_heading = "SQS", env = "SQS_QUEUE_URL", value_parser = settings::queue_url)]
    pub sqs_queue_url: String,
    /// How long a message waits for others to share its batch, in milliseconds
    #[arg(long, help_heading = "SQS", env = "RELAY_LINGER_MS", default_value_t = 20, value_parser = value_parser!(u64).range(..=60_000))]
    pub linger_ms: u64,
    /// How many batches may be on their way to SQS at once
    #[arg(long, help_heading = "SQS", env = "RELAY_MAX_IN_FLIGHT", default_value_t = 16, value_parser = value_parser!(u16).range(1..=256))]
    pub max_in_flight: u16,
    /// Where the group id of a message comes from: message-id, routing-key, header:NAME, json:/pointer (RFC 6901) or
    /// fixed:TEXT. A FIFO queue keeps the order inside a group and takes one message of a group at a time; without this
    /// option all messages are one group, which is strict and slow. A message that has no such field gets a group of its
    /// own. A standard queue is sent the group too (fair queues), when this is set
    #[arg(long, help_heading = "SQS", env = "SQS_MESSAGE_GROUP_ID", value_name = "SOURCE", value_parser = IdSource::for_group)]
    pub message_group_id: Option<IdSource>,
    /// Where the deduplication id comes from, FIFO queues only: as for the group, or sha256 of the body. A message that
    /// has no such field gets the hash. SQS drops a second message with the same id for five minutes [default: message-id]
    #[arg(long, help_heading = "SQS", env = "SQS_MESSAGE_DEDUPLICATION_ID", value_name = "SOURCE")]
    pub message_deduplication_id: Option<IdSource>,
    /// What becomes an SQS message attribute, ten at most, separated by commas: message-id, correlation-id, timestamp,
    /// traceparent, tracestate, routing-key, exchange, type, app-id, content-type, priority, header:NAME. When a message
    /// is too large with them, the last ones are left out
    #[arg(long, help_heading = "SQS", env = "RELAY_ATTRIBUTES", value_name = "LIST", default_value = attributes::DEFAULT)]
    pub attributes: Attributes,
    /// The S3 bucket for bodies over 1 MiB, or over the queue's MaximumMessageSize if that is less, of which SQS gets a
    /// pointer; without it such a message is dead-lettered
    #[arg(long, help_heading = "SQS", env = "RELAY_PAYLOAD_BUCKET", value_name = "BUCKET", value_parser = settings::bucket)]
    pub payload_bucket: Option<String>,
    /// How tasks are cancelled past those that wait.
    #[command(flatten)]
    pub cancel: CancelQueue,
    /// Where /healthz, /readyz and /metrics answer
    #[arg(long, env = "RELAY_HEALTH_ADDR", default_value = "127.0.0.1:9100", value_parser = socket)]
    pub health_addr: SocketAddr,
    /// How long the relay may take to end after SIGTERM, in seconds
    #[arg(long, env = "RELAY_SHUTDOWN_TIMEOUT", default_value_t = 25, value_parser = value_parser!(u64).range(1..=3_600))]
    pub shutdown_timeout: u64,
    /// Only look whether broker, queue and SQS are as they must be, say so, and take no message
    #[arg(long)]
    pub check: bool,
    /// How log lines look
    #[arg(long, env = "RELAY_LOG_FORMAT", value_enum, default_value_t = LogFormat::Json)]
    pub log_format: LogFormat,
}

/// How log lines look.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum LogFormat {
    /// For people.
    Text,
    /// One JSON object a line.
    Json,
}

impl Config {
    /// Reads the options. `None` if help, the version, completions or manual pages were asked for; they are printed or
    /// written.
    ///
    /// ```
    /// use relay::config::Config;
    ///
    /// let options = ["relay", "--amqp-url", "amqp://localhost", "--sqs-queue-url", "https://sqs.example/1/tasks.fifo"];
    /// let config = Config::load(options).unwrap().unwrap();
    /// assert!(config.is_fifo());
    /// assert_eq!(config.dead_letter_exchange(), "image_generation.dead-letter");
    /// assert!(Config::load(["relay", "--nonsense"]).is_err());
    /// ```
    pub fn load<I>(args: I) -> Result<Option<Self>, ConfigError>
    where
        I: IntoIterator,
        I::Item: Into<OsString> + Clone,
    {
        let mut command = command();
        let parsed = command.try_get_matches_from_mut(args);
        let usage_error = |err: clap::Error| {
            let hint = settings::variables(&command, &err).map(|line| format!("\n{line}")).unwrap_or_default();
            ConfigError::Usage(format!("{}{hint}", redact(err.to_string().trim_end())))
        };
        let matches = match parsed {
            Ok(matches) => matches,
            Err(err) if !err.use_stderr() => {
                // Printing help to a closed pipe is no reason to fail.
                let _ = err.print();
                return Ok(None);
            }
            Err(err) => return Err(usage_error(err)),
        };
        if let Some(script) = completions(&matches) {
            // As with help, a closed pipe is no error.
            let _ = io::stdout().lock().write_all(&script);
            return Ok(None);
        }
        if let Some(folder) = manual_folder(&matches) {
            let problem = |err| {
                ConfigError::Usage(format!("error: {}: the manual pages cannot be written: {err}", folder.display()))
            };
            settings::write_manual(self::command(), folder).map_err(problem)?;
            return Ok(None);
        }
        if let Some(problem) = stray_whitespace(&command, &matches, &FREE) {
            return Err(ConfigError::Usage(format!("error: {problem}")));
        }
        let config = Self::from_arg_matches(&matches).map_err(usage_error)?;
        config.validate()?;
        Ok(Some(config))
    }

    /// Checks values that depend on each other or must not be repeated in an error. Returns the broker.
    pub fn validate(&self) -> Result<Broker, ConfigError> {
        let broker = self.broker.broker(self.amqp_url.parse()?)?;
        let leads_back = |binding: &Binding| binding.exchange == self.dead_letter_exchange();
        if self.bindings()?.iter().any(leads_back) {
            let problem = "names the dead-letter exchange: dead letters would come back to the queue; name another one";
            return Err(invalid("--bind", problem));
        }
        check_name("--queue", &self.queue)?;
        check_name("--dead-letter-exchange", &self.dead_letter_exchange())?;
        if self.message_deduplication_id.is_some() && !self.is_fifo() {
            let problem = "only a FIFO queue takes one, and the URL of such a queue ends with .fifo";
            return Err(invalid("--message-deduplication-id", problem));
        }
        self.cancel.options(self)?;
        Ok(broker)
    }

    /// Whether the SQS queue is FIFO. Its name says so.
    pub fn is_fifo(&self) -> bool {
        self.sqs_queue_url.ends_with(".fifo")
    }

    /// The dead-letter exchange.
    pub fn dead_letter_exchange(&self) -> String {
        self.dead_letter_exchange.clone().unwrap_or_else(|| format!("{}.dead-letter", self.queue))
    }

    /// The bindings to create.
    pub(crate) fn bindings(&self) -> Result<Vec<Binding>, ConfigError> {
        self.broker.bindings(self.declare)
    }

    /// The linger time.
    pub fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }

    /// How long a graceful shutdown may take.
    pub fn shutdown_timeout(&self) -> Duration {
        Duration::from_secs(self.shutdown_timeout)
    }
}

/// The command line with the text after its options and the subcommands for completions and manual pages.
fn command() -> Command {
    let shell = Arg::new(SHELL).value_name("SHELL").help("The shell").required(true).value_parser(value_parser!(Shell));
    let completions =
        Command::new(COMPLETIONS).about("Print a script that completes this command line in a shell").arg(shell);
    let folder = Arg::new(FOLDER)
        .value_name("FOLDER")
        .help("Where to; the folder is made")
        .required(true)
        .value_parser(value_parser!(PathBuf));
    let man = Command::new(MAN).about("Write manual pages, one for each command").arg(folder);
    Config::command().after_long_help(manual()).subcommands([completions, man]).subcommand_negates_reqs(true)
}

/// The completion script, if its subcommand was given.
fn completions(matches: &ArgMatches) -> Option<Vec<u8>> {
    let asked = matches.subcommand_matches(COMPLETIONS)?;
    let mut script = Vec::new();
    clap_complete::generate(*asked.get_one::<Shell>(SHELL)?, &mut command(), NAME, &mut script);
    Some(script)
}

/// The folder for manual pages, if their subcommand was given.
fn manual_folder(matches: &ArgMatches) -> Option<&PathBuf> {
    matches.subcommand_matches(MAN)?.get_one(FOLDER)
}

fn manual() -> String {
    let codes: String = EXIT_CODES.iter().map(|(code, meaning)| format!("  {code:<4}{meaning}\n")).collect();
    let codes = format!("Exit codes:\n{codes}");
    [EXAMPLES, &codes, ENVIRONMENT, telemetry::HELP, SEE_ALSO].join("\n")
}

#[cfg(test)]
mod tests;
