//! One JSON object of a message and where it stands there. An error says which field, what kind of value it holds and
//! what is allowed; never the value itself, since prompts and names must not reach a log.

use serde_json::{Map, Value};

pub(super) type Result<T> = std::result::Result<T, String>;

/// One JSON object and where it stands in the message.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    place: String,
}

impl<'a> Fields<'a> {
    /// The message itself.
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, place: String::new() }
    }

    /// The object that a field holds; `place` is the field's own.
    pub(super) fn of(value: &'a Value, place: &str) -> Result<Self> {
        let map = value.as_object().ok_or_else(|| wrong(place, kind(value), "an object"))?;
        Ok(Self { map, place: format!("{place}.") })
    }

    /// A field, unless it is absent; `null` is absent.
    pub(super) fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    /// Where a field stands in the message.
    pub(super) fn place(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }
}

/// What a field is and what it must be.
pub(super) fn wrong(place: &str, what: &str, wanted: &str) -> String {
    format!("`{place}` is {what}, must be {wanted}")
}

/// What a JSON value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(number) if number.is_f64() => "a fraction",
        Value::Number(_) => "an integer",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}
