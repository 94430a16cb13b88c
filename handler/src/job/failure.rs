//! Why a task failed, and what each error of the engine, S3 and webhooks means for it.

use super::OutOfTime;
use crate::{
    engine::{EngineError, batcher::BatcherError},
    storage::StoreError,
    task::fault::TaskFault,
    webhook::WebhookError,
};
use diffusion::{error::PipelineError, lora::LoraError};
use std::time::Duration;

/// A failure of a valid task; the variant says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The task is wrong. Notify the backend, consume the message.
    #[error("{1}")]
    Permanent(TaskFault, String),
    /// Something else failed. Give the message back.
    #[error("{1}")]
    Transient(TaskFault, String),
    /// The backend cancelled the task. Consume the message.
    #[error("cancelled by the backend at step {0}")]
    Cancelled(usize),
    /// The backend cancelled the task by its id. Consume the message.
    #[error("cancelled by its id")]
    CancelledById,
    /// The pictures are stored, and the backend refused `complete`. Consume the message.
    #[error("{0}")]
    Unwanted(String),
    /// The pictures are stored, and `complete` could not be delivered. Give the message back, for as long as the backend asks for; never
    /// send `failed`.
    #[error("{0}")]
    Undelivered(String, Option<Duration>),
    /// The invocation ends too soon. Give the message back at once.
    #[error("{0}")]
    OutOfTime(String),
}

/// Of a picture.
pub(super) fn storage_failure(error: StoreError) -> Failure {
    by_class(TaskFault::Storage, TaskFault::Storage, error)
}

/// Of a LoRA.
pub(super) fn lora_failure(error: StoreError) -> Failure {
    by_class(TaskFault::Lora, TaskFault::Storage, error)
}

/// Of a textual inversion.
pub(super) fn inversion_failure(error: StoreError) -> Failure {
    by_class(TaskFault::Inversion, TaskFault::Storage, error)
}

/// Of a picture to begin from.
pub(super) fn image_failure(error: StoreError) -> Failure {
    by_class(TaskFault::Image, TaskFault::Storage, error)
}

fn by_class(permanent: TaskFault, transient: TaskFault, error: StoreError) -> Failure {
    match error {
        StoreError::Permanent(reason) => Failure::Permanent(permanent, reason),
        StoreError::Transient(reason) => Failure::Transient(transient, reason),
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let (fault, reason) = match &error {
            EngineError::Pipeline(PipelineError::Stopped { step }) => return Self::Cancelled(*step),
            error if error.is_out_of_memory() => (TaskFault::Memory, format!("painting: {error}")),
            EngineError::Lora(LoraError::Blocks { lora, error }) => {
                let field =
                    lora.checked_sub(1).map_or("lora_weights".into(), |extra| format!("loras[{extra}].weights"));
                (TaskFault::Lora, format!("`{field}`: {error}"))
            }
            EngineError::Lora(error) => (TaskFault::Lora, format!("`lora_model_url`: {error}")),
            EngineError::Inversion(error) => (TaskFault::Inversion, format!("`textual_inversions`: {error}")),
            EngineError::Nsfw { .. } => (TaskFault::Safety, error.to_string()),
            EngineError::Pipeline(PipelineError::Request { .. }) | EngineError::Signature(_) => {
                (TaskFault::Picture, error.to_string())
            }
            EngineError::Pipeline(PipelineError::Candle(error)) => (TaskFault::Painting, format!("painting: {error}")),
            EngineError::Pipeline(_) | EngineError::Encode(_) | EngineError::Embed(_) | EngineError::Credential(_) => {
                (TaskFault::Painting, error.to_string())
            }
        };
        if error.is_permanent() { Self::Permanent(fault, reason) } else { Self::Transient(fault, reason) }
    }
}

impl From<BatcherError> for Failure {
    fn from(error: BatcherError) -> Self {
        match error {
            BatcherError::Engine(error) => error.into(),
            BatcherError::Panic(_) | BatcherError::Ended => Self::Transient(TaskFault::Painting, error.to_string()),
        }
    }
}

impl From<OutOfTime> for Failure {
    fn from(late: OutOfTime) -> Self {
        Self::OutOfTime(late.to_string())
    }
}

/// The pictures are stored, and there was no time to send `complete`.
pub(super) fn undelivered(late: OutOfTime) -> Failure {
    Failure::Undelivered(format!("webhook complete was not taken: {late}"), None)
}

/// Of `complete`: whatever the backend answers, the pictures are stored.
impl From<WebhookError> for Failure {
    fn from(error: WebhookError) -> Self {
        match error {
            WebhookError::Unwanted { .. } => Self::Unwanted(error.to_string()),
            _ => Self::Undelivered(error.to_string(), error.retry_after()),
        }
    }
}
