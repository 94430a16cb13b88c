//! The event source mapping between SQS and the function, as AWS documents it with ReportBatchItemFailures. Messages that the
//! function reports as failed stay in the queue, the others are deleted. After an error or an invalid answer the whole batch stays.

use crate::{
    aws::{Aws, Queue},
    wait,
};
use anyhow::{Context, Result};
use aws_sdk_sqs::types::{DeleteMessageBatchRequestEntry, Message};
use serde_json::{Map, Value, json};
use std::{collections::BTreeSet, sync::Arc, time::Duration};
use tokio::{sync::watch, task::JoinHandle};

/// The wait time of SQS's long polling.
const WAIT_SECONDS: i32 = 5;
/// The pause after an error of SQS.
const PAUSE: Duration = Duration::from_millis(500);

/// A running mapping; it ends when it is dropped.
#[derive(Debug)]
pub struct Mapping {
    batches: watch::Receiver<Vec<Batch>>,
    task: JoinHandle<()>,
}

/// One invocation that has ended.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Its messages.
    pub records: Vec<Record>,
    /// The function's answer, or its error as text.
    pub answer: Result<Value, String>,
}

/// One message of a batch.
#[derive(Debug, Clone)]
pub struct Record {
    /// SQS's id.
    pub message_id: String,
    /// The body.
    pub body: String,
    /// The receive count.
    pub receive_count: u32,
    /// Whether it was deleted; otherwise it is received again or moves to the dead-letter queue.
    pub deleted: bool,
}

/// The function of a mapping.
pub trait Invoke: Send + Sync + 'static {
    /// Sends an event and waits for the answer.
    ///
    /// # Errors
    /// It answered with an error, or not at all.
    fn invoke(&self, event: &Value) -> impl Future<Output = Result<Value>> + Send;
}

impl Mapping {
    /// Starts polling.
    pub fn start(aws: Arc<Aws>, queue: Queue, function: Arc<impl Invoke>, batch_size: i32) -> Self {
        let (sender, batches) = watch::channel(Vec::new());
        let task = tokio::spawn(async move {
            loop {
                match step(&aws, &queue, function.as_ref(), batch_size).await {
                    Ok(Some(batch)) => sender.send_modify(|batches: &mut Vec<Batch>| batches.push(batch)),
                    Ok(None) => {}
                    Err(error) => {
                        tracing::warn!(%error, "event source mapping");
                        tokio::time::sleep(PAUSE).await;
                    }
                }
            }
        });
        Self { batches, task }
    }

    /// Follows the batches as they end.
    pub fn follow(&self) -> watch::Receiver<Vec<Batch>> {
        self.batches.clone()
    }

    /// Every receive of a body so far.
    pub fn receives(&self, body: &str) -> Vec<Record> {
        let batches = self.batches.borrow();
        batches.iter().flat_map(|batch| &batch.records).filter(|record| record.body == body).cloned().collect()
    }

    /// Waits until a body has been handled `times` times; gives the last record.
    ///
    /// # Errors
    /// Not in time.
    pub async fn handled(&self, body: &str, times: usize, within: Duration) -> Result<Record> {
        let mut batches = self.follow();
        let enough = batches.wait_for(|batches| {
            batches.iter().flat_map(|batch| &batch.records).filter(|record| record.body == body).count() >= times
        });
        let shown: String = body.chars().take(120).collect();
        wait::at_most(&format!("handled message {shown}"), within, enough).await?.context("the mapping has ended")?;
        self.receives(body).pop().context("the record is gone")
    }
}

impl Drop for Mapping {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn step(aws: &Aws, queue: &Queue, function: &impl Invoke, batch_size: i32) -> Result<Option<Batch>> {
    let messages = aws.receive(&queue.url, WAIT_SECONDS, batch_size).await?;
    if messages.is_empty() {
        return Ok(None);
    }
    let answer = function.invoke(&event(&messages, &queue.arn())).await.map_err(|error| format!("{error:#}"));
    let ids = messages.iter().filter_map(Message::message_id).collect();
    let failed = answer.as_ref().ok().and_then(|answer| reported(answer, &ids));
    let done = |message: &Message| failed.as_ref().is_some_and(|ids| !ids.contains(message.message_id().unwrap_or("")));
    let mut deletes = Vec::new();
    for (index, message) in messages.iter().enumerate().filter(|(_, message)| done(message)) {
        let entry = DeleteMessageBatchRequestEntry::builder().id(index.to_string());
        deletes.push(entry.receipt_handle(message.receipt_handle().unwrap_or_default()).build()?);
    }
    if !deletes.is_empty() {
        aws.sqs.delete_message_batch().queue_url(&queue.url).set_entries(Some(deletes)).send().await?;
    }
    let record = |message: &Message| Record {
        message_id: message.message_id().unwrap_or_default().to_string(),
        body: message.body().unwrap_or_default().to_string(),
        receive_count: attribute(message, "ApproximateReceiveCount").and_then(|text| text.parse().ok()).unwrap_or(0),
        deleted: done(message),
    };
    Ok(Some(Batch { records: messages.iter().map(record).collect(), answer }))
}

/// The ids that the function reports as failed; `None` when the whole batch counts as failed.
fn reported(answer: &Value, ids: &BTreeSet<&str>) -> Option<BTreeSet<String>> {
    let failures = match answer {
        Value::Null => return Some(BTreeSet::new()),
        Value::Object(map) => map.get("batchItemFailures").cloned().unwrap_or(Value::Null),
        _ => return None,
    };
    let failures = match failures {
        Value::Null => Vec::new(),
        Value::Array(failures) => failures,
        _ => return None,
    };
    let known = |failure: &Value| failure["itemIdentifier"].as_str().filter(|id| ids.contains(id)).map(str::to_string);
    failures.iter().map(known).collect()
}

/// The Lambda event for messages of the queue with this ARN.
pub fn event(messages: &[Message], queue_arn: &str) -> Value {
    let record = |message: &Message| {
        let attributes: Map<String, Value> = message.attributes().map_or_else(Map::new, |attributes| {
            attributes.iter().map(|(key, value)| (key.as_str().to_string(), json!(value))).collect()
        });
        let message_attributes: Map<String, Value> = message.message_attributes().map_or_else(Map::new, |attributes| {
            let value = |value: &aws_sdk_sqs::types::MessageAttributeValue| {
                json!({ "stringValue": value.string_value(), "dataType": value.data_type(),
                        "stringListValues": [], "binaryListValues": [] })
            };
            attributes.iter().map(|(key, attribute)| (key.clone(), value(attribute))).collect()
        });
        json!({
            "messageId": message.message_id(),
            "receiptHandle": message.receipt_handle(),
            "body": message.body(),
            "attributes": attributes,
            "messageAttributes": message_attributes,
            "md5OfBody": message.md5_of_body(),
            "eventSource": "aws:sqs",
            "eventSourceARN": queue_arn,
            "awsRegion": "us-east-1",
        })
    };
    json!({ "Records": messages.iter().map(record).collect::<Vec<_>>() })
}

fn attribute<'a>(message: &'a Message, name: &str) -> Option<&'a str> {
    message.attributes()?.iter().find(|(key, _)| key.as_str() == name).map(|(_, value)| value.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_are_read_as_aws_reads_them() {
        let ids = BTreeSet::from(["a", "b"]);
        let item = |id: &str| json!({ "itemIdentifier": id });
        let cases = [
            (json!({ "batchItemFailures": [] }), Some(vec![])),
            (json!({ "batchItemFailures": null }), Some(vec![])),
            (json!({}), Some(vec![])),
            (Value::Null, Some(vec![])),
            (json!({ "batchItemFailures": [item("b")] }), Some(vec!["b"])),
            (json!({ "batchItemFailures": [item("c")] }), None),
            (json!({ "batchItemFailures": [item("")] }), None),
            (json!({ "batchItemFailures": [{ "itemIdentifier": null }] }), None),
            (json!({ "batchItemFailures": [{ "itemId": "a" }] }), None),
            (json!("fine"), None),
        ];
        for (answer, expected) in cases {
            let expected = expected.map(|ids| ids.into_iter().map(str::to_string).collect::<BTreeSet<_>>());
            assert_eq!(reported(&answer, &ids), expected, "{answer}");
        }
    }
}
