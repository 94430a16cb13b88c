//! The task that is sent: the demo's own, or a file's text with its two placeholders filled in. It is not checked here: what
//! the function makes of a bad one is worth seeing.

use crate::{
    options::Options,
    styles::{self, Styles},
};
use anyhow::{Context, Result};
use e2e::task::Task;
use serde_json::Value;
use std::fs;

/// The message's body.
pub(crate) fn body(options: &Options, webhook: &str, styles: &Styles) -> Result<String> {
    let style = styles::choose(styles, &options.style())?;
    let Some(file) = &options.task else {
        let task = Task::new(webhook, &style.url).with("style_id", style.id).with("artist_name", style.artist.clone());
        return Ok(task.with("prompt_tags", options.tags.clone()).with("aspect_ratio", "1:1").body());
    };
    let text = fs::read_to_string(file).with_context(|| format!("--task {}", file.display()))?;
    Ok(styles::fill(&text.replace("$WEBHOOK", webhook), styles, style))
}

/// The `generation_id`, if the body is JSON and has one.
pub(crate) fn id(body: &str) -> Option<i64> {
    serde_json::from_str::<Value>(body).ok()?["generation_id"].as_i64()
}

/// What the picture shows and whose hand it is in, for the person who looks at it.
pub(crate) fn title(body: &str, styles: &Styles) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    let tags = body["prompt_tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
    let artist = body["artist_name"].as_str().unwrap_or_default();
    let style = styles.iter().find(|(_, style)| body["lora_model_url"] == style.url.as_str());
    let style = style.map(|(name, _)| format!(" ({name})")).unwrap_or_default();
    format!("{} by {artist}{style}", tags.join(", "))
}
