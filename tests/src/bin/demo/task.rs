//! The task that is sent: the demo's own, or a file's text with its two placeholders filled in. It is not checked here: what
//! the function makes of a bad one is worth seeing.

use anyhow::{Context, Result};
use e2e::task::Task;
use serde_json::{Value, json};
use std::{fs, path::Path};

/// The message's body.
pub(crate) fn body(file: Option<&Path>, webhook: &str, lora: &str) -> Result<String> {
    let Some(file) = file else {
        let tags = json!(["lighthouse", "sunset", "sea"]);
        return Ok(Task::new(webhook, lora).with("prompt_tags", tags).with("aspect_ratio", "1:1").body());
    };
    let text = fs::read_to_string(file).with_context(|| format!("--task {}", file.display()))?;
    Ok(text.replace("$WEBHOOK", webhook).replace("$LORA", lora))
}

/// The `generation_id`, if the body is JSON and has one.
pub(crate) fn id(body: &str) -> Option<i64> {
    serde_json::from_str::<Value>(body).ok()?["generation_id"].as_i64()
}
