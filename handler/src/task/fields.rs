//! Typed access to the fields of a JSON object. An error says which field, what kind of value it holds and what is allowed;
//! never the value itself, since prompts and names must not reach a log.

use crate::buckets::{is_bucket, is_key};

use super::{LoraRef, MAX_PROMPT, MAX_TAGS, MAX_URL};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use serde_json::{Map, Value};
use std::str::FromStr;
use url::Url;

pub(super) type Result<T> = std::result::Result<T, String>;

/// One JSON object and where it stands in the message.
pub(super) struct Fields<'a> {
    map: &'a Map<String, Value>,
    place: String,
}

impl<'a> Fields<'a> {
    pub(super) fn new(map: &'a Map<String, Value>) -> Self {
        Self { map, place: String::new() }
    }

    /// An identifier: an integer from 0 up.
    pub(super) fn id(&self, name: &str) -> Result<i64> {
        self.integer(name, None, 0, i128::from(i64::MAX)).map(|id| id as i64)
    }

    /// An integer within limits; required if there is no default.
    pub(super) fn integer(&self, name: &str, default: Option<i128>, least: i128, most: i128) -> Result<i128> {
        let wanted = format!("an integer from {least} to {most}");
        let value = match (self.get(name), default) {
            (Some(value), _) => value,
            (None, Some(default)) => return Ok(default),
            (None, None) => return Err(self.missing(name, &wanted)),
        };
        let number = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
        let number = number.ok_or_else(|| self.wrong(name, kind(value), &wanted))?;
        let inside = (least..=most).contains(&number);
        inside.then_some(number).ok_or_else(|| self.wrong(name, &number.to_string(), &wanted))
    }

    /// An optional number within limits.
    pub(super) fn number(&self, name: &str, default: f64, least: f64, most: f64) -> Result<f64> {
        let wanted = format!("a number from {least} to {most}");
        let Some(value) = self.get(name) else { return Ok(default) };
        let number = value.as_f64().ok_or_else(|| self.wrong(name, kind(value), &wanted))?;
        let inside = (least..=most).contains(&number);
        inside.then_some(number).ok_or_else(|| self.wrong(name, &number.to_string(), &wanted))
    }

    /// A required string of at most `most` characters.
    pub(super) fn text(&self, name: &str, most: usize) -> Result<&'a str> {
        let wanted = format!("a string of at most {most} characters");
        self.optional_text(name, most)?.ok_or_else(|| self.missing(name, &wanted))
    }

    /// An optional string of at most `most` characters.
    pub(super) fn optional_text(&self, name: &str, most: usize) -> Result<Option<&'a str>> {
        let wanted = format!("a string of at most {most} characters");
        let Some(value) = self.get(name) else { return Ok(None) };
        let text = value.as_str().ok_or_else(|| self.wrong(name, kind(value), &wanted))?;
        match text.chars().count() {
            length if length > most => Err(self.wrong(name, &format!("a string of {length} characters"), &wanted)),
            _ => Ok(Some(text)),
        }
    }

    /// An optional boolean.
    pub(super) fn boolean(&self, name: &str) -> Result<Option<bool>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        value.as_bool().map(Some).ok_or_else(|| self.wrong(name, kind(value), "a boolean"))
    }

    /// An optional date with its time and time zone, as RFC 3339 writes it.
    pub(super) fn instant(&self, name: &str) -> Result<Option<DateTime>> {
        let wanted = "a date like 2026-11-25T14:00:00Z";
        let Some(text) = self.optional_text(name, 100)? else { return Ok(None) };
        let instant = DateTime::from_str(text, DateTimeFormat::DateTimeWithOffset);
        instant.map(Some).map_err(|_| self.wrong(name, "another string", wanted))
    }

    /// An optional name out of `known`, a list for the error; absent is the default.
    pub(super) fn name<T: Default + FromStr>(&self, name: &str, known: &str) -> Result<T> {
        let Some(text) = self.optional_text(name, 100)? else { return Ok(T::default()) };
        text.parse().map_err(|_| self.wrong(name, "an unknown name", &format!("one of {known}")))
    }

    /// The prompt: strings joined by one space.
    pub(super) fn tags(&self, name: &str) -> Result<String> {
        let wanted = format!("an array of 1 to {MAX_TAGS} strings");
        let value = self.get(name).ok_or_else(|| self.missing(name, &wanted))?;
        let tags = value.as_array().ok_or_else(|| self.wrong(name, kind(value), &wanted))?;
        if tags.is_empty() || tags.len() > MAX_TAGS {
            return Err(self.wrong(name, &format!("an array of {}", tags.len()), &wanted));
        }
        let mut words = Vec::with_capacity(tags.len());
        for (index, tag) in tags.iter().enumerate() {
            let name = format!("{name}[{index}]");
            let tag = tag.as_str().ok_or_else(|| self.wrong(&name, kind(tag), "a string"))?;
            if tag.trim().is_empty() {
                return Err(self.wrong(&name, "an empty string", "a tag"));
            }
            words.push(tag);
        }
        let prompt = words.join(" ");
        match prompt.chars().count() {
            length if length > MAX_PROMPT => {
                let limit = format!("at most {MAX_PROMPT} characters in all");
                Err(self.wrong(name, &format!("tags of {length} characters"), &limit))
            }
            _ => Ok(prompt),
        }
    }

    /// The address of a LoRA, `s3://bucket/key`.
    pub(super) fn lora_url(&self, name: &str, scale: f64) -> Result<LoraRef> {
        let wanted = "an address of the form s3://bucket/key, with names as S3 allows them";
        let text = self.text(name, MAX_URL)?;
        let parts = text.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
        match parts {
            Some((bucket, key)) if is_bucket(bucket) && is_key(key) => {
                Ok(LoraRef { bucket: bucket.to_string(), key: key.to_string(), scale })
            }
            _ => Err(self.wrong(name, "another string", wanted)),
        }
    }

    /// The base address of the webhooks.
    pub(super) fn webhook_url(&self, name: &str) -> Result<Url> {
        let wanted = "an http or https address without user, query or fragment";
        let text = self.text(name, MAX_URL)?;
        let url = Url::parse(text).map_err(|_| self.wrong(name, "another string", wanted))?;
        let plain = url.username().is_empty() && url.password().is_none() && reads_the_same_everywhere(text);
        let whole = url.query().is_none() && url.fragment().is_none();
        let web = matches!(url.scheme(), "http" | "https") && url.has_host();
        (web && plain && whole).then_some(url).ok_or_else(|| self.wrong(name, "another address", wanted))
    }

    /// An optional array of objects.
    pub(super) fn objects(&self, name: &str, most: usize) -> Result<Vec<Fields<'a>>> {
        let wanted = format!("an array of at most {most} objects");
        let Some(value) = self.get(name) else { return Ok(Vec::new()) };
        let array = value.as_array().ok_or_else(|| self.wrong(name, kind(value), &wanted))?;
        if array.len() > most {
            return Err(self.wrong(name, &format!("an array of {}", array.len()), &wanted));
        }
        let object = |(index, value): (usize, &'a Value)| {
            let place = format!("{}{name}[{index}]", self.place);
            let map = value.as_object().ok_or_else(|| format!("`{place}` is {}, must be an object", kind(value)))?;
            Ok(Fields { map, place: format!("{place}.") })
        };
        array.iter().enumerate().map(object).collect()
    }

    /// An optional object.
    pub(super) fn object(&self, name: &str) -> Result<Option<Fields<'a>>> {
        let Some(value) = self.get(name) else { return Ok(None) };
        let map = value.as_object().ok_or_else(|| self.wrong(name, kind(value), "an object"))?;
        Ok(Some(Fields { map, place: format!("{}{name}.", self.place) }))
    }

    /// Whether the field is there and not `null`.
    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    fn get(&self, name: &str) -> Option<&'a Value> {
        self.map.get(name).filter(|value| !value.is_null())
    }

    fn missing(&self, name: &str, wanted: &str) -> String {
        format!("`{}{name}` is missing, must be {wanted}", self.place)
    }

    fn wrong(&self, name: &str, what: &str, wanted: &str) -> String {
        format!("`{}{name}` is {what}, must be {wanted}", self.place)
    }
}

/// Whether others would take the same part of an address for its host. The URL standard drops tabs and line breaks, takes a
/// backslash for a slash, and forgives missing slashes and an empty user.
fn reads_the_same_everywhere(text: &str) -> bool {
    let odd = |character: char| character == '\\' || character.is_whitespace() || character.is_control();
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    // Else the slashes stand later, and what is before them is the host.
    let at_once = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    at_once && !text.contains(odd) && !authority.is_empty() && !authority.contains('@')
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
