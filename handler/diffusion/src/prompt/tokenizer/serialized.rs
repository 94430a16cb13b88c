//! `tokenizer.json`, which transformers 5 saves in place of `vocab.json` and `merges.txt`.
//!
//! transformers takes vocabulary, merges and added tokens from it, and the rest of CLIP's tokenizer from its own source. So everything
//! else in the file must be CLIP's.

use super::{
    folder::{Merges, Vocabulary},
    tokens::SavedToken,
};
use crate::error::{MAX_NAME, PipelineError, Result, cut};
use serde::Deserialize;
use serde_json::{Value, json};

/// The file's name inside the model folder, for errors.
const FILE: &str = "tokenizer/tokenizer.json";
/// How CLIP splits words: as transformers 5 writes it, and as version 4 did.
const SPLITS: [&str; 2] =
    [r"<\|startoftext\|>|<\|endoftext\|>|'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+", super::WORDS];

/// The file.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Serialized {
    #[serde(default)]
    version: Value,
    #[serde(default)]
    truncation: Value,
    #[serde(default)]
    padding: Value,
    #[serde(default)]
    pub(super) added_tokens: Vec<SavedToken>,
    #[serde(default)]
    normalizer: Value,
    #[serde(default)]
    pre_tokenizer: Value,
    #[serde(default)]
    post_processor: Value,
    /// Makes texts of ids, which nobody needs here.
    #[serde(default, rename = "decoder")]
    _decoder: Value,
    model: Model,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Model {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    dropout: Value,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<String>,
    end_of_word_suffix: Option<String>,
    #[serde(default)]
    fuse_unk: bool,
    #[serde(default)]
    byte_fallback: bool,
    #[serde(default)]
    ignore_merges: bool,
    vocab: Vocabulary,
    merges: Vec<Merge>,
}

/// `"a b"` or `["a", "b"]`.
#[derive(Deserialize)]
#[serde(untagged)]
enum Merge {
    Line(String),
    Pair(String, String),
}

impl Serialized {
    /// Checks that all but vocabulary, merges and added tokens is CLIP's, with these special tokens.
    ///
    /// # Errors
    /// The first field that is not.
    pub(super) fn check(&self, bos: &str, eos: &str, unknown: &str) -> Result<()> {
        require("version", &self.version, self.version.is_null() || self.version == "1.0", "1.0")?;
        for (field, section) in [("truncation", &self.truncation), ("padding", &self.padding)] {
            let direction = section.get("direction");
            require(field, section, direction.is_none_or(|direction| direction == "Right"), "the direction Right")?;
        }
        require(
            "normalizer",
            &self.normalizer,
            self.normalizer == normalizer(),
            "CLIP's: NFC, white space, lower case",
        )?;
        let split = &self.pre_tokenizer;
        require("pre_tokenizer", split, pre_tokenizers().contains(split), "CLIP's: its Split, then ByteLevel")?;
        let ends = &self.post_processor;
        let name = |part: &str| ends.get(part).and_then(|pair| pair.get(0));
        let framed = ends.get("type").is_some_and(|kind| kind == "RobertaProcessing")
            && name("cls").is_some_and(|start| start == bos)
            && name("sep").is_some_and(|end| end == eos);
        require("post_processor", ends, framed, "CLIP's: RobertaProcessing with its start and end token")?;
        let model = &self.model;
        let kind = model.kind.as_deref().unwrap_or("BPE");
        require("model.type", &json!(kind), kind == "BPE", "BPE")?;
        require("model.dropout", &model.dropout, model.dropout.is_null() || model.dropout == 0.0, "null")?;
        let other = model.unk_token.as_deref().unwrap_or(unknown);
        require("model.unk_token", &json!(other), other == unknown, "the `unk_token` of tokenizer_config.json")?;
        let prefix = model.continuing_subword_prefix.as_deref().unwrap_or_default();
        require("model.continuing_subword_prefix", &json!(prefix), prefix.is_empty(), "none")?;
        let suffix = model.end_of_word_suffix.as_deref().unwrap_or_default();
        require("model.end_of_word_suffix", &json!(suffix), suffix == super::END_OF_WORD, super::END_OF_WORD)?;
        require("model.fuse_unk", &json!(model.fuse_unk), !model.fuse_unk, "false")?;
        require("model.byte_fallback", &json!(model.byte_fallback), !model.byte_fallback, "false")?;
        require("model.ignore_merges", &json!(model.ignore_merges), !model.ignore_merges, "false")
    }

    /// Vocabulary and merges.
    ///
    /// # Errors
    /// A merge is not two tokens.
    pub(super) fn into_model(self) -> Result<(Vocabulary, Merges)> {
        let pair = |merge| match merge {
            Merge::Pair(left, right) => Ok((left, right)),
            Merge::Line(line) => super::folder::pair(&line).ok_or_else(|| {
                let supported = "pairs of tokens";
                unsupported("model.merges", &json!(line), supported)
            }),
        };
        let merges = self.model.merges.into_iter().map(pair).collect::<Result<_>>()?;
        Ok((self.model.vocab, merges))
    }
}

fn normalizer() -> Value {
    let spaces = json!({ "type": "Replace", "pattern": { "Regex": r"\s+" }, "content": " " });
    json!({ "type": "Sequence", "normalizers": [{ "type": "NFC" }, spaces, { "type": "Lowercase" }] })
}

fn pre_tokenizers() -> Vec<Value> {
    // Older files do not name `use_regex`; it is true by default.
    let bytes = [
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": true }),
        json!({ "type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true }),
    ];
    let split =
        |words| json!({ "type": "Split", "pattern": { "Regex": words }, "behavior": "Removed", "invert": true });
    let both = |words| bytes.clone().map(|bytes| json!({ "type": "Sequence", "pretokenizers": [split(words), bytes] }));
    SPLITS.into_iter().flat_map(both).collect()
}

fn require(field: &'static str, value: &Value, holds: bool, supported: &'static str) -> Result<()> {
    if holds { Ok(()) } else { Err(unsupported(field, value, supported)) }
}

fn unsupported(field: &'static str, value: &Value, supported: &'static str) -> PipelineError {
    PipelineError::Unsupported { file: FILE, field, value: cut(&value.to_string(), MAX_NAME).into_owned(), supported }
}
