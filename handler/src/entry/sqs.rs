//! What function and worker ask of SQS: messages, and when a message is to be seen again.

mod deletions;

pub use deletions::{Deleter, Deletion, Deletions};

use crate::observe::trace::CARRIED;
use aws_config::{SdkConfig, timeout::TimeoutConfig};
use aws_errors::{Class, classify_entry, describe};
use aws_sdk_sqs::{
    Client,
    config::Builder,
    types::{
        BatchResultErrorEntry, DeleteMessageBatchRequestEntry, Message, MessageSystemAttributeName, QueueAttributeName,
    },
};
use deletions::Refusal;
use std::{collections::HashMap, future::Future, time::Duration};
use tokio::{
    sync::{Mutex, watch},
    time::{Instant, MissedTickBehavior, interval, timeout},
};
use tokio_util::task::AbortOnDropHandle;

/// Longest wait of one poll, SQS' maximum.
const POLL_SECONDS: i32 = 20;
/// For one request to delete or to change when a message is seen, the client's own tries included.
const CHANGE_TIMEOUT: Duration = Duration::from_secs(10);

/// One queue.
#[derive(Debug, Clone)]
pub struct Queue {
    sqs: Client,
    /// Its address.
    pub url: String,
}

/// The queues that events come from, known by their ARN alone.
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

    /// Waits for a message for at most `wait`, in whole seconds, and never longer than SQS does. It stays invisible to others for
    /// `visibility` seconds.
    ///
    /// # Errors
    /// SQS' code, and a sentence.
    pub async fn receive(&self, visibility: i32, wait: Duration) -> Result<Option<Message>, String> {
        let seconds = i32::try_from(wait.as_secs()).unwrap_or(POLL_SECONDS).clamp(1, POLL_SECONDS);
        let request = self.sqs.receive_message().queue_url(&self.url).max_number_of_messages(1);
        let request = request.wait_time_seconds(seconds).visibility_timeout(visibility);
        let request = request.message_system_attribute_names(MessageSystemAttributeName::ApproximateReceiveCount);
        let request = request.message_system_attribute_names(MessageSystemAttributeName::SentTimestamp);
        let request = request.set_message_attribute_names(Some(CARRIED.map(str::to_string).to_vec()));
        let answer = request.send().await.map_err(|error| describe(&error))?;
        Ok(answer.messages.unwrap_or_default().into_iter().next())
    }

    /// All that SQS says of the queue.
    ///
    /// # Errors
    /// SQS' code, and a sentence.
    pub async fn attributes(&self) -> Result<HashMap<QueueAttributeName, String>, String> {
        let request = self.sqs.get_queue_attributes().queue_url(&self.url).attribute_names(QueueAttributeName::All);
        let answer = request.send().await.map_err(|error| describe(&error))?;
        Ok(answer.attributes.unwrap_or_default())
    }

    /// Does `work` and meanwhile extends the time for which the message stays invisible, `visibility` seconds each time. Says, too, when
    /// it can be seen again.
    pub async fn keep_invisible<T>(
        &self,
        handle: &str,
        visibility: i32,
        work: impl Future<Output = T>,
    ) -> (T, Instant) {
        let length = Duration::from_secs(visibility.unsigned_abs().into());
        let (extended, until) = watch::channel(Instant::now() + length);
        // A task of its own: the work does not wait for SQS, and it ends with the work.
        let extending = self.clone().extend(handle.to_string(), visibility, extended);
        let _extending = AbortOnDropHandle::new(tokio::spawn(extending));
        let done = work.await;
        let until = *until.borrow();
        (done, until)
    }

    /// Extends it again and again.
    async fn extend(self, handle: String, visibility: i32, until: watch::Sender<Instant>) {
        let length = Duration::from_secs(visibility.unsigned_abs().into());
        let mut beat = interval(length / 3);
        beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
        // The first tick comes at once, and the message has just been received.
        beat.tick().await;
        loop {
            beat.tick().await;
            let asked = Instant::now();
            // One that is not answered does not hold up the next one.
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
    /// SQS' code and a sentence, or that it did not answer.
    pub async fn set_visibility(&self, handle: &str, seconds: i32) -> Result<(), String> {
        let request = self.sqs.change_message_visibility().queue_url(&self.url).receipt_handle(handle);
        match timeout(CHANGE_TIMEOUT, request.visibility_timeout(seconds).send()).await {
            Ok(sent) => sent.map(|_| ()).map_err(|error| describe(&error)),
            Err(_) => Err(format!("no answer within {CHANGE_TIMEOUT:?}")),
        }
    }

    /// Deletes up to ten messages with one request; what was not deleted.
    async fn delete(&self, batch: &[Deletion]) -> Vec<Refusal> {
        let entries = batch.iter().enumerate().map(|(index, deletion)| {
            let entry = DeleteMessageBatchRequestEntry::builder().id(index.to_string());
            entry.receipt_handle(deletion.receipt()).build()
        });
        let all = |cause: String| {
            let refusal = |index| Refusal { index, cause: cause.clone(), is_final: false };
            (0..batch.len()).map(refusal).collect()
        };
        let entries = match entries.collect::<Result<Vec<_>, _>>() {
            Ok(entries) => entries,
            Err(error) => return all(error.to_string()),
        };
        let request = self.sqs.delete_message_batch().queue_url(&self.url).set_entries(Some(entries));
        match timeout(CHANGE_TIMEOUT, request.send()).await {
            Ok(Ok(answer)) => answer.failed.iter().filter_map(refusal).collect(),
            Ok(Err(error)) => all(describe(&error)),
            Err(_) => all(format!("no answer within {CHANGE_TIMEOUT:?}")),
        }
    }
}

/// What SQS says of an entry that is ours. Only what it says of the entry itself is final: rights and settings may be mended while the
/// message is still ours.
fn refusal(entry: &BatchResultErrorEntry) -> Option<Refusal> {
    let (index, cause) = (entry.id.parse().ok()?, entry.code.clone());
    let class = classify_entry(&cause, entry.message(), entry.sender_fault);
    Some(Refusal { index, cause, is_final: class == Class::Content })
}

impl Queues {
    /// None is known yet; nothing is sent.
    pub fn new(aws: &SdkConfig) -> Self {
        Self { sqs: client(aws), known: Mutex::default() }
    }

    /// The queue with this ARN.
    ///
    /// # Errors
    /// It is no ARN of a queue, or SQS' code, and a sentence.
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
