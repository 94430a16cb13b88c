//! What a picture's file says about how it was made. Only facts of the task and the model, never the time of day, so that a task that
//! is delivered again gives the same bytes. Prompts only if the operator wants them.

use crate::{storage::weights, task::Checked};
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use diffusion::{lora::AppliedLora, pipeline::Request, prompt::inversion::AppliedInversion};
use std::{fmt, path::Path};

/// The software that made the picture.
pub(super) const GENERATOR: &str = concat!("Easel ", env!("CARGO_PKG_VERSION"));
/// IPTC's term for media made by a trained model.
pub(super) const DIGITAL_SOURCE_TYPE: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
/// Characters of a prompt that are written. The text encoder reads about 300, and a JPEG segment holds 65,533 bytes.
const MAX_PROMPT_CHARACTERS: usize = 2000;

/// The task that a picture belongs to.
#[derive(Debug, Clone, Default)]
pub struct PictureOrigin {
    /// The backend's id of the task, if there is a task.
    pub generation_id: Option<i64>,
    /// When the task was created, if it says so.
    pub created_at: Option<DateTime>,
    /// The seed as the task has it.
    pub seed: i128,
}

/// Name and revision of a model, as files name it. Never a path, which would reveal something about the machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ModelName {
    /// The repository's name if it is known, else the folder's.
    pub name: String,
    /// The repository's commit, if it is known.
    pub revision: Option<String>,
}

impl fmt::Display for ModelName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.revision {
            Some(revision) => write!(f, "{}@{revision}", self.name),
            None => f.write_str(&self.name),
        }
    }
}

impl ModelName {
    /// The name of the model in a folder: the repository's if `handler weights pull` filled the folder or it is in a cache of Hugging
    /// Face (`models--ORG--NAME/snapshots/COMMIT`), else the folder's own, or a checkpoint's without its ending.
    pub fn of(folder: &Path) -> Self {
        if let Some((name, commit)) = weights::pulled_from(folder) {
            return Self { name, revision: Some(commit) };
        }
        // Not what a link leads to: a cache has files under their hashes.
        if let Some(stem) = folder.file_stem().filter(|_| folder.is_file()) {
            return Self { name: stem.to_string_lossy().into_owned(), revision: None };
        }
        let folder = folder.canonicalize().unwrap_or_else(|_| folder.into());
        let name = |path: &Path| path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        let own = name(&folder);
        let repository = folder.parent().filter(|parent| name(parent) == "snapshots").and_then(Path::parent).map(name);
        match repository.as_deref().and_then(|repository| repository.strip_prefix("models--")) {
            Some(repository) => Self { name: repository.replace("--", "/"), revision: Some(own) },
            None => Self { name: own, revision: None },
        }
    }
}

/// Everything that a picture's file says about how it was made.
#[derive(Debug, Clone)]
pub struct Provenance<'a> {
    /// The task.
    pub origin: &'a PictureOrigin,
    /// The artist whose name is in the picture.
    pub artist: Option<&'a str>,
    /// The base model.
    pub model: &'a ModelName,
    /// The LoRAs that were applied.
    pub loras: &'a [AppliedLora],
    /// The textual inversions of the prompts.
    pub inversions: &'a [AppliedInversion],
    /// Prompts and settings.
    pub request: &'a Request,
    /// Number of the picture in its task, from 1, and how many pictures the task has.
    pub image: (usize, usize),
    /// What the safety checker said of it, if a check was made.
    pub checked: Option<Checked>,
    /// Whether prompts are written.
    pub prompts: bool,
}

impl Provenance<'_> {
    /// The settings that reproduce the picture, by name, without LoRAs and prompts.
    pub(super) fn settings(&self) -> Vec<(&'static str, String)> {
        let (origin, model, request) = (self.origin, self.model, self.request);
        let settings = [
            ("GenerationId", origin.generation_id.map(|id| id.to_string())),
            ("Model", Some(model.name.clone())),
            ("ModelRevision", model.revision.clone()),
            ("Seed", Some(origin.seed.to_string())),
            ("Steps", Some(request.steps.to_string())),
            // Where the picture that it began from lies is the customer's.
            ("DenoisingStrength", request.start.as_ref().map(|start| start.strength.to_string())),
            ("GuidanceScale", Some(request.guidance_scale.to_string())),
            ("Scheduler", Some(request.scheduler.to_string())),
            ("KarrasSigmas", request.karras_sigmas.map(|wanted| wanted.to_string())),
            ("LongPrompt", request.long_prompt.then(|| "true".to_string())),
            ("ClipSkip", Some(request.clip_skip).filter(|layers| *layers > 0).map(|layers| layers.to_string())),
            ("NoiseSource", Some(request.noise_source.to_string())),
            ("Size", Some(format!("{}x{}", request.width, request.height))),
            ("Image", Some(format!("{} of {}", self.image.0, self.image.1))),
            ("Safety", self.checked.map(|checked| checked.mode.to_string())),
            ("NsfwContentDetected", self.checked.map(|checked| checked.nsfw.to_string())),
        ];
        settings.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Prompt and negative prompt, if prompts are written and if they are not empty.
    pub(super) fn prompts(&self) -> (Option<String>, Option<String>) {
        let text = |prompt: &str| {
            Some(writable(prompt, MAX_PROMPT_CHARACTERS)).filter(|text| self.prompts && !text.is_empty())
        };
        (text(&self.request.prompt), text(&self.request.negative_prompt))
    }

    /// The artist's name.
    pub(super) fn artist(&self) -> Option<String> {
        let name = self.artist.map(|name| writable(name.trim(), MAX_PROMPT_CHARACTERS));
        name.filter(|name| !name.is_empty())
    }

    /// When the task was created, as RFC 3339 in UTC and whole seconds: `2026-11-25T14:00:00Z`.
    pub(super) fn created(&self) -> Option<String> {
        DateTime::from_secs(self.origin.created_at?.secs()).fmt(DateTimeFormat::DateTime).ok()
    }
}

/// The start of a text, without characters that XML 1.0 does not allow.
fn writable(text: &str, length: usize) -> String {
    let is_forbidden = |character: char| {
        (character.is_control() && !matches!(character, '\n' | '\t')) || matches!(character, '\u{fffe}' | '\u{ffff}')
    };
    text.chars().filter(|character| !is_forbidden(*character)).take(length).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_named_without_its_path_and_a_snapshot_by_its_repository() {
        let folder = |path: &str| ModelName::of(Path::new(path));
        let plain = ModelName { name: "sd15".into(), revision: None };
        assert_eq!(folder("/no/such/place/sd15/"), plain);
        assert_eq!(folder("/no/such/snapshots/sd15"), plain);
        let commit = "451f4fe16113bff5a5d2269ed5ad43b0592e9a14";
        let snapshot = folder(&format!("/no/such/hub/models--org--sd-v1-5/snapshots/{commit}"));
        assert_eq!(snapshot, ModelName { name: "org/sd-v1-5".into(), revision: Some(commit.into()) });
    }

    #[test]
    fn a_checkpoint_is_named_by_its_file_without_the_ending() {
        let folder = tempfile::tempdir().unwrap();
        let (blob, file) = (folder.path().join("0a1b2c"), folder.path().join("anime-v1.5.safetensors"));
        std::fs::write(&blob, "").unwrap();
        std::os::unix::fs::symlink(&blob, &file).unwrap();
        assert_eq!(ModelName::of(&file), ModelName { name: "anime-v1.5".into(), revision: None });
    }

    #[test]
    fn a_pulled_folder_is_named_by_its_manifest() {
        let folder = tempfile::tempdir().unwrap();
        let file = format!(r#"{{"path":"model_index.json","bytes":2,"sha256":"{}"}}"#, "0".repeat(64));
        let manifest =
            format!(r#"{{"repo":"org/sd","revision":"main","commit":"451f4fe1","variant":"full","files":[{file}]}}"#);
        std::fs::write(folder.path().join("easel-weights.json"), manifest).unwrap();
        let expected = ModelName { name: "org/sd".into(), revision: Some("451f4fe1".into()) };
        assert_eq!(ModelName::of(folder.path()), expected);
        std::fs::write(folder.path().join("easel-weights.json"), "{").unwrap();
        assert_eq!(ModelName::of(folder.path()).revision, None, "half a manifest names nothing");
    }
}
