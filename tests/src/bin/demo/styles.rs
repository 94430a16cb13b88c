//! The artists whose styles the demo offers: every LoRA of a folder, and who made it.

use anyhow::{Context, Result, bail};
use e2e::aws::{Aws, MODELS};
use serde::{Deserialize, Serialize};
use std::{collections::BTreeMap, fs, path::Path};

/// The artists of the styles that ship with the project.
const ARTISTS: [(&str, &str); 2] = [("halftone", "Benno Dotti"), ("stained-glass", "Ada Kowalska")];
/// Number of the first style; the platform counts them.
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
