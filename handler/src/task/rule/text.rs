//! Strings: plain ones, names out of a list, dates.

use super::{Rule, object};
use crate::task::{
    fields::{Result, wrong},
    json::{Json, LoneSurrogate},
};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use serde_json::{Map, Value, json};
use std::{borrow::Cow, marker::PhantomData, str::FromStr};

/// Longest name out of a list and longest date, in characters.
const MAX_NAME: usize = 100;
/// One character that is no white space as Unicode has it, in the syntax that ECMA-262, Python and Rust share.
pub(super) const VISIBLE: &str =
    concat!(r"[^\u0009-\u000d\u0020\u0085\u00a0\u1680\u2000-\u200a", r"\u2028\u2029\u202f\u205f\u3000]");

/// A string.
pub(in crate::task) struct Text {
    /// In characters.
    pub(in crate::task) most: usize,
    /// What is usual.
    pub(in crate::task) examples: &'static [&'static str],
}

/// A string of more than white space.
pub(in crate::task) struct Visible {
    /// In characters.
    pub(in crate::task) most: usize,
}

/// A name out of a list, which `names` gives with commas; the default is that of the type.
pub(in crate::task) struct Name<T> {
    names: fn() -> String,
    named: PhantomData<T>,
}

/// A date with its time and time zone, as RFC 3339 writes it.
pub(in crate::task) struct Instant;

/// A string of any length.
pub(super) fn string<'a>(place: &str, value: Json<'a>, wanted: &str) -> Result<Cow<'a, str>> {
    match value.string() {
        Some(Ok(text)) => Ok(text),
        Some(Err(LoneSurrogate)) => Err(wrong(place, "a string with half of a surrogate pair", wanted)),
        None => Err(wrong(place, value.kind(), wanted)),
    }
}

impl Rule for Text {
    type Held<'a> = Cow<'a, str>;

    fn wanted(&self) -> String {
        format!("a string of at most {} characters", self.most)
    }

    fn read<'a>(&self, place: &str, value: Json<'a>) -> Result<Cow<'a, str>> {
        let text = string(place, value, &self.wanted())?;
        match text.chars().count() {
            length if length > self.most => {
                Err(wrong(place, &format!("a string of {length} characters"), &self.wanted()))
            }
            _ => Ok(text),
        }
    }

    fn schema(&self) -> Map<String, Value> {
        let mut schema = object([("type", json!("string")), ("maxLength", json!(self.most))]);
        if !self.examples.is_empty() {
            schema.insert("examples".into(), json!(self.examples));
        }
        schema
    }
}

impl Visible {
    fn text(&self) -> Text {
        Text { most: self.most, examples: &[] }
    }
}

impl Rule for Visible {
    type Held<'a> = Cow<'a, str>;

    fn wanted(&self) -> String {
        self.text().wanted()
    }

    fn read<'a>(&self, place: &str, value: Json<'a>) -> Result<Cow<'a, str>> {
        let text = self.text().read(place, value)?;
        let visible = !text.trim().is_empty();
        visible.then_some(text).ok_or_else(|| format!("`{place}` is empty, must have something to see"))
    }

    fn schema(&self) -> Map<String, Value> {
        let mut schema = self.text().schema();
        schema.insert("pattern".into(), json!(VISIBLE));
        schema
    }
}

impl<T> Name<T> {
    pub(in crate::task) const fn of(names: fn() -> String) -> Self {
        Self { names, named: PhantomData }
    }
}

impl<T: Default + FromStr + PartialEq> Rule for Name<T> {
    type Held<'a> = T;

    fn wanted(&self) -> String {
        format!("one of {}", (self.names)())
    }

    fn read(&self, place: &str, value: Json) -> Result<T> {
        let text = Text { most: MAX_NAME, examples: &[] }.read(place, value)?;
        text.parse().map_err(|_| wrong(place, "an unknown name", &self.wanted()))
    }

    fn schema(&self) -> Map<String, Value> {
        let names = (self.names)();
        let names: Vec<&str> = names.split(", ").collect();
        let default = names.iter().find(|name| name.parse().ok().is_some_and(|named: T| named == T::default()));
        object([("type", json!("string")), ("enum", json!(names)), ("default", json!(default))])
    }
}

impl Rule for Instant {
    type Held<'a> = DateTime;

    fn wanted(&self) -> String {
        "a date like 2026-11-25T14:00:00Z".into()
    }

    fn read(&self, place: &str, value: Json) -> Result<DateTime> {
        let text = Text { most: MAX_NAME, examples: &[] }.read(place, value)?;
        let instant = DateTime::from_str(&text, DateTimeFormat::DateTimeWithOffset);
        instant.map_err(|_| wrong(place, "a string of another form", &self.wanted()))
    }

    fn schema(&self) -> Map<String, Value> {
        object([("type", json!("string")), ("format", json!("date-time")), ("maxLength", json!(MAX_NAME))])
    }
}
