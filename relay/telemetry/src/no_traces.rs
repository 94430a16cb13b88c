//! What stands in for traces in a build without the feature `otlp`: none are made, and asking for them is an error.

use std::{collections::HashMap, convert::Infallible, time::Duration};

use tracing::Span;

use crate::{BadEndpoint, endpoint};

/// Reads the headers or attributes that carry a trace.
pub trait Extractor {
    /// The value of a header or attribute.
    fn get(&self, key: &str) -> Option<&str>;

    /// The names of all of them.
    fn keys(&self) -> Vec<&str>;
}

impl Extractor for HashMap<String, String> {
    fn get(&self, key: &str) -> Option<&str> {
        HashMap::get(self, key).map(String::as_str)
    }

    fn keys(&self) -> Vec<&str> {
        HashMap::keys(self).map(String::as_str).collect()
    }
}

/// Traces that are on: there are none.
#[derive(Debug, Clone)]
pub struct Traces(pub(crate) Infallible);

impl Traces {
    /// `None`.
    ///
    /// # Errors
    /// An endpoint is set.
    pub fn from_env(_: &'static str, _: &'static str) -> Result<Option<Self>, BadEndpoint> {
        let problem = "this build sends no traces; leave the variable out, or build with the feature otlp";
        match endpoint() {
            Some(option) => Err(BadEndpoint { option, problem: problem.into() }),
            None => Ok(None),
        }
    }

    /// Sends nothing.
    pub async fn flush(&self, _: Duration) {
        match self.0 {}
    }

    /// Sends nothing.
    pub fn end(self, _: Duration) {
        match self.0 {}
    }
}

/// Whether spans are made: never.
pub fn is_on() -> bool {
    false
}

/// Does nothing.
pub fn adopt(_: &Span, _: &dyn Extractor) {}

/// `None`.
pub fn outgoing_traceparent(_: &Span) -> Option<String> {
    None
}

/// Nothing.
pub fn outgoing(_: &Span) -> Vec<(&'static str, String)> {
    vec![]
}

/// `None`.
pub fn trace_id(_: &Span) -> Option<String> {
    None
}

/// `None`.
pub fn incoming_trace_id(_: &dyn Extractor) -> Option<String> {
    None
}

/// Does nothing.
pub fn set<T>(_: &Span, _: &'static str, _: T) {}

/// Does nothing.
pub fn fail(_: &Span, _: &'static str) {}
