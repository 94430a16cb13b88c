//! Bodies of generation tasks as the backend writes them.

use serde_json::{Map, Value, json};
use std::sync::atomic::{AtomicI64, Ordering};

static NEXT_ID: AtomicI64 = AtomicI64::new(500);

/// A task's body, to be changed and sent.
#[derive(Debug, Clone)]
pub struct Task(Map<String, Value>);

impl Task {
    /// A good task with the seed's six fields and a `generation_id` of its own.
    pub fn new(webhook_url: &str, lora_model_url: &str) -> Self {
        let body = json!({
            "generation_id": NEXT_ID.fetch_add(1, Ordering::Relaxed),
            "style_id": 10,
            "lora_model_url": lora_model_url,
            "prompt_tags": ["red circle", "blue background"],
            "artist_name": "Ada Kowalska",
            "webhook_url": webhook_url,
        });
        match body {
            Value::Object(map) => Self(map),
            _ => Self(Map::new()),
        }
    }

    /// Sets a field.
    pub fn with(mut self, field: &str, value: impl Into<Value>) -> Self {
        self.0.insert(field.to_string(), value.into());
        self
    }

    /// Removes a field.
    pub fn without(mut self, field: &str) -> Self {
        self.0.remove(field);
        self
    }

    /// The `generation_id`; 0 when there is none.
    pub fn id(&self) -> i64 {
        self.0.get("generation_id").and_then(Value::as_i64).unwrap_or_default()
    }

    /// The S3 key of its first picture.
    pub fn key(&self) -> String {
        format!("generations/gen_{}.jpg", self.id())
    }

    /// The JSON text.
    pub fn body(&self) -> String {
        Value::Object(self.0.clone()).to_string()
    }
}
