//! CLIP's byte-pair tokenizer, read from the `tokenizer/` folder of a model. Pads and truncates as diffusers does.

mod folder;
mod serialized;
mod tokens;

use crate::{
    error::{MAX_NAME, PipelineError, Result, cut},
    loading::clip,
    prompt::Fragment,
};
use folder::TokenizerFolder;
use std::{
    borrow::Cow,
    collections::BTreeSet,
    iter::{once, repeat},
    path::Path,
};
use tokenizers::{
    AddedToken, NormalizedString, Normalizer, NormalizerWrapper, PreTokenizerWrapper, SplitDelimiterBehavior,
    Tokenizer as Bpe,
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
/// Marks the last token of a word.
const END_OF_WORD: &str = "</w>";

/// Turns a prompt into token ids.
#[derive(Clone)]
pub struct Tokenizer {
    bpe: Bpe,
    /// Tokens `x` beside which there is `x_1`, with the text of all of them. Ids of `x` first.
    in_parts: Vec<(u32, String, String)>,
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

impl Tokenizer {
    /// Reads the folder `tokenizer/` of a model, in any form that transformers writes or has written. `length` is the number of tokens of
    /// the encoder's longest sequence, and `vocabulary` the number of its token embeddings.
    ///
    /// # Errors
    /// A missing or broken file, a setting that is not supported, merges that do not fit the vocabulary, or a token that the encoder has
    /// no embedding for. The error names the file.
    pub fn load(model: &Path, length: usize, vocabulary: usize) -> Result<Self> {
        let folder = TokenizerFolder::read(&model.join("tokenizer"), length)?;
        let TokenizerFolder { source, tokens, splits_special, .. } = folder;
        let in_source = |error: &dyn ToString| fault(format!("tokenizer/{source}: {}", error.to_string()));
        let last = folder.vocabulary.iter().max_by_key(|(_, id)| **id);
        if let Some((token, &id)) = last.filter(|(_, id)| **id as usize >= vocabulary) {
            return Err(no_embedding(token, id, vocabulary));
        }
        let model = BPE::builder()
            .vocab_and_merges(folder.vocabulary.into_iter().collect::<Vocab>(), folder.merges)
            .end_of_word_suffix(END_OF_WORD.into())
            .unk_token(tokens.unknown.clone())
            .build()
            .map_err(|error| in_source(&error))?;
        let mut bpe = Bpe::new(model);
        bpe.with_normalizer(Some(normalizer()?)).map_err(fault)?;
        bpe.with_pre_tokenizer(Some(pre_tokenizer()?));
        bpe.add_tokens(tokens.to_add.clone()).map_err(fault)?;
        bpe.set_encode_special_tokens(splits_special);
        for (named, token, file) in &tokens.named_ids {
            let id = bpe.token_to_id(token);
            if id != Some(*named) {
                let found = id.map_or("none".to_string(), |id| id.to_string());
                let shown = cut(token, MAX_NAME);
                return Err(fault(format!(
                    "{file}: the token `{shown}` has the id {named}, the next free one is {found}"
                )));
            }
        }
        for token in &tokens.to_add {
            let id = bpe.token_to_id(&token.content).unwrap_or_default();
            if id as usize >= vocabulary {
                return Err(no_embedding(&token.content, id, vocabulary));
            }
        }
        let missing = |token: &str| fault(format!("tokenizer/tokenizer_config.json: no special token `{token}`"));
        let id = |token: &str| bpe.token_to_id(token).ok_or_else(|| missing(token));
        let (bos, eos, pad) = (id(&tokens.bos)?, id(&tokens.eos)?, id(&tokens.pad)?);
        Ok(Self { in_parts: in_parts(&bpe), bpe, bos, eos, pad, length })
    }

    /// The same tokenizer with further tokens, each with so many parts, and the ids of each token's parts. Upper and lower case are the same
    /// in them.
    ///
    /// # Errors
    /// What is wrong with a token, as the rest of a sentence.
    pub(crate) fn with_tokens(&self, tokens: &[(&str, usize)]) -> std::result::Result<(Self, Vec<Vec<u32>>), String> {
        let mut bpe = self.bpe.clone();
        let mut ids = Vec::with_capacity(tokens.len());
        for &(token, parts) in tokens {
            let shown = cut(token, MAX_NAME);
            let names: Vec<String> = (0..parts.max(1)).map(|part| part_name(token, part)).collect();
            let second = part_name(token, 1);
            // diffusers also refuses a token beside which there is a second part.
            let taken = names.iter().chain([&second]).find(|name| bpe.token_to_id(name).is_some());
            if let Some(taken) = taken {
                let taken = cut(taken, MAX_NAME);
                return Err(format!(
                    "has the token `{shown}`, and `{taken}` is in the vocabulary already: choose another token"
                ));
            }
            let looked_for: Vec<String> = names.iter().map(|name| normalized(&bpe, name)).collect();
            let known = bpe.get_added_tokens_decoder();
            if known.values().any(|known| looked_for.contains(&normalized(&bpe, &known.content))) {
                return Err(format!(
                    "has the token `{shown}`, which differs from another one only in upper and lower case"
                ));
            }
            let added = names.iter().map(|name| AddedToken::from(name.clone(), false)).collect::<Vec<_>>();
            bpe.add_tokens(added).map_err(|error| format!("has the token `{shown}`: {error}"))?;
            ids.push(names.iter().filter_map(|name| bpe.token_to_id(name)).collect());
        }
        Ok((Self { in_parts: in_parts(&bpe), bpe, ..*self }, ids))
    }

    /// The text with all parts of each token that has parts, as in diffusers: only where the token is written as in its file. With
    /// transformers 5, diffusers forgets all parts but the first of a token with capitals, which we do not.
    fn with_parts<'a>(&self, text: &'a str) -> Result<Cow<'a, str>> {
        let mut text = Cow::Borrowed(text);
        if self.in_parts.is_empty() {
            return Ok(text);
        }
        let found = self.bpe.encode_fast(&*text, false).map_err(fault)?;
        for (_, token, all) in self.in_parts.iter().filter(|(id, ..)| found.get_ids().contains(id)) {
            if text.contains(token) {
                text = text.replace(token, all).into();
            } else {
                tracing::warn!(
                    "a token with several vectors is written in other case than in its file: only its first is read"
                );
            }
        }
        Ok(text)
    }

    /// CLIP's own tokenizer, as every Stable Diffusion 1.x model has it, for models that bring none.
    ///
    /// # Errors
    /// None: the vocabulary is a part of the binary.
    pub fn clip(length: usize) -> Result<Self> {
        let vocabulary: Vocab = clip::tokens().into_iter().zip(0..).collect();
        let model = BPE::builder()
            .vocab_and_merges(vocabulary, clip::merges())
            .end_of_word_suffix(END_OF_WORD.into())
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
        Ok(Self { in_parts: in_parts(&bpe), bpe, bos, eos, pad: eos, length })
    }

    /// Tokenizes a prompt, truncates it, adds start and end, and pads to the full length.
    ///
    /// # Errors
    /// A broken vocabulary. No prompt causes an error.
    pub fn encode(&self, prompt: &str) -> Result<Tokens> {
        self.encode_weighted(&[(prompt.to_string(), 1.0)])
    }

    /// As [`Tokenizer::encode`], for fragments that are tokenized separately. All tokens of a fragment have its weight.
    ///
    /// # Errors
    /// A broken vocabulary. No prompt causes an error.
    pub fn encode_weighted(&self, fragments: &[Fragment]) -> Result<Tokens> {
        Ok(self.framed(&self.text(fragments)?))
    }

    /// As [`Tokenizer::encode_weighted`], but nothing is cut off: the text goes on in further chunks, each with its own start, end and
    /// padding. A chunk ends where it is full, also within a word, as in compel. There is always one.
    ///
    /// # Errors
    /// A broken vocabulary. No prompt causes an error.
    pub fn encode_in_chunks(&self, fragments: &[Fragment]) -> Result<Vec<Tokens>> {
        let text = self.text(fragments)?;
        let mut chunks: Vec<Tokens> = text.chunks(self.room()).map(|part| self.framed(part)).collect();
        if chunks.is_empty() {
            chunks.push(self.framed(&[]));
        }
        Ok(chunks)
    }

    /// How many tokens of a text a chunk has room for: 75.
    pub fn room(&self) -> usize {
        self.length - 2
    }

    /// How many tokens fragments have, without start and end.
    ///
    /// # Errors
    /// A broken vocabulary. No prompt causes an error.
    pub fn count(&self, fragments: &[Fragment]) -> Result<usize> {
        Ok(self.text(fragments)?.len())
    }

    /// The tokens of fragments, with their weights.
    fn text(&self, fragments: &[Fragment]) -> Result<Vec<(u32, f32)>> {
        let mut text = Vec::new();
        for (fragment, weight) in fragments {
            let fragment = self.with_parts(fragment)?;
            let encoding = self.bpe.encode_fast(&*fragment, false).map_err(fault)?;
            text.extend(encoding.get_ids().iter().map(|&id| (id, *weight as f32)));
        }
        Ok(text)
    }

    /// Truncates, adds start and end, and pads.
    fn framed(&self, text: &[(u32, f32)]) -> Tokens {
        let fits = &text[..text.len().min(self.room())];
        let (first, last, rest) = ((self.bos, 1.0), (self.eos, 1.0), (self.pad, 1.0));
        let all = once(first).chain(fits.iter().copied()).chain(once(last)).chain(repeat(rest)).take(self.length);
        let (ids, weights) = all.unzip();
        Tokens { ids, truncated: text.len() - fits.len(), weights }
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

/// A text as the tokenizer looks for it.
fn normalized(bpe: &Bpe, text: &str) -> String {
    let mut normalized = NormalizedString::from(text);
    // CLIP's steps cannot fail.
    let _ = bpe.get_normalizer().map(|normalizer| normalizer.normalize(&mut normalized));
    normalized.get().to_string()
}

/// The name of a part: `x`, `x_1`, `x_2`.
fn part_name(token: &str, part: usize) -> String {
    if part == 0 { token.into() } else { format!("{token}_{part}") }
}

/// Of the tokens beside the vocabulary, those that have parts.
fn in_parts(bpe: &Bpe) -> Vec<(u32, String, String)> {
    let added = bpe.get_added_tokens_decoder();
    let names: BTreeSet<&str> = added.values().map(|token| token.content.as_str()).collect();
    let mut all: Vec<(u32, String, String)> = added
        .iter()
        .filter_map(|(id, token)| {
            let parts = (0..).map(|part| part_name(&token.content, part));
            let parts: Vec<String> = parts.take_while(|name| names.contains(name.as_str())).collect();
            (parts.len() > 1).then(|| (*id, token.content.clone(), parts.join(" ")))
        })
        .collect();
    all.sort_unstable();
    all
}

fn no_embedding(token: &str, id: u32, vocabulary: usize) -> PipelineError {
    let shown = cut(token, MAX_NAME);
    fault(format!(
        "tokenizer/: the token `{shown}` has the id {id}, and text_encoder/config.json has `vocab_size` {vocabulary}: the encoder has \
         no embedding for it; take the text encoder that was saved with this tokenizer"
    ))
}

fn fault(error: impl ToString) -> PipelineError {
    PipelineError::Tokenizer(error.to_string())
}
