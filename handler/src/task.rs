//! The task: what the backend asks for, read from JSON and checked against its limits.
//!
//! Unknown fields are ignored whatever they hold, so that the backend can be deployed first. `null` means absent. An error names the
//! field, what it holds and what is allowed. It is reported to the backend whenever the id and the address can be read, even if the message
//! is no JSON.

mod asked_size;
pub mod buckets;
mod cancel;
mod contract;
pub mod fault;
mod fingerprint;
mod format;
mod json;
mod rule;
mod safety;
mod salvage;
pub mod signature;
mod sizes;
mod warning;

pub use cancel::{Cancel, read_cancel};
pub use contract::{cancel_schema, schema};
pub use format::Format;
pub use safety::{Checked, SafetyMode};
pub use sizes::{MAX_SIDE, MIN_SIDE, SIDE_STEP, SIZES_OF_RATIOS, SizeLimits, side, size};
pub use warning::{Code, Warning};

use crate::task::signature::Signature;
use asked_size::AskedSize;
use aws_sdk_s3::primitives::DateTime;
use contract::{
    ARTIST_NAME, CLIP_SKIP, CREATED_AT, GENERATION_ID, GUIDANCE_SCALE, IMAGE_URL, KARRAS_SIGMAS, LONG_PROMPT,
    LORA_MODEL_URL, LORA_SCALE, LORA_WEIGHTS, LORAS, NEGATIVE_PROMPT, NOISE_SOURCE, NUM_IMAGES, NUM_INFERENCE_STEPS,
    OUTPUT_FORMAT, PROMPT_TAGS, PROMPT_WEIGHTING, SAFETY, SCHEDULER, SEED, SIGNATURE, STRENGTH, STYLE_ID, TASK,
    TEXTUAL_INVERSIONS, WEBHOOK_URL, extra, inversion,
};
use diffusion::{lora::BlockWeights, noise, pipeline::steps_of_strength, prompt, schedulers};
use json::Json;
use rule::{Fields, Joined, Result, Rule, base_address};
use salvage::{Salvage, salvage};
use std::borrow::Cow;
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
/// Most textual inversions.
pub const MAX_INVERSIONS: usize = 8;
/// Most pictures of one task.
pub const MAX_IMAGES: i128 = 4;
/// Most layers of the text encoder that are skipped: one less than that of Stable Diffusion 1.5 has.
pub const MAX_CLIP_SKIP: i128 = 11;
/// Largest guidance scale.
pub const MAX_GUIDANCE: f64 = 50.0;
/// Largest LoRA scale, either sign.
pub const MAX_LORA_SCALE: f64 = 10.0;
/// How far from a picture to begin from, if a task does not say; as in diffusers.
pub const STRENGTH_OF_IMAGES: f64 = 0.8;
/// Longest URL, in characters.
pub const MAX_URL: usize = 2048;

/// A generation task that passed every check.
#[derive(Debug, Clone)]
pub struct Task {
    /// The backend's id; names the pictures and every webhook.
    pub generation_id: i64,
    /// The artist's style.
    pub style_id: i64,
    /// The style's LoRA first, then any others.
    pub loras: Vec<LoraRef>,
    /// Words whose meaning somebody trained.
    pub inversions: Vec<InversionRef>,
    /// The picture to begin from.
    pub image: Option<ImageRef>,
    /// The tags, joined by one space.
    pub prompt: String,
    /// Where in the prompt each tag ends, in bytes.
    pub tag_ends: Vec<usize>,
    /// What the picture must not show; empty by default.
    pub negative_prompt: String,
    /// Whether brackets in both prompts mean weights.
    pub prompt_weighting: prompt::Weighting,
    /// Whether prompts of more tokens than the encoder reads at once are read in chunks.
    pub long_prompt: bool,
    /// How many of the text encoder's last layers the prompt skips.
    pub clip_skip: usize,
    /// The name to sign with.
    pub artist_name: String,
    /// Base address of the backend's webhooks.
    pub webhook_url: Url,
    /// The seed as the backend wrote it, from -2^63 to 2^64 - 1 as torch takes it.
    pub seed: i128,
    /// Pixels.
    pub width: usize,
    /// Pixels.
    pub height: usize,
    /// Whether the size is the task's own `width` and `height`, and not that of an aspect ratio.
    pub own_size: bool,
    /// What its fields ask for and do not get.
    pub warnings: Vec<Warning>,
    /// Denoising steps.
    pub steps: usize,
    /// The scale of classifier-free guidance.
    pub guidance_scale: f64,
    /// The scheduler.
    pub scheduler: schedulers::Kind,
    /// Whether to use the noise levels of Karras et al.; by default the model's file decides.
    pub karras_sigmas: Option<bool>,
    /// Whose generator draws the noise.
    pub noise_source: noise::Source,
    /// How many pictures.
    pub num_images: usize,
    /// File format of the pictures.
    pub format: Format,
    /// Place, strength and size of the signature.
    pub signature: Signature,
    /// The safety mode that must hold at least; by default the process decides.
    pub safety: Option<SafetyMode>,
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
    /// More multipliers, by the model's blocks.
    pub weights: BlockWeights,
}

/// A textual inversion in S3.
#[derive(Debug, Clone, PartialEq)]
pub struct InversionRef {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// What stands for it in the prompts; by default what the file names.
    pub token: Option<String>,
}

/// A picture in S3 to begin from.
#[derive(Debug, Clone, PartialEq)]
pub struct ImageRef {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
    /// The share of the steps that are painted, so that one step is left at least.
    pub strength: f64,
}

/// A message that is no valid task, with what is needed to notify the backend.
#[derive(Debug, thiserror::Error)]
#[error("{reason}")]
pub struct InvalidTask {
    /// The field, what it holds and what is allowed.
    pub reason: String,
    /// The id, if it is a whole number.
    pub generation_id: Option<i64>,
    /// The backend's address, if it can be used.
    pub webhook_url: Option<Url>,
}

impl Task {
    /// Parses and checks the body of a message.
    ///
    /// ```
    /// use handler::task::Task;
    ///
    /// let body = r#"{
    ///     "generation_id": 500, "style_id": 10, "lora_model_url": "s3://bucket/lora.safetensors",
    ///     "prompt_tags": ["lighthouse", "sunset"], "artist_name": "Ada", "webhook_url": "https://api.example.org"
    /// }"#;
    /// let task = Task::parse(body).unwrap();
    /// assert_eq!((task.prompt.as_str(), task.seed), ("lighthouse sunset", 42));
    ///
    /// let bad = Task::parse(&body.replace("500", "-1")).unwrap_err();
    /// assert!(bad.reason.starts_with("`generation_id` is -1, must be an integer from 0"));
    /// ```
    ///
    /// # Errors
    /// The first field that breaks the contract.
    pub fn parse(body: &str) -> std::result::Result<Self, Box<InvalidTask>> {
        // RFC 8259 lets a parser ignore a byte order mark, here only.
        let body = body.trim_start_matches('\u{feff}');
        let message = Json::parse(body).map_err(|error| {
            let Salvage { generation_id, webhook_url } = salvage(body);
            let webhook_url = webhook_url.filter(|text| text.chars().count() <= MAX_URL);
            Box::new(InvalidTask {
                reason: format!("the message is no JSON: {}", syntax_error(body, &error)),
                generation_id: generation_id.as_deref().and_then(whole_number),
                webhook_url: webhook_url.and_then(|text| base_address(&text).ok()),
            })
        })?;
        let Some(members) = message.members(TASK) else {
            let reason = format!("the message is {}, must be a JSON object", message.kind());
            return Err(Box::new(InvalidTask { reason, generation_id: None, webhook_url: None }));
        };
        let fields = Fields::new(members);
        Self::from_fields(&fields).map_err(|reason| {
            let generation_id = fields.get("generation_id").and_then(Json::number).and_then(whole_number);
            Box::new(InvalidTask { reason, generation_id, webhook_url: WEBHOOK_URL.read(&fields).ok() })
        })
    }

    fn from_fields(fields: &Fields) -> Result<Self> {
        let AskedSize { width, height, is_own: own_size, warning } = AskedSize::read(fields)?;
        let scheduler = SCHEDULER.read(fields)?.unwrap_or_default();
        let Joined { text: prompt, ends: tag_ends } = PROMPT_TAGS.read(fields)?;
        let lora_scale = LORA_SCALE.read(fields)?;
        let weights = LORA_WEIGHTS.read(fields)?.unwrap_or_default();
        let mut loras = vec![LoraRef::new(LORA_MODEL_URL.read(fields)?, lora_scale, weights)];
        for lora in LORAS.read(fields)?.unwrap_or_default() {
            let (scale, weights) = (extra::SCALE.read(&lora)?, extra::WEIGHTS.read(&lora)?.unwrap_or_default());
            loras.push(LoraRef::new(extra::LORA_MODEL_URL.read(&lora)?, scale, weights));
        }
        let steps = NUM_INFERENCE_STEPS.read(fields)? as usize;
        Ok(Self {
            inversions: inversions(fields)?,
            image: image(fields, steps)?,
            generation_id: GENERATION_ID.read(fields)? as i64,
            style_id: STYLE_ID.read(fields)? as i64,
            loras,
            prompt,
            tag_ends,
            negative_prompt: NEGATIVE_PROMPT.read(fields)?.map(Cow::into_owned).unwrap_or_default(),
            prompt_weighting: PROMPT_WEIGHTING.read(fields)?.unwrap_or_default(),
            long_prompt: LONG_PROMPT.read(fields)?.unwrap_or_default(),
            clip_skip: CLIP_SKIP.read(fields)? as usize,
            artist_name: ARTIST_NAME.read(fields)?.into_owned(),
            webhook_url: WEBHOOK_URL.read(fields)?,
            seed: SEED.read(fields)?,
            width,
            height,
            own_size,
            warnings: warning.into_iter().collect(),
            steps,
            guidance_scale: GUIDANCE_SCALE.read(fields)?,
            scheduler,
            karras_sigmas: karras_sigmas(fields, scheduler)?,
            noise_source: NOISE_SOURCE.read(fields)?.unwrap_or_default(),
            num_images: NUM_IMAGES.read(fields)? as usize,
            format: OUTPUT_FORMAT.read(fields)?.unwrap_or_default(),
            signature: signature(fields)?,
            safety: SAFETY.read(fields)?,
            created_at: CREATED_AT.read(fields)?,
        })
    }

    /// How many steps are painted: all, or those that are left where the task begins from a picture.
    pub fn painted_steps(&self) -> usize {
        self.image.as_ref().map_or(self.steps, |image| steps_of_strength(self.steps, image.strength))
    }

    /// The seed as the generator takes it: negative ones wrap, as in torch.
    pub fn seed_bits(&self) -> u64 {
        self.seed as u64
    }
}

impl LoraRef {
    fn new((bucket, key): (String, String), scale: f64, weights: BlockWeights) -> Self {
        Self { bucket, key, scale, weights }
    }
}

/// Parses a LoRA's weights by block, as a task has them.
///
/// ```
/// let weights = handler::task::block_weights(r#"{"unet": {"up": {"block_1": [0.4, 0.8, 1]}}}"#).unwrap();
/// assert_eq!(weights.to_string(), "unet.up.block_1[0]: 0.4, unet.up.block_1[1]: 0.8, unet.up.block_1[2]: 1");
/// ```
///
/// # Errors
/// What breaks the contract.
pub fn block_weights(text: &str) -> Result<BlockWeights> {
    let value =
        Json::parse(text).map_err(|error| format!("the weights are no JSON: {}", syntax_error(text, &error)))?;
    contract::WEIGHTS.read("weights", value)
}

/// What is wrong with a message that is no JSON, and where. Shows nothing of the message.
fn syntax_error(body: &str, error: &serde_json::Error) -> String {
    let place = format!("line {} column {}", error.line(), error.column());
    let line = body.split_inclusive('\n').nth(error.line().saturating_sub(1));
    let there = line.and_then(|line| line.get(error.column().saturating_sub(1)..));
    if there.is_some_and(|rest| rest.starts_with('\u{feff}')) {
        format!("a byte order mark (U+FEFF) stands at {place}")
    } else if error.is_eof() {
        format!("it ends too early, at {place}")
    } else {
        error.to_string()
    }
}

/// A number as an id, however it is written.
fn whole_number(number: &str) -> Option<i64> {
    // From here on an f64 may be another number than the one that was written.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    let rounded = || number.parse().ok().filter(|number: &f64| number.fract() == 0.0 && number.abs() < EXACT);
    number.parse().ok().or_else(|| rounded().map(|number| number as i64))
}

fn karras_sigmas(fields: &Fields, scheduler: schedulers::Kind) -> Result<Option<bool>> {
    match KARRAS_SIGMAS.read(fields)? {
        Some(true) if !scheduler.has_karras_sigmas() => {
            Err(format!("`karras_sigmas` is true, must be false or absent with the scheduler {scheduler}"))
        }
        wish => Ok(wish),
    }
}

fn inversions(fields: &Fields) -> Result<Vec<InversionRef>> {
    let one = |fields: Fields| {
        let (bucket, key) = inversion::URL.read(&fields)?;
        Ok(InversionRef { bucket, key, token: inversion::TOKEN.read(&fields)?.map(Cow::into_owned) })
    };
    TEXTUAL_INVERSIONS.read(fields)?.unwrap_or_default().into_iter().map(one).collect()
}

fn image(fields: &Fields, steps: usize) -> Result<Option<ImageRef>> {
    let (address, strength) = (IMAGE_URL.read(fields)?, STRENGTH.read(fields)?);
    let Some((bucket, key)) = address else {
        return match strength {
            None => Ok(None),
            Some(_) => Err("`image_url` is missing, must be there because `strength` is".into()),
        };
    };
    let strength = strength.unwrap_or(STRENGTH_OF_IMAGES);
    if steps_of_strength(steps, strength) == 0 {
        return Err(format!(
            "`strength` is {strength}, must leave a step: {steps} `num_inference_steps` times it must be 1 or more"
        ));
    }
    Ok(Some(ImageRef { bucket, key, strength }))
}

fn signature(fields: &Fields) -> Result<Signature> {
    use contract::signature::{MARGIN, OPACITY, POSITION, SIZE};
    let Some(wish) = SIGNATURE.read(fields)? else { return Ok(Signature::default()) };
    Ok(Signature {
        position: POSITION.read(&wish)?.unwrap_or_default(),
        opacity: OPACITY.read(&wish)? as u8,
        size: SIZE.read(&wish)?,
        margin: MARGIN.read(&wish)?,
    })
}

#[cfg(test)]
mod tests;
