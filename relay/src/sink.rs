//! Sends batches to SQS and says for each entry what became of it.
//!
//! Refuses to retry: it reports, and the flow decides when to try again. It also refuses to let one bad entry fail its
//! neighbours: a request refused for its content is repeated entry by entry.

mod verdict;

use std::{future::Future, time::Duration};

use aws_config::{BehaviorVersion, retry::RetryConfig, timeout::TimeoutConfig};
use aws_sdk_sqs::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::send_message_batch::SendMessageBatchOutput,
    primitives::Blob,
    types::{MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry},
};
use futures_util::future::join_all;
use tracing::{debug, warn};

pub use crate::sink::verdict::Verdict;
use crate::{
    attributes::Value,
    config::Config,
    entry::Entry,
    error::Stop,
    payload::PayloadStore,
    sink::verdict::{Fault, classify, verdicts},
};

/// The SDK sets only the first of these by itself; without the others a lost connection is waited for without end.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
const OPERATION_TIMEOUT: Duration = Duration::from_secs(20);

/// Where batches go.
pub trait Sink: Send + Sync + 'static {
    /// Asks whether sending can work at all.
    fn probe(&self) -> impl Future<Output = Probe> + Send;

    /// Sends one batch, within the limits of [`crate::batch`]. Gives one verdict per entry, in the order of the entries.
    fn send(&self, entries: &[&Entry]) -> impl Future<Output = Vec<Verdict>> + Send;
}

/// What a probe found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// The queue answers.
    Ready,
    /// It does not answer now.
    Unreachable(String),
    /// It will never accept anything.
    Stop(Stop),
}

/// An SQS queue.
#[derive(Debug, Clone)]
pub struct SqsSink {
    client: Client,
    queue_url: String,
    payloads: Option<PayloadStore>,
}

impl SqsSink {
    /// A client with the standard credentials chain. Sends nothing yet.
    pub async fn connect(config: &Config) -> Self {
        let shared = aws_config::load_defaults(BehaviorVersion::latest()).await;
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        // The flow retries without end and by entry; retries below it would only hide failures from it.
        let client = aws_sdk_sqs::config::Builder::from(&shared)
            .timeout_config(timeouts)
            .retry_config(RetryConfig::disabled())
            .build();
        let payloads = config.payload_bucket.as_ref().map(|bucket| PayloadStore::new(bucket, &shared));
        Self { client: Client::from_conf(client), queue_url: config.sqs_queue_url.clone(), payloads }
    }

    /// The bucket for payloads, if one is configured.
    pub(crate) fn payloads(&self) -> Option<&PayloadStore> {
        self.payloads.as_ref()
    }

    /// Puts an entry's payload into S3, if it has one; a verdict if that cannot be done now.
    async fn store(&self, entry: &Entry) -> Option<Verdict> {
        let (Some(payload), Some(payloads)) = (entry.payload(), &self.payloads) else { return None };
        let err = payloads.put(payload).await.err()?;
        let refusal = Stop { code: err.code, message: format!("--payload-bucket: {}", err.message) };
        Some(if err.for_good { Fault::Stop } else { Fault::Transient }.verdict(refusal))
    }

    async fn deliver(&self, entries: &[&Entry]) -> Vec<Verdict> {
        let (fault, refusal) = match self.request(entries).await {
            Ok(output) => return verdicts(entries.len(), &output),
            Err(failure) => failure,
        };
        if fault != Fault::Content || entries.len() == 1 {
            return vec![fault.verdict(refusal); entries.len()];
        }
        warn!(error.code = refusal.code, "batch refused for its content, sending its entries one by one");
        let mut all = Vec::with_capacity(entries.len());
        for entry in entries {
            all.push(match self.request(&[*entry]).await {
                Ok(output) => verdicts(1, &output).remove(0),
                Err((fault, refusal)) => fault.verdict(refusal),
            });
        }
        all
    }

    async fn request(&self, entries: &[&Entry]) -> Result<SendMessageBatchOutput, (Fault, Stop)> {
        let mut request = self.client.send_message_batch().queue_url(&self.queue_url);
        for (id, entry) in entries.iter().enumerate() {
            request = request.entries(to_sqs(id, entry).map_err(|stop| (Fault::Stop, stop))?);
        }
        request.send().await.map_err(|err| describe(&err))
    }
}

impl Sink for SqsSink {
    async fn probe(&self) -> Probe {
        let answer = self
            .client
            .get_queue_attributes()
            .queue_url(&self.queue_url)
            .attribute_names(QueueAttributeName::QueueArn)
            .send()
            .await;
        match answer {
            Ok(_) => Probe::Ready,
            Err(err) => match describe(&err) {
                (Fault::Stop, stop) if verdict::is_denied(&stop.code) => {
                    // A role may be allowed to send and nothing else. The first batch will tell.
                    debug!(error.code = stop.code, "the queue may not be looked at");
                    Probe::Ready
                }
                (Fault::Stop, stop) => Probe::Stop(stop),
                (_, cause) => Probe::Unreachable(format!("{}: {}", cause.code, cause.message)),
            },
        }
    }

    async fn send(&self, entries: &[&Entry]) -> Vec<Verdict> {
        let unstored = join_all(entries.iter().map(|entry| self.store(entry))).await;
        let sent: Vec<&Entry> =
            entries.iter().zip(&unstored).filter(|(_, no)| no.is_none()).map(|(entry, _)| *entry).collect();
        let mut verdicts = if sent.is_empty() { vec![] } else { self.deliver(&sent).await }.into_iter();
        let lost = || Verdict::Retry { cause: "no verdict".to_owned(), answered: true };
        unstored.into_iter().map(|no| no.or_else(|| verdicts.next()).unwrap_or_else(lost)).collect()
    }
}

/// The position in the batch serves as the id: it is unique, legal and leads back to the entry.
fn to_sqs(id: usize, entry: &Entry) -> Result<SendMessageBatchRequestEntry, Stop> {
    let incomplete =
        |err: aws_sdk_sqs::error::BuildError| Stop { code: "InvalidRequest".to_owned(), message: err.to_string() };
    let mut builder = SendMessageBatchRequestEntry::builder()
        .id(id.to_string())
        .message_body(entry.body())
        .set_message_group_id(entry.group().map(str::to_owned))
        .set_message_deduplication_id(entry.deduplication().map(str::to_owned));
    for attribute in entry.attributes() {
        let value = MessageAttributeValue::builder().data_type(attribute.value.type_name());
        let value = match &attribute.value {
            Value::Text(text) | Value::Number(text) => value.string_value(text),
            Value::Binary(bytes) => value.binary_value(Blob::new(bytes.as_slice())),
        };
        builder = builder.message_attributes(&*attribute.name, value.build().map_err(incomplete)?);
    }
    builder.build().map_err(incomplete)
}

/// What a failed request means, with the words of the service or, where it did not answer, of the client.
fn describe<E>(err: &SdkError<E>) -> (Fault, Stop)
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let status = err.raw_response().map(|response| response.status().as_u16());
    let fallback = match err {
        SdkError::TimeoutError(_) => "Timeout",
        SdkError::DispatchFailure(_) => "Unreachable",
        SdkError::ServiceError(_) | SdkError::ResponseError(_) => "UnreadableAnswer",
        _ => "InvalidRequest",
    };
    let code = err.code();
    let message = err.message().map_or_else(|| causes(err), str::to_owned);
    (classify(status, code), Stop { code: code.unwrap_or(fallback).to_owned(), message })
}

/// The chain of causes. The SDK's own way to show it prints whole requests and answers too.
fn causes(err: &(dyn std::error::Error + 'static)) -> String {
    let chain = std::iter::successors(Some(err), |err| err.source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
