//! Lazy JSON values. The syntax is checked once for the whole message; a value is parsed only when it is read. So an unknown field costs
//! nothing, however large or deep it is.

use super::rule::Field;
use serde::de::{DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};
use serde_json::value::RawValue;
use std::{borrow::Cow, collections::BTreeMap, fmt};

/// The longest number that an error shows, in characters.
const LONGEST_NUMBER: usize = 40;

/// One value, as its JSON text.
#[derive(Debug, Clone, Copy)]
pub(super) struct Json<'a>(&'a str);

/// A field and its value.
pub(super) type Member<'a> = (&'static str, Json<'a>);

/// A string has half of a surrogate pair: valid in JSON's syntax, but no Unicode text.
#[derive(Debug)]
pub(super) struct LoneSurrogate;

impl<'a> Json<'a> {
    /// Checks the syntax of a whole message.
    pub(super) fn parse(message: &'a str) -> serde_json::Result<Self> {
        let value: &RawValue = serde_json::from_str(message)?;
        Ok(Self(value.get()))
    }

    pub(super) fn is_object(self) -> bool {
        self.first() == b'{'
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

    /// A number written without a fraction or exponent.
    pub(super) fn integer(self) -> Option<&'a str> {
        self.number().filter(|number| !number.contains(['.', 'e', 'E']))
    }

    /// A string; copied only if it has escapes.
    pub(super) fn string(self) -> Option<Result<Cow<'a, str>, LoneSurrogate>> {
        let inside = self.0.strip_prefix('"')?.strip_suffix('"')?;
        Some(match inside.contains('\\') {
            false => Ok(inside.into()),
            // The syntax is valid, so nothing else can be wrong.
            true => serde_json::from_str(self.0).map(Cow::Owned).map_err(|_| LoneSurrogate),
        })
    }

    /// The first `max` items of an array, and how many it has.
    pub(super) fn items(self, max: usize) -> Option<(Vec<Self>, usize)> {
        self.read(b'[', Items(max))
    }

    /// The known members of an object. Of two with one name, the last counts, as in most languages.
    pub(super) fn members(self, known: &'static [&'static dyn Field]) -> Option<Vec<Member<'a>>> {
        self.read(b'{', Members(known))
    }

    /// All members of an object by name, where every name matters. Of two with one name, the last counts. A name that is no Unicode text is
    /// empty.
    pub(super) fn entries(self) -> Option<BTreeMap<Cow<'a, str>, Self>> {
        self.read(b'{', Entries)
    }

    /// Its type, for an error.
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

/// A number for an error: as it is written, or its length if it is long.
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

struct Members(&'static [&'static dyn Field]);

impl<'de> Visitor<'de> for Members {
    type Value = Vec<Member<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut members: Vec<Member> = Vec::new();
        while let Some(key) = object.next_key_seed(Raw)? {
            // A name with half of a surrogate pair is unknown.
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

struct Entries;

impl<'de> Visitor<'de> for Entries {
    type Value = BTreeMap<Cow<'de, str>, Json<'de>>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Self::Value, A::Error> {
        let mut entries = BTreeMap::new();
        while let Some(key) = object.next_key_seed(Raw)? {
            let name = key.string().and_then(Result::ok).unwrap_or_default();
            entries.insert(name, object.next_value_seed(Raw)?);
        }
        Ok(entries)
    }
}

/// Any value, not parsed.
struct Raw;

impl<'de> DeserializeSeed<'de> for Raw {
    type Value = Json<'de>;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Json<'de>, D::Error> {
        let value: &RawValue = serde::Deserialize::deserialize(deserializer)?;
        Ok(Json(value.get()))
    }
}
