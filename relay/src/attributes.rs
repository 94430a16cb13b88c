//! SQS message attributes: which properties and headers of a message become one, in which order, and with which name
//! and type.
//!
//! A list that SQS would refuse (more than ten, or two of one name) is an error of the option. No message fails because
//! of a value: what SQS does not take as one type goes as another.

use std::{
    fmt::{Display, LowerExp},
    str::FromStr,
    sync::Arc,
};

use lapin::types::{AMQPValue, DecimalValue};
use serde_json::{Map, Value as Json};

use crate::id_source::{MessageParts, header_name};

/// The most attributes that SQS takes in one message.
pub const MAX_ATTRIBUTES: usize = 10;
/// The default of `--attributes`.
pub const DEFAULT: &str = "message-id,correlation-id,timestamp,traceparent";

/// The most digits that SQS takes in a number. With so few it is within SQS' range, too.
const MAX_DIGITS: usize = 38;
/// Tables and arrays that are nested deeper become no attribute: the stack is finite.
const MAX_DEPTH: usize = 64;

/// The attributes to send, as `--attributes` lists them.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Attributes(Vec<AttributeSpec>);

/// One attribute of one message.
#[derive(Debug, Clone, PartialEq)]
pub struct Attribute {
    /// A name that SQS takes.
    pub name: Arc<str>,
    /// Never empty.
    pub value: AttributeValue,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct AttributeSpec {
    name: Arc<str>,
    source: AttributeSource,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum AttributeSource {
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
    pub fn of(&self, parts: &MessageParts<'_>) -> Vec<Attribute> {
        let attribute =
            |item: &AttributeSpec| Some(Attribute { name: Arc::clone(&item.name), value: item.source.value(parts)? });
        self.0.iter().filter_map(attribute).collect()
    }
}

impl Attribute {
    /// The size in bytes as SQS counts it: name, type and value.
    pub fn size(&self) -> usize {
        self.name.len() + self.value.type_name().len() + self.value.size()
    }
}

impl FromStr for Attributes {
    type Err = String;

    fn from_str(list: &str) -> Result<Self, String> {
        if list.trim().is_empty() {
            return Ok(Self::default());
        }
        let items: Vec<AttributeSpec> = list.split(',').map(|item| item.trim().parse()).collect::<Result<_, _>>()?;
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

impl FromStr for AttributeSpec {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let source = match text {
            "message-id" => AttributeSource::MessageId,
            "correlation-id" => AttributeSource::CorrelationId,
            "timestamp" => AttributeSource::Timestamp,
            "routing-key" => AttributeSource::RoutingKey,
            "exchange" => AttributeSource::Exchange,
            "type" => AttributeSource::Type,
            "app-id" => AttributeSource::AppId,
            "content-type" => AttributeSource::ContentType,
            "priority" => AttributeSource::Priority,
            "traceparent" | "tracestate" => AttributeSource::Header(text.to_owned()),
            _ => {
                let name = text.strip_prefix("header:").ok_or_else(|| {
                    format!(
                        "{text:?} is none of message-id, correlation-id, timestamp, traceparent, tracestate, \
                         routing-key, exchange, type, app-id, content-type, priority, header:NAME"
                    )
                })?;
                let name = header_name(name)?;
                return Ok(Self { name: legal_name(&name).into(), source: AttributeSource::Header(name) });
            }
        };
        Ok(Self { name: text.replace('-', "_").into(), source })
    }
}

impl AttributeSource {
    fn value(&self, parts: &MessageParts<'_>) -> Option<AttributeValue> {
        let properties = parts.properties;
        let short = match self {
            Self::MessageId => properties.message_id(),
            Self::CorrelationId => properties.correlation_id(),
            Self::Type => properties.kind(),
            Self::AppId => properties.app_id(),
            Self::ContentType => properties.content_type(),
            Self::RoutingKey => return AttributeValue::text(parts.routing_key),
            Self::Exchange => return AttributeValue::text(parts.exchange),
            Self::Timestamp => return Some(AttributeValue::Number(properties.timestamp().as_ref()?.to_string())),
            Self::Priority => return Some(AttributeValue::Number(properties.priority().as_ref()?.to_string())),
            Self::Header(name) => {
                return AttributeValue::of(properties.headers().as_ref()?.inner().get(name.as_str())?);
            }
        };
        AttributeValue::text(short.as_ref()?.as_str())
    }
}

/// An attribute name that SQS takes: ASCII letters, digits, `_`, `-` and single dots inside, without a reserved prefix.
/// An AMQP name is never too long.
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

/// The value of an attribute.
#[derive(Debug, Clone, PartialEq)]
pub enum AttributeValue {
    /// Text with characters that SQS takes.
    Text(String),
    /// A number in decimal digits.
    Number(String),
    /// Anything else.
    Binary(Vec<u8>),
}

impl AttributeValue {
    /// A text, as bytes if SQS does not take its characters; `None` if it is empty.
    pub fn text(text: &str) -> Option<Self> {
        Self::bytes(text.as_bytes())
    }

    /// Any value of a header; `None` for void and empty ones.
    pub fn of(value: &AMQPValue) -> Option<Self> {
        match value {
            AMQPValue::Boolean(flag) => Self::text(&flag.to_string()),
            AMQPValue::ShortShortInt(number) => Some(Self::Number(number.to_string())),
            AMQPValue::ShortShortUInt(number) => Some(Self::Number(number.to_string())),
            AMQPValue::ShortInt(number) => Some(Self::Number(number.to_string())),
            AMQPValue::ShortUInt(number) => Some(Self::Number(number.to_string())),
            AMQPValue::LongInt(number) => Some(Self::Number(number.to_string())),
            AMQPValue::LongUInt(number) => Some(Self::Number(number.to_string())),
            AMQPValue::LongLongInt(number) => Some(Self::Number(number.to_string())),
            AMQPValue::Timestamp(seconds) => Some(Self::Number(seconds.to_string())),
            AMQPValue::Float(number) => Some(float(*number, number.is_finite(), *number == 0.0)),
            AMQPValue::Double(number) => Some(float(*number, number.is_finite(), *number == 0.0)),
            AMQPValue::DecimalValue(number) => Some(decimal(*number)),
            AMQPValue::ShortString(text) => Self::text(text.as_str()),
            AMQPValue::LongString(text) => Self::bytes(text.as_bytes()),
            AMQPValue::ByteArray(bytes) => (!bytes.is_empty()).then(|| Self::Binary(bytes.as_slice().to_vec())),
            AMQPValue::FieldArray(_) | AMQPValue::FieldTable(_) => Self::text(&json(value, 0)?.to_string()),
            AMQPValue::Void => None,
        }
    }

    /// The name of the type in SQS.
    pub fn type_name(&self) -> &'static str {
        match self {
            Self::Text(_) => "String",
            Self::Number(_) => "Number",
            Self::Binary(_) => "Binary",
        }
    }

    /// The length in bytes.
    pub fn size(&self) -> usize {
        match self {
            Self::Text(text) | Self::Number(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    fn bytes(bytes: &[u8]) -> Option<Self> {
        match std::str::from_utf8(bytes) {
            Ok("") => None,
            Ok(text) if text.chars().all(is_legal) => Some(Self::Text(text.to_owned())),
            _ => Some(Self::Binary(bytes.to_vec())),
        }
    }
}

fn float(number: impl Display + LowerExp, finite: bool, zero: bool) -> AttributeValue {
    if zero {
        // The receiver's client library may not know a negative zero.
        return AttributeValue::Number("0".to_owned());
    }
    let plain = number.to_string();
    if finite && digits(&plain) <= MAX_DIGITS {
        AttributeValue::Number(plain)
    } else {
        AttributeValue::Text(format!("{number:e}"))
    }
}

fn decimal(number: DecimalValue) -> AttributeValue {
    let DecimalValue { scale, value } = number;
    let scale = usize::from(scale);
    if scale >= MAX_DIGITS {
        return AttributeValue::Text(format!("{value}e-{scale}"));
    }
    let mut plain = format!("{value:0width$}", width = scale + 1);
    if scale > 0 {
        plain.insert(plain.len() - scale, '.');
    }
    AttributeValue::Number(plain)
}

fn digits(plain: &str) -> usize {
    plain.bytes().filter(u8::is_ascii_digit).count()
}

/// A value inside a table or array, as JSON, which has no bytes and no NaN.
fn json(value: &AMQPValue, depth: usize) -> Option<Json> {
    if depth > MAX_DEPTH {
        return None;
    }
    Some(match value {
        AMQPValue::Boolean(flag) => Json::from(*flag),
        AMQPValue::ShortShortInt(number) => Json::from(*number),
        AMQPValue::ShortShortUInt(number) => Json::from(*number),
        AMQPValue::ShortInt(number) => Json::from(*number),
        AMQPValue::ShortUInt(number) => Json::from(*number),
        AMQPValue::LongInt(number) => Json::from(*number),
        AMQPValue::LongUInt(number) => Json::from(*number),
        AMQPValue::LongLongInt(number) => Json::from(*number),
        AMQPValue::Timestamp(seconds) => Json::from(*seconds),
        AMQPValue::Float(number) => Json::from(*number),
        AMQPValue::Double(number) => Json::from(*number),
        AMQPValue::DecimalValue(number) => match decimal(*number) {
            AttributeValue::Number(text) | AttributeValue::Text(text) => Json::from(text),
            AttributeValue::Binary(_) => Json::Null,
        },
        AMQPValue::ShortString(text) => Json::from(text.as_str()),
        AMQPValue::LongString(text) => Json::from(String::from_utf8_lossy(text.as_bytes())),
        AMQPValue::ByteArray(bytes) => Json::from(String::from_utf8_lossy(bytes.as_slice())),
        AMQPValue::FieldArray(items) => {
            Json::Array(items.as_slice().iter().map(|item| json(item, depth + 1)).collect::<Option<_>>()?)
        }
        AMQPValue::FieldTable(table) => {
            let field =
                |(name, item): (&lapin::types::ShortString, _)| Some((name.to_string(), json(item, depth + 1)?));
            Json::Object(table.inner().iter().map(field).collect::<Option<Map<_, _>>>()?)
        }
        AMQPValue::Void => Json::Null,
    })
}
/// The characters that SQS documents: `#x9 #xA #xD #x20-#xD7FF #xE000-#xFFFD #x10000-#x10FFFF`.
pub(crate) fn is_legal(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..)
}

#[cfg(test)]
mod tests;
