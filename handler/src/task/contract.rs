//! The contract: every field of a task with its rule. The parser and the JSON Schema (draft 2020-12) are made from these; a field's
//! comment is its description in the schema.

use super::{
    Format, MAX_ARTIST_NAME, MAX_CLIP_SKIP, MAX_EXTRA_LORAS, MAX_GUIDANCE, MAX_IMAGES, MAX_INVERSIONS, MAX_LORA_SCALE,
    MAX_PROMPT, MAX_SIDE, MAX_STEPS, MAX_TAGS, MIN_SIDE, SIDE_STEP, SIZES_OF_RATIOS, SafetyMode,
    rule::{
        Blocks, Boolean, Defaulted, Field, Integer, Multiple, NonBlank, Number, Object, ObjectList, OneOf, Optional,
        Required, S3Url, Tags, Text, Timestamp, WebhookUrl, object_of,
    },
};
use crate::task::signature::{MAX_MARGIN, Position, SIZES};
use diffusion::{noise, prompt, schedulers};
use serde_json::{Map, Value, json};

/// Makes a constant of each field, and a list of them all, so that every field that is read is in the schema.
macro_rules! fields {
    ($(#[$doc:meta])* $list:ident {
        $($(#[doc = $about:literal])+ $field:ident: $kind:ty = $name:literal, $($rule:expr),+;)+
    }) => {
        $(pub(in crate::task) const $field: $kind = <$kind>::new($name, concat!($($about),+), $($rule),+);)+
        $(#[$doc])*
        pub(in crate::task) const $list: &[&dyn Field] = &[$(&$field),+];
    };
}

const ID: Integer = Integer { min: 0, max: i64::MAX as i128 };
const SEEDS: Integer = Integer { min: i64::MIN as i128, max: u64::MAX as i128 };
const SCALES: Number = Number { min: -MAX_LORA_SCALE, max: MAX_LORA_SCALE };
/// A factor of a LoRA's scale.
pub(super) const WEIGHTS: Blocks = Blocks { weight: SCALES };
const SIDES: Multiple = Multiple { of: SIDE_STEP as i128, min: MIN_SIDE as i128, max: MAX_SIDE as i128 };
const RATIOS: &[&str] = &[SIZES_OF_RATIOS[0].0, SIZES_OF_RATIOS[1].0, SIZES_OF_RATIOS[2].0];

fields! {
    /// A task.
    TASK {
        /// The backend's id; names the picture and every webhook.
        GENERATION_ID: Required<Integer> = "generation_id", ID;
        /// The artist's style.
        STYLE_ID: Required<Integer> = "style_id", ID;
        /// Where the style's LoRA is, a safetensors file: `s3://bucket/key`, the key of at most 1024 bytes. Which
        /// buckets may be read is the operator's choice.
        LORA_MODEL_URL: Required<S3Url> = "lora_model_url", S3Url;
        /// What the picture shows; joined by one space, of at most 10000 characters in all, the spaces too.
        PROMPT_TAGS: Required<Tags> = "prompt_tags", Tags { max_items: MAX_TAGS, max_chars: MAX_PROMPT };
        /// What the signature says.
        ARTIST_NAME: Required<NonBlank> = "artist_name", NonBlank { max_chars: MAX_ARTIST_NAME };
        /// Base address of the backend, http or https, with a host that the URL standard takes, without user, query
        /// and fragment. Which hosts may be called is the operator's choice.
        WEBHOOK_URL: Required<WebhookUrl> = "webhook_url", WebhookUrl;
        /// Seed of the noise, as torch takes it; negative ones wrap.
        SEED: Defaulted<Integer, i128> = "seed", SEEDS, 42;
        /// The size: 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024; by default and for any other 512x512.
        ASPECT_RATIO: Optional<Text> = "aspect_ratio", Text { max_chars: 100, examples: RATIOS };
        /// Width in pixels, together with `height`; both go before `aspect_ratio`. Which sizes are painted is the
        /// operator's choice: by default 256 to 1024 on each side, and at most 1048576 pixels.
        WIDTH: Optional<Multiple> = "width", SIDES;
        /// Height in pixels, together with `width`.
        HEIGHT: Optional<Multiple> = "height", SIDES;
        /// What the picture must not show.
        NEGATIVE_PROMPT: Optional<Text> = "negative_prompt", Text { max_chars: MAX_PROMPT, examples: &[] };
        /// Denoising steps. The scheduler lcm refuses more than 50 when it paints.
        NUM_INFERENCE_STEPS: Defaulted<Integer, i128> = "num_inference_steps", Integer { min: 1, max: MAX_STEPS }, 50;
        /// Classifier-free guidance; none at 1 and below.
        GUIDANCE_SCALE: Defaulted<Number, f64> = "guidance_scale", Number { min: 0.0, max: MAX_GUIDANCE }, 7.5;
        /// How the noise becomes a picture.
        SCHEDULER: Optional<OneOf<schedulers::Kind>> = "scheduler", OneOf::new(schedulers::Kind::names);
        /// The noise levels of Karras et al., or not; by default as the model's scheduler_config.json says.
        KARRAS_SIGMAS: Optional<Boolean> = "karras_sigmas", Boolean;
        /// Whose generator of torch the seed starts.
        NOISE_SOURCE: Optional<OneOf<noise::Source>> = "noise_source", OneOf::new(|| noise::Source::NAMES.into());
        /// What brackets in both prompts mean: text (none), or weights as in AUTOMATIC1111's web UI (a1111).
        PROMPT_WEIGHTING: Optional<OneOf<prompt::Weighting>> =
            "prompt_weighting", OneOf::new(|| prompt::Weighting::NAMES.into());
        /// Whether prompts of more than 75 tokens are read in chunks of 75, 8 at most. Otherwise what comes behind is not read.
        LONG_PROMPT: Optional<Boolean> = "long_prompt", Boolean;
        /// How many of the text encoder's last layers the prompt skips, as diffusers counts them: one less than
        /// AUTOMATIC1111's web UI. The model must have more layers.
        CLIP_SKIP: Defaulted<Integer, i128> = "clip_skip", Integer { min: 0, max: MAX_CLIP_SKIP }, 0;
        /// How strongly the style's LoRA is applied.
        LORA_SCALE: Defaulted<Number, f64> = "lora_scale", SCALES, 1.0;
        /// Factors of that for parts of the model, as diffusers' `set_adapters` takes them, 1 where none is given:
        /// `{"text_encoder": 0.5, "unet": {"down": 1, "mid": 1, "up": {"block_1": 0.5, "block_2": [1, 0.5, 0]}}}`. A
        /// number is for all of it, an array has one for each layer with attention of a block. The blocks must be
        /// the model's: in Stable Diffusion 1.5 block_0 to block_2 of down, 2 layers each, block_1 to block_3 of up, 3 each.
        LORA_WEIGHTS: Optional<Blocks> = "lora_weights", WEIGHTS;
        /// LoRAs beside the style's.
        LORAS: Optional<ObjectList> = "loras", ObjectList { max_items: MAX_EXTRA_LORAS, fields: extra::LORA };
        /// Textual inversions: words whose meaning somebody trained, for both prompts.
        TEXTUAL_INVERSIONS: Optional<ObjectList> =
            "textual_inversions", ObjectList { max_items: MAX_INVERSIONS, fields: inversion::INVERSION };
        /// A picture to begin from, a PNG, JPEG or WebP file: `s3://bucket/key` and nothing else. Which buckets may be read
        /// is the operator's choice, by default none. It is scaled until it fills the size, and what is over on two sides is
        /// cut off; its size does not decide that of the result.
        IMAGE_URL: Optional<S3Url> = "image_url", S3Url;
        /// How far from the picture of `image_url`, as in diffusers: the share of the steps that are painted, by default 0.8.
        /// At least one step must be left.
        STRENGTH: Optional<Number> = "strength", Number { min: 0.0, max: 1.0 };
        /// How many pictures.
        NUM_IMAGES: Defaulted<Integer, i128> = "num_images", Integer { min: 1, max: MAX_IMAGES }, 1;
        /// File format of the pictures.
        OUTPUT_FORMAT: Optional<OneOf<Format>> = "output_format", OneOf::new(Format::names);
        /// How the picture is signed.
        SIGNATURE: Optional<Object> = "signature", Object(signature::SIGNATURE);
        /// What becomes of pictures that the safety checker flags: nothing is checked (off), they stand and are told
        /// (flag), they are black (black), none of the task is stored (refuse). It holds where it is stricter than the
        /// operator's choice. A task that needs a checker where there is none is refused.
        SAFETY: Optional<OneOf<SafetyMode>> = "safety", OneOf::new(|| SafetyMode::NAMES.into());
        /// The date of the pictures, with its time zone; by default they have none.
        CREATED_AT: Optional<Timestamp> = "created_at", Timestamp;
    }
}

fields! {
    /// A message that cancels a task.
    CANCELLATION {
        /// The id of the task that shall not be painted.
        CANCEL: Required<Integer> = "cancel", ID;
    }
}

/// The fields of a LoRA beside the style's.
pub(super) mod extra {
    use super::*;

    fields! {
        /// A LoRA beside the style's.
        LORA {
            /// Where it is, as for the style's.
            LORA_MODEL_URL: Required<S3Url> = "lora_model_url", S3Url;
            /// How strongly it is applied.
            SCALE: Defaulted<Number, f64> = "scale", SCALES, 1.0;
            /// Factors of that for parts of the model, as `lora_weights`.
            WEIGHTS: Optional<Blocks> = "weights", super::WEIGHTS;
        }
    }
}

/// The fields of a textual inversion.
pub(super) mod inversion {
    use super::*;
    use diffusion::prompt::inversion::MAX_TOKEN;

    fields! {
        /// A textual inversion.
        INVERSION {
            /// Where it is, a safetensors file: `s3://bucket/key`, in the buckets that LoRAs may come from.
            URL: Required<S3Url> = "url", S3Url;
            /// The word for it in the prompts; by default the one that the file names. Upper and lower case are the same.
            TOKEN: Optional<NonBlank> = "token", NonBlank { max_chars: MAX_TOKEN };
        }
    }
}

/// The fields of a signature.
pub(super) mod signature {
    use super::*;

    fields! {
        /// A signature.
        SIGNATURE {
            /// Where it stands.
            POSITION: Optional<OneOf<Position>> = "position", OneOf::new(|| Position::NAMES.into());
            /// From invisible to solid.
            OPACITY: Defaulted<Integer, i128> =
                "opacity", Integer { min: 0, max: u8::MAX as i128 }, crate::task::signature::OPACITY as i128;
            /// Height of the letters as a share of the picture's shorter side; by default 0.05, more in tall pictures.
            SIZE: Optional<Number> = "size", Number { min: SIZES.0, max: SIZES.1 };
            /// Distance from the edges as a share of the picture's shorter side.
            MARGIN: Defaulted<Number, f64> = "margin", Number { min: 0.0, max: MAX_MARGIN }, crate::task::signature::MARGIN;
        }
    }
}

/// The version of JSON Schema.
const DRAFT: &str = "https://json-schema.org/draft/2020-12/schema";

/// The task as JSON Schema, as `handler schema task` prints it. Unknown fields are allowed, because the parser ignores them.
///
/// ```
/// let schema = handler::task::schema();
/// assert_eq!(schema["properties"]["num_images"]["maximum"], 4);
/// ```
pub fn schema() -> Value {
    let mut schema = Map::from_iter([
        ("$schema".to_string(), json!(DRAFT)),
        ("title".to_string(), json!("Generation task")),
        ("description".to_string(), json!(ABOUT)),
    ]);
    schema.extend(object_of(TASK));
    // The rules about two fields.
    let with_karras: Vec<Value> = schedulers::Kind::NAMES
        .iter()
        .filter(|(_, kind)| kind.has_karras_sigmas())
        .map(|(name, _)| json!(name))
        .chain([Value::Null])
        .collect();
    let asked = json!({ "required": ["karras_sigmas"], "properties": { "karras_sigmas": { "const": true } } });
    schema.insert("if".into(), asked);
    schema.insert("then".into(), json!({ "properties": { "scheduler": { "enum": with_karras } } }));
    let given = |field: &str| json!({ "required": [field], "properties": { field: { "type": "integer" } } });
    let (width, height) = (given("width"), given("height"));
    let strength = json!({ "required": ["strength"], "properties": { "strength": { "type": "number" } } });
    let image = json!({ "required": ["image_url"], "properties": { "image_url": { "type": "string" } } });
    schema.insert(
        "allOf".into(),
        json!([
            { "if": width, "then": height },
            { "if": height, "then": width },
            { "if": strength, "then": image },
        ]),
    );
    Value::Object(schema)
}

/// The message that cancels a task as JSON Schema, as `handler schema cancel` prints it.
///
/// ```
/// assert_eq!(handler::task::cancel_schema()["required"][0], "cancel");
/// ```
pub fn cancel_schema() -> Value {
    let mut schema = Map::from_iter([
        ("$schema".to_string(), json!(DRAFT)),
        ("title".to_string(), json!("Cancellation")),
        ("description".to_string(), json!(ABOUT_CANCELLING)),
    ]);
    schema.extend(object_of(CANCELLATION));
    schema.insert("additionalProperties".into(), json!(false));
    Value::Object(schema)
}

const ABOUT_CANCELLING: &str = "The body of a message that cancels a task, in the backend's queue or in one for such messages, whether that is painted already or not, \
    and whichever of the two arrives first. It may be sent again. After the task's pictures are stored it changes nothing. An integer that \
    is written as 1.0 or 1e2 is refused.";

const ABOUT: &str = "The body of a message in the backend's queue. Unknown fields are ignored; null means absent. What this \
    schema refuses is refused. What it accepts may still be refused: an integer that is written as 1.0 or 1e2, a time that no \
    calendar has, a strength that leaves no step, \
    tags of more characters than all may have together, a key of more than 1024 bytes, an address whose host \
    the URL standard does not take, a string with half of a surrogate pair.";

#[cfg(test)]
mod tests;
