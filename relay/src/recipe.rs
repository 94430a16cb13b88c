//! How a delivery becomes an entry: which ids it gets, and which attributes.
//!
//! Refuses no message for its ids or attributes: what is missing or does not fit is replaced or left out, always the same
//! way, so that a message that is delivered again becomes the same entry again.

use tracing::warn;

use crate::{
    attributes::Attributes,
    config::Config,
    entry::{Entry, Ids, Reason},
    field::{Field, Parts},
};

/// The group of every message of a FIFO queue that was given no group option.
const ONE_GROUP: &str = "relay";

/// The part of the configuration that shapes entries. The default is a standard queue, no ids, no attributes.
#[derive(Debug, Clone, Default)]
pub struct Recipe {
    fifo: bool,
    group: Option<Field>,
    deduplication: Option<Field>,
    attributes: Attributes,
}

impl Recipe {
    /// The recipe as configured.
    pub fn new(config: &Config) -> Self {
        Self {
            fifo: config.is_fifo(),
            group: config.message_group_id.clone(),
            deduplication: config.message_deduplication_id.clone(),
            attributes: config.attributes.clone(),
        }
    }

    /// The entry of a body and of what came with it; the parts' own body is not looked at.
    pub fn entry(&self, body: Vec<u8>, with: Parts<'_>) -> Result<Entry, (Vec<u8>, Reason)> {
        let entry = Entry::new(body)?;
        let parts = Parts { body: entry.body(), ..with };
        let (ids, attributes) = (self.ids(&parts), self.attributes.of(&parts));
        let wanted = attributes.len();
        let entry = entry.with_ids(ids).with_attributes(attributes);
        let left_out = wanted - entry.attributes().len();
        if left_out > 0 {
            warn!(attributes = left_out, "the message is too large to carry these attributes too, sent without them");
        }
        Ok(entry)
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

    fn recipe(fifo: bool, group: Option<&str>, deduplication: Option<&str>) -> Recipe {
        let field = |text: Option<&str>| text.map(|text| text.parse().unwrap());
        let attributes = "message-id,correlation-id".parse().unwrap();
        Recipe { fifo, group: field(group), deduplication: field(deduplication), attributes }
    }

    fn entry(recipe: &Recipe, body: &str, properties: &BasicProperties) -> Entry {
        recipe.entry(body.into(), Parts { body: "", exchange: "", routing_key: "", properties }).unwrap()
    }

    #[test]
    fn ids_have_defaults_on_a_fifo_queue_and_not_on_a_standard_one() {
        let named = BasicProperties::default().with_message_id("m".into());
        let nameless = BasicProperties::default();
        let style = r#"{"style":7}"#;
        let (style_hash, other_hash) = (sha256(style.as_bytes()), sha256(b"{}"));
        let group = Some("json:/style");
        for (recipe, body, properties, want) in [
            (recipe(false, None, None), style, &named, (None, None)),
            (recipe(false, group, None), style, &named, (Some("7"), None)),
            (recipe(false, group, None), "{}", &named, (None, None)),
            (recipe(true, None, None), style, &named, (Some("relay"), Some("m"))),
            (recipe(true, None, None), style, &nameless, (Some("relay"), Some(&*style_hash))),
            (recipe(true, group, None), style, &named, (Some("7"), Some("m"))),
            (recipe(true, group, None), "{}", &named, (Some("m"), Some("m"))),
            (recipe(true, group, None), "{}", &nameless, (Some(&*other_hash), Some(&*other_hash))),
            (recipe(true, group, Some("sha256")), style, &named, (Some("7"), Some(&*style_hash))),
            (recipe(true, group, Some("json:/style")), style, &named, (Some("7"), Some("7"))),
            (recipe(true, group, Some("json:/id")), style, &named, (Some("7"), Some(&*style_hash))),
        ] {
            let entry = entry(&recipe, body, properties);
            assert_eq!((entry.group(), entry.deduplication()), want, "{recipe:?} {body}");
        }
    }

    #[test]
    fn attributes_never_make_a_message_too_large_or_illegal() {
        let properties = BasicProperties::default().with_message_id("a\0".into()).with_correlation_id("c".into());
        let recipe = recipe(false, None, None);
        let message_id = Attribute { name: "message_id".into(), value: Value::Binary(b"a\0".to_vec()) };
        let correlation_id = Attribute { name: "correlation_id".into(), value: Value::Text("c".to_owned()) };
        for (size, want) in [
            (1, vec![message_id.clone(), correlation_id]),
            (MAX_BYTES - message_id.size(), vec![message_id]),
            (MAX_BYTES, vec![]),
        ] {
            let entry = entry(&recipe, &"x".repeat(size), &properties);
            assert_eq!((entry.body().len(), entry.attributes()), (size, &*want));
        }
    }
}
