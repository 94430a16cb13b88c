//! The tokenizer against that of transformers.

use crate::{golden, golden_json};
use anyhow::{Context, Result};
use diffusion::prompt::tokenizer::Tokenizer;
use serde_json::{Value, json};
use std::{
    collections::HashMap,
    fs,
    path::{Path, PathBuf},
};

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

/// Folders of today and of older versions, with tokens beside the vocabulary in each file that may hold them.
#[test]
fn every_form_of_a_folder_gives_the_ids_of_transformers() -> Result<()> {
    let goldens = golden_json("tokenizer-folders.json")?;
    let texts: Vec<String> = serde_json::from_value(goldens["texts"].clone())?;
    let (mut seen, mut faults) = (0, Vec::new());
    for case in goldens["folders"].as_array().context("folders")? {
        let (name, pad) = (case["name"].as_str().context("a name")?, case["pad"].as_u64().context("an id")?);
        let model = tempfile::tempdir()?;
        write_folder(model.path(), &case["files"], case["older"] == true)?;
        let vocabulary = case["tokens"].as_u64().context("a number")? as usize;
        let tokenizer = match Tokenizer::load(model.path(), 77, vocabulary) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                faults.push(format!("{name}: {error}"));
                continue;
            }
        };
        for (text, ids) in texts.iter().zip(case["ids"].as_array().context("ids")?) {
            let mut theirs: Vec<u32> = serde_json::from_value(ids.clone())?;
            theirs.resize(77, pad as u32);
            let ours = tokenizer.encode(text)?.ids;
            if ours != theirs {
                faults.push(format!("{name}, {text:?}:\n{ours:?}, not\n{theirs:?}"));
            }
            seen += 1;
        }
        // One embedding less than tokens.
        let short = Tokenizer::load(model.path(), 77, vocabulary - 1).err().context(name.to_string())?.to_string();
        assert!(short.contains(&format!("`vocab_size` {}", vocabulary - 1)), "{name}: {short}");
    }
    assert!(faults.is_empty() && seen > 400, "{} of {seen} differ:\n{}", faults.len(), faults.join("\n"));
    Ok(())
}

/// What a folder holds is read, or refused by the file's name and the field.
#[test]
fn what_is_not_supported_is_refused_by_file_and_field() -> Result<()> {
    let goldens = golden_json("tokenizer-folders.json")?;
    let folders = goldens["folders"].as_array().context("folders")?;
    let files = |name: &str| folders.iter().find(|case| case["name"] == name).map(|case| case["files"].clone());
    let (new, old) = (files("new, one token").context("new")?, files("added_tokens.json").context("old")?);
    let config = "tokenizer_config.json";
    let toy = json!({ "id": 49_410, "content": "<cat-toy>", "normalized": true, "special": false });
    let cases = [
        (&new, "tokenizer.json", "/normalizer", json!(null)),
        (&new, "tokenizer.json", "/normalizer/normalizers/2/type", json!("NFKC")),
        (&new, "tokenizer.json", "/pre_tokenizer/pretokenizers/1/add_prefix_space", json!(true)),
        (&new, "tokenizer.json", "/pre_tokenizer/pretokenizers/0/pattern/Regex", json!(r"\w+")),
        (&new, "tokenizer.json", "/post_processor", json!({ "type": "TemplateProcessing" })),
        (&new, "tokenizer.json", "/post_processor/cls/0", json!("<s>")),
        (&new, "tokenizer.json", "/padding/direction", json!("Left")),
        (&new, "tokenizer.json", "/truncation/direction", json!("Left")),
        (&new, "tokenizer.json", "/version", json!("2.0")),
        (&new, "tokenizer.json", "/surprise", json!(1)),
        (&new, "tokenizer.json", "/model/type", json!("Unigram")),
        (&new, "tokenizer.json", "/model/dropout", json!(0.1)),
        (&new, "tokenizer.json", "/model/unk_token", json!("!")),
        (&new, "tokenizer.json", "/model/continuing_subword_prefix", json!("##")),
        (&new, "tokenizer.json", "/model/end_of_word_suffix", json!("")),
        (&new, "tokenizer.json", "/model/fuse_unk", json!(true)),
        (&new, "tokenizer.json", "/model/byte_fallback", json!(true)),
        (&new, "tokenizer.json", "/model/ignore_merges", json!(true)),
        (&new, "tokenizer.json", "/model/surprise", json!(1)),
        (&new, "tokenizer.json", "/added_tokens/2", toy),
        (&new, "tokenizer.json", "/added_tokens/2/surprise", json!(1)),
        (&new, config, "/padding_side", json!("left")),
        (&new, config, "/truncation_side", json!("left")),
        (&new, config, "/model_max_length", json!(32)),
        (&new, config, "/fast_tokenizer_files", json!(["tokenizer.4.0.0.json"])),
        (&new, config, "/pad_token", json!({ "content": "!", "surprise": true })),
        (&new, config, "/extra_special_tokens", json!({ "image": "<image>" })),
        (&new, config, "/added_tokens_decoder", json!({ "49408": "<cat-toy>" })),
        (&new, config, "/added_tokens_decoder", json!({ "one": { "content": "<cat-toy>" } })),
        (&old, "added_tokens.json", "/<cat-toy>", json!(49_409)),
        (&old, "added_tokens.json", "/<cat-toy>", json!("49408")),
        (&old, "special_tokens_map.json", "/pad_token/surprise", json!(true)),
        (&old, "special_tokens_map.json", "/additional_special_tokens", json!(7)),
    ];
    for (files, file, place, value) in cases {
        let mut files = files.clone();
        let (parent, field) = place.rsplit_once('/').context("a place")?;
        let parent = files[file].pointer_mut(parent).with_context(|| place.to_string())?;
        if parent.is_string() {
            *parent = json!({ "content": "!", field: value });
        } else if parent.is_array() {
            parent[field.parse::<usize>()?] = value;
        } else {
            parent[field] = value;
        }
        let model = tempfile::tempdir()?;
        write_folder(model.path(), &files, files["tokenizer.json"].is_null())?;
        let error = Tokenizer::load(model.path(), 77, 60_000).err().with_context(|| place.to_string())?.to_string();
        assert!(error.contains(file), "{file} {place}: {error}");
    }
    Ok(())
}

/// A missing file is named, and so is one with a fault.
#[test]
fn a_missing_or_broken_file_is_named() -> Result<()> {
    for (name, content) in [
        ("vocab.json", None),
        ("merges.txt", None),
        ("tokenizer_config.json", None),
        ("vocab.json", Some(r#"{"a": "b"}"#)),
        ("merges.txt", Some("#version: 0.2\nth e\nt h e")),
        ("merges.txt", Some("#version: 0.2\nno_such token")),
        ("tokenizer.json", Some("{}")),
        ("tokenizer.json", Some("<html>")),
    ] {
        let model = tempfile::tempdir()?;
        write_folder(model.path(), &json!({ "tokenizer_config.json": {} }), true)?;
        let path = model.path().join("tokenizer").join(name);
        match content {
            Some(content) => fs::write(path, content)?,
            None => fs::remove_file(path)?,
        }
        let error = Tokenizer::load(model.path(), 77, 49_408).err().context(name)?.to_string();
        assert!(error.contains(name), "{name}: {error}");
    }
    Ok(())
}

/// CLIP's tokenizer, loaded from a model folder that is written here.
fn clip_tokenizer(model: PathBuf) -> Result<Tokenizer> {
    write_folder(&model, &json!({ "tokenizer_config.json": {} }), true)?;
    Ok(Tokenizer::load(&model, 77, 49_408)?)
}

/// Writes the folder of a tokenizer: these JSON files, and for the older form the vocabulary and the merges, which are put into
/// tokenizer.json in any case.
fn write_folder(model: &Path, files: &Value, older: bool) -> Result<()> {
    let folder = model.join("tokenizer");
    fs::create_dir(&folder)?;
    let text = fs::read_to_string(golden("clip/merges.txt"))?;
    let vocabulary = vocabulary(&text);
    if older {
        fs::write(folder.join("vocab.json"), serde_json::to_vec(&vocabulary)?)?;
        fs::write(folder.join("merges.txt"), &text)?;
    }
    for (name, content) in files.as_object().context("files")? {
        let mut content = content.clone();
        if let Some(model) = content.get_mut("model") {
            model["vocab"] = json!(vocabulary);
            model["merges"] = text.lines().skip(1).map(|line| json!(line.split(' ').collect::<Vec<_>>())).collect();
        }
        fs::write(folder.join(name), serde_json::to_vec(&content)?)?;
    }
    Ok(())
}

/// CLIP's vocabulary, which follows from the merges.
fn vocabulary(merges: &str) -> HashMap<String, usize> {
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
    vocabulary
}
