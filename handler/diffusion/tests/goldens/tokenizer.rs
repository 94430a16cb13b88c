//! The tokenizer against that of transformers.

use crate::{golden, golden_json};
use anyhow::{Context, Result};
use diffusion::prompt::tokenizer::Tokenizer;
use serde_json::json;
use std::{collections::HashMap, fs, path::PathBuf};

#[test]
fn tokens_are_those_of_transformers() -> Result<()> {
    let folder = tempfile::tempdir()?;
    let tokenizer = clip_tokenizer(folder.path().to_path_buf())?;
    let goldens = golden_json("tokenizer.json")?;
    let (mut seen, mut faults) = (0, Vec::new());
    for case in goldens["cases"].as_array().context("cases")? {
        let text = case["text"].as_str().context("a text")?;
        let mut theirs: Vec<u32> = serde_json::from_value(case["ids"].clone())?;
        theirs.resize(77, 49_407);
        let ours = tokenizer.encode(text)?;
        if ours.ids != theirs || json!(ours.truncated) != case["truncated"] {
            faults.push(format!(
                "{text:?}: {:?} cut {}, not {theirs:?} cut {}",
                ours.ids, ours.truncated, case["truncated"]
            ));
        }
        seen += 1;
    }
    assert!(faults.is_empty() && seen == 200, "{} of {seen} differ:\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

/// CLIP's tokenizer, loaded from a model folder that is written here. The vocabulary follows from the merges.
fn clip_tokenizer(model: PathBuf) -> Result<Tokenizer> {
    let merges = fs::read_to_string(golden("clip/merges.txt"))?;
    let plain = |byte: &u8| matches!(byte, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    let shown: Vec<char> = (0..=255u8).filter(plain).map(char::from).collect();
    let hidden = (0..256 - shown.len() as u32).filter_map(|index| char::from_u32(256 + index));
    let letters: Vec<String> = shown.iter().copied().chain(hidden).map(String::from).collect();
    let ends = letters.iter().map(|letter| format!("{letter}</w>"));
    let merged = merges.lines().skip(1).map(|line| line.replace(' ', ""));
    let special = ["<|startoftext|>", "<|endoftext|>"].map(String::from);
    let tokens = letters.iter().cloned().chain(ends).chain(merged).chain(special);
    let vocabulary: HashMap<String, usize> = tokens.enumerate().map(|(id, token)| (token, id)).collect();
    assert_eq!(vocabulary.len(), 49_408);
    let folder = model.join("tokenizer");
    fs::create_dir(&folder)?;
    fs::write(folder.join("vocab.json"), serde_json::to_vec(&vocabulary)?)?;
    fs::write(folder.join("merges.txt"), merges)?;
    fs::write(folder.join("tokenizer_config.json"), "{}")?;
    Ok(Tokenizer::load(&model, 77)?)
}
