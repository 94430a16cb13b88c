//! From the form to a task. Refuses to check anything: what the function makes of a bad task is worth seeing.

use crate::aws::MODELS;
use serde::Serialize;
use serde_json::{Map, Value, json};

/// A style in the storage.
#[derive(Debug, Clone, Serialize)]
pub struct Style {
    /// Its name.
    pub name: String,
    /// `style_id`.
    pub id: u64,
    /// `artist_name`.
    pub artist: String,
    /// `lora_model_url`.
    pub url: String,
}

/// The form's names for fields of a task.
const FIELDS: [(&str, &str); 5] = [
    ("tags", "prompt_tags"),
    ("artist", "artist_name"),
    ("aspect_ratio", "aspect_ratio"),
    ("seed", "seed"),
    ("steps", "num_inference_steps"),
];

/// The body of a task. A style that nobody has leads to a LoRA that is not there.
pub fn body(order: &Map<String, Value>, styles: &[Style], id: i64, webhook: &str) -> Value {
    let name = style(order);
    let url = || format!("s3://{MODELS}/models/{name}/lora_weights.safetensors");
    let found = styles.iter().find(|style| style.name == name);
    let mut body = json!({
        "generation_id": id,
        "style_id": found.map_or(0, |style| style.id),
        "lora_model_url": found.map_or_else(url, |style| style.url.clone()),
        "webhook_url": webhook,
    });
    for (ours, theirs) in FIELDS {
        if let Some(value) = order.get(ours) {
            body[theirs] = value.clone();
        }
    }
    body
}

/// The style that an order names.
pub fn style(order: &Map<String, Value>) -> &str {
    order.get("style").and_then(Value::as_str).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_form_says_is_in_the_task_right_or_wrong() {
        let style = Style { name: "dots".into(), id: 10, artist: "B".into(), url: "s3://b/10".into() };
        let Value::Object(order) = json!({ "style": "dots", "tags": [], "seed": "x", "steps": 0, "else": 1 }) else {
            panic!("no object");
        };
        let task = body(&order, std::slice::from_ref(&style), 7, "http://w");
        let expected = json!({ "generation_id": 7, "style_id": 10, "lora_model_url": "s3://b/10",
            "webhook_url": "http://w", "prompt_tags": [], "seed": "x", "num_inference_steps": 0 });
        assert_eq!(task, expected);
        let task = body(&Map::new(), &[style], 7, "http://w");
        assert_eq!(task["lora_model_url"], "s3://stylelicense-models/models//lora_weights.safetensors");
    }
}
