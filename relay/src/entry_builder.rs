//! Turns a delivery into an entry with its ids and attributes.
//!
//! No message fails because of its ids or attributes: what is missing or does not fit is replaced or left out. The same
//! message always becomes the same entry, also when it is redelivered.

use tracing::warn;

use crate::{
    attributes::{Attributes, MAX_ATTRIBUTES},
    config::Config,
    entry::{Entry, EntryIds, PoisonReason, SizeLimit},
    id_source::{IdSource, MessageParts},
    payload::Payload,
};

/// The group of every message of a FIFO queue without `--message-group-id`.
const ONE_GROUP: &str = "relay";

/// The part of the configuration that shapes entries. The default is a standard queue, no ids, no attributes.
#[derive(Debug, Clone, Default)]
pub struct EntryBuilder {
    fifo: bool,
    group: Option<IdSource>,
    deduplication: Option<IdSource>,
    attributes: Attributes,
    payload_bucket: Option<String>,
    limit: SizeLimit,
}

impl EntryBuilder {
    /// The builder as configured, for a queue with this limit.
    pub fn new(config: &Config, limit: SizeLimit) -> Self {
        Self {
            fifo: config.is_fifo(),
            group: config.message_group_id.clone(),
            deduplication: config.message_deduplication_id.clone(),
            attributes: config.attributes.clone(),
            payload_bucket: config.payload_bucket.clone(),
            limit,
        }
    }

    /// The entry for a body and what came with it; `with.body` is ignored.
    pub fn entry(&self, body: Vec<u8>, with: MessageParts<'_>) -> Result<Entry, (Vec<u8>, PoisonReason)> {
        let limit = self.limit.get();
        let entry = Entry::new(body, limit).or_else(|(body, reason)| self.offload_large(body, reason))?;
        // The message's own body, also if it goes to S3.
        let body =
            entry.payload().map_or(entry.body(), |payload| std::str::from_utf8(&payload.body).unwrap_or_default());
        let parts = MessageParts { body, ..with };
        let (ids, mut attributes) = (self.ids(&parts), self.attributes.of(&parts));
        if let Some(payload) = entry.payload() {
            attributes.insert(0, payload.size_attribute());
            attributes.truncate(MAX_ATTRIBUTES);
        }
        let wanted = attributes.len();
        let entry = entry.with_ids(ids).with_attributes(attributes, limit);
        let left_out = wanted - entry.attributes().len();
        if left_out > 0 {
            warn!(attributes = left_out, "the message is too large to carry these attributes too, sent without them");
        }
        Ok(entry)
    }

    /// Lets a body over the limit go to S3, if there is a bucket. The function reads text, so it must be UTF-8 there
    /// too.
    fn offload_large(&self, body: Vec<u8>, reason: PoisonReason) -> Result<Entry, (Vec<u8>, PoisonReason)> {
        match (&self.payload_bucket, &reason) {
            (Some(_), PoisonReason::TooLarge { .. }) if std::str::from_utf8(&body).is_err() => {
                Err((body, PoisonReason::NotUtf8))
            }
            (Some(bucket), PoisonReason::TooLarge { .. }) => Ok(Entry::offloaded(Payload::new(body), bucket)),
            _ => Err((body, reason)),
        }
    }

    /// Lets the body of a message that was refused as too large go to S3, if there is a bucket and it is not there
    /// already.
    pub(crate) fn offload(&self, entry: Entry, reason: &PoisonReason) -> Result<Entry, Box<Entry>> {
        match (&self.payload_bucket, reason) {
            (Some(bucket), PoisonReason::TooLarge { .. } | PoisonReason::TooLargeForProxy(_))
                if entry.payload().is_none() =>
            {
                Ok(entry.offload(bucket, self.limit.get()))
            }
            _ => Err(Box::new(entry)),
        }
    }

    fn ids(&self, parts: &MessageParts<'_>) -> EntryIds {
        let group = self.group.as_ref().map(|field| field.id(parts));
        if !self.fifo {
            return EntryIds::Standard { group: group.flatten() };
        }
        let configured = self.deduplication.as_ref().unwrap_or(&IdSource::MessageId);
        // A body is never empty, so its hash always is an id.
        let deduplication = configured.id(parts).or_else(|| IdSource::Sha256.id(parts)).unwrap_or_default();
        let group = match group {
            None => ONE_GROUP.to_owned(),
            Some(Some(group)) => group,
            // In a group of its own it waits for no other message.
            Some(None) => deduplication.clone(),
        };
        EntryIds::Fifo { group, deduplication }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attributes::{Attribute, AttributeValue},
        entry::MAX_BYTES,
        id_source::sha256,
    };
    use lapin::BasicProperties;

    fn builder(fifo: bool, group: Option<&str>, deduplication: Option<&str>) -> EntryBuilder {
        let field = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        let attributes = "message-id,correlation-id".parse().unwrap();
        let (group, deduplication) = (field(group), field(deduplication));
        EntryBuilder { fifo, group, deduplication, attributes, payload_bucket: None, limit: SizeLimit::default() }
    }

    fn entry(builder: &EntryBuilder, body: &str, properties: &BasicProperties) -> Entry {
        builder.entry(body.into(), MessageParts { body: "", exchange: "", routing_key: "", properties }).unwrap()
    }

    #[test]
    fn ids_have_defaults_on_a_fifo_queue_and_not_on_a_standard_one() {
        let named = BasicProperties::default().with_message_id("m".into());
        let nameless = BasicProperties::default();
        let style = r#"{"style":7}"#;
        let (style_hash, other_hash) = (sha256(style.as_bytes()), sha256(b"{}"));
        let group = Some("json:/style");
        for (builder, body, properties, want) in [
            (builder(false, None, None), style, &named, (None, None)),
            (builder(false, group, None), style, &named, (Some("7"), None)),
            (builder(false, group, None), "{}", &named, (None, None)),
            (builder(true, None, None), style, &named, (Some("relay"), Some("m"))),
            (builder(true, None, None), style, &nameless, (Some("relay"), Some(&*style_hash))),
            (builder(true, group, None), style, &named, (Some("7"), Some("m"))),
            (builder(true, group, None), "{}", &named, (Some("m"), Some("m"))),
            (builder(true, group, None), "{}", &nameless, (Some(&*other_hash), Some(&*other_hash))),
            (builder(true, group, Some("sha256")), style, &named, (Some("7"), Some(&*style_hash))),
            (builder(true, group, Some("json:/style")), style, &named, (Some("7"), Some("7"))),
            (builder(true, group, Some("json:/id")), style, &named, (Some("7"), Some(&*style_hash))),
        ] {
            let entry = entry(&builder, body, properties);
            assert_eq!((entry.group(), entry.deduplication()), want, "{builder:?} {body}");
        }
    }

    #[test]
    fn a_body_over_the_limit_goes_to_the_bucket_if_there_is_one() {
        let body = format!(r#"{{"style":7,"padding":"{}"}}"#, "x".repeat(MAX_BYTES));
        let properties = BasicProperties::default().with_message_id("m".into());
        let with = || MessageParts { body: "", exchange: "", routing_key: "", properties: &properties };
        let plain = builder(true, Some("json:/style"), None);
        let (back, reason) = plain.entry(body.clone().into(), with()).unwrap_err();
        assert!(back == body.as_bytes() && reason == PoisonReason::TooLarge { bytes: body.len(), limit: MAX_BYTES });
        let bucket = EntryBuilder { payload_bucket: Some("b".to_owned()), ..plain };
        let entry = bucket.entry(body.clone().into(), with()).unwrap();
        assert!(entry.body().contains(r#""s3BucketName":"b""#) && entry.size() < 1_000, "{}", entry.body());
        assert_eq!((entry.group(), entry.deduplication()), (Some("7"), Some("m")), "ids are those of the message");
        let names: Vec<&str> = entry.attributes().iter().map(|attribute| &*attribute.name).collect();
        assert_eq!(names, ["ExtendedPayloadSize", "message_id"]);
        assert_eq!(entry.attributes()[0].value, AttributeValue::Number(body.len().to_string()));
        assert!(entry.into_body() == body.as_bytes(), "a dead letter has the message's own body");
        let (_, reason) = bucket.entry(vec![0xff; MAX_BYTES + 1], with()).unwrap_err();
        assert_eq!(reason, PoisonReason::NotUtf8);
    }

    #[test]
    fn attributes_never_make_a_message_too_large_or_illegal() {
        let properties = BasicProperties::default().with_message_id("a\0".into()).with_correlation_id("c".into());
        let builder = builder(false, None, None);
        let message_id = Attribute { name: "message_id".into(), value: AttributeValue::Binary(b"a\0".to_vec()) };
        let correlation_id = Attribute { name: "correlation_id".into(), value: AttributeValue::Text("c".to_owned()) };
        for (size, want) in [
            (1, vec![message_id.clone(), correlation_id]),
            (MAX_BYTES - message_id.size(), vec![message_id]),
            (MAX_BYTES, vec![]),
        ] {
            let entry = entry(&builder, &"x".repeat(size), &properties);
            assert_eq!((entry.body().len(), entry.attributes()), (size, &*want));
        }
    }
}
