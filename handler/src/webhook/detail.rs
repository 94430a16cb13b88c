//! What `complete` tells beside the Python worker's three fields, under `--webhook-detail full`.

use crate::task::{self, Warning};
use schemars::JsonSchema;
use serde::Serialize;
use std::collections::BTreeMap;

/// How a task's pictures came about. After another delivery of a message whose pictures were stored already, only what follows from the
/// task is known: no model, no hashes, no times, and no warning that the model's tokenizer gives.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct Detail {
    /// The scheduler.
    pub scheduler: String,
    /// Pixels.
    #[schemars(range(min = task::MIN_SIDE, max = task::MAX_SIDE))]
    pub width: usize,
    /// Pixels.
    #[schemars(range(min = task::MIN_SIDE, max = task::MAX_SIDE))]
    pub height: usize,
    /// How far the pictures are from the one that they began from; absent if they began from none.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "f64")]
    pub strength: Option<f64>,
    /// The base model, with the commit of its repository behind an @ if it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String")]
    pub model: Option<String>,
    /// The LoRAs that were applied, the style's first.
    pub loras: Vec<LoraDetail>,
    /// How long it took.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Timings")]
    pub timings: Option<Timings>,
    /// What the task asks for and does not get. Empty if there is nothing.
    pub warnings: Vec<Warning>,
}

/// A LoRA that was applied.
#[derive(Debug, Clone, PartialEq, Serialize, JsonSchema)]
pub struct LoraDetail {
    /// Its key in the bucket.
    pub name: String,
    /// SHA-256 of the file in hex.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", regex(pattern = "^[0-9a-f]{64}$"))]
    pub hash: Option<String>,
    /// How strongly it was applied.
    pub scale: f64,
    /// Factors of that by parts of the model, as the task gave them: `unet.down.block_1[0]`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    #[schemars(with = "Option<BTreeMap<String, f64>>")]
    pub weights: BTreeMap<String, f64>,
}

/// Times in milliseconds. Tasks that are painted together share the time of their steps.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Timings {
    /// In the queue, until this delivery's work began; absent if the queue does not say when the message came.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "u64")]
    pub queue: Option<u64>,
    /// To fetch LoRAs and textual inversions, from S3 or the volume.
    pub fetch: u64,
    /// For the model, and for tasks that are painted before.
    pub wait: u64,
    /// All steps, the prompt's embedding included.
    pub denoise: u64,
    /// From latents to pixels.
    pub decode: u64,
    /// To store the pictures.
    pub upload: u64,
}
