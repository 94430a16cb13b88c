//! The demo's styles and its task: its own, or a file with placeholders. The task is not checked here, so that the function's answer
//! to a bad one can be seen.

use crate::options::Options;
use anyhow::{Context, Result, bail};
use e2e::{
    aws::{Aws, MODELS},
    task::Task,
};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use std::{collections::BTreeMap, fs, path::Path};

/// The artists of the styles that ship with the project.
const ARTISTS: [(&str, &str); 2] = [("halftone", "Benno Dotti"), ("stained-glass", "Ada Kowalska")];
/// The first `style_id`.
const FIRST_ID: u64 = 10;

/// One style in the storage.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Style {
    /// `style_id`.
    pub(crate) id: u64,
    /// `artist_name`.
    pub(crate) artist: String,
    /// `lora_model_url`.
    pub(crate) url: String,
}

/// Styles by name.
pub(crate) type Styles = BTreeMap<String, Style>;

/// Puts LoRAs into the storage as the platform does: the file's name is the same for all, the folder is the style's.
pub(crate) async fn store(aws: &Aws, folder: &Path, own: Option<&Path>) -> Result<Styles> {
    let mut files = vec![];
    for entry in fs::read_dir(folder).with_context(|| format!("--styles {}", folder.display()))? {
        let path = entry?.path();
        let is_lora = path.extension().is_some_and(|extension| extension == "safetensors");
        files.extend(is_lora.then(|| (name(&path), path)));
    }
    files.extend(own.map(|path| (name(path), path.to_path_buf())));
    files.sort();
    let mut styles = Styles::new();
    for (id, (name, path)) in (FIRST_ID..).zip(files) {
        let content = fs::read(&path).with_context(|| path.display().to_string())?;
        let url = aws.put(MODELS, &format!("models/style_{id}/lora_weights.safetensors"), content).await?;
        let artist = ARTISTS.iter().find(|(style, _)| name == *style || name.starts_with(&format!("{style}-")));
        let artist = artist.map_or("Ada Kowalska", |(_, artist)| artist).to_string();
        styles.insert(name, Style { id, artist, url });
    }
    Ok(styles)
}

/// The style of that name.
pub(crate) fn choose<'a>(styles: &'a Styles, name: &str) -> Result<&'a Style> {
    match styles.get(name) {
        Some(style) => Ok(style),
        None => bail!("--style {name}: there are {}", styles.keys().cloned().collect::<Vec<_>>().join(", ")),
    }
}

/// A LoRA's style name: the file's, without its ending.
pub(crate) fn name(path: &Path) -> String {
    path.file_stem().unwrap_or_default().to_string_lossy().into_owned()
}

/// `text` with `$LORA` replaced by the chosen style's address and `$LORA(name)` by that of another.
pub(crate) fn fill(text: &str, styles: &Styles, chosen: &Style) -> String {
    let named =
        styles.iter().fold(text.to_string(), |text, (name, style)| text.replace(&format!("$LORA({name})"), &style.url));
    named.replace("$LORA", &chosen.url)
}

/// The message's body.
pub(crate) fn body(options: &Options, webhook: &str, styles: &Styles) -> Result<String> {
    let style = choose(styles, &options.style())?;
    let Some(file) = &options.task else {
        let task = Task::new(webhook, &style.url).with("style_id", style.id).with("artist_name", style.artist.clone());
        return Ok(task.with("prompt_tags", options.tags.clone()).with("aspect_ratio", "1:1").body());
    };
    let text = fs::read_to_string(file).with_context(|| format!("--task {}", file.display()))?;
    Ok(fill(&text.replace("$WEBHOOK", webhook), styles, style))
}

/// The `generation_id`, if the body is JSON and has one.
pub(crate) fn id(body: &str) -> Option<i64> {
    serde_json::from_str::<Value>(body).ok()?["generation_id"].as_i64()
}

/// A caption: tags, artist and style.
pub(crate) fn title(body: &str, styles: &Styles) -> String {
    let body: Value = serde_json::from_str(body).unwrap_or_default();
    let tags = body["prompt_tags"].as_array().into_iter().flatten().filter_map(Value::as_str).collect::<Vec<_>>();
    let artist = body["artist_name"].as_str().unwrap_or_default();
    let style = styles.iter().find(|(_, style)| body["lora_model_url"] == style.url.as_str());
    let style = style.map(|(name, _)| format!(" ({name})")).unwrap_or_default();
    format!("{} by {artist}{style}", tags.join(", "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_task_names_the_chosen_style_or_another() {
        let style = |id: u64| Style { id, artist: "A".into(), url: format!("s3://b/{id}") };
        let styles = Styles::from([("dots".to_string(), style(10)), ("glass".to_string(), style(11))]);
        let chosen = choose(&styles, "glass").unwrap();
        assert_eq!(fill("$LORA $LORA(dots) $LORA(glass)", &styles, chosen), "s3://b/11 s3://b/10 s3://b/11");
        let error = choose(&styles, "oil").unwrap_err().to_string();
        assert_eq!(error, "--style oil: there are dots, glass");
    }
}
