//! The errors of the pipeline, and [`cut`], which shortens texts of unknown length for error messages.

use crate::{
    gpu::{GpuError, tells_of_memory},
    offload::Shortage,
};
use std::{borrow::Cow, path::PathBuf};

/// The most that an error shows of a name in a file or a message, in bytes.
pub const MAX_NAME: usize = 200;
/// The longest error message in a log or a webhook, in bytes.
pub const MAX_MESSAGE: usize = 1000;

/// An error of the pipeline. Each variant says who has to act.
#[derive(Debug, thiserror::Error)]
pub enum PipelineError {
    /// A file of the model folder is missing or cannot be read. The operator has to fix it.
    #[error(
        "model file {path}: {source}; give a whole model folder by --model (EASEL_MODEL_DIR), or fill it by handler \
         weights pull"
    )]
    File {
        /// The file.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A file of the model is another one than its name or its place says. The operator has to replace it.
    #[error("model file {path}: {reason}")]
    ModelFile {
        /// The file.
        path: PathBuf,
        /// What it is or lacks, and what to do.
        reason: String,
    },
    /// A model folder cannot be written.
    #[error("model folder {path} cannot be written: {source}")]
    Write {
        /// The folder.
        path: PathBuf,
        /// The error of the operating system.
        source: std::io::Error,
    },
    /// A JSON file of the model folder does not parse. The operator has to fix it.
    #[error("model file {path} is not the JSON expected there: {source}")]
    Json {
        /// The file.
        path: PathBuf,
        /// Where and why parsing stopped.
        source: serde_json::Error,
    },
    /// The model folder needs something that this pipeline does not have. The operator has to choose another model.
    #[error("{file}: `{field}` is {value}, supported: {supported}")]
    Unsupported {
        /// The file inside the model folder.
        file: &'static str,
        /// The field in it.
        field: &'static str,
        /// The value of the field.
        value: String,
        /// The values that are supported.
        supported: &'static str,
    },
    /// The weights are not those of the network that the settings describe. The operator has to fix the folder.
    #[error("{folder}/: {problem}")]
    Misfit {
        /// The folder inside the model folder.
        folder: &'static str,
        /// The tensor, and what the file has.
        problem: String,
    },
    /// A safety checker in a folder of its own cannot be used. The operator has to fix the folder or name another.
    #[error("safety checker {folder}: {source}")]
    SafetyChecker {
        /// The folder.
        folder: PathBuf,
        /// What is wrong with it.
        source: Box<PipelineError>,
    },
    /// The tokenizer's files do not make a tokenizer, or a text could not be tokenized. The operator has to fix the files.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// The model cannot paint this request. The sender has to change it.
    #[error("`{field}` is {value}, {limit}")]
    Request {
        /// The field of the request.
        field: &'static str,
        /// Its value.
        value: String,
        /// The limit that it exceeds, as the rest of a sentence.
        limit: String,
    },
    /// The caller stopped the run.
    #[error("painting was stopped at step {step}")]
    Stopped {
        /// The number of finished steps.
        step: usize,
    },
    /// There is no GPU, or it failed.
    #[error(transparent)]
    Gpu(#[from] GpuError),
    /// The GPU has too little memory for what was asked for. The operator has to choose another way, or make room.
    #[error(transparent)]
    Memory(Shortage),
    /// A computation, a memory allocation or the device failed.
    #[error(transparent)]
    Candle(#[from] candle_core::Error),
}

/// The result of most functions of the pipeline.
pub type Result<T> = std::result::Result<T, PipelineError>;

impl PipelineError {
    /// Whether the device ran out of memory. Fewer pictures at once may fit.
    pub fn is_out_of_memory(&self) -> bool {
        match self {
            Self::Gpu(error) => error.is_out_of_memory(),
            Self::Candle(error) => tells_of_memory(&error.to_string()),
            Self::Memory(_) => true,
            Self::SafetyChecker { source, .. } => source.is_out_of_memory(),
            _ => false,
        }
    }
}

/// The text itself, or if it is longer than `most` bytes, its start and a note that it was cut: `most` bytes in all, or the note alone
/// if that is longer. Characters stay whole.
pub fn cut(text: &str, most: usize) -> Cow<'_, str> {
    if text.len() <= most {
        return text.into();
    }
    let mark = format!("… (cut, {} bytes in all)", text.len());
    let end = text.floor_char_boundary(most.saturating_sub(mark.len()));
    format!("{}{mark}", &text[..end]).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_long_text_is_cut_between_characters_and_says_so() {
        assert_eq!(cut("short", 5), "short");
        assert_eq!(cut(&"x".repeat(100), 40), format!("{}… (cut, 100 bytes in all)", "x".repeat(13)));
        for character in ["x", "ü", "金", "🦀"] {
            for length in 0..400 {
                let text = character.repeat(length);
                let shown = cut(&text, MAX_NAME);
                assert!(shown.len() <= MAX_NAME && shown.len() + 4 > MAX_NAME.min(text.len()), "{shown}");
                assert_eq!(shown == text, text.len() <= MAX_NAME, "{shown}");
            }
        }
        assert_eq!(cut(&"x".repeat(100), 0), "… (cut, 100 bytes in all)");
    }
}
