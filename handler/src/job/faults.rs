//! What is at fault when a part fails, and whether trying again can help.

use super::OutOfTime;
use crate::{
    engine::{EngineError, batcher::BatcherError},
    job::failure::Failure,
    storage::StoreError,
    task::fault::Fault,
    webhook::WebhookError,
};
use diffusion::error::PipelineError;

/// Of a picture or a claim.
pub(super) fn storage(error: StoreError) -> Failure {
    by_class(Fault::Storage, Fault::Storage, error)
}

/// Of a LoRA.
pub(super) fn lora_fault(error: StoreError) -> Failure {
    by_class(Fault::Lora, Fault::Storage, error)
}

fn by_class(permanent: Fault, transient: Fault, error: StoreError) -> Failure {
    match error {
        StoreError::Permanent(reason) => Failure::Permanent(permanent, reason),
        StoreError::Transient(reason) => Failure::Transient(transient, reason),
    }
}

impl From<EngineError> for Failure {
    fn from(error: EngineError) -> Self {
        let (fault, reason) = match &error {
            EngineError::Pipeline(PipelineError::Stopped { step }) => return Self::Cancelled(*step),
            error if error.is_out_of_memory() => (Fault::Memory, format!("painting: {error}")),
            EngineError::Lora(error) => (Fault::Lora, format!("`lora_model_url`: {error}")),
            EngineError::Pipeline(PipelineError::Request { .. }) | EngineError::Signature(_) => {
                (Fault::Picture, error.to_string())
            }
            EngineError::Pipeline(PipelineError::Candle(error)) => (Fault::Painting, format!("painting: {error}")),
            EngineError::Pipeline(_) | EngineError::Encode(_) | EngineError::Embed(_) | EngineError::Credential(_) => {
                (Fault::Painting, error.to_string())
            }
        };
        if error.is_permanent() { Self::Permanent(fault, reason) } else { Self::Transient(fault, reason) }
    }
}

impl From<BatcherError> for Failure {
    fn from(error: BatcherError) -> Self {
        match error {
            BatcherError::Engine(error) => error.into(),
            BatcherError::Panic(_) | BatcherError::Ended => Self::Transient(Fault::Painting, error.to_string()),
        }
    }
}

impl From<OutOfTime> for Failure {
    fn from(late: OutOfTime) -> Self {
        Self::OutOfTime(late.to_string())
    }
}

/// There was no time to tell of the picture, which stands.
pub(super) fn untold(late: OutOfTime) -> Failure {
    Failure::Untold(format!("webhook complete was not taken: {late}"), None)
}

/// Of `complete`: whatever the backend says, the picture stands.
impl From<WebhookError> for Failure {
    fn from(error: WebhookError) -> Self {
        match error {
            WebhookError::Unwanted { .. } => Self::Unwanted(error.to_string()),
            _ => Self::Untold(error.to_string(), error.retry_after()),
        }
    }
}
