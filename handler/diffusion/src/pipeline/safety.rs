//! The safety checker of a pipeline: where it comes from, and what it says of a picture.

use std::path::PathBuf;

/// Which safety checker is loaded.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum SafetySource {
    /// None.
    #[default]
    None,
    /// `safety_checker/` and `feature_extractor/` of the model folder, if its `model_index.json` names a checker and its weights are
    /// there. A checkpoint has none.
    OfModel,
    /// Those of a folder. It has `safety_checker/` and `feature_extractor/` as a model folder, or the files of both itself.
    Folder(PathBuf),
}

/// What the safety checker says of a picture.
#[derive(Debug, Clone, PartialEq)]
pub struct Verdict {
    /// Whether any concept has a score above 0. Special care alone never flags.
    pub nsfw: bool,
    /// For each concept: cosine of picture and concept, minus the concept's threshold, plus 0.01 if special care was called for, rounded
    /// to three digits.
    pub concepts: Vec<f32>,
    /// The same for the concepts that call for special care. The first one above 0 adds 0.01 to all scores after it.
    pub special_care: Vec<f32>,
}
