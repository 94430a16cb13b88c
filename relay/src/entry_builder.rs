//! How a delivery becomes an entry: which ids it gets, and which attributes.
//!
//! No message fails for its ids or attributes: what is missing or does not fit is replaced or left out, always the same
//! way, so that a message that is delivered again becomes the same entry again.

use tracing::warn;

use crate::{
    attributes::{Attributes, MAX_ATTRIBUTES},
    config::Config,
    entry::{Entry, Ids, Reason, SizeLimit},
    field::{Field, Parts},
    payload::Payload,
};

/// The group of every message of a FIFO queue that was given no group option.
const ONE_GROUP: &str = "relay";

/// The part of the configuration that shapes entries. The default is a standard queue, no ids, no attributes.
#[derive(Debug, Clone, Default)]
pub struct EntryBuilder {
    fifo: bool,
    group: Option<Field>,
    deduplication: Option<Field>,
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

    /// The entry of a body and of what came with it; the parts' own body is not looked at.
    pub fn entry(&self, body: Vec<u8>, with: Parts<'_>) -> Result<Entry, (Vec<u8>, Reason)> {
        let limit = self.limit.get();
        let entry = Entry::new(body, limit).or_else(|(body, reason)| self.elsewhere(body, reason))?;
        // That of the message, wherever it goes.
        let body =
            entry.payload().map_or(entry.body(), |payload| std::str::from_utf8(&payload.body).unwrap_or_default());
        let parts = Parts { body, ..with };
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

    /// A second chance for a body over the limit. The function reads text, so that it must be text there as well.
    fn elsewhere(&self, body: Vec<u8>, reason: Reason) -> Result<Entry, (Vec<u8>, Reason)> {
        match (&self.payload_bucket, &reason) {
            (Some(_), Reason::TooLarge { .. }) if std::str::from_utf8(&body).is_err() => Err((body, Reason::NotUtf8)),
            (Some(bucket), Reason::TooLarge { .. }) => Ok(Entry::elsewhere(Payload::new(body), bucket)),
            _ => Err((body, reason)),
        }
    }

    /// A second chance for a message that turned out to be too large, if there is a bucket and its body is not there already.
    pub(crate) fn moved(&self, entry: Entry, reason: &Reason) -> Result<Entry, Box<Entry>> {
        match (&self.payload_bucket, reason) {
            (Some(bucket), Reason::TooLarge { .. } | Reason::TooLargeOnTheWay(_)) if entry.payload().is_none() => {
                Ok(entry.moved(bucket, self.limit.get()))
            }
            _ => Err(Box::new(entry)),
        }
    }

    fn ids(&self, parts: &Parts<'_>) -> Ids {
        let group = self.group.as_ref().map(|field| field.id(parts));
        if !self.fifo {
            return Ids::Standard { group: group.flatten() };
        }
        let configured = self.deduplication.as_ref().unwrap_or(&Field::MessageId);
        // A body is never empty, so its hash always is an id.
        let deduplication = configured.id(parts).or_else(|| Field::Sha256.id(parts)).unwrap_or_default();
        let group = match group {
            None => ONE_GROUP.to_owned(),
            Some(Some(group)) => group,
            // In a group of its own it waits for nobody.
            Some(None) => deduplication.clone(),
        };
        Ids::Fifo { group, deduplication }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        attributes::{Attribute, Value},
        entry::MAX_BYTES,
        field::sha256,
    };
    use lapin::BasicProperties;

    fn builder(fifo: bool, group: Option<&str>, deduplication: Option<&str>) -> EntryBuilder {
        let field = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        let attributes = "message-id,correlation-id".parse().unwrap();
        let (group, deduplication) = (field(group), field(deduplication));
        EntryBuilder { fifo, group, deduplication, attributes, payload_bucket: None, limit: SizeLimit::default() }
    }

    fn entry(builder: &EntryBuilder, body: &str, properties: &BasicProperties) -> Entry {
        builder.entry(body.into(), Parts { body: "", exchange: "", routing_key: "", properties }).unwrap()
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
    fn a_body_over_the_limit_goes_elsewhere_if_there_is_a_bucket() {
        let body = format!(r#"{{"style":7,"padding":"{}"}}"#, "x".repeat(MAX_BYTES));
        let properties = BasicProperties::default().with_message_id("m".into());
        let with = || Parts { body: "", exchange: "", routing_key: "", properties: &properties };
        let plain = builder(true, Some("json:/style"), None);
        let (back, reason) = plain.entry(body.clone().into(), with()).unwrap_err();
        assert!(back == body.as_bytes() && reason == Reason::TooLarge { bytes: body.len(), limit: MAX_BYTES });
        let bucket = EntryBuilder { payload_bucket: Some("b".to_owned()), ..plain };
        let entry = bucket.entry(body.clone().into(), with()).unwrap();
        assert!(entry.body().contains(r#""s3BucketName":"b""#) && entry.size() < 1_000, "{}", entry.body());
        assert_eq!((entry.group(), entry.deduplication()), (Some("7"), Some("m")), "ids are those of the message");
        let names: Vec<&str> = entry.attributes().iter().map(|attribute| &*attribute.name).collect();
        assert_eq!(names, ["ExtendedPayloadSize", "message_id"]);
        assert_eq!(entry.attributes()[0].value, Value::Number(body.len().to_string()));
        assert!(entry.into_body() == body.as_bytes(), "a dead letter has the message's own body");
        let (_, reason) = bucket.entry(vec![0xff; MAX_BYTES + 1], with()).unwrap_err();
        assert_eq!(reason, Reason::NotUtf8);
    }

    #[test]
    fn attributes_never_make_a_message_too_large_or_illegal() {
        let properties = BasicProperties::default().with_message_id("a\0".into()).with_correlation_id("c".into());
        let builder = builder(false, None, None);
        let message_id = Attribute { name: "message_id".into(), value: Value::Binary(b"a\0".to_vec()) };
        let correlation_id = Attribute { name: "correlation_id".into(), value: Value::Text("c".to_owned()) };
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
