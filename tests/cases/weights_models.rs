//! `handler weights pull` of repositories with another model, other files, or weights in shards: refused before any weight is fetched, or
//! pulled whole.

use crate::{
    context::case,
    weights::{UNET, VAE, files, pull, pull_variant, verify},
};
use anyhow::{Context, Result};
use e2e::hub::Hub;
use safetensors::{SafeTensors, serialize, tensor::TensorView};
use serde_json::{Value, json};
use std::{
    collections::{BTreeMap, HashMap},
    fs,
};

type Files = BTreeMap<String, Vec<u8>>;

/// Changes fields of a JSON file.
fn with(files: &mut Files, path: &str, fields: Value) -> Result<()> {
    let mut json: Value = serde_json::from_slice(&files[path])?;
    for (field, value) in fields.as_object().context("no object")? {
        json[field] = value.clone();
    }
    files.insert(path.into(), serde_json::to_vec(&json)?);
    Ok(())
}

/// The same tensors under other names.
pub(crate) fn renamed(file: &[u8], rename: impl Fn(&str) -> String) -> Result<Vec<u8>> {
    let tensors = SafeTensors::deserialize(file)?;
    Ok(serialize(tensors.iter().map(|(name, view)| (rename(name), view)), None)?)
}

#[test]
fn another_model_is_refused_by_name_before_its_weights_are_fetched() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        type Change = fn(&mut Files) -> Result<()>;
        let changes: [(&str, Change, &str); 8] = [
            (
                "sdxl",
                |files| with(files, "model_index.json", json!({ "_class_name": "StableDiffusionXLPipeline" })),
                "StableDiffusionXLPipeline",
            ),
            // It has no UNet: what it is is said before what it lacks.
            (
                "flux",
                |files| {
                    files.retain(|path, _| !path.starts_with("unet/") && !path.starts_with("vae/"));
                    with(files, "model_index.json", json!({ "_class_name": "FluxPipeline" }))
                },
                "FluxPipeline",
            ),
            ("inpainting", |files| with(files, "unet/config.json", json!({ "in_channels": 9 })), "`in_channels` is 9"),
            ("sd2", |files| with(files, "text_encoder/config.json", json!({ "hidden_act": "gelu" })), "`hidden_act`"),
            (
                "scheduler",
                |files| with(files, "scheduler/scheduler_config.json", json!({ "beta_schedule": "sigmoid" })),
                "`beta_schedule` is sigmoid",
            ),
            (
                "width",
                |files| with(files, "unet/config.json", json!({ "cross_attention_dim": 1024 })),
                "`cross_attention_dim` is 1024",
            ),
            (
                "ldm",
                |files| {
                    let names = renamed(&files[UNET], |name| format!("model.diffusion_model.{name}"))?;
                    files.insert(UNET.into(), names);
                    Ok(())
                },
                "names of the original Stable Diffusion code",
            ),
            ("shape", |files| with(files, "vae/config.json", json!({ "layers_per_block": 2 })), "and 31 others"),
        ];
        for (name, change, said) in changes {
            let mut files = files()?;
            change(&mut files)?;
            let (hub, folder) = (Hub::start(files).await?, run.folder(&format!("pulled-{name}"))?);
            let (fine, text) = pull(run, &format!("pull-{name}"), &hub, &folder, false).await?;
            assert!(!fine && text.contains(said), "{name}: {text}");
            let whole = |fetch: &e2e::hub::Fetch| fetch.path.ends_with(".safetensors") && fetch.range.is_none();
            assert!(!hub.fetches().iter().any(whole), "{name}: it fetched weights");
            let left: Vec<_> = fs::read_dir(&folder)?.flatten().map(|entry| entry.file_name()).collect();
            assert!(left.iter().all(|name| name == ".easel-pull.lock"), "{name}: {left:?}");
        }
        Ok(())
    });
}

#[test]
fn a_refused_model_leaves_a_good_folder_as_it_was() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (mut files, folder) = (files()?, run.folder("pulled-kept")?);
        assert!(pull(run, "pull-kept", &Hub::start(files.clone()).await?, &folder, false).await?.0);
        with(&mut files, "unet/config.json", json!({ "in_channels": 9 }))?;
        assert!(!pull(run, "pull-over", &Hub::start(files).await?, &folder, false).await?.0);
        let (fine, text) = verify(run, "verify-kept", &folder).await?;
        assert!(fine, "{text}");
        Ok(())
    });
}

#[test]
fn a_missing_variant_is_told_by_the_files_that_are_there() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (text, pickled) = ("text_encoder/model.fp16.safetensors", "text_encoder/model.fp16.bin");
        let (unet, bin) = ("unet/diffusion_pytorch_model.fp16.safetensors", "unet/diffusion_pytorch_model.bin");
        for (name, variant, gone, added, said) in [
            ("full-only", "fp16", "", "", [text, "only text_encoder/model.safetensors: ", "--variant full"]),
            ("fp16-pickled", "fp16", "", pickled, [pickled, "pickles can run code", "--variant full"]),
            ("pickled", "full", UNET, "", [UNET, bin, "convert them"]),
            ("fp16-in-part", "full", UNET, unet, [UNET, unet, "convert them"]),
        ] {
            let mut files = files()?;
            files.remove(gone);
            if !added.is_empty() {
                files.insert(added.into(), vec![0; 10]);
            }
            let (hub, folder) = (Hub::start(files).await?, run.folder(&format!("pulled-{name}"))?);
            let (fine, text) = pull_variant(run, &format!("pull-{name}"), &hub, &folder, variant).await?;
            assert!(!fine && said.iter().all(|said| text.contains(said)), "{name}: {said:?}: {text}");
            assert_eq!(hub.fetches().iter().filter(|fetch| fetch.is_cdn).count(), 0);
        }
        Ok(())
    });
}

/// The file in two shards with their index, as diffusers and transformers save a large network.
fn sharded(files: &mut Files, path: &str) -> Result<Vec<String>> {
    let whole = files.remove(path).context("no such file")?;
    let tensors = SafeTensors::deserialize(&whole)?;
    let stem = path.strip_suffix(".safetensors").context("another ending")?;
    let (_, file) = stem.split_once('/').context("no folder")?;
    let (mut map, mut shards) = (HashMap::new(), [Vec::new(), Vec::new()]);
    for (index, (name, view)) in tensors.iter().enumerate() {
        map.insert(name.to_string(), format!("{file}-0000{}-of-00002.safetensors", index % 2 + 1));
        shards[index % 2].push((name.to_string(), view));
    }
    let mut added = vec![format!("{path}.index.json")];
    for (index, shard) in shards.into_iter().enumerate() {
        let shard: Vec<(String, TensorView)> = shard;
        added.push(format!("{stem}-0000{}-of-00002.safetensors", index + 1));
        files.insert(added[index + 1].clone(), serialize(shard, None)?);
    }
    let index = json!({ "metadata": { "total_size": whole.len() }, "weight_map": map });
    files.insert(added[0].clone(), serde_json::to_vec(&index)?);
    Ok(added)
}

#[test]
fn weights_in_shards_are_pulled_with_their_index() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (mut files, folder) = (files()?, run.folder("pulled-shards")?);
        let mut added = sharded(&mut files, UNET)?;
        added.extend(sharded(&mut files, "text_encoder/model.safetensors")?);
        let hub = Hub::start(files.clone()).await?;
        let (fine, text) = pull(run, "pull-shards", &hub, &folder, false).await?;
        assert!(fine, "{text}");
        for path in added.iter().chain([&VAE.to_string()]) {
            assert_eq!(fs::read(folder.join(path))?, files[path], "{path}");
        }
        assert!(verify(run, "verify-shards", &folder).await?.0);
        // A shard that the index names and the repository does not have.
        files.remove(&added[2]);
        let hub = Hub::start(files).await?;
        let (fine, text) = pull(run, "pull-no-shard", &hub, &run.folder("pulled-no-shard")?, false).await?;
        assert!(!fine && text.contains(&added[2]) && text.contains(&added[0]), "{text}");
        assert_eq!(hub.fetches().iter().filter(|fetch| fetch.is_cdn).count(), 0);
        Ok(())
    });
}
