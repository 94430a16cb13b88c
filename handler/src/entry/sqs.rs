//! SQS for function and worker: receives messages, sets their visibility timeout, deletes them.

mod deletions;

pub use deletions::{Deleter, Deletion, Deletions};

use crate::observe::trace::CARRIER_FIELDS;
use aws_config::{SdkConfig, timeout::TimeoutConfig};
use aws_errors::{Class, classify_entry, describe};
use aws_sdk_sqs::{
    Client,
    config::Builder,
    types::{
        BatchResultErrorEntry, DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName, QueueAttributeName,
    },
};
use deletions::DeleteFailure;
use std::{collections::HashMap, future::Future, time::Duration};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// Longest wait of one poll, the maximum of SQS.
const POLL_SECONDS: i32 = 20;
/// Timeout of a request that deletes or changes visibility, the client's retries included.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// One queue.
#[derive(Debug, Clone)]
pub struct Queue {
    sqs: Client,
    /// The queue's URL.
    pub url: String,
}

/// The queues of Lambda's events, which name them by ARN.
#[derive(Debug)]
pub struct Queues {
    sqs: Client,
    known: Mutex<HashMap<String, Queue>>,
}

impl Queue {
    /// The queue at `url`; nothing is sent.
    pub fn new(aws: &SdkConfig, url: &str) -> Self {
        Self { sqs: client(aws), url: url.to_string() }
    }

    /// Receives a message. Waits for it at most `wait`, in whole seconds and within the maximum of SQS. It stays invisible to others for
    /// `visibility` seconds.
    ///
    /// # Errors
    /// The code of SQS, and a sentence.
    pub async fn receive(&self, visibility: i32, wait: Duration) -> Result<Option<Message>, String> {
        let seconds = i32::try_from(wait.as_secs()).unwrap_or(POLL_SECONDS).clamp(1, POLL_SECONDS);
        let request = self.sqs.receive_message().queue_url(&self.url).max_number_of_messages(1);
        let request = request.wait_time_seconds(seconds).visibility_timeout(visibility);
        let request = request.message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
        let request = request.message_system_attribute_names(MessageSystemAttributeName::SentTimestamp);
        let request = request.set_message_attribute_names(Some(CARRIER_FIELDS.map(str::to_string).to_vec()));
        let answer = request.send().await.map_err(|error| describe(&error))?;
        Ok(answer.messages.unwrap_or_default().into_iter().next())
    }

    /// All attributes of the queue.
    ///
    /// # Errors
    /// The code of SQS, and a sentence.
    pub async fn attributes(&self) -> Result<HashMap<QueueAttributeName, String>, String> {
        let request = self.sqs.get_queue_attributes().queue_url(&self.url).attribute_names(QueueAttributeName::All);
        let answer = request.send().await.map_err(|error| describe(&error))?;
        Ok(answer.attributes.unwrap_or_default())
    }

    /// Runs `work`, and meanwhile extends the message's visibility timeout, `visibility` seconds each time. Also returns when the message
    /// becomes visible.
    pub async fn keep_invisible<T>(
        &self,
        handle: &str,
        visibility: i32,
        work: impl Future<Output = T>,
    ) -> (T, Instant) {
        let length = Duration::from_secs(visibility.unsigned_abs().into());
        let (extended, until) = watch::channel(Instant::now() + length);
        // In a task of its own, so that the work does not wait for SQS. It ends with the work.
        let extending = self.clone().extend(handle.to_string(), visibility, extended);
        let _extending = AbortOnDropHandle::new(tokio::spawn(extending));
        let done = work.await;
        let until = *until.borrow();
        (done, until)
    }

    /// The heartbeat: extends the visibility timeout every third of its length.
    async fn extend(self, handle: String, visibility: i32, until: watch::Sender<Instant>) {
        let length = Duration::from_secs(visibility.unsigned_abs().into());
        let mut beat = interval(length / 3);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once; the message has just been received.
        beat.tick().await;
        loop {
            beat.tick().await;
            let asked = Instant::now();
            // A request without an answer must not delay the next one.
            let set = timeout(length / 3, self.set_visibility(&handle, visibility)).await;
            match set.unwrap_or_else(|_| Err("no answer in time".into())) {
                Ok(()) => drop(until.send_replace(asked + length)),
                Err(error) => tracing::warn!(error, "the visibility timeout was not extended"),
            }
        }
    }

    /// Makes a message visible again after so many seconds.
    ///
    /// # Errors
    /// The code of SQS and a sentence, or that it did not answer.
    pub async fn set_visibility(&self, handle: &str, seconds: i32) -> Result<(), String> {
        let request = self.sqs.change_message_visibility().queue_url(&self.url).receipt_handle(handle);
        match timeout(CHANGE_TIMEOUT, request.visibility_timeout(seconds).send()).await {
            Ok(sent) => sent.map(|_| ()).map_err(|error| describe(&error)),
            Err(_) => Err(format!("no answer within {CHANGE_TIMEOUT:?}")),
        }
    }

    /// Deletes up to ten messages with one request. Returns those that were not deleted.
    async fn delete(&self, batch: &[Deletion]) -> Vec<DeleteFailure> {
        let entries = batch.iter().enumerate().map(|(index, deletion)| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(index.to_string());
            entry.receipt_handle(deletion.receipt()).build()
        });
        let all = |cause: String| {
            let delete_failure = |index| DeleteFailure { index, cause: cause.clone(), is_final: false };
            (0..batch.len()).map(delete_failure).collect()
        };
        let entries = match entries.collect::<Result<Vec<_>, _>>() {
            Ok(entries) => entries,
            Err(error) => return all(error.to_string()),
        };
        let request = self.sqs.delete_message_batch().queue_url(&self.url).set_entries(Some(entries));
        match timeout(CHANGE_TIMEOUT, request.send()).await {
            Ok(Ok(answer)) => answer.failed.iter().filter_map(delete_failure).collect(),
            Ok(Err(error)) => all(describe(&error)),
            Err(_) => all(format!("no answer within {CHANGE_TIMEOUT:?}")),
        }
    }
}

/// Only an error of the entry itself is final. Permissions and settings may be fixed while the message is still invisible.
fn delete_failure(entry: &BatchResultErrorEntry) -> Option<DeleteFailure> {
    let (index, cause) = (entry.id.parse().ok()?, entry.code.clone());
    let class = classify_entry(&cause, entry.message(), entry.sender_fault);
    Some(DeleteFailure { index, cause, is_final: class == Class::Content })
}

impl Queues {
    /// Nothing is sent yet.
    pub fn new(aws: &SdkConfig) -> Self {
        Self { sqs: client(aws), known: Mutex::default() }
    }

    /// The queue with this ARN.
    ///
    /// # Errors
    /// It is not the ARN of a queue, or the code of SQS and a sentence.
    pub async fn by_arn(&self, arn: &str) -> Result<Queue, String> {
        let mut known = self.known.lock().await;
        if let Some(queue) = known.get(arn) {
            return Ok(queue.clone());
        }
        let parts: Vec<&str> = arn.split(':').collect();
        let ["arn", _, "sqs", _, account, name] = parts[..] else { return Err("not the ARN of a queue".into()) };
        let request = self.sqs.get_queue_url().queue_name(name).queue_owner_aws_account_id(account);
        let answer = request.send().await.map_err(|error| describe(&error))?;
        let url = answer.queue_url.ok_or("SQS told no address")?;
        let queue = Queue { sqs: self.sqs.clone(), url };
        known.insert(arn.to_string(), queue.clone());
        Ok(queue)
    }
}

fn client(aws: &SdkConfig) -> Client {
    let timeouts = TimeoutConfig::builder()
        .connect_timeout(Duration::from_secs(5))
        .operation_attempt_timeout(Duration::from_secs(POLL_SECONDS as u64 + 10))
        .build();
    Client::from_conf(Builder::from(aws).timeout_config(timeouts).build())
}
