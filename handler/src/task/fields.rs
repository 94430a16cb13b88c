//! One JSON object of a message and where it stands there. An error says which field, what kind of value it holds and
//! what is allowed; never the value itself, since prompts and names must not reach a log.

use super::{
    json::{Json, Member},
    rule::Described,
};

pub(super) type Result<T> = std::result::Result<T, String>;

/// One JSON object and where it stands in the message.
pub(super) struct Fields<'a> {
    members: Vec<Member<'a>>,
    place: String,
}

impl<'a> Fields<'a> {
    /// The message itself.
    pub(super) fn new(members: Vec<Member<'a>>) -> Self {
        Self { members, place: String::new() }
    }

    /// The object that a field holds, with those of its fields that are `known`; `place` is the field's own.
    pub(super) fn of(value: Json<'a>, place: &str, known: &'static [&'static dyn Described]) -> Result<Self> {
        let members = value.members(known).ok_or_else(|| wrong(place, value.kind(), "an object"))?;
        Ok(Self { members, place: format!("{place}.") })
    }

    /// A field, unless it is absent; `null` is absent.
    pub(super) fn get(&self, name: &str) -> Option<Json<'a>> {
        let member = self.members.iter().find(|(known, _)| *known == name);
        member.map(|(_, value)| *value).filter(|value| !value.is_null())
    }

    /// Where a field stands in the message.
    pub(super) fn place(&self, name: &str) -> String {
        format!("{}{name}", self.place)
    }
}

/// What a field is and what it must be.
pub(super) fn wrong(place: &str, what: &str, wanted: &str) -> String {
    format!("`{place}` is {what}, must be {wanted}")
}
