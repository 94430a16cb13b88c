//! An error in one line, with its causes.

use std::{error::Error, iter::successors};

/// An error and its causes, outermost first.
pub fn chain<'a>(error: &'a (dyn Error + 'static)) -> impl Iterator<Item = &'a (dyn Error + 'static)> {
    successors(Some(error), |error| (*error).source())
}

/// An error and its causes, joined by colons. A cause that the text already contains is left out.
pub fn causes(error: &(dyn Error + 'static)) -> String {
    chain(error).map(ToString::to_string).fold(String::new(), |text, cause| match text.contains(&cause) {
        true => text,
        false if text.is_empty() => cause,
        false => format!("{text}: {cause}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("inner")]
    struct Inner;

    #[derive(Debug, thiserror::Error)]
    #[error("{text}")]
    struct Outer {
        text: &'static str,
        source: Inner,
    }

    #[test]
    fn each_cause_stands_once() {
        assert_eq!(causes(&Inner), "inner");
        assert_eq!(causes(&Outer { text: "outer", source: Inner }), "outer: inner");
        assert_eq!(causes(&Outer { text: "outer with inner", source: Inner }), "outer with inner");
    }
}
