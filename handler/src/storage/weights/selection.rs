//! Selects the files of a repository that the pipeline needs. Their names are fixed here.

use super::hub::HubFile;
use crate::storage::weights::options::Variant;
use anyhow::{Context, bail, ensure};
use diffusion::{
    MAX_NAME, cut,
    loading::{CHECKER_FILES, DIFFUSION_FILES, ENCODER_FILES},
};
use serde::Deserialize;
use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Component, Path},
};

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
/// The safety checker's folder, its settings, and what prepares pictures for it, which may be missing.
const CHECKER: &str = "safety_checker";
const CHECKER_SETTINGS: [&str; 2] = ["safety_checker/config.json", "feature_extractor/preprocessor_config.json"];
/// Endings of weights that are pickles: they can run code, so they are not read.
const PICKLES: [&str; 5] = ["bin", "ckpt", "pt", "pth", "pkl"];
/// The most files of weights that an error lists.
const MOST_LISTED: usize = 6;

/// The files to download, in a fixed order.
#[derive(Debug)]
pub(super) struct Selection {
    /// Settings, tokenizer, and the indexes of weights in shards. They are small, and say whether the weights are of use.
    pub(super) small: Vec<HubFile>,
    weights: Vec<(&'static str, Found)>,
    offered: Vec<HubFile>,
    /// Why the safety checker is left out, if the repository has one that cannot be used.
    pub(super) left_out: Option<String>,
}

/// The weights of one folder.
#[derive(Debug)]
enum Found {
    Whole(HubFile),
    /// In shards that this index names.
    Index(String),
}

/// An index of shards.
#[derive(Deserialize)]
struct ShardIndex {
    weight_map: BTreeMap<String, String>,
}

/// `model_index.json`, which says what model it is.
pub(super) fn model_index(offered: &[HubFile]) -> anyhow::Result<&HubFile> {
    if let Some(file) = offered.iter().find(|file| !is_inside(&file.path)) {
        anyhow::bail!("the hub lists a file outside the repository ({:?}): nothing is taken from it", file.path);
    }
    let single = || {
        let is_single = |file: &&HubFile| !file.path.contains('/') && file.path.ends_with(".safetensors");
        offered.iter().find(is_single).map_or_else(String::new, |file| {
            format!(
                "; {} may be a checkpoint in one file, which pull does not fetch: download it and give it by --model",
                cut(&file.path, MAX_NAME)
            )
        })
    };
    let found = offered.iter().find(|file| file.path == REQUIRED[0]);
    found.with_context(|| {
        format!("the repository has no {}: it is no model in the diffusers layout{}", REQUIRED[0], single())
    })
}

/// The files that the pipeline reads, with those of the safety checker if there is one.
pub(super) fn select(offered: Vec<HubFile>, variant: Variant, with_checker: bool) -> anyhow::Result<Selection> {
    model_index(&offered)?;
    let find = |name: &str| offered.iter().find(|file| file.path == name).cloned();
    let mut small = Vec::new();
    for name in REQUIRED {
        small.push(
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
    small.extend(forms.into_iter().flat_map(|form| form.iter().copied()).filter_map(find));
    small.extend(OPTIONAL.into_iter().filter_map(find));
    let mut weights = Vec::new();
    for (folder, names) in WEIGHTS {
        let Some((found, index)) = found(&offered, folder, names, variant) else {
            let name = format!("{folder}/{}", names[variant as usize]);
            bail!(lacking(&offered, folder, &name, variant))
        };
        small.extend(index);
        weights.push((folder, found));
    }
    let mut left_out = None;
    if with_checker && let Some(settings) = find(CHECKER_SETTINGS[0]) {
        // It looks at pictures the same in either variant.
        let other = if variant == Variant::Full { Variant::Fp16 } else { Variant::Full };
        let mut variants = [variant, other].into_iter();
        match variants.find_map(|variant| found(&offered, CHECKER, CHECKER_FILES, variant)) {
            Some((found, index)) => {
                small.push(settings);
                small.extend(find(CHECKER_SETTINGS[1]));
                small.extend(index);
                weights.push((CHECKER, found));
            }
            None => left_out = Some(lacking(&offered, CHECKER, &format!("{CHECKER}/{}", CHECKER_FILES[0]), variant)),
        }
    }
    Ok(Selection { small, weights, offered, left_out })
}

/// The weights of a folder in a variant, and the index that names them if they are in shards.
fn found(offered: &[HubFile], folder: &str, names: [&str; 2], variant: Variant) -> Option<(Found, Option<HubFile>)> {
    let find = |name: &str| offered.iter().find(|file| file.path == format!("{folder}/{name}")).cloned();
    if let Some(whole) = find(names[variant as usize]) {
        return Some((Found::Whole(whole), None));
    }
    let index = find(&index_name(names[0], variant))?;
    Some((Found::Index(index.path.clone()), Some(index)))
}

impl Selection {
    /// The weights of each folder of the model. `settings` is where the small files are.
    pub(super) fn weights(&self, settings: &Path) -> anyhow::Result<Vec<(&'static str, Vec<HubFile>)>> {
        let of_folder = |(folder, found): &(&'static str, Found)| {
            let files = match found {
                Found::Whole(file) => vec![file.clone()],
                Found::Index(index) => self.shards(folder, index, settings)?,
            };
            Ok((*folder, files))
        };
        self.weights.iter().map(of_folder).collect()
    }

    fn shards(&self, folder: &str, index: &str, settings: &Path) -> anyhow::Result<Vec<HubFile>> {
        let text = fs::read(settings.join(index)).with_context(|| index.to_string())?;
        let parsed: Option<ShardIndex> = serde_json::from_slice(&text).ok();
        let shards = parsed.map(|parsed| parsed.weight_map.into_values().collect::<BTreeSet<_>>()).unwrap_or_default();
        ensure!(!shards.is_empty(), "{index} is no index of weights: it has no `weight_map` from tensors to files");
        let mut files = Vec::new();
        for shard in shards {
            let path = format!("{folder}/{shard}");
            let is_shard = is_inside(&shard) && !shard.contains('/') && shard.ends_with(".safetensors");
            let file = self.offered.iter().find(|file| is_shard && file.path == path);
            let shown = cut(&path, MAX_NAME);
            files.push(
                file.with_context(|| format!("{index} names {shown:?}, which the repository does not have"))?.clone(),
            );
        }
        Ok(files)
    }
}

/// The name of the index of weights in shards, as diffusers and transformers write it.
fn index_name(full: &str, variant: Variant) -> String {
    match variant {
        Variant::Full => format!("{full}.index.json"),
        Variant::Fp16 => format!("{full}.index.fp16.json"),
    }
}

/// The error for weights that are not there: which are, and what to do.
fn lacking(offered: &[HubFile], folder: &str, name: &str, variant: Variant) -> String {
    let ending = |path: &str| path.rsplit_once('.').map(|(_, ending)| ending.to_string()).unwrap_or_default();
    let is_weights = |path: &str| {
        let index = path.contains(".safetensors.index.");
        index || ending(path) == "safetensors" || PICKLES.contains(&ending(path).as_str())
    };
    let inside = |file: &&HubFile| file.path.split_once('/').is_some_and(|(parent, _)| parent == folder);
    let there: Vec<&str> =
        offered.iter().filter(inside).map(|file| file.path.as_str()).filter(|path| is_weights(path)).collect();
    let (other, option) = match variant {
        Variant::Full => (Variant::Fp16, "--variant fp16"),
        Variant::Fp16 => (Variant::Full, "--variant full"),
    };
    let has = |name: &str| offered.iter().any(|file| file.path == name);
    let has_other = folder != CHECKER
        && WEIGHTS.iter().all(|(folder, names)| {
            has(&format!("{folder}/{}", names[other as usize]))
                || has(&format!("{folder}/{}", index_name(names[0], other)))
        });
    let pickled = there.iter().any(|path| PICKLES.contains(&ending(path).as_str()));
    let listed: Vec<_> = there.iter().take(MOST_LISTED).map(|path| cut(path, MAX_NAME)).collect();
    let shown = match there.len().checked_sub(MOST_LISTED).filter(|more| *more > 0) {
        Some(more) => format!("only {} and {more} more", listed.join(", ")),
        None if listed.is_empty() => "no other weights".into(),
        None => format!("only {}", listed.join(", ")),
    };
    let pickles = if pickled { "; pickles can run code and are not read" } else { "" };
    let advice = if has_other {
        format!("{option} takes the safetensors that are there")
    } else if pickled {
        "convert them to safetensors, or choose a repository that has them".into()
    } else {
        "choose another repository".into()
    };
    format!("the repository has no {name}; in {folder}/ it has {shown}{pickles}: {advice}")
}

/// Names of full weights, which the pipeline would load instead of those of another variant.
pub(super) fn shadowing(variant: Variant) -> impl Iterator<Item = String> {
    let full = |(folder, names): &(&'static str, [&'static str; 2])| {
        [format!("{folder}/{}", names[0]), format!("{folder}/{}", index_name(names[0], Variant::Full))]
    };
    WEIGHTS.iter().flat_map(full).filter(move |_| variant != Variant::Full)
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
            let files = offered(&["README.md", "safety_checker/model.safetensors", "v1-5.ckpt"]);
            let taken = select(files, variant, false).unwrap();
            assert_eq!(taken.small.len(), REQUIRED.len() + TOKENIZERS[1].len());
            let weights = taken.weights(Path::new("nowhere")).unwrap();
            let files: Vec<&HubFile> = weights.iter().flat_map(|(_, files)| files).collect();
            assert!(files.iter().all(|file| file.path.contains(".fp16.") == (variant == Variant::Fp16)), "{files:?}");
            assert!(files.len() == 3 && files.iter().all(|file| file.path.ends_with(".safetensors")), "{files:?}");
        }
    }

    #[test]
    fn a_safety_checker_comes_whole_or_not_at_all() {
        let [config, pictures] = CHECKER_SETTINGS;
        let (full, half) = ("safety_checker/model.safetensors", "safety_checker/model.fp16.safetensors");
        let pickle = "safety_checker/pytorch_model.bin";
        let taken = |files: &[&str], variant, with_checker| {
            let selection = select(offered(files), variant, with_checker).unwrap();
            let small = selection.small.iter().filter(|file| CHECKER_SETTINGS.contains(&file.path.as_str())).count();
            let weights = selection.weights(Path::new("nowhere")).unwrap();
            let checker = weights.into_iter().find(|(folder, _)| *folder == CHECKER);
            (small, checker.map(|(_, files)| files[0].path.clone()), selection.left_out)
        };
        for (variant, name) in [(Variant::Full, full), (Variant::Fp16, half)] {
            assert_eq!(taken(&[config, pictures, full, half], variant, true), (2, Some(name.into()), None));
            assert_eq!(taken(&[config, pictures, full, half], variant, false), (0, None, None));
            assert_eq!(taken(&[config, full], variant, true), (1, Some(full.into()), None));
            assert_eq!(taken(&[pictures], variant, true), (0, None, None));
            let (small, weights, left_out) = taken(&[config, pictures, pickle], variant, true);
            assert_eq!((small, weights), (0, None));
            assert!(left_out.is_some_and(|why| why.contains(full) && why.contains(pickle) && why.contains("pickles")));
        }
    }

    #[test]
    fn a_tokenizer_of_either_form_is_taken_with_the_tokens_beside_its_vocabulary() {
        let taken = |gone: &[&str], more: &[&str]| {
            let mut files = offered(more);
            files.retain(|file| !gone.contains(&file.path.as_str()));
            let taken = select(files, Variant::Full, false).map_err(|error| error.to_string())?;
            let names =
                taken.small.into_iter().filter_map(|file| file.path.strip_prefix("tokenizer/").map(str::to_string));
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
    fn an_index_names_shards_of_its_own_folder_that_are_there() {
        let (settings, index) = (tempfile::tempdir().unwrap(), "unet/diffusion_pytorch_model.safetensors.index.json");
        let mut files = offered(&[index, "unet/a.safetensors", "unet/b.safetensors"]);
        files.retain(|file| file.path != "unet/diffusion_pytorch_model.safetensors");
        let selection = select(files, Variant::Full, false).unwrap();
        assert!(selection.small.iter().any(|file| file.path == index));
        fs::create_dir(settings.path().join("unet")).unwrap();
        for (text, said) in [
            (r#"{"weight_map":{"x":"b.safetensors","y":"a.safetensors","z":"b.safetensors"}}"#, Ok(2)),
            (
                r#"{"weight_map":{"x":"c.safetensors"}}"#,
                Err("names \"unet/c.safetensors\", which the repository does not"),
            ),
            (r#"{"weight_map":{"x":"../vae/diffusion_pytorch_model.safetensors"}}"#, Err("does not have")),
            (r#"{"weight_map":{"x":"config.json"}}"#, Err("does not have")),
            (r#"{"weight_map":{}}"#, Err("is no index of weights")),
            ("<html>", Err("is no index of weights")),
        ] {
            fs::write(settings.path().join(index), text).unwrap();
            let weights = selection.weights(settings.path());
            match said {
                Ok(count) => assert_eq!(weights.unwrap()[1].1.len(), count),
                Err(said) => assert!(weights.unwrap_err().to_string().contains(said), "{text}"),
            }
        }
    }

    #[test]
    fn a_repository_without_an_index_may_hold_a_checkpoint() {
        let files = vec![HubFile { path: "v1-5.safetensors".into(), bytes: 1, sha256: None, git_sha1: None }];
        let error = select(files, Variant::Full, false).unwrap_err().to_string();
        assert!(error.contains("no model_index.json") && error.contains("v1-5.safetensors"), "{error}");
    }

    #[test]
    fn a_listing_that_leaves_its_folder_is_refused_as_a_whole() {
        for path in ["../x", "/etc/passwd", "unet/../../x", "", "a\\..\\b", "./x", "a\0b"] {
            let error = select(offered(&[path]), Variant::Full, false).unwrap_err().to_string();
            assert!(error.contains("outside the repository"), "{path:?}: {error}");
        }
    }

    #[test]
    fn a_missing_part_is_named() {
        for missing in ["tokenizer/vocab.json", "unet/diffusion_pytorch_model.safetensors"] {
            let mut files = offered(&[]);
            files.retain(|file| file.path != missing);
            let error = select(files, Variant::Full, false).unwrap_err().to_string();
            assert!(error.contains(missing), "{error}");
        }
    }
}
