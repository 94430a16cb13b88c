//! Numbers and booleans.

use super::{Rule, object};
use crate::task::fields::{Result, kind, wrong};
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

    fn read(&self, place: &str, value: &Value) -> Result<i128> {
        let number = value.as_i64().map(i128::from).or_else(|| value.as_u64().map(i128::from));
        let number = number.ok_or_else(|| wrong(place, kind(value), &self.wanted()))?;
        let inside = (self.least..=self.most).contains(&number);
        inside.then_some(number).ok_or_else(|| wrong(place, &number.to_string(), &self.wanted()))
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

    fn read(&self, place: &str, value: &Value) -> Result<f64> {
        let number = value.as_f64().ok_or_else(|| wrong(place, kind(value), &self.wanted()))?;
        let inside = (self.least..=self.most).contains(&number);
        inside.then_some(number).ok_or_else(|| wrong(place, &number.to_string(), &self.wanted()))
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

    fn read(&self, place: &str, value: &Value) -> Result<bool> {
        value.as_bool().ok_or_else(|| wrong(place, kind(value), "a boolean"))
    }

    fn schema(&self) -> Map<String, Value> {
        object([("type", json!("boolean"))])
    }
}
