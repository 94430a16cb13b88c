//! Options, each a flag and an environment variable, and their checks.
//!
//! Refuses to show the AMQP password: not in `--help`, not in `Debug`, not in an error.

use std::{ffi::OsString, net::SocketAddr, time::Duration};

use clap::{Parser, ValueEnum, builder::BoolishValueParser, value_parser};
use url::Url;

mod broker;
mod hosts;

pub(crate) use broker::Binding;
pub use broker::{BrokerOptions, QueueType};
pub use hosts::AmqpUrl;
use hosts::redact;

use crate::amqp::Broker;

use crate::{
    attributes::{self, Attributes},
    field::Field,
};

/// AMQP carries names as short strings.
const MAX_NAME_BYTES: usize = 255;

/// Moves messages from a RabbitMQ queue to an SQS queue, and acknowledges each one only after SQS has accepted it.
#[derive(Debug, Clone, Parser)]
#[command(name = "relay", version)]
pub struct Config {
    /// Where RabbitMQ is: amqp://user:password@host:port/vhost, or amqps://; several with commas, later ones as host:port
    #[arg(long, env = "AMQP_URL", hide_env_values = true)]
    pub amqp_url: AmqpUrl,
    /// The queue to consume
    #[arg(long, env = "AMQP_QUEUE", default_value = "image_generation")]
    pub queue: String,
    /// How many unacknowledged messages the broker may have out here; bounds the memory
    #[arg(long, env = "AMQP_PREFETCH", default_value_t = 100, value_parser = value_parser!(u16).range(1..))]
    pub prefetch: u16,
    /// How to reach the broker, and what to create there.
    #[command(flatten)]
    pub broker: BrokerOptions,
    /// Create the durable queue, and the dead-letter exchange with its queue, where they are missing
    #[arg(long, env = "RELAY_DECLARE", value_parser = BoolishValueParser::new())]
    pub declare: bool,
    /// The exchange for messages that SQS can never carry [default: <queue>.dead-letter]
    #[arg(long, env = "AMQP_DEAD_LETTER_EXCHANGE")]
    pub dead_letter_exchange: Option<String>,
    /// The queue to send to
    #[arg(long, env = "SQS_QUEUE_URL")]
    pub sqs_queue_url: String,
    /// How long a message waits for others to share its batch, in milliseconds
    #[arg(long, env = "RELAY_LINGER_MS", default_value_t = 20, value_parser = value_parser!(u64).range(..=60_000))]
    pub linger_ms: u64,
    /// How many batches may be on their way to SQS at once
    #[arg(long, env = "RELAY_MAX_IN_FLIGHT", default_value_t = 16, value_parser = value_parser!(u16).range(1..=256))]
    pub max_in_flight: u16,
    /// Where the group id of a message comes from: message-id, routing-key, header:NAME, json:/pointer (RFC 6901) or
    /// fixed:TEXT. A FIFO queue keeps the order inside a group and takes one message of a group at a time; without this
    /// option all messages are one group, which is strict and slow. A message that has no such field gets a group of its
    /// own. A standard queue is sent the group too (fair queues), when this is set
    #[arg(long, env = "SQS_MESSAGE_GROUP_ID", value_name = "SOURCE", value_parser = Field::for_group)]
    pub message_group_id: Option<Field>,
    /// Where the deduplication id comes from, FIFO queues only: as for the group, or sha256 of the body. A message that
    /// has no such field gets the hash. SQS drops a second message with the same id for five minutes [default: message-id]
    #[arg(long, env = "SQS_MESSAGE_DEDUPLICATION_ID", value_name = "SOURCE")]
    pub message_deduplication_id: Option<Field>,
    /// What becomes an SQS message attribute, ten at most, separated by commas: message-id, correlation-id, timestamp,
    /// traceparent, tracestate, routing-key, exchange, type, app-id, content-type, priority, header:NAME. When a message
    /// is too large with them, the last ones are left out
    #[arg(long, env = "RELAY_ATTRIBUTES", value_name = "LIST", default_value = attributes::DEFAULT)]
    pub attributes: Attributes,
    /// The S3 bucket for bodies over 1 MiB, of which SQS gets a pointer; without it such a message is dead-lettered
    #[arg(long, env = "RELAY_PAYLOAD_BUCKET", value_name = "BUCKET")]
    pub payload_bucket: Option<String>,
    /// Where /healthz, /readyz and /metrics answer
    #[arg(long, env = "RELAY_HEALTH_ADDR", default_value = "127.0.0.1:9100")]
    pub health_addr: SocketAddr,
    /// How long an ordered end may take after SIGTERM, in seconds
    #[arg(long, env = "RELAY_SHUTDOWN_TIMEOUT", default_value_t = 25, value_parser = value_parser!(u64).range(1..=3_600))]
    pub shutdown_timeout: u64,
    /// Only look whether everything is as it must be, say so, and take no message
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

/// An option that a person must correct.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The command line or the environment cannot be read as options.
    #[error("{0}")]
    Usage(String),
    /// One option has a value that cannot work.
    #[error("error: {option}: {problem}")]
    Invalid {
        /// The option's name as on the command line.
        option: &'static str,
        /// What is wrong with it.
        problem: String,
    },
}

impl Config {
    /// Reads the options; `None` when the person asked for help or the version and has it.
    pub fn load<I>(args: I) -> Result<Option<Self>, ConfigError>
    where
        I: IntoIterator,
        I::Item: Into<OsString> + Clone,
    {
        let config = match Self::try_parse_from(args) {
            Ok(config) => config,
            Err(err) if !err.use_stderr() => {
                // Printing help to a closed pipe is no reason to fail.
                let _ = err.print();
                return Ok(None);
            }
            Err(err) => return Err(ConfigError::Usage(redact(err.to_string().trim_end()))),
        };
        config.validate()?;
        Ok(Some(config))
    }

    /// Checks what depends on more than one value or must not be repeated, and gives the way to the broker.
    pub fn validate(&self) -> Result<Broker, ConfigError> {
        let broker = self.broker.broker(self.amqp_url.parse()?)?;
        self.bindings()?;
        check_name("--queue", &self.queue)?;
        check_name("--dead-letter-exchange", &self.dead_letter_exchange())?;
        let sqs = Url::parse(&self.sqs_queue_url).map_err(|err| invalid("--sqs-queue-url", err.to_string()))?;
        if !matches!(sqs.scheme(), "http" | "https") || sqs.host().is_none() {
            return Err(invalid("--sqs-queue-url", "must be an http or https URL"));
        }
        if self.payload_bucket.as_deref() == Some("") {
            return Err(invalid("--payload-bucket", "must not be empty"));
        }
        if self.message_deduplication_id.is_some() && !self.is_fifo() {
            let problem = "only a FIFO queue takes one, and the URL of such a queue ends with .fifo";
            return Err(invalid("--message-deduplication-id", problem));
        }
        Ok(broker)
    }

    /// Whether the queue keeps an order. Its name says so.
    pub fn is_fifo(&self) -> bool {
        self.sqs_queue_url.ends_with(".fifo")
    }

    /// The exchange for poison.
    pub fn dead_letter_exchange(&self) -> String {
        self.dead_letter_exchange.clone().unwrap_or_else(|| format!("{}.dead-letter", self.queue))
    }

    /// What to bind the queue to.
    pub(crate) fn bindings(&self) -> Result<Vec<Binding>, ConfigError> {
        self.broker.bindings(self.declare)
    }

    /// The linger time.
    pub fn linger(&self) -> Duration {
        Duration::from_millis(self.linger_ms)
    }

    /// The time for an ordered end.
    pub fn shutdown_timeout(&self) -> Duration {
        Duration::from_secs(self.shutdown_timeout)
    }
}

fn check_name(option: &'static str, name: &str) -> Result<(), ConfigError> {
    match name.len() {
        0 => Err(invalid(option, "must not be empty")),
        1..=MAX_NAME_BYTES => Ok(()),
        bytes => Err(invalid(option, format!("has {bytes} bytes, AMQP takes {MAX_NAME_BYTES}"))),
    }
}

fn invalid(option: &'static str, problem: impl Into<String>) -> ConfigError {
    ConfigError::Invalid { option, problem: problem.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    const REQUIRED: [&str; 3] = ["relay", "--amqp-url=amqp://u:secret@h", "--sqs-queue-url=http://h/q"];

    fn load(extra: &[&str]) -> Result<Option<Config>, ConfigError> {
        Config::load(REQUIRED.iter().chain(extra))
    }

    #[test]
    fn defaults_are_those_of_the_manual() {
        let config = load(&[]).unwrap().unwrap();
        assert_eq!(config.queue, "image_generation");
        assert_eq!(config.dead_letter_exchange(), "image_generation.dead-letter");
        assert_eq!((config.prefetch, config.linger_ms, config.shutdown_timeout), (100, 20, 25));
        assert_eq!((config.max_in_flight, config.is_fifo()), (16, false));
        assert_eq!((&config.message_group_id, &config.message_deduplication_id), (&None, &None));
        assert_eq!(config.attributes, attributes::DEFAULT.parse().unwrap());
        assert_eq!(config.health_addr.to_string(), "127.0.0.1:9100");
        assert_eq!(config.log_format, LogFormat::Json);
        assert!(!config.declare);
    }

    #[test]
    fn a_bad_option_is_named_and_exits_64() {
        let long = "q".repeat(250);
        for (option, value) in [
            ("--prefetch", "0"),
            ("--prefetch", "65536"),
            ("--prefetch", "-1"),
            ("--queue", ""),
            ("--dead-letter-exchange", ""),
            ("--sqs-queue-url", "queue"),
            ("--sqs-queue-url", "ftp://h/q"),
            ("--linger-ms", "60001"),
            ("--payload-bucket", ""),
            ("--health-addr", "9100"),
            ("--max-in-flight", "0"),
            ("--max-in-flight", "257"),
            ("--message-group-id", "style_id"),
            ("--message-group-id", "sha256"),
            ("--message-group-id", ""),
            ("--message-deduplication-id", "json:id"),
            ("--message-deduplication-id", "message-id"),
            ("--attributes", "body"),
            ("--attributes", "type,type"),
            (
                "--attributes",
                "header:1,header:2,header:3,header:4,header:5,header:6,header:7,header:8,header:9,type,app-id",
            ),
            ("--shutdown-timeout", "0"),
            ("--log-format", "xml"),
            ("--amqp-url", "http://u:secret@h"),
            ("--amqp-url", "amqp://u:secret@h:port"),
            ("--amqp-url", "amqp://u:secret@h?heartbeat=x"),
            ("--amqp-url", ""),
            ("--amqp-url", "amqp://u:secret@h,amqp://u:secret@h:port"),
            ("--amqp-ca", "/nowhere/ca.pem"),
            ("--amqp-ca", "Cargo.toml"),
            ("--amqp-client-key", "Cargo.toml"),
            ("--amqp-client-cert", "Cargo.toml"),
            ("--connect-timeout", "0"),
            ("--heartbeat", "0"),
            ("--heartbeat", "65536"),
            ("--queue-type", "stream"),
            ("--bind", "tasks:key"),
            ("--bind", "tasks"),
            ("--nonsense", "amqp://u:secret word@h"),
        ] {
            let mut args: Vec<String> = REQUIRED.iter().map(ToString::to_string).collect();
            args.retain(|arg| !arg.starts_with(option));
            args.push(format!("{option}={value}"));
            let err = Config::load(args).expect_err(value);
            let text = err.to_string();
            assert!(text.contains(option), "{option}={value}: {text}");
            assert!(!text.contains("secret"), "{text}");
            assert_eq!(crate::error::Error::from(err).exit_code(), 64);
        }
        let text = load(&[&format!("--queue={long}")]).unwrap_err().to_string();
        assert!(text.contains("--dead-letter-exchange: has 262 bytes"), "{text}");
    }

    #[test]
    fn every_option_has_a_flag_and_a_variable() {
        let command = Config::command();
        let options: Vec<_> = command.get_arguments().filter(|option| option.get_env().is_some()).collect();
        assert_eq!(options.len(), 22);
        assert!(options.iter().all(|option| option.get_long().is_some()));
        let required = options.iter().filter(|option| option.is_required_set());
        assert_eq!(required.filter_map(|option| option.get_long()).collect::<Vec<_>>(), ["amqp-url", "sqs-queue-url"]);
    }

    #[test]
    fn bindings_need_declare_an_exchange_and_a_key() {
        let bind = |value: &str| load(&["--declare", &format!("--bind={value}")]);
        let got = bind("tasks:a.#,other:x:y,fan:").unwrap().unwrap().bindings().unwrap();
        let got: Vec<_> = got.iter().map(|it| (it.exchange.as_str(), it.routing_key.as_str())).collect();
        assert_eq!(got, [("tasks", "a.#"), ("other", "x:y"), ("fan", "")]);
        for bad in ["tasks", ":key", ""] {
            assert!(bind(bad).unwrap_err().to_string().contains("--bind"), "{bad}");
        }
        assert!(load(&["--bind=a:b"]).unwrap_err().to_string().contains("--bind: needs --declare"));
    }

    #[test]
    fn a_client_certificate_needs_its_key() {
        let text = load(&["--amqp-client-cert=Cargo.toml"]).unwrap_err().to_string();
        assert!(text.contains("--amqp-client-key: is missing"), "{text}");
        let text = load(&["--amqp-client-key=Cargo.toml"]).unwrap_err().to_string();
        assert!(text.contains("--amqp-client-cert: is missing"), "{text}");
    }

    #[test]
    fn the_password_is_never_shown() {
        let config = load(&[]).unwrap().unwrap();
        let shown = format!("{config:?}");
        assert!(shown.contains("amqp://***@h") && !shown.contains("secret"), "{shown}");
    }
}
