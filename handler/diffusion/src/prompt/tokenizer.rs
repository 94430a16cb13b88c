//! CLIP's byte-pair tokenizer, read from the `tokenizer/` folder of a model. Pads and truncates as diffusers does.

use crate::{
    error::{PipelineError, Result},
    loading::{clip, config::read_json},
    prompt::Fragment,
};
use serde::Deserialize;
use serde_json::Value;
use std::path::Path;
use tokenizers::{
    AddedToken, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior, Tokenizer as Bpe,
    models::bpe::{BPE, Vocab},
    normalizers::{Lowercase, NFC, Replace, Sequence as Normalizers, replace::ReplacePattern},
    pre_tokenizers::{
        byte_level::ByteLevel,
        sequence::Sequence as PreTokenizers,
        split::{Split, SplitPattern},
    },
};

/// CLIP's pattern: English contractions, words, single digits, and runs of punctuation.
const WORDS: &str = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+";

/// Turns a prompt into token ids.
pub struct Tokenizer {
    bpe: Bpe,
    bos: u32,
    eos: u32,
    pad: u32,
    length: usize,
}

/// The tokens of a prompt.
#[derive(Debug, Clone, PartialEq)]
pub struct Tokens {
    /// The ids of start, text, end and padding: always as many as the encoder's longest sequence has.
    pub ids: Vec<u32>,
    /// How many tokens of the text were cut off because they did not fit.
    pub truncated: usize,
    /// The weight of each id, 1 for start, end and padding.
    pub weights: Vec<f32>,
}

#[derive(Deserialize)]
struct TokenizerConfig {
    #[serde(default)]
    bos_token: Value,
    #[serde(default)]
    eos_token: Value,
    #[serde(default)]
    unk_token: Value,
    #[serde(default)]
    pad_token: Value,
}

impl Tokenizer {
    /// Reads `tokenizer/{vocab.json,merges.txt,tokenizer_config.json}`. `length` is the number of tokens of the encoder's longest
    /// sequence.
    ///
    /// # Errors
    /// A missing file, a vocabulary without the special tokens, or merges that do not fit it.
    pub fn load(model: &Path, length: usize) -> Result<Self> {
        let folder = model.join("tokenizer");
        let config: TokenizerConfig = read_json(&folder.join("tokenizer_config.json"))?;
        let (bos, eos) = (text(&config.bos_token, "<|startoftext|>"), text(&config.eos_token, "<|endoftext|>"));
        let (unknown, pad) = (text(&config.unk_token, "<|endoftext|>"), text(&config.pad_token, "<|endoftext|>"));
        let [vocabulary, merges] = ["vocab.json", "merges.txt"].map(|name| folder.join(name));
        let model = BPE::from_file(&vocabulary.to_string_lossy(), &merges.to_string_lossy())
            .end_of_word_suffix("</w>".into())
            .unk_token(unknown.clone())
            .build()
            .map_err(fault)?;
        let mut bpe = Bpe::new(model);
        bpe.with_normalizer(Some(normalizer()?)).map_err(fault)?;
        bpe.with_pre_tokenizer(Some(pre_tokenizer()?));
        let special = [&bos, &eos, &unknown, &pad].map(|token| AddedToken::from(token.clone(), true).normalized(false));
        bpe.add_special_tokens(special).map_err(fault)?;
        let id = |token: &str| {
            bpe.token_to_id(token).ok_or_else(|| fault(format!("special token {token} is not in vocab.json")))
        };
        let (bos, eos, pad) = (id(&bos)?, id(&eos)?, id(&pad)?);
        Ok(Self { bpe, bos, eos, pad, length })
    }

    /// CLIP's own tokenizer, as every Stable Diffusion 1.x model has it, for models that bring none.
    ///
    /// # Errors
    /// None: the vocabulary is a part of the binary.
    pub fn clip(length: usize) -> Result<Self> {
        let vocabulary: Vocab = clip::tokens().into_iter().zip(0..).collect();
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, clip::merges())
            .end_of_word_suffix("</w>".into())
            .unk_token(clip::END.into())
            .build()
            .map_err(fault)?;
        let mut bpe = Bpe::new(model);
        bpe.with_normalizer(Some(normalizer()?)).map_err(fault)?;
        bpe.with_pre_tokenizer(Some(pre_tokenizer()?));
        let special = [clip::START, clip::END].map(|token| AddedToken::from(token, true).normalized(false));
        bpe.add_special_tokens(special).map_err(fault)?;
        let id = |token: &str| bpe.token_to_id(token).ok_or_else(|| fault(format!("no special token {token}")));
        let (bos, eos) = (id(clip::START)?, id(clip::END)?);
        Ok(Self { bpe, bos, eos, pad: eos, length })
    }

    /// Tokenizes a prompt, truncates it, adds start and end, and pads to the full length.
    ///
    /// # Errors
    /// A broken vocabulary. No prompt causes an error.
    pub fn encode(&self, prompt: &str) -> Result<Tokens> {
        let encoding = self.bpe.encode_fast(prompt, false).map_err(fault)?;
        Ok(self.framed(encoding.get_ids().iter().map(|&id| (id, 1.0)).collect()))
    }

    /// As [`Tokenizer::encode`], for fragments that are tokenized separately. All tokens of a fragment have its weight.
    ///
    /// # Errors
    /// A broken vocabulary. No prompt causes an error.
    pub fn encode_weighted(&self, fragments: &[Fragment]) -> Result<Tokens> {
        let mut text = Vec::new();
        for (fragment, weight) in fragments {
            let encoding = self.bpe.encode_fast(fragment.as_str(), false).map_err(fault)?;
            text.extend(encoding.get_ids().iter().map(|&id| (id, *weight as f32)));
        }
        Ok(self.framed(text))
    }

    /// Truncates, adds start and end, and pads.
    fn framed(&self, mut text: Vec<(u32, f32)>) -> Tokens {
        let truncated = text.len().saturating_sub(self.length - 2);
        text.truncate(self.length - 2);
        text.insert(0, (self.bos, 1.0));
        text.push((self.eos, 1.0));
        text.resize(self.length, (self.pad, 1.0));
        let (ids, weights) = text.into_iter().unzip();
        Tokens { ids, truncated, weights }
    }
}

fn normalizer() -> Result<NormalizerWrapper> {
    let spaces = Replace::new(ReplacePattern::Regex(r"\s+".into()), " ").map_err(fault)?;
    Ok(Normalizers::new(vec![NFC.into(), spaces.into(), Lowercase.into()]).into())
}

fn pre_tokenizer() -> Result<PreTokenizerWrapper> {
    let words = SplitPattern::Regex(WORDS.into());
    let words = Split::new(words, SplitDelimiterBehavior::Removed, true).map_err(fault)?;
    let bytes = ByteLevel::new(false, false, true);
    Ok(PreTokenizers::new(vec![words.into(), bytes.into()]).into())
}

/// A special token is a string, or an object with the string in `content`.
fn text(token: &Value, default: &str) -> String {
    token.as_str().or_else(|| token.get("content")?.as_str()).unwrap_or(default).to_string()
}

fn fault(error: impl ToString) -> PipelineError {
    PipelineError::Tokenizer(error.to_string())
}
