//! Numbers and booleans.

use super::{Rule, object};
use crate::task::{
    fields::{Result, wrong},
    json::{Json, shown},
};
use serde_json::{Map, Value, json};

/// An integer within limits, written without fraction and exponent.
pub(in crate::task) struct Integer {
    pub(in crate::task) least: i128,
    pub(in crate::task) most: i128,
}

/// A number within limits.
pub(in crate::task) struct Number {
    pub(in crate::task) least: f64,
    pub(in crate::task) most: f64,
}

/// A boolean.
pub(in crate::task) struct Boolean;

impl Rule for Integer {
    type Held<'a> = i128;

    fn wanted(&self) -> String {
        format!("an integer from {} to {}", self.least, self.most)
    }

    fn read(&self, place: &str, value: Json) -> Result<i128> {
        let written = value.integer().ok_or_else(|| wrong(place, value.kind(), &self.wanted()))?;
        let inside = written.parse().ok().filter(|number| (self.least..=self.most).contains(number));
        inside.ok_or_else(|| wrong(place, &shown(written), &self.wanted()))
    }

    fn schema(&self) -> Map<String, Value> {
        object([("type", json!("integer")), ("minimum", json!(self.least)), ("maximum", json!(self.most))])
    }
}

impl Rule for Number {
    type Held<'a> = f64;

    fn wanted(&self) -> String {
        format!("a number from {} to {}", self.least, self.most)
    }

    fn read(&self, place: &str, value: Json) -> Result<f64> {
        let written = value.number().ok_or_else(|| wrong(place, value.kind(), &self.wanted()))?;
        // What is too large for an f64 becomes infinite.
        let inside = written.parse().ok().filter(|number| (self.least..=self.most).contains(number));
        inside.ok_or_else(|| wrong(place, &shown(written), &self.wanted()))
    }

    fn schema(&self) -> Map<String, Value> {
        object([("type", json!("number")), ("minimum", json!(self.least)), ("maximum", json!(self.most))])
    }
}

impl Rule for Boolean {
    type Held<'a> = bool;

    fn wanted(&self) -> String {
        "a boolean".into()
    }

    fn read(&self, place: &str, value: Json) -> Result<bool> {
        value.boolean().ok_or_else(|| wrong(place, value.kind(), "a boolean"))
    }

    fn schema(&self) -> Map<String, Value> {
        object([("type", json!("boolean"))])
    }
}
