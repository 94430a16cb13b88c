//! `relay --check`: looks at everything that the relay needs and prints one line for each thing on standard output.
//!
//! Refuses to change anything: it takes no message and creates nothing.

use std::time::Duration;

use aws_errors::Class;
use tokio::time::timeout;

use crate::{
    amqp::{self, Broker, BrokerError, Channels},
    config::Config,
    entry::MAX_BYTES,
    error::Error,
    health,
    sink::{Probe, Sink, SqsSink},
    topology::{find_exchange, find_queue, is_stream},
    wire::Notes,
};

const CONNECTION: &str = "relay: check";

/// For each question to a broker that is connected, and for the one to SQS.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// For a relay on this machine.
const HERE_TIMEOUT: Duration = Duration::from_secs(2);

/// What was found about one thing.
struct Finding {
    what: String,
    /// The problem and what to do about it.
    wrong: Option<String>,
}

/// Checks and prints. An error says that something is wrong; what, is printed.
pub async fn run(config: &Config) -> Result<(), Error> {
    let broker = config.validate()?;
    let mut findings = check_broker(config, &broker).await;
    let sink = SqsSink::connect(config).await?;
    findings.extend(check_sqs(config, &sink).await);
    findings.extend(check_payloads(config, &sink).await);
    for Finding { what, wrong } in &findings {
        match wrong {
            None => println!("ok   {what}"),
            Some(wrong) => println!("FAIL {what}: {wrong}"),
        }
    }
    match findings.iter().filter(|finding| finding.wrong.is_some()).count() {
        0 => Ok(()),
        wrong => Err(Error::Check(wrong)),
    }
}

async fn check_broker(config: &Config, broker: &Broker) -> Vec<Finding> {
    let mut findings = Vec::new();
    let mut open = None;
    for host in 0..broker.len() {
        let answer = broker.connect_to(host, CONNECTION).await;
        let wrong = answer.as_ref().err().map(advise);
        findings.push(Finding { what: format!("amqp.connect {}", broker.address(host)), wrong });
        match (answer, &open) {
            (Ok(connection), None) => open = Some(connection),
            (Ok(connection), Some(_)) => amqp::close(connection).await,
            (Err(_), _) => {}
        }
    }
    let Some(connection) = open else { return findings };
    let mut channels = Channels::on(connection, broker, CONNECTION, &Notes::default());
    let exchange = config.dead_letter_exchange();
    let queue_there = answer(find_queue(&mut channels, &config.queue)).await;
    let wrong = match queue_there {
        Ok(true) => match answer(is_stream(&mut channels, &config.queue)).await {
            Ok(stream) => stream.then(|| BrokerError::Stream(config.queue.clone()).to_string()),
            Err(err) => Some(advise(&err)),
        },
        other => existence(other, config, "create it, or start the relay with --declare"),
    };
    findings.push(Finding { what: format!("amqp.queue {}", config.queue), wrong });
    let exchange_there = answer(find_exchange(&mut channels, &exchange)).await;
    let wrong = existence(exchange_there, config, "create it with a queue, or start the relay with --declare");
    findings.push(Finding { what: format!("amqp.dead-letter-exchange {exchange}"), wrong });
    for binding in config.bindings().unwrap_or_default() {
        let there = answer(find_exchange(&mut channels, &binding.exchange)).await;
        let wrong = match there {
            Ok(true) => None,
            Ok(false) => Some("does not exist; create it, or leave the binding out".to_owned()),
            Err(err) => Some(advise(&err)),
        };
        findings.push(Finding { what: format!("amqp.bind {}", binding.exchange), wrong });
    }
    amqp::close(channels.into_connection()).await;
    findings.extend(check_returned(config, &exchange).await);
    findings
}

/// What a relay says that runs here with the same options: AMQP has no question for where an exchange leads to.
async fn check_returned(config: &Config, exchange: &str) -> Option<Finding> {
    let addr = config.health_addr;
    let held = timeout(HERE_TIMEOUT, health::held_at(addr)).await.ok()??;
    let wrong = format!(
        "{held} came back to queue {} and are held; exchange {exchange} leads back to it, correct its bindings",
        config.queue
    );
    Some(Finding { what: format!("amqp.dead-letters of the relay at {addr}"), wrong: (held > 0).then_some(wrong) })
}

async fn answer(question: impl Future<Output = Result<bool, BrokerError>>) -> Result<bool, BrokerError> {
    timeout(ANSWER_TIMEOUT, question).await.unwrap_or(Err(BrokerError::Timeout(ANSWER_TIMEOUT)))
}

/// With `--declare` what is missing will be created.
fn existence(found: Result<bool, BrokerError>, config: &Config, advice: &str) -> Option<String> {
    match found {
        Ok(there) => (!there && !config.declare).then(|| format!("does not exist; {advice}")),
        Err(err) => Some(advise(&err)),
    }
}

fn advise(err: &BrokerError) -> String {
    match err {
        // These say it themselves.
        BrokerError::Refused(_) | BrokerError::FrameMax(_) => err.to_string(),
        _ => format!("{err}; check that the broker runs there, and the network, port and TLS to it"),
    }
}

async fn check_sqs(config: &Config, sink: &SqsSink) -> Vec<Finding> {
    let what = format!("sqs.queue {}", config.sqs_queue_url);
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
        Err(wrong) => vec![Finding { what, wrong: Some(wrong) }],
        Ok(limit) => vec![Finding { what, wrong: None }, Finding { what: size_limit(config, limit), wrong: None }],
    }
}

/// What becomes of messages that the queue does not take. None of it is wrong.
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

async fn check_payloads(config: &Config, sink: &SqsSink) -> Option<Finding> {
    let (bucket, payloads) = (config.payload_bucket.as_ref()?, sink.payloads()?);
    let wrong = match timeout(ANSWER_TIMEOUT, payloads.probe()).await {
        Ok(Ok(())) => None,
        Ok(Err(err)) => Some(match err.class {
            Class::NoContainer | Class::NoObject => "does not exist; create it, or correct --payload-bucket".to_owned(),
            Class::Transient => format!("no answer: {}; check the network and the credentials", err.text),
            _ => err.text,
        }),
        Err(_) => Some(format!("no answer within {ANSWER_TIMEOUT:?}; check the network and the endpoint")),
    };
    Some(Finding { what: format!("s3.payload-bucket {bucket}"), wrong })
}
