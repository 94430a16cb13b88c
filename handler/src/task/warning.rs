//! What a task asks for and does not get, although its picture is painted. The backend is told if it wants details.

use schemars::JsonSchema;
use serde::Serialize;

/// Something that a task asks for and does not get.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, JsonSchema)]
pub struct Warning {
    /// What kind of thing. New kinds may come.
    pub code: Code,
    /// What it is, and what was done instead. It may show words of the task.
    pub message: String,
}

/// What kind of warning.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
#[schemars(rename = "WarningCode")]
pub enum Code {
    /// `aspect_ratio` is a text that is not known.
    AspectRatioUnknown,
    /// `aspect_ratio` was not read, because `width` and `height` are there.
    AspectRatioIgnored,
    /// The prompt has more tokens than the model reads.
    PromptCut,
    /// The negative prompt has more tokens than the model reads.
    NegativePromptCut,
    /// A character of the artist's name has no glyph in the fonts.
    NoGlyph,
}

impl Warning {
    /// Of a kind.
    pub fn new(code: Code, message: String) -> Self {
        Self { code, message }
    }
}
