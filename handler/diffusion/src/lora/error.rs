//! What can be wrong with a LoRA, told apart by who has to act.

use super::base_model::BaseModel;
use crate::loading::HeaderError;
use crate::{
    cut::{MESSAGE, NAME, cut},
    error::PipelineError,
    gpu::tells_of_memory,
};
use std::fmt;

/// Why a LoRA cannot be used. All but `File` and `Device` are faults of the LoRA: the task fails and is not tried again.
#[derive(Debug, thiserror::Error)]
pub enum LoraError {
    /// The bytes are no safetensors file.
    #[error("the LoRA is not a safetensors file: {0}")]
    NotSafetensors(String),
    /// The bytes are what `torch.save` writes, whatever the file's name says. It can run code, so it is never opened.
    #[error("the LoRA is a pickled PyTorch file, not a safetensors file: convert it to safetensors")]
    Pickled,
    /// The LoRA belongs to another base model.
    #[error("the LoRA was made for {made_for} ({sign}), not for {model}")]
    OtherBase {
        /// What it was made for.
        made_for: BaseModel,
        /// What gave it away: a key, with its shape if that was it, or a line of the file's metadata.
        sign: String,
        /// What this function paints with.
        model: &'static str,
    },
    /// Keys of a format that is not known, that don't belong together, or that don't fit the model.
    #[error("{}", Misfit::summary(.0))]
    Misfits(Vec<Misfit>),
    /// Every layer was read, and none changes anything.
    #[error("the LoRA changes nothing: {0}")]
    NoEffect(&'static str),
    /// The file cannot be read.
    #[error("the LoRA file cannot be read: {0}")]
    File(#[from] std::io::Error),
    /// Arithmetic, memory or device failed.
    #[error(transparent)]
    Device(#[from] candle_core::Error),
}

impl LoraError {
    /// No safetensors file, for a reason that may name what the file holds.
    /// Whether the LoRA itself is at fault, so that trying again would end the same way.
    pub fn is_permanent(&self) -> bool {
        !matches!(self, Self::File(_) | Self::Device(_))
    }

    /// Whether the device's memory did not suffice.
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
    /// The key as it stands in the file, cut if it is long.
    pub key: String,
    /// What is wrong with it: what it holds, and what would fit.
    pub reason: String,
}

impl Misfit {
    /// A misfit of `key`.
    pub(super) fn new(key: impl AsRef<str>, reason: impl AsRef<str>) -> Self {
        let (key, reason) = (cut(key.as_ref(), NAME), cut(reason.as_ref(), MESSAGE));
        Self { key: key.into_owned(), reason: reason.into_owned() }
    }

    /// The first one in full, and how many there are: the backend shows it to an artist.
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
            HeaderError::Pickled => Self::Pickled,
            HeaderError::File(error) => Self::File(error),
        }
    }
}
