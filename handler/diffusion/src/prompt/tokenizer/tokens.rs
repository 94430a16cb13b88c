//! Tokens that stand beside the vocabulary, or are special: which files name them, and in which order they get their ids.
//!
//! The order is that of transformers 5.24. `added_tokens_decoder` in `tokenizer_config.json` is alone if it is there. Else
//! `special_tokens_map.json` overrides the special tokens of `tokenizer_config.json`, and the tokens of `added_tokens.json` and of
//! `tokenizer.json` are added, the latter where both name an id.

use crate::error::{MAX_NAME, PipelineError, Result, cut};
use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, Visitor},
};
use serde_json::Value;
use std::{collections::BTreeMap, fmt};
use tokenizers::AddedToken;

/// The tokens with a meaning, in the order of transformers.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];
/// The two names that the list of further special tokens has had.
const EXTRA: &str = "extra_special_tokens";
const ADDITIONAL: &str = "additional_special_tokens";
const CONFIG: &str = "tokenizer/tokenizer_config.json";
const MAP: &str = "tokenizer/special_tokens_map.json";
const ADDED: &str = "tokenizer/added_tokens.json";
const SERIALIZED: &str = "tokenizer/tokenizer.json";

/// The members of a JSON object in the file's order. Of members with one name, the last counts, as in Python.
#[derive(Default)]
pub(super) struct Members(Vec<(String, Value)>);

/// A token with its flags as files have it.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct SavedToken {
    id: Option<u32>,
    content: String,
    #[serde(default)]
    single_word: bool,
    #[serde(default)]
    lstrip: bool,
    #[serde(default)]
    rstrip: bool,
    normalized: Option<bool>,
    special: Option<bool>,
    #[serde(default, rename = "__type")]
    _type: Option<String>,
}

/// A special token: a text, which gets its flags when it is added, or a token with flags. The two are never the same.
#[derive(Debug, Clone, PartialEq)]
enum Special {
    Text(String),
    Token(AddedToken),
}

/// The tokens of a folder.
#[derive(Debug)]
pub(super) struct FolderTokens {
    /// Start, end, unknown and padding.
    pub(super) bos: String,
    pub(super) eos: String,
    pub(super) unknown: String,
    pub(super) pad: String,
    /// All tokens in the order in which they are added.
    pub(super) to_add: Vec<AddedToken>,
    /// The ids that files name, with the token and the file.
    pub(super) named_ids: Vec<(u32, String, &'static str)>,
}

impl FolderTokens {
    /// Of the files' contents; all but the first may be absent.
    ///
    /// # Errors
    /// A token of a form that is not known. The error names the file and the field.
    pub(super) fn of(
        config: &Members,
        special_map: Option<Members>,
        added_file: Option<BTreeMap<String, u32>>,
        serialized: Option<&[SavedToken]>,
    ) -> Result<Self> {
        let mut settings: Vec<(String, Special)> = Vec::new();
        let mut others: Vec<(String, Special)> = Vec::new();
        for (name, value) in config.iter() {
            if let Some(special) = special(CONFIG, name, value, false)? {
                // transformers puts texts under other names behind all others.
                let is_other = !NAMED.contains(&name) && matches!(special, Special::Text(_));
                set(if is_other { &mut others } else { &mut settings }, name, special);
            }
        }
        let [extra, additional] = [EXTRA, ADDITIONAL].map(|name| list(CONFIG, name, config.get(name)));
        let mut extra = extra?.filter(|tokens| !tokens.is_empty()).or(additional?);
        let mut by_id: BTreeMap<u32, (AddedToken, &'static str)> = BTreeMap::new();
        if let Some(decoder) = config.get("added_tokens_decoder") {
            for (id, token) in entries(decoder)? {
                by_id.insert(id, (token.with_flags(None), CONFIG));
            }
        } else {
            let map = special_map.unwrap_or_default();
            for (name, value) in map.iter() {
                if let Some(special) = special(MAP, name, value, true)? {
                    let in_config = others.iter().position(|(known, _)| known == name);
                    let special = in_config.map_or(special, |index| others.remove(index).1);
                    set(&mut settings, name, special);
                }
            }
            if let Some(more) = list(MAP, EXTRA, map.get(EXTRA))? {
                let known = extra.get_or_insert_default();
                more.into_iter().for_each(|token| {
                    if !known.contains(&token) {
                        known.push(token)
                    }
                });
            }
            extra = extra.or(list(MAP, ADDITIONAL, map.get(ADDITIONAL))?);
            for (content, id) in added_file.into_iter().flatten() {
                let named = settings.iter().filter(|(name, _)| NAMED.contains(&name.as_str())).map(|(_, token)| token);
                let special = named.chain(extra.iter().flatten()).any(|token| token.content() == content);
                by_id.insert(id, (AddedToken::from(content, special), ADDED));
            }
            for token in serialized.unwrap_or_default() {
                let id = token.id.ok_or_else(|| bad(SERIALIZED, "added_tokens", "a token without `id`"))?;
                by_id.insert(id, (token.with_flags(None), SERIALIZED));
            }
        }
        let added: BTreeMap<&str, &AddedToken> =
            by_id.values().map(|(token, _)| (token.content.as_str(), token)).collect();
        for (name, token) in &mut settings {
            if let Some(&known) = added.get(token.content()).filter(|_| NAMED.contains(&name.as_str())) {
                *token = Special::Token(known.clone());
            }
        }
        for name in ["bos_token", "eos_token", "unk_token", "pad_token"] {
            if !settings.iter().any(|(known, _)| known == name) {
                let default = if name == "bos_token" { "<|startoftext|>" } else { "<|endoftext|>" };
                settings.push((name.into(), Special::Text(default.into())));
            }
        }
        let content = |wanted: &str| {
            let found = settings.iter().find(|(name, _)| name == wanted);
            found.map(|(_, token)| token.content().to_string()).unwrap_or_default()
        };
        let [bos, eos, unknown, pad] = ["bos_token", "eos_token", "unk_token", "pad_token"].map(content);
        settings.sort_by_key(|(name, _)| NAMED.iter().position(|known| known == name).unwrap_or(NAMED.len()));
        let specials: Vec<Special> = settings.into_iter().chain(others).map(|(_, token)| token).collect();
        let to_add =
            in_order(by_id.values().map(|(token, _)| token.clone()), &specials, extra.as_deref().unwrap_or_default());
        let named_ids = by_id.into_iter().map(|(id, (token, file))| (id, token.content, file)).collect();
        Ok(Self { bos, eos, unknown, pad, to_add, named_ids })
    }
}

/// Tokens with ids by their ids, then special tokens that are not among them, then further ones.
fn in_order(by_id: impl Iterator<Item = AddedToken>, specials: &[Special], extra: &[Special]) -> Vec<AddedToken> {
    let mut all: Vec<Special> = by_id.map(Special::Token).collect();
    let known: Vec<String> = all.iter().map(|token| token.content().to_string()).collect();
    for token in specials.iter().chain(extra) {
        if !known.iter().any(|content| content == token.content()) && !all.contains(token) {
            all.push(token.clone());
        }
    }
    let is_named = |content: &str| specials.iter().any(|token| token.content() == content);
    let finished = all.into_iter().map(|token| match token {
        Special::Text(content) => AddedToken::from(content, true),
        Special::Token(token) => {
            let special = token.special || is_named(&token.content);
            token.special(special)
        }
    });
    finished.collect()
}

/// The tokens of `added_tokens_decoder`.
fn entries(decoder: &Value) -> Result<Vec<(u32, SavedToken)>> {
    let wrong = || bad(CONFIG, "added_tokens_decoder", "no object of tokens by their ids");
    let entry = |(id, token): (&String, &Value)| {
        let token = SavedToken::deserialize(token).map_err(|error| bad(CONFIG, "added_tokens_decoder", error))?;
        Ok((id.parse().map_err(|_| wrong())?, token))
    };
    decoder.as_object().ok_or_else(wrong)?.iter().map(entry).collect()
}

/// A list of tokens.
fn list(file: &'static str, name: &str, value: Option<&Value>) -> Result<Option<Vec<Special>>> {
    let wrong = || bad(file, name, "no list of tokens");
    let token = |value: &Value| token(file, name, value, true)?.ok_or_else(wrong);
    match value {
        None => Ok(None),
        Some(Value::Object(named)) if named.is_empty() => Ok(None),
        Some(Value::Array(list)) => list.iter().map(token).collect::<Result<_>>().map(Some),
        Some(_) => Err(wrong()),
    }
}

/// A special token under a name that ends with `_token`. None for other names, and for values that are no token.
fn special(file: &'static str, name: &str, value: &Value, in_map: bool) -> Result<Option<Special>> {
    if !name.ends_with("_token") { Ok(None) } else { token(file, name, value, in_map) }
}

fn token(file: &'static str, name: &str, value: &Value, special: bool) -> Result<Option<Special>> {
    Ok(match value {
        Value::String(text) => Some(Special::Text(text.clone())),
        Value::Object(_) => {
            let token = SavedToken::deserialize(value).map_err(|error| bad(file, name, error))?;
            Some(Special::Token(token.with_flags(special.then_some(true))))
        }
        _ => None,
    })
}

fn set(tokens: &mut Vec<(String, Special)>, name: &str, token: Special) {
    match tokens.iter_mut().find(|(known, _)| known == name) {
        Some((_, known)) => *known = token,
        None => tokens.push((name.into(), token)),
    }
}

fn bad(file: &str, field: &str, what: impl fmt::Display) -> PipelineError {
    PipelineError::Tokenizer(format!("{file}: `{}`: {what}", cut(field, MAX_NAME)))
}

impl SavedToken {
    /// The token, special or not as the file says unless `special` says it.
    fn with_flags(&self, special: Option<bool>) -> AddedToken {
        let special = special.or(self.special).unwrap_or_default();
        AddedToken::from(self.content.clone(), special)
            .normalized(self.normalized.unwrap_or(!special))
            .single_word(self.single_word)
            .lstrip(self.lstrip)
            .rstrip(self.rstrip)
    }
}

impl Special {
    fn content(&self) -> &str {
        match self {
            Self::Text(text) => text,
            Self::Token(token) => &token.content,
        }
    }
}

impl Members {
    /// The value of a name; `null` is none.
    pub(super) fn get(&self, name: &str) -> Option<&Value> {
        self.0.iter().find(|(known, _)| known == name).map(|(_, value)| value).filter(|value| !value.is_null())
    }

    fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.0.iter().map(|(name, value)| (name.as_str(), value))
    }
}

impl<'de> Deserialize<'de> for Members {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(MembersVisitor)
    }
}

struct MembersVisitor;

impl<'de> Visitor<'de> for MembersVisitor {
    type Value = Members;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a JSON object")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Members, A::Error> {
        let mut members: Vec<(String, Value)> = Vec::new();
        while let Some((name, value)) = map.next_entry::<String, Value>()? {
            match members.iter_mut().find(|(known, _)| *known == name) {
                Some((_, known)) => *known = value,
                None => members.push((name, value)),
            }
        }
        Ok(Members(members))
    }
}
