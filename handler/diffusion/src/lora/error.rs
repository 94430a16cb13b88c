//! What can be wrong with a LoRA. Each variant says who has to act.

use super::{base_model::BaseModel, blocks::PlaceError};
use crate::{
    error::{MAX_MESSAGE, MAX_NAME, PipelineError, cut},
    gpu::tells_of_memory,
    loading::{FileKind, HeaderError},
};
use std::fmt;

/// Why a LoRA cannot be used. All variants but `File` and `Device` are faults of the LoRA itself: a retry would end the same way.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// The bytes are not a safetensors file.
    #[error("the LoRA is not a safetensors file: {0}")]
    NotSafetensors(String),
    /// The bytes are something else, whatever the file's name says.
    #[error("the LoRA is {0}")]
    OtherKind(FileKind),
    /// The LoRA was made for another base model.
    #[error("the LoRA was made for {made_for} ({sign}), not for {model}")]
    OtherBase {
        /// The base model it was made for.
        made_for: BaseModel,
        /// What shows that: a key, a key with its shape, or a field of the metadata.
        sign: String,
        /// The base model of the pipeline.
        model: &'static str,
    },
    /// Keys that are unknown, incomplete, or do not fit the model.
    #[error("{}", Misfit::summary(.0))]
    Misfits(Vec<Misfit>),
    /// The file is correct, and changes no weight.
    #[error("the LoRA changes nothing: {0}")]
    NoEffect(&'static str),
    /// Its weights by block do not fit the model.
    #[error("the weights of LoRA {}: {error}", .lora + 1)]
    Blocks {
        /// Which of those to apply, from 0.
        lora: usize,
        /// What does not fit.
        error: PlaceError,
    },
    /// The file cannot be read.
    #[error("the LoRA file cannot be read: {0}")]
    File(#[from] std::io::Error),
    /// A computation, a memory allocation or the device failed.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

impl LoraError {
    /// Whether the LoRA itself is at fault, so that a retry would end the same way.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Device(_))
    }

    /// Whether the device ran out of memory.
    pub fn is_out_of_memory(&self) -> bool {
        matches!(self, Self::Device(error) if tells_of_memory(&error.to_string()))
    }
}

impl From<PipelineError> for LoraError {
    fn from(error: PipelineError) -> Self {
        match error {
            PipelineError::Candle(error) => Self::Device(error),
            other => Self::Device(candle_core::Error::msg(other)),
        }
    }
}

/// One key that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Misfit {
    /// The key as in the file, shortened if it is long.
    pub key: String,
    /// What is wrong with it.
    pub reason: String,
}

impl Misfit {
    pub(super) fn new(key: impl AsRef<str>, reason: impl AsRef<str>) -> Self {
        let (key, reason) = (cut(key.as_ref(), MAX_NAME), cut(reason.as_ref(), MAX_MESSAGE));
        Self { key: key.into_owned(), reason: reason.into_owned() }
    }

    /// The first one in full and the number of the others. An artist may read it.
    fn summary(misfits: &[Self]) -> String {
        match misfits {
            [] => "the LoRA does not fit".into(),
            [only] => only.to_string(),
            [first, rest @ ..] => format!("{first} (and {} more)", rest.len()),
        }
    }
}

impl fmt::Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "LoRA key `{}`: {}", self.key, self.reason)
    }
}

impl From<HeaderError> for LoraError {
    fn from(error: HeaderError) -> Self {
        match error {
            HeaderError::NotSafetensors(reason) => Self::NotSafetensors(reason),
            HeaderError::OtherKind(kind) => Self::OtherKind(kind),
            HeaderError::File(error) => Self::File(error),
        }
    }
}
