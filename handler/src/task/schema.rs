//! The task as JSON Schema, draft 2020-12, written from the rules that the parser reads by. Unknown fields are
//! ignored there, so they are allowed here.

use super::{contract::TASK, rule::Described};
use diffusion::schedulers;
use serde_json::{Map, Value, json};

/// Version of JSON Schema.
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// What `handler schema task` prints.
///
/// ```
/// let schema = handler::task::schema();
/// assert_eq!(schema["properties"]["num_images"]["maximum"], 4);
/// ```
pub fn schema() -> Value {
    let mut schema = Map::from_iter([
        ("$schema".to_string(), json!(DRAFT)),
        ("title".to_string(), json!("Generation task")),
        ("description".to_string(), json!(ABOUT)),
    ]);
    schema.extend(object(TASK));
    // The one rule between two fields.
    let with_karras: Vec<Value> = schedulers::Kind::NAMES
        .iter()
        .filter(|(_, kind)| kind.has_karras_sigmas())
        .map(|(name, _)| json!(name))
        .chain([Value::Null])
        .collect();
    let asked = json!({ "required": ["karras_sigmas"], "properties": { "karras_sigmas": { "const": true } } });
    schema.insert("if".into(), asked);
    schema.insert("then".into(), json!({ "properties": { "scheduler": { "enum": with_karras } } }));
    Value::Object(schema)
}

const ABOUT: &str = "The body of a message in the backend's queue. Unknown fields are ignored; null means absent. What this \
    schema refuses is refused. What it accepts may still be refused: an integer that is written as 1.0 or 1e2, a time that no \
    calendar has, tags of more characters than all may have together, a key of more than 1024 bytes, an address whose host \
    the URL standard does not take, a string with half of a surrogate pair.";

/// An object with these fields.
pub(super) fn object(fields: &[&dyn Described]) -> Map<String, Value> {
    let required: Vec<&str> = fields.iter().filter(|field| field.is_required()).map(|field| field.name()).collect();
    let properties: Map<String, Value> =
        fields.iter().map(|field| (field.name().to_string(), field.schema())).collect();
    let mut object = Map::from_iter([("type".to_string(), json!("object"))]);
    if !required.is_empty() {
        object.insert("required".into(), json!(required));
    }
    object.insert("properties".into(), Value::Object(properties));
    object
}

#[cfg(test)]
mod tests;
