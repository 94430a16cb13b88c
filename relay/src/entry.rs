//! What one message becomes in SQS, and the rules that SQS sets for it.
//!
//! Refuses every body that SQS would refuse, with the reason, before a request is spent on it. It never changes a body
//! to make it fit.

use std::fmt;

/// What SQS takes in one message and also in one batch, attributes counted.
pub const MAX_BYTES: usize = 1024 * 1024;

/// The SQS attribute that carries the AMQP message-id.
pub const MESSAGE_ID: &str = "message_id";

/// The type of every attribute so far. Its name counts into the size.
pub(crate) const STRING_TYPE: &str = "String";

/// One message as SQS can carry it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    body: String,
    message_id: Option<String>,
}

/// Why SQS can never carry a message.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reason {
    /// SQS has no empty messages.
    EmptyBody,
    /// SQS carries text.
    NotUtf8,
    /// A character that XML 1.0 does not have.
    IllegalCharacter,
    /// Body and attributes together have this many bytes.
    TooLarge(usize),
    /// The message-id holds a character that SQS does not carry.
    IllegalMessageId,
    /// SQS itself refused this very entry with this code.
    Rejected(String),
}

impl Entry {
    /// Checks a body; gives it back with the reason when SQS cannot carry it.
    pub fn new(body: Vec<u8>, message_id: Option<&str>) -> Result<Self, (Vec<u8>, Reason)> {
        if body.is_empty() {
            return Err((body, Reason::EmptyBody));
        }
        // An empty id says nothing, and SQS has no empty attributes.
        let message_id = message_id.filter(|id| !id.is_empty()).map(str::to_owned);
        let size = body.len() + attribute_bytes(message_id.as_deref());
        if size > MAX_BYTES {
            return Err((body, Reason::TooLarge(size)));
        }
        let body = String::from_utf8(body).map_err(|err| (err.into_bytes(), Reason::NotUtf8))?;
        if !body.chars().all(is_legal) {
            return Err((body.into_bytes(), Reason::IllegalCharacter));
        }
        if message_id.as_deref().is_some_and(|id| !id.chars().all(is_legal)) {
            return Err((body.into_bytes(), Reason::IllegalMessageId));
        }
        Ok(Self { body, message_id })
    }

    /// The body.
    pub fn body(&self) -> &str {
        &self.body
    }

    /// The AMQP message-id, if there was one.
    pub fn message_id(&self) -> Option<&str> {
        self.message_id.as_deref()
    }

    /// The bytes that SQS counts: the body, and name, type and value of each attribute.
    pub fn size(&self) -> usize {
        self.body.len() + attribute_bytes(self.message_id())
    }

    /// Gives the body up.
    pub fn into_body(self) -> Vec<u8> {
        self.body.into_bytes()
    }
}

impl Reason {
    /// The word that stands in headers and logs.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::EmptyBody => "empty-body",
            Self::NotUtf8 => "not-utf8",
            Self::IllegalCharacter => "illegal-character",
            Self::TooLarge(_) => "too-large",
            Self::IllegalMessageId => "illegal-message-id",
            Self::Rejected(_) => "rejected-by-sqs",
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::EmptyBody => f.write_str("the body is empty"),
            Self::NotUtf8 => f.write_str("the body is not UTF-8"),
            Self::IllegalCharacter => f.write_str("the body holds a character that SQS does not carry"),
            Self::TooLarge(bytes) => write!(f, "{bytes} bytes with attributes, SQS takes {MAX_BYTES}"),
            Self::IllegalMessageId => f.write_str("the message-id holds a character that SQS does not carry"),
            Self::Rejected(code) => write!(f, "SQS rejected the entry: {code}"),
        }
    }
}

/// The characters that SQS documents: `#x9 #xA #xD #x20-#xD7FF #xE000-#xFFFD #x10000-#x10FFFF`.
fn is_legal(c: char) -> bool {
    matches!(c, '\t' | '\n' | '\r' | ' '..='\u{FFFD}' | '\u{10000}'..)
}

fn attribute_bytes(message_id: Option<&str>) -> usize {
    message_id.map_or(0, |id| MESSAGE_ID.len() + STRING_TYPE.len() + id.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bodies_are_taken_whole_or_refused_with_their_reason() {
        let full = vec![b'x'; MAX_BYTES];
        let over = vec![b'x'; MAX_BYTES + 1];
        let cases: Vec<(&[u8], Option<&str>, Option<&str>)> = vec![
            (b"x", None, None),
            (b"{\"a\":1}\r\n\t", None, None),
            ("\u{7f}\u{85}\u{d7ff}\u{e000}\u{fffd}\u{10000}\u{10ffff}".as_bytes(), None, None),
            (&full, None, None),
            (b"x", Some(""), None),
            (b"x", Some("id"), None),
            (b"", None, Some("empty-body")),
            (b"\xff", None, Some("not-utf8")),
            (b"\xed\xa0\x80", None, Some("not-utf8")),
            (b"a\0b", None, Some("illegal-character")),
            (b"\x08", None, Some("illegal-character")),
            (b"\x0b", None, Some("illegal-character")),
            (b"\x1f", None, Some("illegal-character")),
            ("\u{fffe}".as_bytes(), None, Some("illegal-character")),
            ("\u{ffff}".as_bytes(), None, Some("illegal-character")),
            (&over, None, Some("too-large")),
            (&full, Some("i"), Some("too-large")),
            (b"x", Some("a\0b"), Some("illegal-message-id")),
        ];
        for (body, id, refused) in cases {
            let shown = String::from_utf8_lossy(&body[..body.len().min(16)]);
            match Entry::new(body.to_vec(), id) {
                Ok(entry) => {
                    assert_eq!(refused, None, "{shown:?}");
                    assert_eq!(entry.into_body(), body);
                }
                Err((back, reason)) => {
                    assert_eq!(Some(reason.as_str()), refused, "{shown:?}");
                    assert_eq!(back, body, "the body must come back unchanged");
                }
            }
        }
    }

    #[test]
    fn size_counts_attributes_as_sqs_does() {
        assert_eq!(Entry::new(b"12345".to_vec(), None).unwrap().size(), 5);
        assert_eq!(Entry::new(b"12345".to_vec(), Some("abc")).unwrap().size(), 5 + 10 + 6 + 3);
        let rest = MAX_BYTES - 10 - 6 - 3;
        assert_eq!(Entry::new(vec![b'x'; rest], Some("abc")).unwrap().size(), MAX_BYTES);
        assert!(Entry::new(vec![b'x'; rest + 1], Some("abc")).is_err());
    }
}
