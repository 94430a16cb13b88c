//! `relay --check`: checks everything that the relay needs and prints a line for each on standard output.
//!
//! It takes no message and changes nothing.

use std::time::Duration;

use aws_errors::Class;
use tokio::time::timeout;

use crate::{
    amqp::{self, Broker, BrokerError, Channels},
    bucket::BucketError,
    cancels::MarkerSink,
    config::Config,
    entry::MAX_BYTES,
    error::{ConfigError, Error},
    health,
    sink::{Probe, Sink, SqsSink},
    topology::{find_exchange, find_queue, is_stream},
    wire::ConnectionNotes,
};

const CONNECTION: &str = "relay: check";

/// For each request to a connected broker, and to SQS or S3.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// For a relay on this machine.
const LOCAL_TIMEOUT: Duration = Duration::from_secs(2);

/// The result of one check.
struct CheckResult {
    subject: String,
    /// What is wrong, and what to do about it.
    problem: Option<String>,
}

/// Checks and prints. The error only says how many checks failed.
pub async fn run(config: &Config) -> Result<(), Error> {
    let broker = config.validate()?;
    let mut results = check_broker(config, &broker).await;
    let shared = settings::sdk_config().await.map_err(ConfigError::from)?;
    let sink = SqsSink::new(config, &shared);
    results.extend(check_sqs(config, &sink).await);
    if let Some(payloads) = sink.payloads() {
        results.push(check_bucket("payload-bucket", &config.payload_bucket, payloads.probe()).await);
    }
    if let Some(options) = config.cancels()? {
        let sink = MarkerSink::new(&options, &shared);
        results.push(check_bucket("cancel-bucket", &Some(options.bucket), sink.look()).await);
    }
    for CheckResult { subject, problem } in &results {
        match problem {
            None => println!("ok   {subject}"),
            Some(problem) => println!("FAIL {subject}: {problem}"),
        }
    }
    match results.iter().filter(|result| result.problem.is_some()).count() {
        0 => Ok(()),
        failed => Err(Error::ChecksFailed(failed)),
    }
}

async fn check_broker(config: &Config, broker: &Broker) -> Vec<CheckResult> {
    let mut results = Vec::new();
    let mut open = None;
    for host in 0..broker.len() {
        let answer = broker.connect_to(host, CONNECTION).await;
        let problem = answer.as_ref().err().map(with_advice);
        results.push(CheckResult { subject: format!("amqp.connect {}", broker.address(host)), problem });
        match (answer, &open) {
            (Ok(connection), None) => open = Some(connection),
            (Ok(connection), Some(_)) => amqp::close(connection).await,
            (Err(_), _) => {}
        }
    }
    let Some(connection) = open else { return results };
    let mut channels = Channels::on(connection, broker, CONNECTION, &ConnectionNotes::default());
    results.extend(check_queue(config, &mut channels).await);
    if let Ok(Some(cancels)) = config.cancels() {
        results.extend(check_queue(&cancels.relay, &mut channels).await);
    }
    amqp::close(channels.into_connection()).await;
    results.extend(check_returned_dead_letters(config, &config.dead_letter_exchange()).await);
    results
}

/// Checks a queue, its dead-letter exchange and its bindings.
async fn check_queue(config: &Config, channels: &mut Channels<'_>) -> Vec<CheckResult> {
    let mut results = Vec::new();
    let exchange = config.dead_letter_exchange();
    let queue_there = answer(find_queue(channels, &config.queue)).await;
    let problem = match queue_there {
        Ok(true) => match answer(is_stream(channels, &config.queue)).await {
            Ok(stream) => stream.then(|| BrokerError::Stream(config.queue.clone()).to_string()),
            Err(err) => Some(with_advice(&err)),
        },
        other => problem_if_missing(other, config, "create it, or start the relay with --declare"),
    };
    results.push(CheckResult { subject: format!("amqp.queue {}", config.queue), problem });
    let exchange_there = answer(find_exchange(channels, &exchange)).await;
    let problem =
        problem_if_missing(exchange_there, config, "create it with a queue, or start the relay with --declare");
    results.push(CheckResult { subject: format!("amqp.dead-letter-exchange {exchange}"), problem });
    for binding in config.bindings().unwrap_or_default() {
        let there = answer(find_exchange(channels, &binding.exchange)).await;
        let problem = match there {
            Ok(true) => None,
            Ok(false) => Some("does not exist; create it, or leave the binding out".to_owned()),
            Err(err) => Some(with_advice(&err)),
        };
        results.push(CheckResult { subject: format!("amqp.bind {}", binding.exchange), problem });
    }
    results
}

/// Asks a relay that runs here with the same options for returned dead letters: AMQP cannot be asked where an exchange
/// leads.
async fn check_returned_dead_letters(config: &Config, exchange: &str) -> Option<CheckResult> {
    let addr = config.health_addr;
    let held = timeout(LOCAL_TIMEOUT, health::held_at(addr)).await.ok()??;
    let problem = format!(
        "{held} came back to queue {} and are held; exchange {exchange} leads back to it, correct its bindings",
        config.queue
    );
    Some(CheckResult {
        subject: format!("amqp.dead-letters of the relay at {addr}"),
        problem: (held > 0).then_some(problem),
    })
}

async fn answer(question: impl Future<Output = Result<bool, BrokerError>>) -> Result<bool, BrokerError> {
    timeout(ANSWER_TIMEOUT, question).await.unwrap_or(Err(BrokerError::Timeout(ANSWER_TIMEOUT)))
}

/// With `--declare` the relay creates what is missing.
fn problem_if_missing(found: Result<bool, BrokerError>, config: &Config, advice: &str) -> Option<String> {
    match found {
        Ok(there) => (!there && !config.declare).then(|| format!("does not exist; {advice}")),
        Err(err) => Some(with_advice(&err)),
    }
}

fn with_advice(err: &BrokerError) -> String {
    match err {
        // These already say what to do.
        BrokerError::Refused(_) | BrokerError::FrameMax(_) => err.to_string(),
        _ => format!("{err}; check that the broker runs there, and the network, port and TLS to it"),
    }
}

async fn check_sqs(config: &Config, sink: &SqsSink) -> Vec<CheckResult> {
    let subject = format!("sqs.queue {}", config.sqs_queue_url);
    let limit = match timeout(ANSWER_TIMEOUT, sink.probe()).await {
        Ok(Probe::Ready(limit)) => Ok(limit),
        Ok(Probe::Stop(stop)) => Err(format!("{stop}; check --sqs-queue-url, the region and the credentials")),
        Ok(Probe::Unreachable(cause)) => Err(format!(
            "no answer: {cause}; check the network, the region (AWS_REGION), the credentials, and the endpoint if \
             AWS_ENDPOINT_URL_SQS is set"
        )),
        Err(_) => Err(format!("no answer within {ANSWER_TIMEOUT:?}; check the network and the endpoint")),
    };
    match limit {
        Err(problem) => vec![CheckResult { subject, problem: Some(problem) }],
        Ok(limit) => vec![
            CheckResult { subject, problem: None },
            CheckResult { subject: size_limit(config, limit), problem: None },
        ],
    }
}

/// What happens to messages over the queue's limit. None of it is a problem.
fn size_limit(config: &Config, limit: Option<usize>) -> String {
    let larger = match &config.payload_bucket {
        Some(_) => "larger ones go to --payload-bucket",
        None => "larger ones are dead-lettered, as there is no --payload-bucket",
    };
    let limit = match limit {
        Some(limit) => format!("{limit} bytes"),
        None => format!("taken as {MAX_BYTES} bytes, as sqs:GetQueueAttributes is not allowed"),
    };
    format!("sqs.maximum-message-size: {limit}; {larger}")
}

/// Checks a bucket that an option names.
async fn check_bucket(
    option: &str,
    bucket: &Option<String>,
    probe: impl Future<Output = Result<(), BucketError>>,
) -> CheckResult {
    let problem = match timeout(ANSWER_TIMEOUT, probe).await {
        Ok(Ok(())) => None,
        Ok(Err(err)) => Some(match err.class {
            Class::NoContainer | Class::NoObject => format!("does not exist; create it, or correct --{option}"),
            Class::Transient => format!("no answer: {}; check the network and the credentials", err.text),
            _ => err.text,
        }),
        Err(_) => Some(format!("no answer within {ANSWER_TIMEOUT:?}; check the network and the endpoint")),
    };
    CheckResult { subject: format!("s3.{option} {}", bucket.as_deref().unwrap_or_default()), problem }
}
