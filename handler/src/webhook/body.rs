//! What the webhooks say: their bodies, as they are sent and as `handler schema webhooks` describes them. A comment
//! here is the description there.

use crate::{task, webhook::progress::Progress};
use diffusion::MAX_MESSAGE;
use reqwest::Method;
use schemars::JsonSchema;
use serde::Serialize;

/// Which webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Progress,
    Complete,
    Failed,
}

impl Kind {
    pub(super) const ALL: [Self; 3] = [Self::Progress, Self::Complete, Self::Failed];

    /// The last part of its address.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Complete => "complete",
            Self::Failed => "failed",
        }
    }

    pub(super) fn method(self) -> Method {
        match self {
            Self::Progress => Method::PATCH,
            Self::Complete | Self::Failed => Method::POST,
        }
    }
}

/// How far the painting of a task is.
#[derive(Serialize, JsonSchema)]
pub(super) struct InProgress {
    /// The task's.
    #[schemars(range(min = 0))]
    pub(super) generation_id: i64,
    /// How far.
    pub(super) progress: Progress,
}

/// A task's pictures stand.
#[derive(Serialize, JsonSchema)]
pub(super) struct Complete<'a> {
    /// The task's.
    #[schemars(range(min = 0))]
    pub(super) generation_id: i64,
    /// Where the first picture is.
    #[schemars(url)]
    pub(super) result_url: &'a str,
    /// Where all pictures are, if there are several.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schemars(length(min = 2, max = task::MAX_IMAGES as u64))]
    pub(super) result_urls: &'a [String],
    /// What was painted.
    pub(super) metadata: Metadata,
}

/// What was painted.
#[derive(Serialize, JsonSchema)]
pub(super) struct Metadata {
    /// The seed of the noise, as the task had it.
    #[schemars(range(min = i64::MIN, max = u64::MAX))]
    pub(super) seed: i128,
    /// Denoising steps.
    #[schemars(range(min = 1, max = task::MAX_STEPS as u64))]
    pub(super) steps: usize,
    /// Classifier-free guidance.
    #[schemars(range(min = 0.0, max = task::MAX_GUIDANCE))]
    pub(super) guidance_scale: f64,
}

/// A task failed, and nobody will try again.
#[derive(Serialize, JsonSchema)]
pub(super) struct Failed<'a> {
    /// The task's. A message that is no task may have one below 0.
    pub(super) generation_id: i64,
    /// The field, what it holds and the limit; or what broke off. In 1000 bytes at most: what is longer is cut, and says so.
    #[schemars(length(max = MAX_MESSAGE as u64))]
    pub(super) error_message: &'a str,
    /// GENERATION_FAILED, or what is at fault if finer codes are asked for.
    #[schemars(extend("enum" = codes()))]
    pub(super) error_code: &'a str,
    /// How often the queue had brought the task before.
    pub(super) retry_count: u32,
}

/// Every `error_code`. Of a backend that does not answer nobody can tell it, and the picture stands then.
fn codes() -> Vec<&'static str> {
    use crate::task::fault::{Fault, GENERATION_FAILED};
    let told = Fault::ALL.into_iter().filter(|fault| *fault != Fault::Backend);
    [GENERATION_FAILED].into_iter().chain(told.map(Fault::code)).collect()
}
