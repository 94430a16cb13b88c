//! Finds the id and the backend's address in a message that is no JSON, if they can be read with certainty.

use super::json::Json;

/// Quotes: those of JSON, and of a printed Python dictionary.
const QUOTES: [u8; 2] = [b'"', b'\''];

/// What was found. None if it is missing, or occurs twice with different values.
#[derive(Debug, Default)]
pub(super) struct Salvage {
    /// The number as it is written.
    pub(super) generation_id: Option<String>,
    /// The address, without escapes.
    pub(super) webhook_url: Option<String>,
}

/// What was found of one field.
enum Found<'a> {
    Nothing,
    One(&'a str),
    Several,
}

impl<'a> Found<'a> {
    fn note(&mut self, text: &'a str) {
        *self = match self {
            Self::Nothing => Self::One(text),
            Self::One(other) if *other == text => Self::One(text),
            _ => Self::Several,
        }
    }

    fn one(self) -> Option<&'a str> {
        match self {
            Self::One(text) => Some(text),
            _ => None,
        }
    }
}

/// Scans a message for the two members of the outermost object, whatever is between them.
pub(super) fn salvage(message: &str) -> Salvage {
    let bytes = message.as_bytes();
    let (mut id, mut address) = (Found::Nothing, Found::Nothing);
    let (mut at, mut depth) = (blank(message, 0), 0_usize);
    if bytes.get(at) != Some(&b'{') {
        return Salvage::default();
    }
    while let Some(&byte) = bytes.get(at) {
        match byte {
            b'{' | b'[' => depth += 1,
            b'}' | b']' => depth = depth.saturating_sub(1),
            // A backslash outside of a string: a quote is missing, so nothing is certain.
            b'\\' => return Salvage::default(),
            _ if QUOTES.contains(&byte) => {
                let Some(end) = end_of_text(bytes, at) else { break };
                let (name, colon) = (&message[at + 1..end - 1], blank(message, end));
                at = end;
                if depth == 1 && bytes.get(colon) == Some(&b':') {
                    at = blank(message, colon + 1);
                    match name {
                        "generation_id" => number(message, at).iter().for_each(|number| id.note(number)),
                        "webhook_url" => text(message, at).iter().for_each(|text| address.note(text)),
                        _ => {}
                    }
                }
                continue;
            }
            _ => {}
        }
        at += 1;
    }
    Salvage { generation_id: id.one().map(str::to_string), webhook_url: address.one().and_then(unescaped) }
}

/// The first index from `at` on that is no white space.
fn blank(message: &str, at: usize) -> usize {
    let rest = message.get(at..).unwrap_or_default();
    at + rest.len() - rest.trim_start_matches(|c: char| c.is_whitespace() || c == '\u{feff}').len()
}

/// The index after the string that begins at `at`; none if it does not end.
fn end_of_text(bytes: &[u8], at: usize) -> Option<usize> {
    let mut end = at + 1;
    while bytes.get(end)? != &bytes[at] {
        end += if bytes[end] == b'\\' { 2 } else { 1 };
    }
    Some(end + 1)
}

/// The number at `at`, if its end can be seen.
fn number(message: &str, at: usize) -> Option<&str> {
    let rest = message.get(at..)?;
    let end = rest.find(|c: char| !matches!(c, '0'..='9' | '+' | '-' | '.' | 'e' | 'E'))?;
    let ends = rest[end..].starts_with(|c: char| matches!(c, ',' | '}' | '\u{feff}') || c.is_whitespace());
    (end > 0 && ends).then_some(&rest[..end])
}

/// The text between the quotes at `at`.
fn text(message: &str, at: usize) -> Option<&str> {
    let bytes = message.as_bytes();
    QUOTES.contains(bytes.get(at)?).then_some(())?;
    message.get(at + 1..end_of_text(bytes, at)? - 1)
}

/// A text with JSON's escapes replaced; none if they are not valid.
fn unescaped(text: &str) -> Option<String> {
    if !text.contains('\\') {
        return Some(text.to_string());
    }
    let quoted = format!("\"{text}\"");
    Some(Json::parse(&quoted).ok()?.string()?.ok()?.into_owned())
}
