//! A task's fingerprint: tasks with the same one give the same pictures. It is stored with each picture in S3, so it must be the same
//! in every release.
//!
//! It is a digest of a canonical text: a version, then one line for each field, sorted, with the names and values of the contract. A
//! test pins the text and its digest.

use super::{ImageRef, InversionRef, LoraRef, SafetyMode, Task};
use crate::task::signature::Signature;
use sha2::{Digest, Sha256};

/// The version of the text. Raise it when the text of existing tasks changes, or when a task shall give another picture than before.
/// Then redelivered tasks are painted again.
const VERSION: u32 = 1;

impl Task {
    /// The version and 64 hex digits. The backend's address, the style's id and the date are not part of it.
    pub fn fingerprint(&self) -> String {
        format!("{VERSION}-{}", hex::encode(Sha256::digest(self.canonical())))
    }

    /// The text that is digested.
    pub(super) fn canonical(&self) -> String {
        // All fields by name, so that a new one does not compile until somebody decides whether it belongs here. If it does, it gets a
        // line only in tasks that set it, so that the fingerprints of other tasks stay.
        let Self {
            generation_id: _,
            style_id: _,
            webhook_url: _,
            created_at: _,
            // The size is in it, however it was asked for.
            own_size: _,
            // The tags are in the prompt.
            tag_ends: _,
            warnings: _,
            loras,
            inversions,
            image,
            prompt,
            negative_prompt,
            prompt_weighting,
            long_prompt,
            clip_skip,
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
            safety,
        } = self;
        let Signature { position, opacity, size, margin } = signature;
        let mut lines = vec![
            line("prompt", text(prompt)),
            line("negative_prompt", text(negative_prompt)),
            line("prompt_weighting", prompt_weighting),
            line("artist_name", text(artist_name)),
            line("seed", seed),
            line("width", width),
            line("height", height),
            line("num_inference_steps", steps),
            line("guidance_scale", number(*guidance_scale)),
            line("scheduler", scheduler),
            line("karras_sigmas", karras_sigmas.map_or("default".to_string(), |wish| wish.to_string())),
            line("noise_source", noise_source),
            line("num_images", num_images),
            line("output_format", format),
            line("signature.position", position),
            line("signature.opacity", opacity),
            line("signature.size", size.map_or("default".to_string(), number)),
            line("signature.margin", number(*margin)),
        ];
        for (index, LoraRef { bucket, key, scale, weights }) in loras.iter().enumerate() {
            lines.push(line(&format!("loras[{index}].bucket"), text(bucket)));
            lines.push(line(&format!("loras[{index}].key"), text(key)));
            lines.push(line(&format!("loras[{index}].scale"), number(*scale)));
            let weights = weights.iter();
            lines.extend(
                weights.map(|(place, weight)| line(&format!("loras[{index}].weights.{place}"), number(weight))),
            );
        }
        for (index, InversionRef { bucket, key, token }) in inversions.iter().enumerate() {
            let name = |field: &str| format!("textual_inversions[{index}].{field}");
            lines.push(line(&name("bucket"), text(bucket)));
            lines.push(line(&name("key"), text(key)));
            lines.extend(token.iter().map(|token| line(&name("token"), text(token))));
        }
        if let Some(ImageRef { bucket, key, strength }) = image {
            lines.push(line("image.bucket", text(bucket)));
            lines.push(line("image.key", text(key)));
            lines.push(line("strength", number(*strength)));
        }
        lines.extend(long_prompt.then(|| line("long_prompt", true)));
        lines.extend((*clip_skip > 0).then(|| line("clip_skip", clip_skip)));
        lines.extend(safety.filter(|mode| *mode != SafetyMode::Off).map(|mode| line("safety", mode)));
        lines.sort_unstable();
        format!("easel task {VERSION}\n{}", lines.concat())
    }
}

fn line(name: &str, value: impl std::fmt::Display) -> String {
    format!("{name}={value}\n")
}

/// A text with its length in bytes in front, so that no text can look like another line.
fn text(text: &str) -> String {
    format!("{}:{text}", text.len())
}

/// The shortest form that parses to the same number, always with an exponent. Zero has no sign.
fn number(number: f64) -> String {
    format!("{:e}", number + 0.0)
}
