//! CLIP's own vocabulary, for models that bring no tokenizer. It follows from the list of merges, which is a part of the binary.

/// The start of a text.
pub const START: &str = "<|startoftext|>";
/// The end of a text, and what stands for anything unknown.
pub const END: &str = "<|endoftext|>";
/// CLIP's `merges.txt`: a line with the version, then a pair of tokens on each line.
pub const MERGES: &str = include_str!("../../clip/merges.txt");

/// The pairs of tokens that are merged, the first pair first.
pub fn merges() -> Vec<(String, String)> {
    let pairs = MERGES.lines().skip(1).filter_map(|line| line.split_once(' '));
    pairs.map(|(first, second)| (first.to_string(), second.to_string())).collect()
}

/// The tokens by their ids: each byte, each byte at the end of a word, what each merge makes, and the two special tokens.
pub fn tokens() -> Vec<String> {
    // Bytes that cannot be shown stand as the characters from U+0100 on, in order.
    let plain = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let shown: Vec<char> = (0..=255u8).filter(plain).map(char::from).collect();
    let hidden = (0..256 - shown.len() as u32).filter_map(|index| char::from_u32(256 + index));
    let letters: Vec<String> = shown.iter().copied().chain(hidden).map(String::from).collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let merged = merges().into_iter().map(|(first, second)| first + &second);
    let special = [START, END].map(String::from);
    letters.iter().cloned().chain(ends).chain(merged).chain(special).collect()
}

/// The content of CLIP's `vocab.json`: ids by tokens.
pub fn vocabulary() -> serde_json::Map<String, serde_json::Value> {
    tokens().into_iter().enumerate().map(|(id, token)| (token, id.into())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{loading::settings, prompt::tokenizer::Tokenizer};
    use std::path::Path;

    /// easel-tiny has CLIP's own vocabulary, in transformers' files.
    #[test]
    fn the_vocabulary_in_the_binary_is_the_one_of_clips_files() {
        let model = Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/../../tests/model/easel-tiny"));
        let theirs: serde_json::Value =
            serde_json::from_str(&settings(model, "tokenizer/vocab.json").unwrap()).unwrap();
        assert_eq!(serde_json::Value::Object(vocabulary()), theirs);
        let (ours, theirs) = (Tokenizer::clip(77).unwrap(), Tokenizer::load(model, 77, 49408).unwrap());
        for text in ["", "A cat, sitting; 3 Fuß 猫 🐱", "<|startoftext|> x<|endoftext|>!", &"very ".repeat(90)] {
            assert_eq!(ours.encode(text).unwrap(), theirs.encode(text).unwrap(), "{text}");
        }
    }
}
