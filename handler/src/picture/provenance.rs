//! What a picture's file says of how it came to be. Holds facts of the task and the model alone, never the time of day, so that
//! a task that comes again gives the same bytes; and prompts only where the operator wants them.

use super::ModelName;
use aws_sdk_s3::primitives::{DateTime, DateTimeFormat};
use diffusion::{lora::AppliedLora, pipeline::Request};

/// What painted the picture.
pub(super) const GENERATOR: &str = concat!("Easel ", env!("CARGO_PKG_VERSION"));
/// IPTC's word for what a trained model made.
pub(super) const DIGITAL_SOURCE_TYPE: &str = "http://cv.iptc.org/newscodes/digitalsourcetype/trainedAlgorithmicMedia";
/// Characters of a prompt that are written. The text encoder reads about 300, and one segment of a JPEG holds 65,533 bytes.
const MOST_OF_A_PROMPT: usize = 2000;

/// What is known of a picture before it is painted, beside the request.
#[derive(Debug, Clone, Default)]
pub struct Origin {
    /// The backend's id of the task, if there is a task.
    pub generation_id: Option<i64>,
    /// When the task was made, if it says so.
    pub created_at: Option<DateTime>,
    /// The seed as it was asked for.
    pub seed: i128,
}

/// What a file says.
#[derive(Debug, Clone)]
pub struct Provenance<'a> {
    /// Where the picture comes from.
    pub origin: &'a Origin,
    /// Whose name it is signed with.
    pub artist: Option<&'a str>,
    /// What painted it.
    pub model: &'a ModelName,
    /// In whose style.
    pub loras: &'a [AppliedLora],
    /// What was asked for.
    pub request: &'a Request,
    /// Which picture of the task it is, from 1, and of how many.
    pub image: (usize, usize),
    /// Whether the prompts are written.
    pub prompts: bool,
}

impl Provenance<'_> {
    /// The settings that paint the picture again, by name; without LoRAs and prompts.
    pub(super) fn settings(&self) -> Vec<(&'static str, String)> {
        let (origin, model, request) = (self.origin, self.model, self.request);
        let settings = [
            ("GenerationId", origin.generation_id.map(|id| id.to_string())),
            ("Model", Some(model.name.clone())),
            ("ModelRevision", model.revision.clone()),
            ("Seed", Some(origin.seed.to_string())),
            ("Steps", Some(request.steps.to_string())),
            ("GuidanceScale", Some(request.guidance_scale.to_string())),
            ("Scheduler", Some(request.scheduler.to_string())),
            ("KarrasSigmas", request.karras_sigmas.map(|wanted| wanted.to_string())),
            ("NoiseSource", Some(request.noise_source.to_string())),
            ("Size", Some(format!("{}x{}", request.width, request.height))),
            ("Image", Some(format!("{} of {}", self.image.0, self.image.1))),
        ];
        settings.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
    }

    /// Prompt and negative prompt, if they are to be written; an empty one is none.
    pub(super) fn prompts(&self) -> (Option<String>, Option<String>) {
        let text =
            |prompt: &str| Some(writable(prompt, MOST_OF_A_PROMPT)).filter(|text| self.prompts && !text.is_empty());
        (text(&self.request.prompt), text(&self.request.negative_prompt))
    }

    /// The artist's name.
    pub(super) fn artist(&self) -> Option<String> {
        let name = self.artist.map(|name| writable(name.trim(), MOST_OF_A_PROMPT));
        name.filter(|name| !name.is_empty())
    }

    /// When the task was made, as RFC 3339 in UTC and whole seconds: `2026-11-25T14:00:00Z`.
    pub(super) fn created(&self) -> Option<String> {
        DateTime::from_secs(self.origin.created_at?.secs()).fmt(DateTimeFormat::DateTime).ok()
    }
}

/// The start of a text, without what XML 1.0 has no way to hold.
fn writable(text: &str, most: usize) -> String {
    let barred = |character: char| {
        (character.is_control() && !matches!(character, '\n' | '\t')) || matches!(character, '\u{fffe}' | '\u{ffff}')
    };
    text.chars().filter(|character| !barred(*character)).take(most).collect()
}
