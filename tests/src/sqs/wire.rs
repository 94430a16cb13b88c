//! AWS JSON 1.0 as SQS uses it: requests, answers and errors.

use axum::{
    body::Body,
    http::{Response, StatusCode, header::CONTENT_TYPE},
};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use std::{borrow::Cow, collections::BTreeMap};

const JSON: &str = "application/x-amz-json-1.0";

/// A request to send.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Batch<'a> {
    #[serde(borrow)]
    pub(super) queue_url: Cow<'a, str>,
    #[serde(borrow, default)]
    pub(super) entries: Vec<Entry<'a>>,
}

/// One message of a batch.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Entry<'a> {
    #[serde(borrow)]
    pub(super) id: Cow<'a, str>,
    #[serde(borrow, rename = "MessageBody", default)]
    pub(super) body: Cow<'a, str>,
    #[serde(borrow, rename = "MessageGroupId")]
    pub(super) group: Option<Cow<'a, str>>,
    #[serde(borrow, rename = "MessageDeduplicationId")]
    pub(super) deduplication: Option<Cow<'a, str>>,
    #[serde(rename = "MessageAttributes", default)]
    pub(super) attributes: BTreeMap<String, Attribute>,
}

/// A message attribute.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub struct Attribute {
    /// Its type.
    pub data_type: String,
    /// Its value, if that is text or a number.
    pub string_value: Option<String>,
    /// Its value in Base64, if that is binary.
    pub binary_value: Option<String>,
}

/// A request from which only the queue is needed.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct QueueOnly<'a> {
    #[serde(borrow)]
    pub(super) queue_url: Cow<'a, str>,
}

/// What became of each entry.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "PascalCase")]
pub(super) struct Answer {
    successful: Vec<Success>,
    // SQS leaves the field out when nothing failed.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    failed: Vec<Failure>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Success {
    id: String,
    message_id: String,
    #[serde(rename = "MD5OfMessageBody")]
    md5: &'static str,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "PascalCase")]
struct Failure {
    id: String,
    code: String,
    message: String,
    sender_fault: bool,
}

/// A request or an entry that is not accepted.
#[derive(Debug, Clone)]
pub(super) struct Refusal {
    pub(super) status: u16,
    pub(super) code: &'static str,
    pub(super) message: String,
    pub(super) sender_fault: bool,
}

impl Answer {
    pub(super) fn accepted(&mut self, id: &str, number: u64) {
        // Neither the Rust SDK nor boto3 checks the digest, and computing it would slow down a load test.
        let md5 = "00000000000000000000000000000000";
        let message_id = format!("00000000-0000-4000-8000-{number:012x}");
        self.successful.push(Success { id: id.to_string(), message_id, md5 });
    }

    pub(super) fn failed(&mut self, id: &str, refusal: Refusal) {
        let Refusal { code, message, sender_fault, .. } = refusal;
        self.failed.push(Failure { id: id.to_string(), code: code.to_string(), message, sender_fault });
    }

    /// The answer to `SendMessage`.
    pub(super) fn only(&mut self) -> Result<Value, Refusal> {
        match (self.successful.pop(), self.failed.pop()) {
            (Some(one), _) => Ok(json!({ "MessageId": one.message_id, "MD5OfMessageBody": one.md5 })),
            (None, Some(one)) if one.sender_fault => Err(Refusal::sender("InvalidMessageContents", one.message)),
            (None, failed) => Err(Refusal::internal(failed.map(|one| one.message).unwrap_or_default())),
        }
    }
}

impl Refusal {
    pub(super) fn sender(code: &'static str, message: impl Into<String>) -> Self {
        Self { status: 400, code, message: message.into(), sender_fault: true }
    }

    pub(super) fn throttled() -> Self {
        Self::sender("RequestThrottled", "The request was denied.")
    }

    pub(super) fn internal(message: impl Into<String>) -> Self {
        Self { status: 500, code: "InternalFailure", message: message.into(), sender_fault: false }
    }

    pub(super) fn into_response(self) -> Response<Body> {
        let body = json!({ "__type": format!("com.amazonaws.sqs#{}", self.code), "message": self.message });
        let mut response = ok(&body);
        *response.status_mut() = StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        // Clients of the older protocol expect other names.
        let old = match self.code {
            "QueueDoesNotExist" => "AWS.SimpleQueueService.NonExistentQueue".to_string(),
            "BatchRequestTooLong"
            | "BatchEntryIdsNotDistinct"
            | "TooManyEntriesInBatchRequest"
            | "EmptyBatchRequest"
            | "InvalidBatchEntryId"
            | "UnsupportedOperation" => {
                format!("AWS.SimpleQueueService.{}", self.code)
            }
            code => code.to_string(),
        };
        let side = if self.status < 500 { "Sender" } else { "Receiver" };
        if let Ok(value) = format!("{old};{side}").parse() {
            response.headers_mut().insert("x-amzn-query-error", value);
        }
        response
    }
}

pub(super) fn ok(answer: &impl Serialize) -> Response<Body> {
    let mut response = Response::new(Body::from(serde_json::to_vec(answer).unwrap_or_default()));
    response.headers_mut().insert(CONTENT_TYPE, axum::http::HeaderValue::from_static(JSON));
    response
}

pub(super) fn read<'a, T: Deserialize<'a>>(body: &'a [u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|err| Refusal::sender("SerializationException", err.to_string()))
}

/// A `SendMessage` request as a batch of one.
pub(super) fn as_batch(body: &[u8]) -> Result<Vec<u8>, Refusal> {
    let mut single: serde_json::Map<String, Value> = read(body)?;
    let queue = single.remove("QueueUrl").unwrap_or_default();
    single.insert("Id".to_string(), json!("0"));
    Ok(json!({ "QueueUrl": queue, "Entries": [single] }).to_string().into_bytes())
}
