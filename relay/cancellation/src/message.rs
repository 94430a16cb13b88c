//! The message that cancels a task: `{"cancel": generation_id}`.
//!
//! A message with `cancel` and without `generation_id` is one. It has no other field: it may come from the same queue as tasks, and a task
//! that lost its id must not cancel another. A task may hold a field `cancel`; it is unknown there and ignored, as ever.

use serde_json::value::RawValue;
use std::collections::BTreeMap;

/// Longest name of a field that an error shows, in characters.
const LONGEST_NAME: usize = 40;
/// Longest number that an error shows, in characters.
const LONGEST_NUMBER: usize = 40;
const CANCEL: &str = "cancel";

/// A backend's wish that a task be painted no more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cancel {
    /// The task's id.
    pub generation_id: i64,
}

/// Why a message that would cancel a task cancels none: the field, what it holds and what is allowed. It shows no text of the message.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct NoCancel(String);

impl Cancel {
    /// Parses the body of a message; `None` if it is anything else, such as a task.
    ///
    /// ```
    /// use cancellation::Cancel;
    ///
    /// assert_eq!(Cancel::parse(r#"{"cancel": 500}"#).unwrap().unwrap().generation_id, 500);
    /// assert!(Cancel::parse(r#"{"generation_id": 500, "cancel": 1}"#).is_none());
    /// let bad = Cancel::parse(r#"{"cancel": "500"}"#).unwrap().unwrap_err();
    /// assert!(bad.to_string().starts_with("`cancel` is a string, must be an integer from 0"));
    /// ```
    pub fn parse(body: &str) -> Option<Result<Self, NoCancel>> {
        let body = body.trim_start_matches('\u{feff}');
        // A task may be long, and is not read twice.
        if !body.contains("\"cancel\"") {
            return None;
        }
        let members: BTreeMap<String, &RawValue> = serde_json::from_str(body).ok()?;
        let id = members.get(CANCEL).filter(|_| !members.contains_key("generation_id"))?;
        Some(match members.keys().find(|name| *name != CANCEL) {
            Some(other) => Err(NoCancel(format!(
                "{} is no field of a message that cancels a task: it has `cancel` alone",
                shown(other)
            ))),
            None => match id.get().parse() {
                Ok(generation_id @ 0..) => Ok(Self { generation_id }),
                _ => {
                    Err(NoCancel(format!("`cancel` is {}, must be an integer from 0 to {}", what(id.get()), i64::MAX)))
                }
            },
        })
    }
}

/// What a JSON value is that is no id.
fn what(value: &str) -> String {
    let digits = || value.bytes().filter(u8::is_ascii_digit).count();
    match value.as_bytes().first() {
        Some(b'n') => "missing".into(),
        Some(b't' | b'f') => "a boolean".into(),
        Some(b'"') => "a string".into(),
        Some(b'[') => "an array".into(),
        Some(b'{') => "an object".into(),
        _ if value.contains('.') => "a fraction".into(),
        _ if value.contains(['e', 'E']) => "a number with an exponent".into(),
        _ if value.len() > LONGEST_NUMBER => format!("an integer of {} digits", digits()),
        _ => value.into(),
    }
}

/// A name of a field as an error may show it: nothing that could be a prompt.
fn shown(name: &str) -> String {
    let plain = name.chars().all(|letter| letter.is_ascii_alphanumeric() || letter == '_');
    match name.chars().count() {
        1..=LONGEST_NAME if plain => format!("`{name}`"),
        length => format!("a name of {length} characters"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reason(body: &str) -> String {
        Cancel::parse(body).expect(body).expect_err(body).to_string()
    }

    #[test]
    fn a_message_that_cancels_has_the_id_and_nothing_else() {
        for (body, id) in [
            (r#"{"cancel":0}"#, 0),
            (r#"{"cancel":-0}"#, 0),
            (" {\n\"cancel\" : 500 } ", 500),
            ("\u{feff}{\"cancel\":9223372036854775807}", i64::MAX),
            (r#"{"cancel":1,"cancel":2}"#, 2),
        ] {
            assert_eq!(Cancel::parse(body).unwrap().unwrap(), Cancel { generation_id: id }, "{body}");
        }
        for body in [
            "",
            "[]",
            "7",
            r#"["cancel"]"#,
            r#"{"cancelled":1}"#,
            r#"{"cancel":1"#,
            r#"{"x":{"cancel":1}}"#,
            r#"{"generation_id":1,"cancel":true}"#,
        ] {
            assert!(Cancel::parse(body).is_none(), "{body}");
        }
    }

    #[test]
    fn a_bad_one_is_refused_by_its_field_and_shows_no_text() {
        let must = "must be an integer from 0 to 9223372036854775807";
        let long = format!("an integer of {} digits", 41);
        for (value, what) in [
            ("null", "missing"),
            ("\"secret\"", "a string"),
            ("true", "a boolean"),
            ("[1]", "an array"),
            ("{}", "an object"),
            ("1.0", "a fraction"),
            ("1e2", "a number with an exponent"),
            ("-1", "-1"),
            ("9223372036854775808", "9223372036854775808"),
            (&"1".repeat(41), &long),
        ] {
            assert_eq!(reason(&format!("{{\"cancel\":{value}}}")), format!("`cancel` is {what}, {must}"));
        }
        let rest = "is no field of a message that cancels a task: it has `cancel` alone";
        for (name, shown) in
            [("reason", "`reason`"), ("a red fox", "a name of 9 characters"), ("", "a name of 0 characters")]
        {
            assert_eq!(reason(&format!("{{\"cancel\":1,\"{name}\":null}}")), format!("{shown} {rest}"));
        }
        assert_eq!(
            reason(&format!("{{\"{}\":0,\"cancel\":1}}", "x".repeat(99))),
            format!("a name of 99 characters {rest}")
        );
    }
}
