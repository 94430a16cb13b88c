//! Sends batches to SQS and returns a verdict for each entry. The flow decides when to retry.
//!
//! One bad entry does not fail its neighbours: a request refused for its content or size is repeated entry by entry.

mod verdict;

use std::{convert::Infallible, future::Future, time::Duration};

use aws_config::{SdkConfig, retry::RetryConfig, timeout::TimeoutConfig};
use aws_errors::{Class, class, describe, status};
use aws_sdk_sqs::{
    Client,
    error::{ProvideErrorMetadata, SdkError},
    operation::send_message_batch::SendMessageBatchOutput,
    primitives::Blob,
    types::{MessageAttributeValue, QueueAttributeName, SendMessageBatchRequestEntry},
};
use futures_util::future::join_all;
use tokio::time::sleep;
use tracing::{debug, error, info, warn};

pub use crate::sink::verdict::Verdict;
use crate::{
    attributes::AttributeValue,
    config::Config,
    entry::{Entry, MAX_BYTES, PoisonReason, SizeLimit},
    error::Stop,
    metrics::{
        RetryCause,
        cause::{self, OTHER, PAYLOAD_BUCKET, TIMEOUT, UNMENTIONED, UNREACHABLE, UNREADABLE},
    },
    payload::PayloadStore,
    sink::verdict::{RequestError, RequestErrorKind, error_kind, verdicts},
};

/// The SDK has a default for the first of these only. Without the others it waits for a lost connection for ever.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(3);
const READ_TIMEOUT: Duration = Duration::from_secs(10);
const ATTEMPT_TIMEOUT: Duration = Duration::from_secs(15);
const OPERATION_TIMEOUT: Duration = Duration::from_secs(20);

/// How often the queue's limit is read.
const LIMIT_WATCH: Duration = Duration::from_secs(60);

/// Where batches go.
pub trait Sink: Send + Sync + 'static {
    /// Checks whether sending can work at all.
    fn probe(&self) -> impl Future<Output = Probe> + Send;

    /// How large a message may be. It may change at any time.
    fn limit(&self) -> SizeLimit {
        SizeLimit::default()
    }

    /// Who takes the messages, for logs.
    fn service(&self) -> &'static str {
        "SQS"
    }

    /// Sends one batch, within the limits of [`crate::batch`]. Returns one verdict per entry, in the same order.
    fn send(&self, entries: &[&Entry]) -> impl Future<Output = Vec<Verdict>> + Send;
}

/// The result of a probe.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Probe {
    /// The queue answers. With its `MaximumMessageSize`, unless the relay may not read that.
    Ready(Option<usize>),
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
    limit: SizeLimit,
}

impl SqsSink {
    /// A client. Sends nothing yet.
    pub fn new(config: &Config, shared: &SdkConfig) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(CONNECT_TIMEOUT)
            .read_timeout(READ_TIMEOUT)
            .operation_attempt_timeout(ATTEMPT_TIMEOUT)
            .operation_timeout(OPERATION_TIMEOUT)
            .build();
        // The flow retries each entry without end. Retries in the client would only hide failures from it.
        let client = aws_sdk_sqs::config::Builder::from(shared)
            .timeout_config(timeouts)
            .retry_config(RetryConfig::disabled())
            .build();
        let payloads = config.payload_bucket.as_ref().map(|bucket| PayloadStore::new(bucket, shared));
        Self {
            client: Client::from_conf(client),
            queue_url: config.sqs_queue_url.clone(),
            payloads,
            limit: SizeLimit::default(),
        }
    }

    /// The bucket for payloads, if one is configured.
    pub(crate) fn payloads(&self) -> Option<&PayloadStore> {
        self.payloads.as_ref()
    }

    /// Checks the bucket once, and reads the queue's limit from time to time: it may be changed.
    pub(crate) async fn watch(&self) -> Infallible {
        if let Some(payloads) = &self.payloads
            && let Err(err) = payloads.probe().await
        {
            error!(
                cause = err.text,
                "messages over SQS' limit will wait: the bucket of --payload-bucket cannot be used"
            );
        }
        loop {
            sleep(LIMIT_WATCH).await;
            // A problem with the queue shows when a batch is sent.
            drop(self.probe().await);
        }
    }

    fn set_limit(&self, limit: usize) {
        let before = self.limit.set(limit);
        if before == self.limit.get() {
            return;
        }
        let bytes = self.limit.get();
        match &self.payloads {
            Some(_) => info!(bytes, before, "the queue's MaximumMessageSize; larger ones go to --payload-bucket"),
            None if bytes < MAX_BYTES => warn!(
                bytes,
                before,
                "the queue's MaximumMessageSize; larger ones are dead-lettered, as there is no --payload-bucket"
            ),
            None => info!(bytes, before, "the queue's MaximumMessageSize"),
        }
    }

    /// Stores an entry's payload in S3, if it has one. Returns a verdict if that failed.
    async fn store(&self, entry: &Entry) -> Option<Verdict> {
        let (Some(payload), Some(payloads)) = (entry.payload(), &self.payloads) else { return None };
        let err = payloads.put(payload).await.err()?;
        let text = format!("--payload-bucket: {}", err.text);
        Some(Verdict::Retry { cause: RetryCause::new(PAYLOAD_BUCKET, text), answered: None })
    }

    async fn send_stored(&self, entries: &[&Entry]) -> Vec<Verdict> {
        let mut verdicts = self.send_or_split(entries).await;
        let rejected = |verdict: &Verdict| matches!(verdict, Verdict::Poison(PoisonReason::Rejected(_)));
        if verdicts.iter().any(rejected) {
            // The queue's limit may have been lowered a moment ago.
            drop(self.probe().await);
            let limit = self.limit.get();
            for (verdict, entry) in verdicts.iter_mut().zip(entries) {
                let bytes = entry.size();
                if rejected(verdict) && bytes > limit {
                    *verdict = Verdict::Poison(PoisonReason::TooLarge { bytes, limit });
                }
            }
        }
        verdicts
    }

    async fn send_or_split(&self, entries: &[&Entry]) -> Vec<Verdict> {
        let bucket = self.payloads.is_some();
        let error = match self.request(entries).await {
            Ok(output) => return verdicts(entries.len(), &output),
            Err(error) => error,
        };
        if !matches!(error.kind, RequestErrorKind::Content | RequestErrorKind::TooLarge) || entries.len() == 1 {
            return entries.iter().map(|entry| error.verdict(entry, bucket)).collect();
        }
        warn!(cause = error.cause.text, "batch refused for its content or size, sending its entries one by one");
        let mut all = Vec::with_capacity(entries.len());
        for entry in entries {
            all.push(match self.request(&[*entry]).await {
                Ok(output) => verdicts(1, &output).remove(0),
                Err(error) => error.verdict(entry, bucket),
            });
        }
        all
    }

    async fn request(&self, entries: &[&Entry]) -> Result<SendMessageBatchOutput, RequestError> {
        let mut request = self.client.send_message_batch().queue_url(&self.queue_url);
        for (id, entry) in entries.iter().enumerate() {
            request = request.entries(to_sqs(id, entry)?);
        }
        request.send().await.map_err(|err| request_error(&err))
    }
}

impl Sink for SqsSink {
    async fn probe(&self) -> Probe {
        let (arn, limit) = (QueueAttributeName::QueueArn, QueueAttributeName::MaximumMessageSize);
        let request = self.client.get_queue_attributes().queue_url(&self.queue_url);
        match request.attribute_names(arn).attribute_names(limit.clone()).send().await {
            Ok(answer) => {
                let limit = answer.attributes().and_then(|all| all.get(&limit)?.parse().ok());
                limit.into_iter().for_each(|limit| self.set_limit(limit));
                Probe::Ready(limit)
            }
            Err(err) if class(&err) == Class::Denied => {
                // A role may be allowed to send and nothing else. The first batch will show.
                debug!(cause = describe(&err), "the queue may not be looked at");
                Probe::Ready(None)
            }
            Err(err) => match request_error(&err) {
                RequestError { kind: RequestErrorKind::Stop, cause } => Probe::Stop(Stop::of_sqs(cause.text)),
                RequestError { cause, .. } => Probe::Unreachable(cause.text),
            },
        }
    }

    fn limit(&self) -> SizeLimit {
        self.limit.clone()
    }

    async fn send(&self, entries: &[&Entry]) -> Vec<Verdict> {
        let unstored = join_all(entries.iter().map(|entry| self.store(entry))).await;
        let sent: Vec<&Entry> =
            entries.iter().zip(&unstored).filter(|(_, failed)| failed.is_none()).map(|(entry, _)| *entry).collect();
        let mut verdicts = if sent.is_empty() { vec![] } else { self.send_stored(&sent).await }.into_iter();
        let lost = || Verdict::Retry { cause: RetryCause::new(UNMENTIONED, "no verdict"), answered: Some(true) };
        unstored.into_iter().map(|failed| failed.or_else(|| verdicts.next()).unwrap_or_else(lost)).collect()
    }
}

/// The id is the position in the batch, by which the answer's results are matched to entries.
fn to_sqs(id: usize, entry: &Entry) -> Result<SendMessageBatchRequestEntry, RequestError> {
    let incomplete = |err: aws_sdk_sqs::error::BuildError| RequestError {
        kind: RequestErrorKind::Stop,
        cause: RetryCause::new(OTHER, format!("the request cannot be made: {err}")),
    };
    let mut builder = SendMessageBatchRequestEntry::builder()
        .id(id.to_string())
        .message_body(entry.body())
        .set_message_group_id(entry.group().map(str::to_owned))
        .set_message_deduplication_id(entry.deduplication().map(str::to_owned));
    for attribute in entry.attributes() {
        let value = MessageAttributeValue::builder().data_type(attribute.value.type_name());
        let value = match &attribute.value {
            AttributeValue::Text(text) | AttributeValue::Number(text) => value.string_value(text),
            AttributeValue::Binary(bytes) => value.binary_value(Blob::new(bytes.as_slice())),
        };
        builder = builder.message_attributes(&*attribute.name, value.build().map_err(incomplete)?);
    }
    builder.build().map_err(incomplete)
}

/// What follows from a failed request, and its cause in our own words.
fn request_error<E>(err: &SdkError<E>) -> RequestError
where
    E: std::error::Error + ProvideErrorMetadata + 'static,
{
    let label = match err {
        SdkError::TimeoutError(_) => TIMEOUT,
        SdkError::DispatchFailure(_) => UNREACHABLE,
        SdkError::ResponseError(_) => UNREADABLE,
        _ => cause::label(status(err), err.code().unwrap_or_default()),
    };
    RequestError { kind: error_kind(class(err), status(err)), cause: RetryCause::new(label, describe(err)) }
}
