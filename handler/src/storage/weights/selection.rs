//! Selects the files of a repository that the pipeline needs. Their names are fixed here.

use super::hub::HubFile;
use crate::storage::weights::options::Variant;
use anyhow::{Context, ensure};
use diffusion::{loading::DIFFUSION_FILES, loading::ENCODER_FILES};
use std::path::{Component, Path};

/// Files that the pipeline reads beside the weights.
const REQUIRED: [&str; 6] = [
    "model_index.json",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "tokenizer/tokenizer_config.json",
    "unet/config.json",
    "vae/config.json",
];
/// The tokenizer in the form of today, and in the older one. A repository has either, and may have both.
const TOKENIZERS: [&[&str]; 2] = [&["tokenizer/tokenizer.json"], &["tokenizer/vocab.json", "tokenizer/merges.txt"]];
/// Files that are taken if the repository has them.
const OPTIONAL: [&str; 2] = ["tokenizer/added_tokens.json", "tokenizer/special_tokens_map.json"];
/// Folders with weights, and the file names of full weights and of half precision.
const WEIGHTS: [(&str, [&str; 2]); 3] =
    [("text_encoder", ENCODER_FILES), ("unet", DIFFUSION_FILES), ("vae", DIFFUSION_FILES)];

/// The files to download, in a fixed order. The small ones come first, so that an unsuitable repository is noticed early.
pub(super) fn select(offered: Vec<HubFile>, variant: Variant) -> anyhow::Result<Vec<HubFile>> {
    if let Some(file) = offered.iter().find(|file| !is_inside(&file.path)) {
        anyhow::bail!("the hub lists a file outside the repository ({:?}): nothing is taken from it", file.path);
    }
    let find = |name: &str| offered.iter().find(|file| file.path == name).cloned();
    let mut wanted = Vec::new();
    for name in REQUIRED {
        wanted.push(
            find(name)
                .with_context(|| format!("the repository has no {name}: it is no model in the diffusers layout"))?,
        );
    }
    let whole = |form: &&&[&str]| form.iter().all(|name| find(name).is_some());
    let forms: Vec<_> = TOKENIZERS.iter().filter(whole).collect();
    let missing = || {
        let part = TOKENIZERS[1].iter().find(|name| find(name).is_none()).unwrap_or(&"");
        format!("the repository has no {} and no {part}: it is no model in the diffusers layout", TOKENIZERS[0][0])
    };
    ensure!(!forms.is_empty(), missing());
    wanted.extend(forms.into_iter().flat_map(|form| form.iter().copied()).filter_map(find));
    wanted.extend(OPTIONAL.into_iter().filter_map(find));
    for name in weights(variant) {
        let file = find(&name);
        let pickled = || {
            offered
                .iter()
                .any(|file| Path::new(&file.path).extension().is_some_and(|e| e == "bin" || e == "ckpt" || e == "pt"))
        };
        ensure!(
            file.is_some(),
            "the repository has no {name}{}",
            if pickled() {
                "; pickled weights are not taken: convert them to safetensors"
            } else {
                "; try the other --variant"
            }
        );
        wanted.extend(file);
    }
    Ok(wanted)
}

/// Names of full weights, which the pipeline would load instead of those of another variant.
pub(super) fn shadowing(variant: Variant) -> impl Iterator<Item = String> {
    weights(Variant::Full).into_iter().filter(move |_| variant != Variant::Full)
}

fn weights(variant: Variant) -> Vec<String> {
    WEIGHTS.iter().map(|(folder, names)| format!("{folder}/{}", names[variant as usize])).collect()
}

/// Whether a relative path stays inside its folder.
pub(super) fn is_inside(path: &str) -> bool {
    let mut parts = Path::new(path).components();
    !path.is_empty() && !path.contains(['\\', '\0']) && parts.all(|part| matches!(part, Component::Normal(_)))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn offered(names: &[&str]) -> Vec<HubFile> {
        let weights = ["text_encoder/model", "unet/diffusion_pytorch_model", "vae/diffusion_pytorch_model"];
        let weights = weights.iter().flat_map(|name| {
            ["safetensors", "fp16.safetensors", "bin", "ckpt", "pt"].map(|ending| format!("{name}.{ending}"))
        });
        let names = REQUIRED.iter().chain(TOKENIZERS[1]).chain(names).map(|name| (*name).to_string()).chain(weights);
        names.map(|path| HubFile { path, bytes: 1, sha256: None, git_sha1: None }).collect()
    }

    #[test]
    fn only_what_the_pipeline_reads_is_taken_and_never_a_pickle() {
        for variant in [Variant::Full, Variant::Fp16] {
            let taken =
                select(offered(&["README.md", "safety_checker/model.safetensors", "v1-5.ckpt"]), variant).unwrap();
            assert_eq!(taken.len(), REQUIRED.len() + TOKENIZERS[1].len() + 3);
            let weights = taken.iter().filter(|file| file.path.ends_with(".safetensors"));
            assert!(weights.clone().all(|file| file.path.contains(".fp16.") == (variant == Variant::Fp16)));
            assert_eq!(weights.count(), 3);
        }
    }

    #[test]
    fn a_tokenizer_of_either_form_is_taken_with_the_tokens_beside_its_vocabulary() {
        let taken = |gone: &[&str], more: &[&str]| {
            let mut files = offered(more);
            files.retain(|file| !gone.contains(&file.path.as_str()));
            let taken = select(files, Variant::Full).map_err(|error| error.to_string())?;
            let names = taken.into_iter().filter_map(|file| file.path.strip_prefix("tokenizer/").map(str::to_string));
            Ok::<_, String>(names.collect::<Vec<_>>())
        };
        let (vocab, merges, new) = ("tokenizer/vocab.json", "tokenizer/merges.txt", "tokenizer/tokenizer.json");
        let config = "tokenizer_config.json";
        assert_eq!(taken(&[vocab, merges], &[new]).unwrap(), [config, "tokenizer.json"]);
        assert_eq!(taken(&[merges], &[new]).unwrap(), [config, "tokenizer.json"]);
        assert_eq!(taken(&[], &[new]).unwrap(), [config, "tokenizer.json", "vocab.json", "merges.txt"]);
        let beside = ["tokenizer/added_tokens.json", "tokenizer/special_tokens_map.json"];
        let expected = [config, "vocab.json", "merges.txt", "added_tokens.json", "special_tokens_map.json"];
        assert_eq!(taken(&[], &beside).unwrap(), expected);
        for gone in [vocab, merges] {
            let error = taken(&[gone], &[]).unwrap_err();
            assert!(error.contains(gone) && error.contains(new), "{error}");
        }
    }

    #[test]
    fn a_listing_that_leaves_its_folder_is_refused_as_a_whole() {
        for path in ["../x", "/etc/passwd", "unet/../../x", "", "a\\..\\b", "./x", "a\0b"] {
            let error = select(offered(&[path]), Variant::Full).unwrap_err().to_string();
            assert!(error.contains("outside the repository"), "{path:?}: {error}");
        }
    }

    #[test]
    fn a_missing_part_is_named() {
        for missing in ["tokenizer/vocab.json", "unet/diffusion_pytorch_model.safetensors"] {
            let mut files = offered(&[]);
            files.retain(|file| file.path != missing);
            let error = select(files, Variant::Full).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }
}
