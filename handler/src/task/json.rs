//! A JSON value as it stands in a message. Its grammar is checked once, for the whole message; what it says is read when it is
//! asked for. So a value that nobody asks for costs nothing, however large, deep or odd it is.

use super::rule::Described;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::{borrow::Cow, fmt};

/// The longest number that an error shows, in characters.
const LONGEST_NUMBER: usize = 40;

/// One value: its text, which is JSON.
#[derive(Debug, Clone, Copy)]
pub(super) struct Json<'a>(&'a str);

/// A field and its value.
pub(super) type Member<'a> = (&'static str, Json<'a>);

/// A string with a surrogate that has no other half. JSON's grammar has it, no text does.
#[derive(Debug)]
pub(super) struct LoneSurrogate;

impl<'a> Json<'a> {
    /// A whole message.
    pub(super) fn parse(message: &'a str) -> serde_json::Result<Self> {
        let value: &RawValue = serde_json::from_str(message)?;
        Ok(Self(value.get()))
    }

    pub(super) fn is_null(self) -> bool {
        self.0 == "null"
    }

    pub(super) fn boolean(self) -> Option<bool> {
        match self.0 {
            "true" => Some(true),
            "false" => Some(false),
            _ => None,
        }
    }

    /// A number as it is written.
    pub(super) fn number(self) -> Option<&'a str> {
        matches!(self.first(), b'-' | b'0'..=b'9').then_some(self.0)
    }

    /// A number that is written without fraction and exponent.
    pub(super) fn integer(self) -> Option<&'a str> {
        self.number().filter(|number| !number.contains(['.', 'e', 'E']))
    }

    /// A string; copied only where something in it is escaped.
    pub(super) fn string(self) -> Option<Result<Cow<'a, str>, LoneSurrogate>> {
        let inside = self.0.strip_prefix('"')?.strip_suffix('"')?;
        Some(match inside.contains('\\') {
            false => Ok(inside.into()),
            // Its grammar is right: nothing else can be wrong.
            true => serde_json::from_str(self.0).map(Cow::Owned).map_err(|_| LoneSurrogate),
        })
    }

    /// The first items of an array, `most` of them, and how many it has.
    pub(super) fn items(self, most: usize) -> Option<(Vec<Self>, usize)> {
        self.read(b'[', Items(most))
    }

    /// Those members of an object that are known. Of two with one name it is the last, as in most languages.
    pub(super) fn members(self, known: &'static [&'static dyn Described]) -> Option<Vec<Member<'a>>> {
        self.read(b'{', Members(known))
    }

    /// What it is, in words.
    pub(super) fn kind(self) -> &'static str {
        match self.first() {
            b'n' => "null",
            b't' | b'f' => "a boolean",
            b'"' => "a string",
            b'[' => "an array",
            b'{' => "an object",
            _ if self.integer().is_some() => "an integer",
            _ if self.0.contains('.') => "a fraction",
            _ => "a number with an exponent",
        }
    }

    fn first(self) -> u8 {
        self.0.as_bytes().first().copied().unwrap_or_default()
    }

    fn read<V: Visitor<'a>>(self, first: u8, visitor: V) -> Option<V::Value> {
        let mut reader = serde_json::Deserializer::from_str(self.0);
        (self.first() == first).then(|| reader.deserialize_any(visitor).ok()).flatten()
    }
}

/// A number for an error: as it is written, or how long it is.
pub(super) fn shown(number: &str) -> Cow<'_, str> {
    if number.len() <= LONGEST_NUMBER {
        return number.into();
    }
    let digits = number.bytes().filter(u8::is_ascii_digit).count();
    let kind = if number.contains(['.', 'e', 'E']) { "a number" } else { "an integer" };
    format!("{kind} of {digits} digits").into()
}

struct Items(usize);

impl<'de> Visitor<'de> for Items {
    type Value = (Vec<Json<'de>>, usize);

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut array: A) -> Result<Self::Value, A::Error> {
        let mut items = Vec::new();
        while items.len() < self.0 {
            match array.next_element_seed(Raw)? {
                Some(item) => items.push(item),
                None => {
                    let count = items.len();
                    return Ok((items, count));
                }
            }
        }
        let mut count = items.len();
        while array.next_element::<IgnoredAny>()?.is_some() {
            count += 1;
        }
        Ok((items, count))
    }
}

struct Members(&'static [&'static dyn Described]);

impl<'de> Visitor<'de> for Members {
    type Value = Vec<Member<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut members: Vec<Member> = Vec::new();
        while let Some(key) = object.next_key_seed(Raw)? {
            // A name that is no text is none that is known.
            let name = key.string().and_then(Result::ok);
            let known = name.and_then(|name| self.0.iter().map(|field| field.name()).find(|known| *known == name));
            let Some(known) = known else {
                object.next_value::<IgnoredAny>()?;
                continue;
            };
            let value = object.next_value_seed(Raw)?;
            match members.iter_mut().find(|(name, _)| *name == known) {
                Some(member) => member.1 = value,
                None => members.push((known, value)),
            }
        }
        Ok(members)
    }
}

/// Any value, unread.
struct Raw;

impl<'de> DeserializeSeed<'de> for Raw {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        let value: &RawValue = serde::Deserialize::deserialize(deserializer)?;
        Ok(Json(value.get()))
    }
}
