//! The task: what the backend asks for, read from JSON and checked against its limits.
//!
//! Unknown fields are ignored, so that the backend can move first. `null` in an optional field means that it is absent.
//! Each error names the field, what it holds and what it may hold.

mod fields;
mod format;

pub use format::Format;

use crate::{
    pipeline::{noise, prompt, scheduler},
    signature::{MAX_MARGIN, Position, SIZES, Signature},
};
use aws_sdk_s3::primitives::DateTime;
use fields::{Fields, Result};
use serde_json::Value;
use sha2::{Digest, Sha256};
use url::Url;

/// Longest artist name, in characters.
pub const MAX_ARTIST_NAME: usize = 200;
/// Most tags of a prompt.
pub const MAX_TAGS: usize = 100;
/// Longest prompt or negative prompt, in characters.
pub const MAX_PROMPT: usize = 10_000;
/// Most denoising steps.
pub const MAX_STEPS: i128 = 150;
/// Most LoRAs beside the style's own.
pub const MAX_EXTRA_LORAS: usize = 7;
/// Most pictures of one task.
pub const MAX_IMAGES: i128 = 4;
/// Largest guidance scale.
pub const MAX_GUIDANCE: f64 = 50.0;
/// Largest LoRA scale, either sign.
pub const MAX_LORA_SCALE: f64 = 10.0;
/// Longest URL, in characters.
pub const MAX_URL: usize = 2048;

/// A generation task that passed every check.
#[derive(Debug, Clone)]
pub struct Task {
    /// The backend's id; names the result and every webhook.
    pub generation_id: i64,
    /// The artist's style.
    pub style_id: i64,
    /// The style's LoRA first, then any others.
    pub loras: Vec<LoraRef>,
    /// The tags joined by one space.
    pub prompt: String,
    /// What the picture must not show; empty by default.
    pub negative_prompt: String,
    /// Whether brackets in both prompts mean weights.
    pub prompt_weighting: prompt::Weighting,
    /// What the signature says.
    pub artist_name: String,
    /// Base address of the backend's webhooks.
    pub webhook_url: Url,
    /// Seed as the backend wrote it, from -2^63 to 2^64 - 1 as torch takes it.
    pub seed: i128,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Denoising steps.
    pub steps: usize,
    /// Classifier-free guidance.
    pub guidance_scale: f64,
    /// Scheduler.
    pub scheduler: scheduler::Kind,
    /// The noise levels of Karras et al., or not; if nothing is asked for, the model's file decides.
    pub karras_sigmas: Option<bool>,
    /// Whose generator draws the noise.
    pub noise_source: noise::Source,
    /// How many pictures.
    pub num_images: usize,
    /// File format of the pictures.
    pub format: Format,
    /// Place, strength and size of the signature.
    pub signature: Signature,
    /// When the backend made the task; the date of the pictures.
    pub created_at: Option<DateTime>,
}

/// A LoRA in S3 and how strongly it is applied.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraRef {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// Multiplier, 1 by default.
    pub scale: f64,
}

/// A message that is no valid task, with as much of it as is needed to tell the backend.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct BadTask {
    /// Which field, what it holds, what it may hold.
    pub reason: String,
    /// The id, if the message has an integer there.
    pub generation_id: Option<i64>,
    /// The backend's address, if the message has a usable one.
    pub webhook_url: Option<Url>,
}

impl Task {
    /// Reads and checks the body of a message.
    ///
    /// # Errors
    /// The first field that breaks the contract.
    pub fn parse(body: &str) -> std::result::Result<Self, Box<BadTask>> {
        let unknown = |reason: String| Box::new(BadTask { reason, generation_id: None, webhook_url: None });
        let value: Value = serde_json::from_str(body).map_err(|error| {
            let place = format!("line {} column {}", error.line(), error.column());
            unknown(format!("the message is no JSON: it breaks off at {place}"))
        })?;
        let Value::Object(map) = &value else {
            return Err(unknown(format!("the message is {}, must be a JSON object", fields::kind(&value))));
        };
        let fields = Fields::new(map);
        Self::from_fields(&fields).map_err(|reason| {
            let generation_id = map.get("generation_id").and_then(Value::as_i64);
            Box::new(BadTask { reason, generation_id, webhook_url: fields.webhook_url("webhook_url").ok() })
        })
    }

    fn from_fields(fields: &Fields) -> Result<Self> {
        let (width, height) = size(fields.optional_text("aspect_ratio", 100)?);
        let scheduler = fields.name("scheduler", &scheduler::Kind::names())?;
        let lora_scale = fields.number("lora_scale", 1.0, -MAX_LORA_SCALE, MAX_LORA_SCALE)?;
        let mut loras = vec![fields.lora_url("lora_model_url", lora_scale)?];
        for extra in fields.objects("loras", MAX_EXTRA_LORAS)? {
            let scale = extra.number("scale", 1.0, -MAX_LORA_SCALE, MAX_LORA_SCALE)?;
            loras.push(extra.lora_url("lora_model_url", scale)?);
        }
        Ok(Self {
            generation_id: fields.id("generation_id")?,
            style_id: fields.id("style_id")?,
            loras,
            prompt: fields.tags("prompt_tags")?,
            negative_prompt: fields.optional_text("negative_prompt", MAX_PROMPT)?.unwrap_or_default().to_string(),
            prompt_weighting: fields.name("prompt_weighting", prompt::Weighting::NAMES)?,
            artist_name: artist_name(fields)?,
            webhook_url: fields.webhook_url("webhook_url")?,
            seed: fields.integer("seed", Some(42), i128::from(i64::MIN), i128::from(u64::MAX))?,
            width,
            height,
            steps: fields.integer("num_inference_steps", Some(50), 1, MAX_STEPS)? as usize,
            guidance_scale: fields.number("guidance_scale", 7.5, 0.0, MAX_GUIDANCE)?,
            scheduler,
            karras_sigmas: karras_sigmas(fields, scheduler)?,
            noise_source: fields.name("noise_source", noise::Source::NAMES)?,
            num_images: fields.integer("num_images", Some(1), 1, MAX_IMAGES)? as usize,
            format: fields.name("output_format", Format::NAMES)?,
            signature: signature(fields)?,
            created_at: fields.instant("created_at")?,
        })
    }

    /// The seed as the generator takes it: negative ones wrap, as in torch.
    pub fn seed_bits(&self) -> u64 {
        self.seed as u64
    }

    /// Says in 64 hex digits what is to be painted: two tasks with the same one give the same pictures. Where the backend is,
    /// which style it names and when are no part of it.
    ///
    /// A release that adds a field changes it. A task redelivered across that release is painted again, which is safe.
    pub fn fingerprint(&self) -> String {
        // Each field by name: a new one does not compile until it is decided whether it belongs here.
        let Self {
            generation_id: _,
            style_id: _,
            webhook_url: _,
            created_at: _,
            loras,
            prompt,
            negative_prompt,
            prompt_weighting,
            artist_name,
            seed,
            width,
            height,
            steps,
            guidance_scale,
            scheduler,
            karras_sigmas,
            noise_source,
            num_images,
            format,
            signature,
        } = self;
        let words = (loras, prompt, negative_prompt, prompt_weighting, artist_name, format, signature);
        let numbers = (seed, width, height, steps, guidance_scale, scheduler, karras_sigmas, noise_source, num_images);
        let digest = Sha256::digest(format!("{words:?}{numbers:?}"));
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// Keys of the results: `generations/gen_{id}.jpg`, then `generations/gen_{id}_2.jpg` and so on.
    pub fn result_keys(&self) -> Vec<String> {
        let (id, extension) = (self.generation_id, self.format.extension());
        let key = |number: usize| match number {
            1 => format!("generations/gen_{id}.{extension}"),
            _ => format!("generations/gen_{id}_{number}.{extension}"),
        };
        (1..=self.num_images).map(key).collect()
    }
}

/// Width and height of an aspect ratio; 512x512 for none and, as in the Python worker, for an unknown one.
pub fn size(aspect_ratio: Option<&str>) -> (usize, usize) {
    match aspect_ratio {
        None | Some("1:1") => (512, 512),
        Some("2:2") => (768, 768),
        Some("1:2") => (512, 1024),
        Some(_) => {
            tracing::warn!(known = "1:1, 2:2, 1:2", "unknown aspect_ratio, painting 512x512");
            (512, 512)
        }
    }
}

fn artist_name<'a>(fields: &Fields<'a>) -> Result<String> {
    let name = fields.text("artist_name", MAX_ARTIST_NAME)?;
    if name.trim().is_empty() {
        return Err("`artist_name` is empty, it must name the artist".into());
    }
    Ok(name.to_string())
}

fn karras_sigmas(fields: &Fields, scheduler: scheduler::Kind) -> Result<Option<bool>> {
    match fields.boolean("karras_sigmas")? {
        Some(true) if !scheduler.has_karras_sigmas() => {
            Err(format!("`karras_sigmas` is true, must be false or absent with the scheduler {scheduler}"))
        }
        wish => Ok(wish),
    }
}

fn signature(fields: &Fields) -> Result<Signature> {
    let default = Signature::default();
    let Some(wish) = fields.object("signature")? else { return Ok(default) };
    let size = wish.number("size", SIZES.0, SIZES.0, SIZES.1)?;
    Ok(Signature {
        position: wish.name("position", Position::NAMES)?,
        opacity: wish.integer("opacity", Some(default.opacity.into()), 0, 255)? as u8,
        size: wish.has("size").then_some(size),
        margin: wish.number("margin", default.margin, 0.0, MAX_MARGIN)?,
    })
}

#[cfg(test)]
mod tests;
