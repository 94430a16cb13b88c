//! One message as SQS carries it, and SQS' rules for it.
//!
//! A body that SQS would refuse is rejected here, with the reason, before a request is made. It is never changed to
//! make it fit; attributes that do not fit beside it are left out.

use std::{
    fmt,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
};

use crate::{
    attributes::{Attribute, MAX_ATTRIBUTES, is_legal},
    payload::Payload,
};

/// SQS' limit for one message and for one batch, in bytes, attributes included.
pub const MAX_BYTES: usize = 1024 * 1024;

/// The queue's `MaximumMessageSize`, as far as it is known. Clones share it.
#[derive(Debug, Clone)]
pub struct SizeLimit(Arc<AtomicUsize>);

impl Default for SizeLimit {
    /// SQS' own limit.
    fn default() -> Self {
        Self(Arc::new(AtomicUsize::new(MAX_BYTES)))
    }
}

impl SizeLimit {
    /// In bytes, attributes included.
    pub fn get(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }

    /// Changes it, to [`MAX_BYTES`] at most. Returns the previous limit.
    pub(crate) fn set(&self, bytes: usize) -> usize {
        self.0.swap(bytes.min(MAX_BYTES), Ordering::Relaxed)
    }
}

/// One message as SQS can carry it.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    body: String,
    attributes: Vec<Attribute>,
    ids: EntryIds,
    payload: Option<Payload>,
}

/// The group id and deduplication id of an entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum EntryIds {
    /// For a standard queue. A group is for fairness there and keeps no order.
    Standard {
        /// The group id.
        group: Option<String>,
    },
    /// For a FIFO queue, which needs both.
    Fifo {
        /// The group id: messages of one group keep their order.
        group: String,
        /// The deduplication id.
        deduplication: String,
    },
}

/// Why SQS can never carry a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum PoisonReason {
    /// SQS has no empty messages.
    EmptyBody,
    /// The body is not UTF-8: SQS carries text.
    NotUtf8,
    /// A message id, routing key, header name or the like is not UTF-8: which, with its bytes in hexadecimal.
    PropertyNotUtf8(String),
    /// The body has a character that XML 1.0 does not allow.
    IllegalCharacter,
    /// The message has more bytes than the queue takes.
    TooLarge {
        /// The size of the message.
        bytes: usize,
        /// The limit of the queue.
        limit: usize,
    },
    /// A proxy between the relay and SQS takes no message of so many bytes.
    TooLargeForProxy(usize),
    /// SQS refused this entry: its code, and what it means.
    Rejected(String),
    /// It is in the queue of messages that cancel a task, and cancels none: why.
    CancelsNothing(String),
}

impl Entry {
    /// Checks a body. The entry has no attributes and no ids yet. An error returns the body with the reason.
    pub fn new(body: Vec<u8>, limit: usize) -> Result<Self, (Vec<u8>, PoisonReason)> {
        if body.is_empty() {
            return Err((body, PoisonReason::EmptyBody));
        }
        if body.len() > limit {
            let bytes = body.len();
            return Err((body, PoisonReason::TooLarge { bytes, limit }));
        }
        let body = String::from_utf8(body).map_err(|err| (err.into_bytes(), PoisonReason::NotUtf8))?;
        if !body.chars().all(is_legal) {
            return Err((body.into_bytes(), PoisonReason::IllegalCharacter));
        }
        Ok(Self { body, attributes: vec![], ids: EntryIds::Standard { group: None }, payload: None })
    }

    /// The entry for a body that goes to S3: its own body is the pointer.
    pub fn offloaded(payload: Payload, bucket: &str) -> Self {
        let body = payload.pointer(bucket);
        Self { body, attributes: vec![], ids: EntryIds::Standard { group: None }, payload: Some(payload) }
    }

    /// The same message with its body in S3; unchanged if it is there already.
    pub fn offload(self, bucket: &str, limit: usize) -> Self {
        if self.payload.is_some() {
            return self;
        }
        let payload = Payload::new(self.body.into_bytes());
        let mut attributes = self.attributes;
        attributes.insert(0, payload.size_attribute());
        attributes.truncate(MAX_ATTRIBUTES);
        Self::offloaded(payload, bucket).with_ids(self.ids).with_attributes(attributes, limit)
    }

    /// Adds attributes. The last ones are left out if the message would exceed the limit.
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
    pub fn with_ids(self, ids: EntryIds) -> Self {
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
            EntryIds::Standard { group } => group.as_deref(),
            EntryIds::Fifo { group, .. } => Some(group),
        }
    }

    /// The deduplication id.
    pub fn deduplication(&self) -> Option<&str> {
        match &self.ids {
            EntryIds::Standard { .. } => None,
            EntryIds::Fifo { deduplication, .. } => Some(deduplication),
        }
    }

    /// The group whose order is kept, if there is one.
    pub fn lane(&self) -> Option<&str> {
        match &self.ids {
            EntryIds::Standard { .. } => None,
            EntryIds::Fifo { group, .. } => Some(group),
        }
    }

    /// The bytes that SQS counts: the body, and name, type and value of each attribute.
    pub fn size(&self) -> usize {
        self.body.len() + self.attributes.iter().map(Attribute::size).sum::<usize>()
    }

    /// The body as it was published.
    pub fn into_body(self) -> Vec<u8> {
        self.payload.map_or_else(|| self.body.into_bytes(), |payload| payload.body.into())
    }
}

impl PoisonReason {
    /// The codes of the reasons that messages for SQS can have.
    pub(crate) const FOR_SQS: [&str; 6] =
        ["empty-body", "not-utf8", "property-not-utf8", "illegal-character", "too-large", "rejected-by-sqs"];
    /// Those of messages that cancel tasks.
    pub(crate) const FOR_CANCELS: [&str; 6] =
        ["empty-body", "not-utf8", "property-not-utf8", "illegal-character", "too-large", "cancels-nothing"];

    /// The code for headers, logs and metrics.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::EmptyBody => "empty-body",
            Self::NotUtf8 => "not-utf8",
            Self::PropertyNotUtf8(_) => "property-not-utf8",
            Self::IllegalCharacter => "illegal-character",
            Self::TooLarge { .. } | Self::TooLargeForProxy(_) => "too-large",
            Self::Rejected(_) => "rejected-by-sqs",
            Self::CancelsNothing(_) => "cancels-nothing",
        }
    }
}

impl fmt::Display for PoisonReason {
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
            Self::TooLargeForProxy(bytes) => write!(
                f,
                "the message has {bytes} bytes, and something between the relay and SQS takes no such request (413): \
                 correct that, or set --payload-bucket"
            ),
            Self::Rejected(code) => write!(f, "SQS rejected the entry: {code}"),
            Self::CancelsNothing(why) => write!(f, "the message cancels no task: {why}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::attributes::AttributeValue;

    #[test]
    fn bodies_are_taken_whole_or_refused_with_their_reason() {
        let full = vec![b'x'; MAX_BYTES];
        let over = vec![b'x'; MAX_BYTES + 1];
        let cases: Vec<(&[u8], Option<&str>)> = vec![
            (b"x", None),
            (b"{\"a\":1}\r\n\t", None),
            ("\u{7f}\u{85}\u{d7ff}\u{e000}\u{fffd}\u{10000}\u{10ffff}".as_bytes(), None),
            (&full, None),
            (b"", Some("empty-body")),
            (b"\xff", Some("not-utf8")),
            (b"\xed\xa0\x80", Some("not-utf8")),
            (b"a\0b", Some("illegal-character")),
            (b"\x08", Some("illegal-character")),
            (b"\x0b", Some("illegal-character")),
            (b"\x1f", Some("illegal-character")),
            ("\u{fffe}".as_bytes(), Some("illegal-character")),
            ("\u{ffff}".as_bytes(), Some("illegal-character")),
            (&over, Some("too-large")),
        ];
        for (body, refused) in cases {
            let shown = String::from_utf8_lossy(&body[..body.len().min(16)]);
            match Entry::new(body.to_vec(), MAX_BYTES) {
                Ok(entry) => {
                    assert_eq!(refused, None, "{shown:?}");
                    assert_eq!(entry.into_body(), body);
                }
                Err((back, reason)) => {
                    assert_eq!(Some(reason.as_str()), refused, "{shown:?}");
                    assert_eq!(back, body, "the body must come back unchanged");
                }
            }
        }
    }

    #[test]
    fn every_reason_is_counted_from_the_start() {
        let both = [
            PoisonReason::EmptyBody,
            PoisonReason::NotUtf8,
            PoisonReason::PropertyNotUtf8(String::new()),
            PoisonReason::IllegalCharacter,
            PoisonReason::TooLarge { bytes: 2, limit: 1 },
        ];
        for reason in both.iter().map(PoisonReason::as_str) {
            assert!(PoisonReason::FOR_SQS.contains(&reason) && PoisonReason::FOR_CANCELS.contains(&reason), "{reason}");
        }
        assert!(PoisonReason::FOR_SQS.contains(&PoisonReason::Rejected(String::new()).as_str()));
        assert!(PoisonReason::FOR_SQS.contains(&PoisonReason::TooLargeForProxy(1).as_str()));
        assert!(PoisonReason::FOR_CANCELS.contains(&PoisonReason::CancelsNothing(String::new()).as_str()));
    }

    /// The SDK counts nothing: SQS would refuse what is too large.
    #[test]
    fn size_counts_attributes_as_sqs_does_and_the_last_ones_give_way() {
        // Name, type and value: 2 + 6 + 3, 1 + 6 + 2 and 1 + 6 + 4 bytes.
        let attributes = vec![
            Attribute { name: "id".into(), value: AttributeValue::Text("abc".to_owned()) },
            Attribute { name: "n".into(), value: AttributeValue::Number("12".to_owned()) },
            Attribute { name: "b".into(), value: AttributeValue::Binary(vec![0xff; 4]) },
        ];
        for (room, kept, bytes) in
            [(31, 3, 31), (30, 2, 20), (20, 2, 20), (19, 1, 11), (11, 1, 11), (10, 0, 0), (0, 0, 0)]
        {
            let body = vec![b'x'; MAX_BYTES - room];
            let entry = Entry::new(body, MAX_BYTES).unwrap().with_attributes(attributes.clone(), MAX_BYTES);
            assert_eq!(entry.attributes(), &attributes[..kept], "{room}");
            assert_eq!(entry.size(), MAX_BYTES - room + bytes, "{room}");
        }
    }

    #[test]
    fn only_a_fifo_queue_keeps_an_order() {
        let entry = || Entry::new(b"x".to_vec(), MAX_BYTES).unwrap();
        let fifo = EntryIds::Fifo { group: "g".to_owned(), deduplication: "d".to_owned() };
        for (ids, group, deduplication, lane) in [
            (EntryIds::Standard { group: None }, None, None, None),
            (EntryIds::Standard { group: Some("g".to_owned()) }, Some("g"), None, None),
            (fifo, Some("g"), Some("d"), Some("g")),
        ] {
            let entry = entry().with_ids(ids);
            assert_eq!((entry.group(), entry.deduplication(), entry.lane()), (group, deduplication, lane));
        }
    }

    #[test]
    fn a_queue_may_take_less_than_sqs_and_a_message_can_still_move_to_the_bucket() {
        let (limit, size) = (SizeLimit::default(), |entry: &Entry| entry.attributes()[0].value.clone());
        assert_eq!((limit.get(), limit.set(1_024), limit.get()), (MAX_BYTES, MAX_BYTES, 1_024));
        assert_eq!((limit.set(usize::MAX), limit.get()), (1_024, MAX_BYTES), "never more than SQS");
        let (back, reason) = Entry::new(vec![b'x'; 1_025], 1_024).unwrap_err();
        assert_eq!((back.len(), &reason), (1_025, &PoisonReason::TooLarge { bytes: 1_025, limit: 1_024 }));
        assert!(reason.to_string().contains("takes 1024: raise its MaximumMessageSize"), "{reason}");
        let attributes: Vec<Attribute> = (0..10)
            .map(|n| Attribute { name: format!("n{n}").into(), value: AttributeValue::Text("v".to_owned()) })
            .collect();
        let ids = EntryIds::Fifo { group: "g".to_owned(), deduplication: "d".to_owned() };
        let entry =
            Entry::new(vec![b'x'; 900], 1_024).unwrap().with_ids(ids).with_attributes(attributes.clone(), 1_024);
        let moved = entry.offload("b", 1_024);
        assert_eq!((moved.group(), moved.deduplication()), (Some("g"), Some("d")));
        assert_eq!(&moved.attributes()[1..], &attributes[..9], "SQS takes ten");
        assert_eq!(size(&moved), AttributeValue::Number("900".to_owned()));
        assert!(moved.size() < 900 && moved.body().contains("payloads/"), "{}", moved.body());
        let again = moved.clone().offload("other", 1_024);
        assert_eq!(again, moved, "it is there already");
        assert_eq!(again.into_body(), vec![b'x'; 900]);
    }
}
