//! The files of a model's `tokenizer/` folder, in the form of today (`tokenizer.json`) or in the older one (`vocab.json`, `merges.txt`).
//! Where both are there, `tokenizer.json` counts, as in transformers 5.24.

use super::{
    serialized::Serialized,
    tokens::{FolderTokens, Members},
};
use crate::{
    error::{PipelineError, Result},
    loading::config::{read_json, read_text},
};
use serde_json::Value;
use std::{
    collections::{BTreeMap, HashMap},
    path::Path,
};

/// Tokens with their ids.
pub(super) type Vocabulary = HashMap<String, u32>;
/// Pairs of tokens that become one, the first ones first.
pub(super) type Merges = Vec<(String, String)>;

/// What a folder says.
pub(super) struct TokenizerFolder {
    pub(super) vocabulary: Vocabulary,
    pub(super) merges: Merges,
    /// The file that both come from, for errors.
    pub(super) source: &'static str,
    /// The tokens beside the vocabulary, and the special ones.
    pub(super) tokens: FolderTokens,
    /// Whether special tokens in a prompt are read as other text.
    pub(super) splits_special: bool,
}

impl TokenizerFolder {
    /// Reads a folder. `length` is the number of tokens of the encoder's longest sequence.
    ///
    /// # Errors
    /// A missing or broken file, or a setting that is not supported. The error names the file and the field.
    pub(super) fn read(folder: &Path, length: usize) -> Result<Self> {
        let config: Members = read_json(&folder.join("tokenizer_config.json"))?;
        check(&config, length)?;
        let serialized: Option<Serialized> = optional(&folder.join("tokenizer.json"))?;
        let special_map = optional(&folder.join("special_tokens_map.json"))?;
        let added: Option<BTreeMap<String, u32>> = optional(&folder.join("added_tokens.json"))?;
        let named = serialized.as_ref().map(|file| file.added_tokens.as_slice());
        let tokens = FolderTokens::of(&config, special_map, added, named)?;
        let (vocabulary, merges, source) = match serialized {
            Some(file) => {
                file.check(&tokens.bos, &tokens.eos, &tokens.unknown)?;
                let (vocabulary, merges) = file.into_model()?;
                (vocabulary, merges, "tokenizer.json")
            }
            None => {
                let vocabulary = read_json(&folder.join("vocab.json"))?;
                (vocabulary, merges(&folder.join("merges.txt"))?, "vocab.json and merges.txt")
            }
        };
        let splits_special = config.get("split_special_tokens") == Some(&Value::Bool(true));
        Ok(Self { vocabulary, merges, source, tokens, splits_special })
    }
}

/// Checks the settings that would change ids in another way.
fn check(config: &Members, length: usize) -> Result<()> {
    let require = |field, value: &Value, holds, supported| {
        let value = value.to_string();
        let file = "tokenizer/tokenizer_config.json";
        if holds { Ok(()) } else { Err(PipelineError::Unsupported { file, field, value, supported }) }
    };
    for field in ["padding_side", "truncation_side"] {
        let side = config.get(field).unwrap_or(&Value::Null);
        require(field, side, side.is_null() || side == "right", "right")?;
    }
    if let Some(files) = config.get("fast_tokenizer_files") {
        require("fast_tokenizer_files", files, false, "none: tokenizer.json is read")?;
    }
    // An older transformers writes a huge number for no limit.
    let most = config.get("model_max_length").unwrap_or(&Value::Null);
    let enough = most.as_f64().is_none_or(|most| most >= length as f64);
    require("model_max_length", most, enough, "the encoder's `max_position_embeddings`")
}

/// Reads a JSON file if it exists.
fn optional<T: serde::de::DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    if path.exists() { read_json(path).map(Some) } else { Ok(None) }
}

fn merges(path: &Path) -> Result<Merges> {
    let text = read_text(path)?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.starts_with("#version"));
    let merge = |(index, line): (usize, &str)| {
        let broken = || PipelineError::Tokenizer(format!("{}: line {}: not two tokens", path.display(), index + 1));
        pair(line).ok_or_else(broken)
    };
    lines.map(merge).collect()
}

/// Two tokens with one space between.
pub(super) fn pair(line: &str) -> Option<(String, String)> {
    let (left, right) = line.split_once(' ')?;
    (!right.contains(' ')).then(|| (left.into(), right.into()))
}
