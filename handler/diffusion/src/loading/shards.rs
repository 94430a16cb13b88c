//! Finds the weights of a component in its folder: one file, or an index with several (`….safetensors.index.json`).
//!
//! diffusers takes the index if there is one, transformers the single file. With a variant, diffusers and transformers write
//! `….safetensors.index.fp16.json`, and older versions `….safetensors.fp16.index.json`.

use super::{FileKind, HeaderError, tensor_files::TensorFiles};
use crate::error::{MAX_NAME, PipelineError, Result, cut};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, HashMap, HashSet},
    fs, io,
    path::{Path, PathBuf},
};

/// Endings of weights that are not read, with what they are.
const OTHERS: [(&str, &str); 6] = [
    ("bin", "a pickled PyTorch file"),
    ("ckpt", "a pickled PyTorch file"),
    ("pt", "a pickled PyTorch file"),
    ("pth", "a pickled PyTorch file"),
    ("msgpack", "Flax's"),
    ("onnx", "ONNX"),
];

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// The names that the index of a file may have. None if the name is no `NAME.safetensors` or `NAME.VARIANT.safetensors`.
fn indexes(file: &str) -> Vec<String> {
    let Some(stem) = file.strip_suffix(".safetensors") else { return Vec::new() };
    match stem.split_once('.') {
        None => vec![format!("{file}.index.json")],
        Some((name, variant)) => vec![
            format!("{name}.safetensors.index.{variant}.json"),
            format!("{name}.safetensors.{variant}.index.json"),
            format!("{file}.index.json"),
        ],
    }
}

/// The file or index to read: of `names` the first that is there, as one file or with an index.
///
/// # Errors
/// There is none. The error says which other weights are there, and what to do.
pub(super) fn find(folder: &Path, names: &[&str]) -> Result<PathBuf> {
    for &name in names {
        let single = std::iter::once(name.to_string());
        let candidates: Vec<String> = if name.starts_with("diffusion_pytorch_model") {
            indexes(name).into_iter().chain(single).collect()
        } else {
            single.chain(indexes(name)).collect()
        };
        if let Some(found) = candidates.iter().map(|name| folder.join(name)).find(|path| path.exists()) {
            return Ok(found);
        }
    }
    let path = folder.join(names[0]);
    let mut others: Vec<(String, &str)> = fs::read_dir(folder).into_iter().flatten().filter_map(other).collect();
    others.sort();
    Err(match others.first() {
        None => PipelineError::File { path, source: io::Error::new(io::ErrorKind::NotFound, "no such file") },
        Some((other, kind)) => {
            let model = folder.parent().unwrap_or(folder).display();
            let reason = format!(
                "no such file; {other} lies there, which is {kind}, and only safetensors are read. diffusers converts a model that you trust: \
                 python3 -c 'from diffusers import StableDiffusionPipeline as P; P.from_pretrained(\"{model}\", \
                 safety_checker=None).save_pretrained(\"NEW-FOLDER\")'"
            );
            PipelineError::ModelFile { path, reason }
        }
    })
}

fn other(entry: io::Result<fs::DirEntry>) -> Option<(String, &'static str)> {
    let name = entry.ok()?.file_name().into_string().ok()?;
    let (_, ending) = name.rsplit_once('.')?;
    let (_, kind) = OTHERS.iter().find(|(other, _)| *other == ending)?;
    Some((name, kind))
}

/// Opens what [`find`] found: one file, or an index with its shards.
///
/// # Errors
/// A file is missing or is not a safetensors file, or index and shards disagree about a tensor.
pub(super) fn open(path: &Path) -> Result<TensorFiles> {
    let mut files = TensorFiles::default();
    if path.extension().is_none_or(|ending| ending != "json") {
        files.add(path).map_err(|error| unreadable(path, error))?;
        return Ok(files);
    }
    let wrong = |reason: String| PipelineError::ModelFile { path: path.into(), reason };
    let text = fs::read(path).map_err(|source| PipelineError::File { path: path.into(), source })?;
    if let Some(kind) = FileKind::instead_of_settings(&text) {
        return Err(wrong(format!("it is {kind}")));
    }
    let index: Index =
        serde_json::from_slice(&text).map_err(|source| PipelineError::Json { path: path.into(), source })?;
    let shards: HashSet<&str> = index.weight_map.values().map(String::as_str).collect();
    let mut shards: Vec<&str> = shards.into_iter().collect();
    shards.sort_unstable();
    if shards.is_empty() {
        return Err(wrong("it names no tensor".into()));
    }
    let mut held: HashMap<String, &str> = HashMap::new();
    for (number, &shard) in shards.iter().enumerate() {
        let shown = cut(shard, MAX_NAME);
        if shard.contains(['/', '\\', '\0']) || shard.starts_with('.') || shard.is_empty() {
            return Err(wrong(format!("it names the shard {shown:?}, which is no name of a file beside it")));
        }
        let file = path.with_file_name(shard);
        if !file.exists() {
            let (number, all) = (number + 1, shards.len());
            return Err(wrong(format!("its shard {shown} ({number} of {all}) is not there: fetch it as well")));
        }
        let (names, _) = files.add(&file).map_err(|error| unreadable(&file, error))?;
        for name in names {
            let shown = cut(&name, MAX_NAME).into_owned();
            match index.weight_map.get(&name) {
                None => return Err(wrong(format!("it does not name `{shown}`, which {shard} has: fetch both again"))),
                Some(wanted) if wanted != shard => {
                    let reason = format!(
                        "it says that `{shown}` is in {}, but {shard} has it: fetch them again",
                        cut(wanted, MAX_NAME)
                    );
                    return Err(wrong(reason));
                }
                Some(_) => held.insert(name, shard),
            };
        }
    }
    match index.weight_map.iter().find(|(name, _)| !held.contains_key(*name)) {
        None => Ok(files),
        Some((name, shard)) => Err(wrong(format!(
            "it says that `{}` is in {}, which does not have it: fetch both again",
            cut(name, MAX_NAME),
            cut(shard, MAX_NAME)
        ))),
    }
}

/// The error for a file that cannot be used.
pub(super) fn unreadable(path: &Path, error: HeaderError) -> PipelineError {
    match error {
        HeaderError::File(source) => PipelineError::File { path: path.into(), source },
        other => PipelineError::ModelFile { path: path.into(), reason: other.to_string() },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loading::{DIFFUSION_FILES, ENCODER_FILES};
    use candle_core::{Device, Tensor};
    use serde_json::{Value, json};

    fn shard(folder: &Path, file: &str, names: &[&str]) {
        let one = |name: &&str| ((*name).to_string(), Tensor::ones(2, candle_core::DType::F32, &Device::Cpu).unwrap());
        candle_core::safetensors::save(&names.iter().map(one).collect(), folder.join(file)).unwrap();
    }

    /// What is wrong with two shards, `a` in the first and `b` in the second, under an index with this map.
    fn refused(map: &Value) -> String {
        let folder = tempfile::tempdir().unwrap();
        shard(folder.path(), "1.safetensors", &["a"]);
        shard(folder.path(), "2.safetensors", &["b"]);
        let index = folder.path().join("model.safetensors.index.json");
        fs::write(&index, json!({ "metadata": {}, "weight_map": map }).to_string()).unwrap();
        open(&find(folder.path(), &ENCODER_FILES).unwrap()).err().unwrap().to_string()
    }

    #[test]
    fn index_and_shards_that_disagree_are_refused_by_name() {
        let cases = [
            (json!({ "a": "1.safetensors", "b": "3.safetensors" }), "its shard 3.safetensors (2 of 2) is not there"),
            (json!({ "a": "1.safetensors", "b": "1.safetensors" }), "`b` is in 1.safetensors, which does not have it"),
            (
                json!({ "a": "2.safetensors", "b": "1.safetensors" }),
                "`a` is in 2.safetensors, but 1.safetensors has it",
            ),
            (json!({ "a": "1.safetensors", "c": "2.safetensors" }), "does not name `b`, which 2.safetensors has"),
            (
                json!({ "a": "1.safetensors", "b": "2.safetensors", "c": "2.safetensors" }),
                "`c` is in 2.safetensors, which does not have it",
            ),
            (json!({ "a": "../1.safetensors" }), "\"../1.safetensors\", which is no name of a file beside it"),
            (json!({}), "names no tensor"),
            (json!({ "a": 1 }), "not the JSON expected"),
        ];
        for (map, said) in cases {
            let error = refused(&map);
            assert!(error.contains("model.safetensors.index.json") && error.contains(said), "{error}");
        }
    }

    #[test]
    fn the_library_decides_between_an_index_and_one_file() {
        let cases: [(&[&str], &[&str], &str); 7] = [
            (&DIFFUSION_FILES, &["", ".index.json"], "diffusion_pytorch_model.safetensors.index.json"),
            (&ENCODER_FILES, &["", ".index.json"], "model.safetensors"),
            (&ENCODER_FILES, &[".index.json", ".index.fp16.json"], "model.safetensors.index.json"),
            (&DIFFUSION_FILES, &[".index.fp16.json"], "diffusion_pytorch_model.safetensors.index.fp16.json"),
            (&DIFFUSION_FILES, &[".fp16.index.json"], "diffusion_pytorch_model.safetensors.fp16.index.json"),
            (&ENCODER_FILES, &[".index.fp16.json"], "model.safetensors.index.fp16.json"),
            (&DIFFUSION_FILES, &["", ".index.fp16.json"], "diffusion_pytorch_model.safetensors"),
        ];
        for (names, there, found) in cases {
            let folder = tempfile::tempdir().unwrap();
            for ending in there {
                fs::write(folder.path().join(format!("{}{ending}", names[0])), "").unwrap();
            }
            assert_eq!(find(folder.path(), names).unwrap(), folder.path().join(found), "{there:?}");
        }
    }

    #[test]
    fn other_files_in_place_of_weights_are_said_by_their_kind() {
        let folder = tempfile::tempdir().unwrap();
        let unet = folder.path().join("unet");
        fs::create_dir(&unet).unwrap();
        let error = |names| find(&unet, names).and_then(|path| open(&path)).err().unwrap().to_string();
        assert!(error(&DIFFUSION_FILES).contains("no such file; give a whole model folder"));
        fs::write(unet.join("diffusion_pytorch_model.bin"), "PK").unwrap();
        let said = error(&DIFFUSION_FILES);
        for part in [
            "diffusion_pytorch_model.bin lies there, which is a pickled PyTorch file",
            "save_pretrained",
            "P.from_pretrained(",
        ] {
            assert!(said.contains(part), "{said}");
        }
        assert!(said.contains(&format!("\"{}\"", folder.path().display())), "{said}");
        let cases: [(&str, &[u8], &str); 5] = [
            ("", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3438167534\n", "git lfs pull"),
            ("", b"<!DOCTYPE html><html>", "it is a web page"),
            ("", b"{\"error\":\"Repository not found\"}", "it is JSON (`Repository not found`)"),
            ("", b"", "it is an empty file"),
            (".index.json", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n", "git lfs pull"),
        ];
        for (ending, content, said) in cases {
            let file = unet.join(format!("{}{ending}", DIFFUSION_FILES[0]));
            fs::write(&file, content).unwrap();
            let error = error(&DIFFUSION_FILES);
            assert!(error.contains(said) && error.contains(&file.display().to_string()), "{error}");
        }
    }
}
