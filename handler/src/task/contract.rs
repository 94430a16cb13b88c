//! The contract: every field of a task, with what it may hold. The parser reads by these rules and the schema is
//! written from them; a comment here is the field's description there.

use super::{
    Format, MAX_ARTIST_NAME, MAX_EXTRA_LORAS, MAX_GUIDANCE, MAX_IMAGES, MAX_LORA_SCALE, MAX_PROMPT, MAX_STEPS,
    MAX_TAGS, SIZES_OF_RATIOS,
    rule::{
        Boolean, Defaulted, Described, Instant, Integer, Lora, Name, Number, Object, Objects, Optional, Required, Tags,
        Text, Visible, Webhook,
    },
};
use crate::task::signature::{MARGIN, MAX_MARGIN, OPACITY, Position, SIZES};
use diffusion::{noise, prompt, schedulers};

/// Makes a constant of each field, and a list of them all: what is read is on the list.
macro_rules! fields {
    ($(#[$doc:meta])* $list:ident {
        $($(#[doc = $about:literal])+ $field:ident: $kind:ty = $name:literal, $($rule:expr),+;)+
    }) => {
        $(pub(in crate::task) const $field: $kind = <$kind>::new($name, concat!($($about),+), $($rule),+);)+
        $(#[$doc])*
        pub(in crate::task) const $list: &[&dyn Described] = &[$(&$field),+];
    };
}

const ID: Integer = Integer { least: 0, most: i64::MAX as i128 };
const SEEDS: Integer = Integer { least: i64::MIN as i128, most: u64::MAX as i128 };
const SCALES: Number = Number { least: -MAX_LORA_SCALE, most: MAX_LORA_SCALE };
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
        LORA_MODEL_URL: Required<Lora> = "lora_model_url", Lora;
        /// What the picture shows; joined by one space, of at most 10000 characters in all, the spaces too.
        PROMPT_TAGS: Required<Tags> = "prompt_tags", Tags { most: MAX_TAGS, characters: MAX_PROMPT };
        /// What the signature says.
        ARTIST_NAME: Required<Visible> = "artist_name", Visible { most: MAX_ARTIST_NAME };
        /// Base address of the backend, http or https, with a host that the URL standard takes, without user, query
        /// and fragment. Which hosts may be called is the operator's choice.
        WEBHOOK_URL: Required<Webhook> = "webhook_url", Webhook;
        /// Seed of the noise, as torch takes it; negative ones wrap.
        SEED: Defaulted<Integer, i128> = "seed", SEEDS, 42;
        /// The size: 1:1 is 512x512, 2:2 is 768x768, 1:2 is 512x1024; by default and for any other 512x512.
        ASPECT_RATIO: Optional<Text> = "aspect_ratio", Text { most: 100, examples: RATIOS };
        /// What the picture must not show.
        NEGATIVE_PROMPT: Optional<Text> = "negative_prompt", Text { most: MAX_PROMPT, examples: &[] };
        /// Denoising steps. The scheduler lcm refuses more than 50 when it paints.
        NUM_INFERENCE_STEPS: Defaulted<Integer, i128> = "num_inference_steps", Integer { least: 1, most: MAX_STEPS }, 50;
        /// Classifier-free guidance; none at 1 and below.
        GUIDANCE_SCALE: Defaulted<Number, f64> = "guidance_scale", Number { least: 0.0, most: MAX_GUIDANCE }, 7.5;
        /// How the noise becomes a picture.
        SCHEDULER: Optional<Name<schedulers::Kind>> = "scheduler", Name::of(schedulers::Kind::names);
        /// The noise levels of Karras et al., or not; by default as the model's scheduler_config.json says.
        KARRAS_SIGMAS: Optional<Boolean> = "karras_sigmas", Boolean;
        /// Whose generator of torch the seed starts.
        NOISE_SOURCE: Optional<Name<noise::Source>> = "noise_source", Name::of(|| noise::Source::NAMES.into());
        /// What brackets in both prompts mean: text (none), or weights as in AUTOMATIC1111's web UI (a1111).
        PROMPT_WEIGHTING: Optional<Name<prompt::Weighting>> =
            "prompt_weighting", Name::of(|| prompt::Weighting::NAMES.into());
        /// How strongly the style's LoRA is applied.
        LORA_SCALE: Defaulted<Number, f64> = "lora_scale", SCALES, 1.0;
        /// LoRAs beside the style's.
        LORAS: Optional<Objects> = "loras", Objects { most: MAX_EXTRA_LORAS, fields: extra::LORA };
        /// How many pictures.
        NUM_IMAGES: Defaulted<Integer, i128> = "num_images", Integer { least: 1, most: MAX_IMAGES }, 1;
        /// File format of the pictures.
        OUTPUT_FORMAT: Optional<Name<Format>> = "output_format", Name::of(Format::names);
        /// How the picture is signed.
        SIGNATURE: Optional<Object> = "signature", Object(signature::SIGNATURE);
        /// The date of the pictures, with its time zone; by default they have none.
        CREATED_AT: Optional<Instant> = "created_at", Instant;
    }
}

/// The fields of a LoRA beside the style's.
pub(super) mod extra {
    use super::*;

    fields! {
        /// A LoRA beside the style's.
        LORA {
            /// Where it is, as for the style's.
            LORA_MODEL_URL: Required<Lora> = "lora_model_url", Lora;
            /// How strongly it is applied.
            SCALE: Defaulted<Number, f64> = "scale", SCALES, 1.0;
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
            POSITION: Optional<Name<Position>> = "position", Name::of(|| Position::NAMES.into());
            /// From invisible to solid.
            OPACITY_OF_IT: Defaulted<Integer, i128> =
                "opacity", Integer { least: 0, most: u8::MAX as i128 }, OPACITY as i128;
            /// Height of the letters as a share of the picture's shorter side; by default 0.05, more in tall pictures.
            SIZE: Optional<Number> = "size", Number { least: SIZES.0, most: SIZES.1 };
            /// Distance from the edges as a share of the picture's shorter side.
            MARGIN_OF_IT: Defaulted<Number, f64> = "margin", Number { least: 0.0, most: MAX_MARGIN }, MARGIN;
        }
    }
}
