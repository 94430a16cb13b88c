//! Rules for arrays, and for objects inside the message.

use super::{
    Field, Fields, Result, Rule, object, object_of,
    text::{VISIBLE, string},
    wrong,
};
use crate::task::json::Json;
use serde_json::{Map, Value, json};

/// An array of strings; becomes the prompt, the strings joined by one space.
pub(in crate::task) struct Tags {
    /// How many at most.
    pub(in crate::task) max_items: usize,
    /// Most characters of all of them together, with the spaces between them.
    pub(in crate::task) max_chars: usize,
}

/// An object.
pub(in crate::task) struct Object(pub(in crate::task) &'static [&'static dyn Field]);

/// An array of objects.
pub(in crate::task) struct ObjectList {
    /// How many at most.
    pub(in crate::task) max_items: usize,
    /// The fields of each.
    pub(in crate::task) fields: &'static [&'static dyn Field],
}

/// Tags, joined by one space.
pub(in crate::task) struct Joined {
    pub(in crate::task) text: String,
    /// Where in the text each tag ends, in bytes.
    pub(in crate::task) ends: Vec<usize>,
}

impl Rule for Tags {
    type Output<'a> = Joined;

    fn expected(&self) -> String {
        format!("an array of 1 to {} strings", self.max_items)
    }

    fn read(&self, path: &str, value: Json) -> Result<Joined> {
        let items = value.items(self.max_items);
        let (tags, count) = items.ok_or_else(|| wrong(path, value.kind(), &self.expected()))?;
        if count == 0 || count > self.max_items {
            return Err(wrong(path, &format!("an array of {count}"), &self.expected()));
        }
        let mut words = Vec::with_capacity(tags.len());
        for (index, tag) in tags.into_iter().enumerate() {
            let path = format!("{path}[{index}]");
            let tag = string(&path, tag, "a string")?;
            if tag.trim().is_empty() {
                return Err(wrong(&path, "an empty string", "a tag"));
            }
            words.push(tag);
        }
        let text = words.join(" ");
        let ends = words.iter().scan(0, |end, word| {
            *end += word.len() + 1;
            Some(*end - 1)
        });
        match text.chars().count() {
            length if length > self.max_chars => {
                let limit = format!("at most {} characters in all", self.max_chars);
                Err(wrong(path, &format!("tags of {length} characters"), &limit))
            }
            _ => Ok(Joined { ends: ends.collect(), text }),
        }
    }

    fn schema(&self) -> Map<String, Value> {
        // JSON Schema can limit only each tag, not all together.
        let tag = json!({ "type": "string", "maxLength": self.max_chars, "pattern": VISIBLE });
        object([("type", json!("array")), ("minItems", json!(1)), ("maxItems", json!(self.max_items)), ("items", tag)])
    }
}

impl Rule for Object {
    type Output<'a> = Fields<'a>;

    fn expected(&self) -> String {
        "an object".into()
    }

    fn read<'a>(&self, path: &str, value: Json<'a>) -> Result<Fields<'a>> {
        Fields::of(value, path, self.0)
    }

    fn schema(&self) -> Map<String, Value> {
        object_of(self.0)
    }
}

impl Rule for ObjectList {
    type Output<'a> = Vec<Fields<'a>>;

    fn expected(&self) -> String {
        format!("an array of at most {} objects", self.max_items)
    }

    fn read<'a>(&self, path: &str, value: Json<'a>) -> Result<Vec<Fields<'a>>> {
        let items = value.items(self.max_items);
        let (items, count) = items.ok_or_else(|| wrong(path, value.kind(), &self.expected()))?;
        if count > self.max_items {
            return Err(wrong(path, &format!("an array of {count}"), &self.expected()));
        }
        let object = |(index, item)| Fields::of(item, &format!("{path}[{index}]"), self.fields);
        items.into_iter().enumerate().map(object).collect()
    }

    fn schema(&self) -> Map<String, Value> {
        let items = Value::Object(object_of(self.fields));
        object([("type", json!("array")), ("maxItems", json!(self.max_items)), ("items", items)])
    }
}
