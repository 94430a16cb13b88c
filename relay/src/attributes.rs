//! Which properties and headers of a message become SQS message attributes, in which order and under which names.
//!
//! Refuses a list that SQS would refuse: more than ten, or two of one name. It never refuses a message.

mod value;

use std::{str::FromStr, sync::Arc};

pub use crate::attributes::value::Value;
pub(crate) use crate::attributes::value::is_legal;
use crate::field::{Parts, header_name};

/// What SQS takes in one message.
pub const MAX_ATTRIBUTES: usize = 10;
/// What a relay sends that was not told otherwise.
pub const DEFAULT: &str = "message-id,correlation-id,timestamp,traceparent";

/// The attributes that were asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<Item>);

/// One attribute of one message.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute {
    /// A name that SQS takes.
    pub name: Arc<str>,
    /// Never empty.
    pub value: Value,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Item {
    name: Arc<str>,
    origin: Origin,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Origin {
    MessageId,
    CorrelationId,
    Timestamp,
    RoutingKey,
    Exchange,
    Type,
    AppId,
    ContentType,
    Priority,
    Header(String),
}

impl Attributes {
    /// The attributes of one message: those of the list that it has, in the order of the list.
    pub fn of(&self, parts: &Parts<'_>) -> Vec<Attribute> {
        let attribute =
            |item: &Item| Some(Attribute { name: Arc::clone(&item.name), value: item.origin.value(parts)? });
        self.0.iter().filter_map(attribute).collect()
    }
}

impl Attribute {
    /// The bytes that SQS counts: name, type and value.
    pub fn size(&self) -> usize {
        self.name.len() + self.value.type_name().len() + self.value.len()
    }
}

impl FromStr for Attributes {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        if list.trim().is_empty() {
            return Ok(Self::default());
        }
        let items: Vec<Item> = list.split(',').map(|item| item.trim().parse()).collect::<Result<_, _>>()?;
        if items.len() > MAX_ATTRIBUTES {
            return Err(format!("has {} attributes, SQS takes {MAX_ATTRIBUTES}", items.len()));
        }
        for (index, item) in items.iter().enumerate() {
            if items[..index].iter().any(|other| other.name == item.name) {
                return Err(format!("two items would become the attribute {}", item.name));
            }
        }
        Ok(Self(items))
    }
}

impl FromStr for Item {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let origin = match text {
            "message-id" => Origin::MessageId,
            "correlation-id" => Origin::CorrelationId,
            "timestamp" => Origin::Timestamp,
            "routing-key" => Origin::RoutingKey,
            "exchange" => Origin::Exchange,
            "type" => Origin::Type,
            "app-id" => Origin::AppId,
            "content-type" => Origin::ContentType,
            "priority" => Origin::Priority,
            "traceparent" | "tracestate" => Origin::Header(text.to_owned()),
            _ => {
                let name = text.strip_prefix("header:").ok_or_else(|| {
                    format!(
                        "{text:?} is none of message-id, correlation-id, timestamp, traceparent, tracestate, \
                         routing-key, exchange, type, app-id, content-type, priority, header:NAME"
                    )
                })?;
                let name = header_name(name)?;
                return Ok(Self { name: legal_name(&name).into(), origin: Origin::Header(name) });
            }
        };
        Ok(Self { name: text.replace('-', "_").into(), origin })
    }
}

impl Origin {
    fn value(&self, parts: &Parts<'_>) -> Option<Value> {
        let properties = parts.properties;
        let short = match self {
            Self::MessageId => properties.message_id(),
            Self::CorrelationId => properties.correlation_id(),
            Self::Type => properties.kind(),
            Self::AppId => properties.app_id(),
            Self::ContentType => properties.content_type(),
            Self::RoutingKey => return Value::text(parts.routing_key),
            Self::Exchange => return Value::text(parts.exchange),
            Self::Timestamp => return Some(Value::Number(properties.timestamp().as_ref()?.to_string())),
            Self::Priority => return Some(Value::Number(properties.priority().as_ref()?.to_string())),
            Self::Header(name) => return Value::of(properties.headers().as_ref()?.inner().get(name.as_str())?),
        };
        Value::text(short.as_ref()?.as_str())
    }
}

/// SQS takes ASCII letters, digits, `_`, `-` and single dots inside; some beginnings are its own. An AMQP name is never
/// too long for it.
fn legal_name(header: &str) -> String {
    let mut name = String::with_capacity(header.len() + 1);
    for c in header.chars() {
        let taken = c.is_ascii_alphanumeric() || matches!(c, '_' | '-') || (c == '.' && !name.ends_with('.'));
        name.push(if taken { c } else { '_' });
    }
    for end in [0, name.len() - 1] {
        if name.as_bytes()[end] == b'.' {
            name.replace_range(end..=end, "_");
        }
    }
    let lower = name.to_ascii_lowercase();
    if lower.starts_with("aws.") || lower.starts_with("amazon.") {
        name.insert(0, '_');
    }
    name
}

#[cfg(test)]
mod tests;
