//! Arrays, and objects inside the message.

use super::{
    Described, Rule, object,
    text::{VISIBLE, string},
};
use crate::task::{
    fields::{Fields, Result, wrong},
    json::Json,
    schema,
};
use serde_json::{Map, Value, json};

/// The prompt: strings joined by one space.
pub(in crate::task) struct Tags {
    /// How many.
    pub(in crate::task) most: usize,
    /// Characters of all of them together, the spaces between them too.
    pub(in crate::task) characters: usize,
}

/// An object.
pub(in crate::task) struct Object(pub(in crate::task) &'static [&'static dyn Described]);

/// An array of objects.
pub(in crate::task) struct Objects {
    /// How many.
    pub(in crate::task) most: usize,
    /// The fields of each.
    pub(in crate::task) fields: &'static [&'static dyn Described],
}

impl Rule for Tags {
    type Held<'a> = String;

    fn wanted(&self) -> String {
        format!("an array of 1 to {} strings", self.most)
    }

    fn read(&self, place: &str, value: Json) -> Result<String> {
        let items = value.items(self.most);
        let (tags, count) = items.ok_or_else(|| wrong(place, value.kind(), &self.wanted()))?;
        if count == 0 || count > self.most {
            return Err(wrong(place, &format!("an array of {count}"), &self.wanted()));
        }
        let mut words = Vec::with_capacity(tags.len());
        for (index, tag) in tags.into_iter().enumerate() {
            let place = format!("{place}[{index}]");
            let tag = string(&place, tag, "a string")?;
            if tag.trim().is_empty() {
                return Err(wrong(&place, "an empty string", "a tag"));
            }
            words.push(tag);
        }
        let prompt = words.join(" ");
        match prompt.chars().count() {
            length if length > self.characters => {
                let limit = format!("at most {} characters in all", self.characters);
                Err(wrong(place, &format!("tags of {length} characters"), &limit))
            }
            _ => Ok(prompt),
        }
    }

    fn schema(&self) -> Map<String, Value> {
        // No one tag may be longer than all of them.
        let tag = json!({ "type": "string", "maxLength": self.characters, "pattern": VISIBLE });
        object([("type", json!("array")), ("minItems", json!(1)), ("maxItems", json!(self.most)), ("items", tag)])
    }
}

impl Rule for Object {
    type Held<'a> = Fields<'a>;

    fn wanted(&self) -> String {
        "an object".into()
    }

    fn read<'a>(&self, place: &str, value: Json<'a>) -> Result<Fields<'a>> {
        Fields::of(value, place, self.0)
    }

    fn schema(&self) -> Map<String, Value> {
        schema::object(self.0)
    }
}

impl Rule for Objects {
    type Held<'a> = Vec<Fields<'a>>;

    fn wanted(&self) -> String {
        format!("an array of at most {} objects", self.most)
    }

    fn read<'a>(&self, place: &str, value: Json<'a>) -> Result<Vec<Fields<'a>>> {
        let items = value.items(self.most);
        let (items, count) = items.ok_or_else(|| wrong(place, value.kind(), &self.wanted()))?;
        if count > self.most {
            return Err(wrong(place, &format!("an array of {count}"), &self.wanted()));
        }
        let object = |(index, item)| Fields::of(item, &format!("{place}[{index}]"), self.fields);
        items.into_iter().enumerate().map(object).collect()
    }

    fn schema(&self) -> Map<String, Value> {
        let items = Value::Object(schema::object(self.fields));
        object([("type", json!("array")), ("maxItems", json!(self.most)), ("items", items)])
    }
}
