//! Rules for strings: plain text, names from a list, dates, and the addresses of files in S3 and of backends.
//!
//! The patterns use the syntax that ECMA-262, Python and Rust share. They refuse nothing that the parser accepts.

use super::{Result, Rule, object, wrong};
use crate::task::{
    MAX_URL,
    buckets::{BUCKET_LENGTH, is_bucket, is_key},
    json::{Json, LoneSurrogate},
};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use serde_json::{Map, Value, json};
use std::{borrow::Cow, marker::PhantomData, str::FromStr};
use url::Url;

/// Longest name from a list and longest date, in characters.
const MAX_NAME: usize = 100;
/// One character that is not Unicode white space.
pub(super) const VISIBLE: &str =
    concat!(r"[^\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a", r"\u2028\u2029\u202f\u205f\u3000]");

/// A string.
pub(in crate::task) struct Text {
    /// Its longest length.
    pub(in crate::task) max_chars: usize,
    /// Usual values, for the schema.
    pub(in crate::task) examples: &'static [&'static str],
}

/// A string with more than white space.
pub(in crate::task) struct NonBlank {
    /// Its longest length.
    pub(in crate::task) max_chars: usize,
}

/// A name from a list, which `names` returns separated by commas. The default is the type's.
pub(in crate::task) struct OneOf<T> {
    names: fn() -> String,
    named: PhantomData<T>,
}

/// A date with its time and time zone, as RFC 3339 writes it.
pub(in crate::task) struct Timestamp;

/// A string of any length.
pub(super) fn string<'a>(path: &str, value: Json<'a>, expected: &str) -> Result<Cow<'a, str>> {
    match value.string() {
        Some(Ok(text)) => Ok(text),
        Some(Err(LoneSurrogate)) => Err(wrong(path, "a string with half of a surrogate pair", expected)),
        None => Err(wrong(path, value.kind(), expected)),
    }
}

impl Rule for Text {
    type Output<'a> = Cow<'a, str>;

    fn expected(&self) -> String {
        format!("a string of at most {} characters", self.max_chars)
    }

    fn read<'a>(&self, path: &str, value: Json<'a>) -> Result<Cow<'a, str>> {
        let text = string(path, value, &self.expected())?;
        match text.chars().count() {
            length if length > self.max_chars => {
                Err(wrong(path, &format!("a string of {length} characters"), &self.expected()))
            }
            _ => Ok(text),
        }
    }

    fn schema(&self) -> Map<String, Value> {
        let mut schema = object([("type", json!("string")), ("maxLength", json!(self.max_chars))]);
        if !self.examples.is_empty() {
            schema.insert("examples".into(), json!(self.examples));
        }
        schema
    }
}

impl NonBlank {
    fn text(&self) -> Text {
        Text { max_chars: self.max_chars, examples: &[] }
    }
}

impl Rule for NonBlank {
    type Output<'a> = Cow<'a, str>;

    fn expected(&self) -> String {
        self.text().expected()
    }

    fn read<'a>(&self, path: &str, value: Json<'a>) -> Result<Cow<'a, str>> {
        let text = self.text().read(path, value)?;
        let visible = !text.trim().is_empty();
        visible.then_some(text).ok_or_else(|| format!("`{path}` is empty, must have something to see"))
    }

    fn schema(&self) -> Map<String, Value> {
        let mut schema = self.text().schema();
        schema.insert("pattern".into(), json!(VISIBLE));
        schema
    }
}

impl<T> OneOf<T> {
    pub(in crate::task) const fn new(names: fn() -> String) -> Self {
        Self { names, named: PhantomData }
    }
}

impl<T: Default + FromStr + PartialEq> Rule for OneOf<T> {
    type Output<'a> = T;

    fn expected(&self) -> String {
        format!("one of {}", (self.names)())
    }

    fn read(&self, path: &str, value: Json) -> Result<T> {
        let text = Text { max_chars: MAX_NAME, examples: &[] }.read(path, value)?;
        text.parse().map_err(|_| wrong(path, "an unknown name", &self.expected()))
    }

    fn schema(&self) -> Map<String, Value> {
        let names = (self.names)();
        let names: Vec<&str> = names.split(", ").collect();
        let default = names.iter().find(|name| name.parse().ok().is_some_and(|named: T| named == T::default()));
        object([("type", json!("string")), ("enum", json!(names)), ("default", json!(default))])
    }
}

impl Rule for Timestamp {
    type Output<'a> = DateTime;

    fn expected(&self) -> String {
        "a date like 2026-11-25T14:00:00Z".into()
    }

    fn read(&self, path: &str, value: Json) -> Result<DateTime> {
        let text = Text { max_chars: MAX_NAME, examples: &[] }.read(path, value)?;
        let instant = DateTime::from_str(&text, DateTimeFormat::DateTimeWithOffset);
        instant.map_err(|_| wrong(path, "a string of another form", &self.expected()))
    }

    fn schema(&self) -> Map<String, Value> {
        object([("type", json!("string")), ("format", json!("date-time")), ("maxLength", json!(MAX_NAME))])
    }
}

/// Longest address, in characters.
const ADDRESS: Text = Text { max_chars: MAX_URL, examples: &[] };

/// The address of an object in S3, `s3://bucket/key`; becomes bucket and key.
pub(in crate::task) struct S3Url;

/// The base address of the webhooks.
pub(in crate::task) struct WebhookUrl;

impl Rule for S3Url {
    type Output<'a> = (String, String);

    fn expected(&self) -> String {
        "an address of the form s3://bucket/key, with names as S3 allows them".into()
    }

    fn read(&self, path: &str, value: Json) -> Result<(String, String)> {
        let text = ADDRESS.read(path, value)?;
        let parts = text.strip_prefix("s3://").and_then(|rest| rest.split_once('/'));
        let usable = parts.filter(|(bucket, key)| is_bucket(bucket) && is_key(key));
        let usable = usable.map(|(bucket, key)| (bucket.to_string(), key.to_string()));
        usable.ok_or_else(|| wrong(path, "a string of another form", &self.expected()))
    }

    fn schema(&self) -> Map<String, Value> {
        let (min, max) = BUCKET_LENGTH;
        // The first and last character are letters or digits, see the pattern.
        let inside = format!("{{{},{}}}", min - 2, max - 2);
        let pattern = format!(r"^s3://[a-z0-9][a-z0-9.-]{inside}[a-z0-9]/[^\u0000-\u001f\u007f-\u009f]+$");
        let octet = "(25[0-5]|2[0-4][0-9]|1[0-9][0-9]|[1-9]?[0-9])";
        let refused = [
            r"^s3://[^/]*\.\.".to_string(),
            format!(r"^s3://{octet}\.{octet}\.{octet}\.{octet}/"),
            r"^s3://[^/]*/([^\u0000]*/)?\.\.?(/|$)".to_string(),
        ];
        let refused: Vec<Value> = refused.iter().map(|pattern| json!({ "pattern": pattern })).collect();
        let mut schema = ADDRESS.schema();
        // A pattern says nothing of null, which is absent.
        schema.extend(object([("pattern", json!(pattern)), ("not", json!({ "type": "string", "anyOf": refused }))]));
        schema
    }
}

impl Rule for WebhookUrl {
    type Output<'a> = Url;

    fn expected(&self) -> String {
        "an http or https address without user, query or fragment".into()
    }

    fn read(&self, path: &str, value: Json) -> Result<Url> {
        let text = ADDRESS.read(path, value)?;
        base_address(&text).map_err(|what| wrong(path, what, &self.expected()))
    }

    fn schema(&self) -> Map<String, Value> {
        let mut schema = ADDRESS.schema();
        // Characters that end the path, or after which readers disagree about the host.
        let odd = r"?#\\\u0000-\u0020\u007f-\u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000";
        let pattern = format!("^[hH][tT][tT][pP][sS]?://[^/@{odd}]+(/[^{odd}]*)?$");
        schema.insert("pattern".into(), json!(pattern));
        schema
    }
}

/// Parses the base address of a backend.
///
/// # Errors
/// What the text is instead.
pub(in crate::task) fn base_address(text: &str) -> std::result::Result<Url, &'static str> {
    let url = Url::parse(text).map_err(|_| "a string of another form")?;
    let plain = url.username().is_empty() && url.password().is_none() && reads_the_same_everywhere(text);
    let whole = url.query().is_none() && url.fragment().is_none();
    let web = matches!(url.scheme(), "http" | "https") && url.has_host();
    (web && plain && whole).then_some(url).ok_or("another address")
}

/// Whether every URL parser finds the same host. The URL standard drops tabs and line breaks, takes a backslash for a slash, and accepts
/// missing slashes and an empty user.
fn reads_the_same_everywhere(text: &str) -> bool {
    let odd = |character: char| character == '\\' || character.is_whitespace() || character.is_control();
    let Some((scheme, rest)) = text.split_once("://") else { return false };
    let authority = rest.split('/').next().unwrap_or_default();
    // Without this check the first `://` may come later, after the real host.
    let at_once = ["http", "https"].iter().any(|known| scheme.eq_ignore_ascii_case(known));
    at_once && !text.contains(odd) && !authority.is_empty() && !authority.contains('@')
}
