//! Where the group id or deduplication id of a message comes from: one of its fields, named by an option.
//!
//! A value that SQS does not take as an id is replaced by its SHA-256, so that the same value always gives the same id.
//! The body is parsed only for a JSON pointer.

use std::{borrow::Cow, fmt, str::FromStr};

use lapin::{BasicProperties, types::AMQPValue};
use serde::de::{Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

/// The longest id that SQS takes, in bytes.
const MAX_ID_BYTES: usize = 128;
/// AMQP's short strings, such as the names of queues and headers, have at most so many bytes.
pub(crate) const MAX_SHORT_STRING_BYTES: usize = 255;

/// The parts of a message that ids and attributes come from.
#[derive(Debug, Clone, Copy)]
pub struct MessageParts<'a> {
    /// The body.
    pub body: &'a str,
    /// The exchange that it was published to.
    pub exchange: &'a str,
    /// The routing key that it was published with.
    pub routing_key: &'a str,
    /// Its properties, headers among them.
    pub properties: &'a BasicProperties,
}

/// The field of a message that an id comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum IdSource {
    /// The AMQP message-id.
    MessageId,
    /// The routing key.
    RoutingKey,
    /// The header of this name.
    Header(String),
    /// A string or a number in a JSON body; the unescaped tokens of an RFC 6901 pointer.
    Json(Vec<String>),
    /// The same text for every message.
    Fixed(String),
    /// The SHA-256 of the body.
    Sha256,
}

impl IdSource {
    /// Parses `--message-group-id`. A hash of the body is no group: no two messages would share it.
    ///
    /// ```
    /// use relay::id_source::IdSource;
    ///
    /// assert_eq!(IdSource::for_group("json:/style_id"), Ok(IdSource::Json(vec!["style_id".into()])));
    /// assert!(IdSource::for_group("sha256").is_err());
    /// ```
    pub fn for_group(text: &str) -> Result<Self, String> {
        match text.parse()? {
            Self::Sha256 => Err("sha256 is for deduplication only".to_owned()),
            field => Ok(field),
        }
    }

    /// The field's value as an id that SQS takes; `None` when the message has no such field or an empty one.
    pub fn id(&self, parts: &MessageParts<'_>) -> Option<String> {
        let value = self.value(parts).filter(|value| !value.is_empty())?;
        Some(legal_id(&value))
    }

    fn value<'a>(&'a self, parts: &MessageParts<'a>) -> Option<Cow<'a, [u8]>> {
        Some(match self {
            Self::MessageId => parts.properties.message_id().as_ref()?.as_str().as_bytes().into(),
            Self::RoutingKey => parts.routing_key.as_bytes().into(),
            Self::Header(name) => header_text(parts.properties.headers().as_ref()?.inner().get(name.as_str())?)?,
            Self::Json(pointer) => at_pointer(parts.body, pointer)?.into(),
            Self::Fixed(text) => text.as_bytes().into(),
            Self::Sha256 => sha256(parts.body.as_bytes()).into_bytes().into(),
        })
    }
}

impl FromStr for IdSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, rest) = text.split_once(':').map_or((text, None), |(kind, rest)| (kind, Some(rest)));
        match (kind, rest) {
            ("message-id", None) => Ok(Self::MessageId),
            ("routing-key", None) => Ok(Self::RoutingKey),
            ("sha256", None) => Ok(Self::Sha256),
            ("header", Some(name)) => header_name(name).map(Self::Header),
            ("json", Some(pointer)) => pointer_tokens(pointer).map(Self::Json),
            ("fixed", Some("")) => Err("fixed: needs a text".to_owned()),
            ("fixed", Some(text)) => Ok(Self::Fixed(text.to_owned())),
            _ => Err("want message-id, routing-key, header:NAME, json:/pointer or fixed:TEXT \
                 (for deduplication also sha256)"
                .to_owned()),
        }
    }
}

/// Checks the name of a header that an option asks for.
pub(crate) fn header_name(name: &str) -> Result<String, String> {
    match name.len() {
        0 => Err("header: needs a name".to_owned()),
        1..=MAX_SHORT_STRING_BYTES => Ok(name.to_owned()),
        bytes => Err(format!("the header's name has {bytes} bytes, AMQP takes {MAX_SHORT_STRING_BYTES}")),
    }
}

/// The hex SHA-256, which SQS takes as an id.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

/// The value, if SQS takes it (ASCII letters, digits and punctuation), or else its SHA-256.
fn legal_id(value: &[u8]) -> String {
    match std::str::from_utf8(value) {
        Ok(text) if text.len() <= MAX_ID_BYTES && text.bytes().all(|byte| byte.is_ascii_graphic()) => text.to_owned(),
        _ => sha256(value),
    }
}

/// The value of a header as text; `None` for tables, arrays and void.
fn header_text(value: &AMQPValue) -> Option<Cow<'_, [u8]>> {
    let text = match value {
        AMQPValue::LongString(text) => return Some(text.as_bytes().into()),
        AMQPValue::ShortString(text) => return Some(text.as_str().as_bytes().into()),
        AMQPValue::ByteArray(bytes) => return Some(bytes.as_slice().into()),
        AMQPValue::Boolean(flag) => flag.to_string(),
        AMQPValue::ShortShortInt(number) => number.to_string(),
        AMQPValue::ShortShortUInt(number) => number.to_string(),
        AMQPValue::ShortInt(number) => number.to_string(),
        AMQPValue::ShortUInt(number) => number.to_string(),
        AMQPValue::LongInt(number) => number.to_string(),
        AMQPValue::LongUInt(number) => number.to_string(),
        AMQPValue::LongLongInt(number) => number.to_string(),
        AMQPValue::Float(number) => number.to_string(),
        AMQPValue::Double(number) => number.to_string(),
        AMQPValue::DecimalValue(number) => format!("{}e-{}", number.value, number.scale),
        AMQPValue::Timestamp(seconds) => seconds.to_string(),
        AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) | AMQPValue::Void => return None,
    };
    Some(text.into_bytes().into())
}

/// The tokens of an RFC 6901 pointer.
fn pointer_tokens(pointer: &str) -> Result<Vec<String>, String> {
    if pointer.is_empty() {
        return Ok(vec![]);
    }
    let rest = pointer.strip_prefix('/').ok_or("a JSON pointer starts with /")?;
    let unescape = |token: &str| {
        let bad = token.split('~').skip(1).any(|after| !after.starts_with(['0', '1']));
        if bad {
            return Err("in a JSON pointer ~ stands only as ~0 or ~1".to_owned());
        }
        Ok(token.replace("~1", "/").replace("~0", "~"))
    };
    rest.split('/').map(unescape).collect()
}

/// The bytes of the string or number at a pointer. A number keeps its digits: rounding could make two ids equal.
/// Nothing else of the body is kept, so that parsing takes no memory to speak of.
fn at_pointer(body: &str, pointer: &[String]) -> Option<Vec<u8>> {
    // RFC 8259 lets a parser ignore a byte order mark.
    let mut at: &RawValue = serde_json::from_str(body.trim_start_matches('\u{feff}')).ok()?;
    for token in pointer {
        let mut reader = serde_json::Deserializer::from_str(at.get());
        at = match at.get().as_bytes().first()? {
            b'{' => reader.deserialize_map(Member(token)).ok()??,
            b'[' => {
                let index: usize = token.parse().ok()?;
                // RFC 6901 has no leading zeros and no sign.
                (index.to_string() == *token).then_some(())?;
                reader.deserialize_seq(Item(index)).ok()??
            }
            _ => return None,
        };
    }
    match at.get().as_bytes().first()? {
        b'"' => serde_json::Deserializer::from_str(at.get()).deserialize_bytes(Bytes).ok(),
        b'-' | b'0'..=b'9' => Some(at.get().as_bytes().to_vec()),
        _ => None,
    }
}

/// Finds the member of that name; the last one if there are several.
struct Member<'a>(&'a str);

impl<'de> Visitor<'de> for Member<'_> {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        while let Some(name) = object.next_key::<&RawValue>()? {
            // A name with a lone surrogate is not UTF-8, so it cannot be the one looked for.
            if serde_json::from_str::<Cow<'_, str>>(name.get()).is_ok_and(|name| name == self.0) {
                found = Some(object.next_value()?);
            } else {
                object.next_value::<IgnoredAny>()?;
            }
        }
        Ok(found)
    }
}

/// Finds the item at that index.
struct Item(usize);

impl<'de> Visitor<'de> for Item {
    type Value = Option<&'de RawValue>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut found = None;
        for index in 0_usize.. {
            if index == self.0 {
                found = array.next_element()?;
            } else if array.next_element::<IgnoredAny>()?.is_none() {
                break;
            }
        }
        Ok(found)
    }
}

/// A string's bytes. A lone surrogate becomes three bytes that are not UTF-8.
struct Bytes;

impl Visitor<'_> for Bytes {
    type Value = Vec<u8>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a string")
    }

    fn visit_bytes<E>(self, bytes: &[u8]) -> Result<Vec<u8>, E> {
        Ok(bytes.to_vec())
    }
}

#[cfg(test)]
mod tests;
