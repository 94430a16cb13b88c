//! `handler weights pull` and `handler doctor` with a safety checker: it comes with its model, is checked before its weights are fetched,
//! and is left out where it is a pickle.

use crate::{
    context::case,
    doctor::doctor,
    weights::{files, pull, pull_variant, verify},
};
use anyhow::{Context, Result};
use e2e::{hub::Hub, paths::repo};
use serde_json::{Value, json};
use std::{collections::BTreeMap, fs, time::Duration};

const WEIGHTS: &str = "safety_checker/model.safetensors";
const HALF: &str = "safety_checker/model.fp16.safetensors";
const SETTINGS: &str = "safety_checker/config.json";
const PICTURES: &str = "feature_extractor/preprocessor_config.json";

/// The toy model with easel-tiny's checker, whose weights have that name.
fn with_checker(name: &str) -> Result<BTreeMap<String, Vec<u8>>> {
    let (mut files, from) = (files()?, repo().join("tests/model/easel-tiny"));
    files.insert(name.into(), fs::read(from.join(WEIGHTS))?);
    for name in [SETTINGS, PICTURES] {
        files.insert(name.into(), fs::read(from.join(name))?);
    }
    let mut index: Value = serde_json::from_slice(files.get("model_index.json").context("an index")?)?;
    index["safety_checker"] = json!(["stable_diffusion", "StableDiffusionSafetyChecker"]);
    index["feature_extractor"] = json!(["transformers", "CLIPFeatureExtractor"]);
    files.insert("model_index.json".into(), serde_json::to_vec(&index)?);
    files.insert("safety_checker/pytorch_model.bin".into(), b"not to be fetched".to_vec());
    Ok(files)
}

#[test]
fn a_safety_checker_is_pulled_with_its_model_and_looked_at() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let (hub, folder) = (Hub::start(with_checker(WEIGHTS)?).await?, run.folder("pulled-checker")?);
        let (fine, text) = pull(run, "pull-checker", &hub, &folder, false).await?;
        assert!(fine, "{text}");
        let there = |name: &str| folder.join(name).is_file();
        assert!(there(WEIGHTS) && there(SETTINGS) && there(PICTURES) && !there("safety_checker/pytorch_model.bin"));
        assert!(verify(run, "verify-checker", &folder).await?.0);
        let dir = folder.display().to_string();
        let queue = ctx.stack.aws.queue("doctor-checker", Duration::from_secs(900), 3).await?.url;
        let (_, text) = doctor(&ctx, "checker", &queue, &[("EASEL_MODEL_DIR", &dir)]).await?;
        assert!(text.contains("ok   model.safety-checker ") && text.contains("tensors"), "{text}");
        fs::write(folder.join(PICTURES), json!({ "resample": 2 }).to_string())?;
        let (_, text) = doctor(&ctx, "checker-pictures", &queue, &[("EASEL_MODEL_DIR", &dir)]).await?;
        let said = "preprocessor_config.json: `resample` is 2";
        assert!(text.contains("FAIL model.safety-checker") && text.contains(said), "{text}");
        let mut changed = fs::read(folder.join(WEIGHTS))?;
        changed[4000] ^= 1;
        fs::write(folder.join(WEIGHTS), changed)?;
        let (fine, text) = verify(run, "verify-checker-changed", &folder).await?;
        assert!(!fine && text.contains(&format!("{WEIGHTS}: has SHA-256")), "{text}");
        Ok(())
    });
}

#[test]
fn a_safety_checker_that_cannot_be_used_is_refused_or_left_out_by_name() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let mut files = with_checker(WEIGHTS)?;
        let mut settings: Value = serde_json::from_slice(&files[SETTINGS])?;
        settings["projection_dim"] = json!(768);
        files.insert(SETTINGS.into(), serde_json::to_vec(&settings)?);
        let (hub, folder) = (Hub::start(files).await?, run.folder("pulled-other-checker")?);
        let (fine, text) = pull(run, "pull-other-checker", &hub, &folder, false).await?;
        assert!(!fine && text.contains("safety_checker/: `visual_projection.weight` is "), "{text}");
        assert!(!hub.fetches().iter().any(|fetch| fetch.path == WEIGHTS && fetch.range.is_none()));
        for (name, change) in [("pickle", None), ("class", Some(json!(["library", "MyChecker"])))] {
            let mut files = with_checker(WEIGHTS)?;
            let said = match change {
                None => {
                    files.remove(WEIGHTS);
                    "pickles can run code"
                }
                Some(class) => {
                    let mut index: Value = serde_json::from_slice(&files["model_index.json"])?;
                    index["safety_checker"] = class;
                    files.insert("model_index.json".into(), serde_json::to_vec(&index)?);
                    "`safety_checker` is MyChecker"
                }
            };
            let (hub, folder) = (Hub::start(files).await?, run.folder(&format!("pulled-checker-{name}"))?);
            let (fine, text) = pull(run, &format!("pull-checker-{name}"), &hub, &folder, false).await?;
            assert!(fine && text.contains("the safety checker is not fetched") && text.contains(said), "{text}");
            assert!(!folder.join("safety_checker").exists() && !folder.join("feature_extractor").exists());
        }
        // The other variant looks at pictures just as well.
        let (hub, folder) = (Hub::start(with_checker(HALF)?).await?, run.folder("pulled-half-checker")?);
        let (fine, text) = pull_variant(run, "pull-half-checker", &hub, &folder, "full").await?;
        assert!(fine && folder.join(HALF).is_file(), "{text}");
        Ok(())
    });
}
