//! The model's folder: whether it could be loaded, whether it is as it was pulled, and if that is asked for, whether
//! it loads.

use super::{
    ANSWER_TIMEOUT,
    finding::{Finding, blocking},
};
use crate::{cli::options::DoctorConfig, engine::studio::Studio, observe::causes::causes, storage::weights, task};
use diffusion::pipeline;
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Hashing and loading read gigabytes, from a volume that may be slow.
const READ_TIMEOUT: Duration = Duration::from_secs(1800);

pub(super) async fn check(config: &DoctorConfig) -> Vec<Finding> {
    let model = &config.service.model;
    let name = model.dir.display();
    let folder = model.dir.clone();
    let inspected = blocking(ANSWER_TIMEOUT, move || pipeline::inspect(&folder).map_err(|error| causes(&error))).await;
    let what = format!("model.folder {name}");
    let mut findings = vec![match inspected.flatten() {
        Ok(()) => Finding::ok(what, "settings, tokenizer and the headers of the weights"),
        // Of a file that is missing the error says it itself.
        Err(error) if error.contains("--model") => Finding::fail(what, error),
        Err(error) => {
            let advice = "correct --model (EASEL_MODEL_DIR), or fill the folder by handler weights pull";
            Finding::fail(what, format!("{error}; {advice}"))
        }
    }];
    let (folder, hash) = (model.dir.clone(), config.hash);
    let limit = if hash { READ_TIMEOUT } else { ANSWER_TIMEOUT };
    let manifest = blocking(limit, move || manifest(&folder, hash)).await;
    findings.push(manifest.unwrap_or_else(|error| Finding::fail("model.manifest", error)));
    if config.load && !findings.iter().any(Finding::is_failure) {
        let (model, clock) = (model.clone(), Instant::now());
        let load = move || Studio::open(&model, task::size(None)).map(|studio| studio.device_name().to_string());
        let loaded = blocking(READ_TIMEOUT, move || load().map_err(|error| causes(&error))).await;
        findings.push(match loaded.flatten() {
            Ok(device) => Finding::ok("model.load", format!("on {device}, in {:.1} s", clock.elapsed().as_secs_f32())),
            Err(error) => Finding::fail("model.load", format!("{error}; correct what it names")),
        });
    }
    findings
}

fn manifest(folder: &Path, hash: bool) -> Finding {
    match weights::examine(folder, hash) {
        Ok(None) => Finding::ok(
            "model.manifest",
            "none: the folder was not filled by handler weights pull, and has nothing to be held to",
        ),
        Ok(Some(examined)) => match examined.different.first() {
            None if hash => Finding::ok("model.manifest", format!("{}, every file by its hash", examined.source)),
            None => Finding::ok(
                "model.manifest",
                format!("{}, every file by its size; --hash looks closer", examined.source),
            ),
            Some(first) => {
                Finding::fail("model.manifest", format!("{first}; pull the model again by handler weights pull"))
            }
        },
        Err(error) => Finding::fail("model.manifest", format!("{error:#}")),
    }
}
