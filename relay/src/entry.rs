//! What one message becomes in SQS, and the rules that SQS sets for it.
//!
//! A body that SQS would refuse is told apart, with the reason, before a request is spent on it. It is never changed
//! to make it fit; attributes that do not fit beside it are left out.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

mod ids;

pub use ids::Ids;

use crate::{
    attributes::{Attribute, MAX_ATTRIBUTES, is_legal},
    payload::Payload,
};

/// What SQS takes in one message and also in one batch, attributes counted.
pub const MAX_BYTES: usize = 1024 * 1024;

/// What this queue takes in one message: its `MaximumMessageSize`, as far as that is known. Clones are the same one.
#[derive(Debug, Clone)]
pub struct SizeLimit(Arc<AtomicUsize>);

impl Default for SizeLimit {
    /// SQS' own limit.
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(MAX_BYTES)))
    }
}

impl SizeLimit {
    /// In bytes, attributes counted.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Changes it; gives what it was before.
    pub(crate) fn set(&self, bytes: usize) -> usize {
        self.0.swap(bytes.min(MAX_BYTES), Ordering::Relaxed)
    }
}

/// One message as SQS can carry it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    body: String,
    attributes: Vec<Attribute>,
    ids: Ids,
    payload: Option<Payload>,
}

/// Why SQS can never carry a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// SQS has no empty messages.
    EmptyBody,
    /// SQS carries text.
    NotUtf8,
    /// A message id, routing key, header name or the like is not UTF-8: which, with its bytes in hexadecimal.
    PropertyNotUtf8(String),
    /// A character that XML 1.0 does not have.
    IllegalCharacter,
    /// The message has more bytes than the queue takes.
    TooLarge {
        /// What it has.
        bytes: usize,
        /// What the queue takes.
        limit: usize,
    },
    /// Something between here and SQS takes no message of so many bytes.
    TooLargeOnTheWay(usize),
    /// SQS itself refused this very entry: its code, and a sentence for it.
    Rejected(String),
}

impl Entry {
    /// Checks a body; gives it back with the reason when SQS cannot carry it. The entry has no attributes and no ids yet.
    pub fn new(body: Vec<u8>, limit: usize) -> Result<Self, (Vec<u8>, Reason)> {
        if body.is_empty() {
            return Err((body, Reason::EmptyBody));
        }
        if body.len() > limit {
            let bytes = body.len();
            return Err((body, Reason::TooLarge { bytes, limit }));
        }
        let body = String::from_utf8(body).map_err(|err| (err.into_bytes(), Reason::NotUtf8))?;
        if !body.chars().all(is_legal) {
            return Err((body.into_bytes(), Reason::IllegalCharacter));
        }
        Ok(Self { body, attributes: vec![], ids: Ids::Standard { group: None }, payload: None })
    }

    /// The entry of a body over the limit, which goes to S3: its own body is the pointer.
    pub fn elsewhere(payload: Payload, bucket: &str) -> Self {
        let body = payload.pointer(bucket);
        Self { body, attributes: vec![], ids: Ids::Standard { group: None }, payload: Some(payload) }
    }

    /// The same message with its body in S3; itself where it is there already. Ids stay.
    pub fn moved(self, bucket: &str, limit: usize) -> Self {
        if self.payload.is_some() {
            return self;
        }
        let payload = Payload::new(self.body.into_bytes());
        let mut attributes = self.attributes;
        attributes.insert(0, payload.size_attribute());
        attributes.truncate(MAX_ATTRIBUTES);
        Self::elsewhere(payload, bucket).with_ids(self.ids).with_attributes(attributes, limit)
    }

    /// Adds attributes, without the last ones when all together are too large beside the body.
    pub fn with_attributes(mut self, mut attributes: Vec<Attribute>, limit: usize) -> Self {
        let mut size = self.size();
        let fitting = attributes.iter().take_while(|attribute| {
            size += attribute.size();
            size <= limit
        });
        attributes.truncate(fitting.count());
        self.attributes.append(&mut attributes);
        self
    }

    /// Sets the ids.
    pub fn with_ids(self, ids: Ids) -> Self {
        Self { ids, ..self }
    }

    /// The body.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// What must be in S3 before this is sent.
    pub fn payload(&self) -> Option<&Payload> {
        self.payload.as_ref()
    }

    /// The attributes, in order.
    pub fn attributes(&self) -> &[Attribute] {
        &self.attributes
    }

    /// The group id.
    pub fn group(&self) -> Option<&str> {
        match &self.ids {
            Ids::Standard { group } => group.as_deref(),
            Ids::Fifo { group, .. } => Some(group),
        }
    }

    /// The deduplication id.
    pub fn deduplication(&self) -> Option<&str> {
        match &self.ids {
            Ids::Standard { .. } => None,
            Ids::Fifo { deduplication, .. } => Some(deduplication),
        }
    }

    /// The group whose order is kept, if there is one.
    pub fn lane(&self) -> Option<&str> {
        match &self.ids {
            Ids::Standard { .. } => None,
            Ids::Fifo { group, .. } => Some(group),
        }
    }

    /// The bytes that SQS counts: the body, and name, type and value of each attribute.
    pub fn size(&self) -> usize {
        self.body.len() + self.attributes.iter().map(Attribute::size).sum::<usize>()
    }

    /// Gives the body up, as it came.
    pub fn into_body(self) -> Vec<u8> {
        self.payload.map_or_else(|| self.body.into_bytes(), |payload| payload.body.into())
    }
}

impl Reason {
    /// The word that stands in headers and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::EmptyBody => "empty-body",
            Self::NotUtf8 => "not-utf8",
            Self::PropertyNotUtf8(_) => "property-not-utf8",
            Self::IllegalCharacter => "illegal-character",
            Self::TooLarge { .. } | Self::TooLargeOnTheWay(_) => "too-large",
            Self::Rejected(_) => "rejected-by-sqs",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyBody => f.write_str("the body is empty"),
            Self::NotUtf8 => f.write_str("the body is not UTF-8"),
            Self::PropertyNotUtf8(strings) => write!(f, "not UTF-8: {strings}"),
            Self::IllegalCharacter => f.write_str("the body holds a character that SQS does not carry"),
            Self::TooLarge { bytes, limit } if *limit < MAX_BYTES => write!(
                f,
                "the message has {bytes} bytes, and the SQS queue takes {limit}: raise its MaximumMessageSize, or set \
                 --payload-bucket"
            ),
            Self::TooLarge { bytes, limit } => {
                write!(f, "the message has {bytes} bytes, and SQS takes {limit}: set --payload-bucket")
            }
            Self::TooLargeOnTheWay(bytes) => write!(
                f,
                "the message has {bytes} bytes, and something between the relay and SQS takes no such request (413): \
                 correct that, or set --payload-bucket"
            ),
            Self::Rejected(code) => write!(f, "SQS rejected the entry: {code}"),
        }
    }
}

#[cfg(test)]
mod tests;
