//! The fields of a JSON object, and the rules for their values. A rule parses a value and describes itself as JSON Schema from the same
//! limits, so that parser and schema agree. What JSON Schema cannot express is in the field's description and in
//! `tests/docs/test_schemas.py`.
//!
//! An error names the field, the kind of value it holds and what is allowed. It never shows a string: prompts and names must not reach a log.

mod blocks;
mod list;
mod text;

pub(super) use blocks::Blocks;
pub(super) use list::{Joined, Object, ObjectList, Tags};
pub(super) use text::{NonBlank, OneOf, S3Url, Text, Timestamp, WebhookUrl, base_address};

use super::json::{Json, Member, shown};
use serde_json::{Map, Value, json};

pub(super) type Result<T> = std::result::Result<T, String>;

/// The known fields of one JSON object.
pub(super) struct Fields<'a> {
    members: Vec<Member<'a>>,
    /// The prefix of the fields' paths in the message, like `loras[0].`.
    prefix: String,
}

impl<'a> Fields<'a> {
    /// Of the message itself.
    pub(super) fn new(members: Vec<Member<'a>>) -> Self {
        Self { members, prefix: String::new() }
    }

    /// Of the object in the field at `path`; `known` are its fields.
    pub(super) fn of(value: Json<'a>, path: &str, known: &'static [&'static dyn Field]) -> Result<Self> {
        let members = value.members(known).ok_or_else(|| wrong(path, value.kind(), "an object"))?;
        Ok(Self { members, prefix: format!("{path}.") })
    }

    /// A field's value; none if it is absent or `null`.
    pub(super) fn get(&self, name: &str) -> Option<Json<'a>> {
        let member = self.members.iter().find(|(known, _)| *known == name);
        member.map(|(_, value)| *value).filter(|value| !value.is_null())
    }

    /// The path of a field in the message.
    pub(super) fn path(&self, name: &str) -> String {
        format!("{}{name}", self.prefix)
    }
}

/// An error: what a field is, and what it must be.
pub(super) fn wrong(path: &str, what: &str, expected: &str) -> String {
    format!("`{path}` is {what}, must be {expected}")
}

/// The rule of a value: its type and its limits.
pub(super) trait Rule {
    /// The parsed value.
    type Output<'a>;

    /// What is allowed, for an error.
    fn expected(&self) -> String;

    /// Parses the value of the field at `path`.
    fn read<'a>(&self, path: &str, value: Json<'a>) -> Result<Self::Output<'a>>;

    /// What is allowed, as JSON Schema.
    fn schema(&self) -> Map<String, Value>;
}

/// A field, as the schema describes it.
pub(super) trait Field {
    fn name(&self) -> &'static str;
    fn is_required(&self) -> bool;
    fn schema(&self) -> Value;
}

/// A required field.
pub(super) struct Required<R> {
    name: &'static str,
    about: &'static str,
    rule: R,
}

/// An optional field.
pub(super) struct Optional<R> {
    name: &'static str,
    about: &'static str,
    rule: R,
}

/// An optional field with a default.
pub(super) struct Defaulted<R, T> {
    field: Optional<R>,
    default: T,
}

impl<R: Rule> Required<R> {
    pub(super) const fn new(name: &'static str, about: &'static str, rule: R) -> Self {
        Self { name, about, rule }
    }

    pub(super) fn read<'a>(&self, fields: &Fields<'a>) -> Result<R::Output<'a>> {
        let path = fields.path(self.name);
        let missing = || format!("`{path}` is missing, must be {}", self.rule.expected());
        self.rule.read(&path, fields.get(self.name).ok_or_else(missing)?)
    }
}

impl<R: Rule> Optional<R> {
    pub(super) const fn new(name: &'static str, about: &'static str, rule: R) -> Self {
        Self { name, about, rule }
    }

    pub(super) fn read<'a>(&self, fields: &Fields<'a>) -> Result<Option<R::Output<'a>>> {
        let read = |value| self.rule.read(&fields.path(self.name), value);
        fields.get(self.name).map(read).transpose()
    }
}

impl<R: for<'a> Rule<Output<'a> = T>, T: Copy> Defaulted<R, T> {
    pub(super) const fn new(name: &'static str, about: &'static str, rule: R, default: T) -> Self {
        Self { field: Optional { name, about, rule }, default }
    }

    pub(super) fn read(&self, fields: &Fields) -> Result<T> {
        Ok(self.field.read(fields)?.unwrap_or(self.default))
    }
}

impl<R: Rule> Field for Required<R> {
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

impl<R: Rule> Field for Optional<R> {
    fn name(&self) -> &'static str {
        self.name
    }

    fn is_required(&self) -> bool {
        false
    }

    fn schema(&self) -> Value {
        let mut schema = self.rule.schema();
        // `null` means absent.
        if let Some(kind) = schema.remove("type") {
            schema.insert("type".into(), json!([kind, "null"]));
        }
        if let Some(Value::Array(names)) = schema.get_mut("enum") {
            names.push(Value::Null);
        }
        described(self.about, schema)
    }
}

impl<R: Rule, T: serde::Serialize> Field for Defaulted<R, T> {
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

/// An integer within limits, written without a fraction or exponent.
pub(super) struct Integer {
    pub(super) min: i128,
    pub(super) max: i128,
}

/// An integer within limits that is a multiple of another, written as [`Integer`].
pub(super) struct Multiple {
    pub(super) of: i128,
    pub(super) min: i128,
    pub(super) max: i128,
}

/// A number within limits.
pub(super) struct Number {
    pub(super) min: f64,
    pub(super) max: f64,
}

/// A boolean.
pub(super) struct Boolean;

impl Rule for Integer {
    type Output<'a> = i128;

    fn expected(&self) -> String {
        format!("an integer from {} to {}", self.min, self.max)
    }

    fn read(&self, path: &str, value: Json) -> Result<i128> {
        let written = value.integer().ok_or_else(|| wrong(path, value.kind(), &self.expected()))?;
        let inside = written.parse().ok().filter(|number| (self.min..=self.max).contains(number));
        inside.ok_or_else(|| wrong(path, &shown(written), &self.expected()))
    }

    fn schema(&self) -> Map<String, Value> {
        object([("type", json!("integer")), ("minimum", json!(self.min)), ("maximum", json!(self.max))])
    }
}

impl Rule for Multiple {
    type Output<'a> = i128;

    fn expected(&self) -> String {
        format!("a multiple of {} from {} to {}", self.of, self.min, self.max)
    }

    fn read(&self, path: &str, value: Json) -> Result<i128> {
        let written = value.integer().ok_or_else(|| wrong(path, value.kind(), &self.expected()))?;
        let fits = |number: &i128| (self.min..=self.max).contains(number) && number % self.of == 0;
        written.parse().ok().filter(fits).ok_or_else(|| wrong(path, &shown(written), &self.expected()))
    }

    fn schema(&self) -> Map<String, Value> {
        let mut schema = Integer { min: self.min, max: self.max }.schema();
        schema.insert("multipleOf".into(), json!(self.of));
        schema
    }
}

impl Rule for Number {
    type Output<'a> = f64;

    fn expected(&self) -> String {
        format!("a number from {} to {}", self.min, self.max)
    }

    fn read(&self, path: &str, value: Json) -> Result<f64> {
        let written = value.number().ok_or_else(|| wrong(path, value.kind(), &self.expected()))?;
        // A number too large for f64 becomes infinite, which is outside.
        let inside = written.parse().ok().filter(|number| (self.min..=self.max).contains(number));
        inside.ok_or_else(|| wrong(path, &shown(written), &self.expected()))
    }

    fn schema(&self) -> Map<String, Value> {
        object([("type", json!("number")), ("minimum", json!(self.min)), ("maximum", json!(self.max))])
    }
}

impl Rule for Boolean {
    type Output<'a> = bool;

    fn expected(&self) -> String {
        "a boolean".into()
    }

    fn read(&self, path: &str, value: Json) -> Result<bool> {
        value.boolean().ok_or_else(|| wrong(path, value.kind(), "a boolean"))
    }

    fn schema(&self) -> Map<String, Value> {
        object([("type", json!("boolean"))])
    }
}

/// The schema of an object with these fields.
pub(super) fn object_of(fields: &[&dyn Field]) -> Map<String, Value> {
    let required: Vec<&str> = fields.iter().filter(|field| field.is_required()).map(|field| field.name()).collect();
    let properties: Map<String, Value> =
        fields.iter().map(|field| (field.name().to_string(), field.schema())).collect();
    let mut object = Map::from_iter([("type".to_string(), json!("object"))]);
    if !required.is_empty() {
        object.insert("required".into(), json!(required));
    }
    object.insert("properties".into(), Value::Object(properties));
    object
}

/// A schema with its description first, for human readers.
fn described(about: &str, rules: Map<String, Value>) -> Value {
    let about = [("description".to_string(), json!(about.trim()))];
    Value::Object(about.into_iter().chain(rules).collect())
}

/// A JSON object from pairs.
fn object<const N: usize>(pairs: [(&str, Value); N]) -> Map<String, Value> {
    pairs.into_iter().map(|(key, value)| (key.to_string(), value)).collect()
}
