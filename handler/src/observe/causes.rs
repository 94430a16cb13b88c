//! An error in one line, with what caused it.

use std::error::Error;

/// An error and its causes. A cause that was said already is not said again.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(inner) = cause {
        let words = inner.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        cause = inner.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::loader::LoadError;

    #[test]
    fn a_cause_is_said_once() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] LoadError);
        #[derive(Debug, thiserror::Error)]
        #[error("again, {0}")]
        struct Again(#[source] LoadError);
        let inner = LoadError::BrokeOff.to_string();
        assert_eq!(causes(&Outer(LoadError::BrokeOff)), format!("outer: {inner}"));
        assert_eq!(causes(&Again(LoadError::BrokeOff)), format!("again, {inner}"));
    }
}
