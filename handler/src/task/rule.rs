//! What a field may hold. A rule reads a value and says the same as JSON Schema, from the same limits, so that the
//! parser and the published schema cannot part. What JSON Schema cannot say stands in the field's description, and in
//! the table of `schema::tests`.

mod address;
mod list;
mod number;
mod text;

pub(super) use address::{Lora, Webhook, base_address};
pub(super) use list::{Object, Objects, Tags};
pub(super) use number::{Boolean, Integer, Number};
pub(super) use text::{Instant, Name, Text, Visible};

use super::{
    fields::{Fields, Result},
    json::Json,
};
use serde_json::{Map, Value, json};

/// A kind of value with its limits.
pub(super) trait Rule {
    /// What it becomes.
    type Held<'a>;

    /// The limits, in words.
    fn wanted(&self) -> String;

    /// Reads a value; `place` is where it stands.
    fn read<'a>(&self, place: &str, value: Json<'a>) -> Result<Self::Held<'a>>;

    /// The limits, as JSON Schema.
    fn schema(&self) -> Map<String, Value>;
}

/// A field as the schema shows it.
pub(super) trait Described {
    fn name(&self) -> &'static str;
    fn is_required(&self) -> bool;
    fn schema(&self) -> Value;
}

/// A field that must be there.
pub(super) struct Required<R> {
    name: &'static str,
    about: &'static str,
    rule: R,
}

/// A field that may be absent.
pub(super) struct Optional<R> {
    name: &'static str,
    about: &'static str,
    rule: R,
}

/// A field with a value for when it is absent.
pub(super) struct Defaulted<R, T> {
    field: Optional<R>,
    default: T,
}

impl<R: Rule> Required<R> {
    pub(super) const fn new(name: &'static str, about: &'static str, rule: R) -> Self {
        Self { name, about, rule }
    }

    pub(super) fn read<'a>(&self, fields: &Fields<'a>) -> Result<R::Held<'a>> {
        let place = fields.place(self.name);
        let missing = || format!("`{place}` is missing, must be {}", self.rule.wanted());
        self.rule.read(&place, fields.get(self.name).ok_or_else(missing)?)
    }
}

impl<R: Rule> Optional<R> {
    pub(super) const fn new(name: &'static str, about: &'static str, rule: R) -> Self {
        Self { name, about, rule }
    }

    pub(super) fn read<'a>(&self, fields: &Fields<'a>) -> Result<Option<R::Held<'a>>> {
        let read = |value| self.rule.read(&fields.place(self.name), value);
        fields.get(self.name).map(read).transpose()
    }
}

impl<R: for<'a> Rule<Held<'a> = T>, T: Copy> Defaulted<R, T> {
    pub(super) const fn new(name: &'static str, about: &'static str, rule: R, default: T) -> Self {
        Self { field: Optional { name, about, rule }, default }
    }

    pub(super) fn read(&self, fields: &Fields) -> Result<T> {
        Ok(self.field.read(fields)?.unwrap_or(self.default))
    }
}

impl<R: Rule> Described for Required<R> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_required(&self) -> bool {
        true
    }

    fn schema(&self) -> Value {
        described(self.about, self.rule.schema())
    }
}

impl<R: Rule> Described for Optional<R> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_required(&self) -> bool {
        false
    }

    fn schema(&self) -> Value {
        let mut schema = self.rule.schema();
        // `null` is absent.
        if let Some(kind) = schema.remove("type") {
            schema.insert("type".into(), json!([kind, "null"]));
        }
        if let Some(Value::Array(names)) = schema.get_mut("enum") {
            names.push(Value::Null);
        }
        described(self.about, schema)
    }
}

impl<R: Rule, T: serde::Serialize> Described for Defaulted<R, T> {
    fn name(&self) -> &'static str {
        self.field.name
    }

    fn is_required(&self) -> bool {
        false
    }

    fn schema(&self) -> Value {
        let mut schema = self.field.schema();
        schema["default"] = json!(self.default);
        schema
    }
}

/// The description first, as people read it.
fn described(about: &str, rules: Map<String, Value>) -> Value {
    let about = [("description".to_string(), json!(about.trim()))];
    Value::Object(about.into_iter().chain(rules).collect())
}

/// A JSON object of pairs.
fn object<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    pairs.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}
