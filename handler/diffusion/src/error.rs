//! What can go wrong between a model folder and a picture, told apart by who has to act.

use crate::gpu::{GpuError, tells_of_memory};
use std::path::PathBuf;

/// A failure of the pipeline.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A file of the model folder is missing or cannot be read. The operator has to act.
    #[error(
        "model file {path}: {source}; give a whole model folder by --model (EASEL_MODEL_DIR), or fill it by handler \
         weights pull"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// A JSON file of the model folder does not parse. The operator has to act.
    #[error("model file {path} is not the JSON expected there: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// The model folder asks for something this pipeline does not have. The operator has to act.
    #[error("{file}: `{field}` is {value}, supported: {supported}")]
    Unsupported {
        /// The file inside the model folder.
        file: &'static str,
        /// The field in it.
        field: &'static str,
        /// What the field holds.
        value: String,
        /// What it may hold.
        supported: &'static str,
    },
    /// The tokenizer's files do not make a tokenizer, or a text could not be tokenized.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The request asks for what this model cannot paint. The task is wrong.
    #[error("`{field}` is {value}, {limit}")]
    Request {
        /// The field of the request.
        field: &'static str,
        /// What it holds.
        value: String,
        /// What it may hold.
        limit: String,
    },
    /// The picture was given up because the caller asked for it.
    #[error("painting was stopped at step {step}")]
    Stopped {
        /// Finished steps.
        step: usize,
    },
    /// There is no GPU, or it failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// Arithmetic, memory or device failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// Shorthand used inside the pipeline.
pub type Result<T> = std::result::Result<T, PipelineError>;

impl PipelineError {
    /// Whether the device's memory did not suffice: fewer pictures at once might.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Gpu(error) => error.is_out_of_memory(),
            Self::Candle(error) => tells_of_memory(&error.to_string()),
            _ => false,
        }
    }
}
