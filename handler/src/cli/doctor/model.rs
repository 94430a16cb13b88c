//! Checks the model: its bucket if it is in S3, its folder, its manifest, and with `--load` whether it loads.

use super::{ANSWER_TIMEOUT, DoctorConfig, Finding, answer, blocking, size};
use crate::{
    engine::Engine,
    storage::{
        self,
        weights::{self, RemoteModel, options::ModelUrl},
    },
    task::{self, SafetyMode},
};
use aws_config::SdkConfig;
use diffusion::{
    loading::is_checkpoint,
    pipeline::{self, CheckerInspection, Inspection},
    schedulers::Kind,
};
use std::{
    path::Path,
    time::{Duration, Instant},
};

/// Hashing and loading read gigabytes, from a volume that may be slow.
const READ_TIMEOUT: Duration = Duration::from_secs(1800);

pub(super) async fn check(config: &DoctorConfig, aws: &SdkConfig) -> Vec<Finding> {
    let Some(url) = &config.service.model_url else { return folder(config).await };
    let (found, is_there) = bucket(config, url, aws).await;
    let mut findings = vec![found];
    if is_there {
        findings.extend(folder(config).await);
    } else {
        let dir = config.service.model.dir.display();
        findings.push(Finding::warn(
            format!("model.folder {dir}"),
            format!("not looked at: function and worker fill it when they start; handler weights fetch {url} --to {dir} does so now"),
        ));
    }
    findings
}

/// The model in S3. Also returns whether the folder has it already.
async fn bucket(config: &DoctorConfig, url: &ModelUrl, aws: &SdkConfig) -> (Finding, bool) {
    let (what, folder) = (format!("model.bucket {url}"), &config.service.model.dir);
    let remote = RemoteModel::for_service(storage::client(aws, config.service.store.path_style), url, folder);
    let looked = match answer(remote.inspect()).await {
        Ok(Ok(looked)) => looked,
        Ok(Err(error)) => return (Finding::fail(what, error.to_string()), false),
        Err(error) => return (Finding::fail(what, error), false),
    };
    let (source, name) = (&looked.source, folder.display());
    let shown = format!("{source}, {} files, {}", looked.files, size(looked.bytes));
    let finding = if looked.is_complete {
        Finding::ok(what, format!("{shown}, all of them in {name}"))
    } else if looked.missing_bytes > looked.free_bytes {
        let option = format!("--model (EASEL_MODEL_DIR) {name}");
        Finding::fail(
            what,
            format!("{shown}; {}", weights::not_enough_space(&option, looked.missing_bytes, looked.free_bytes)),
        )
    } else {
        let (lacking, free) = (size(looked.missing_bytes), size(looked.free_bytes));
        Finding::ok(what, format!("{shown}; the start fetches {lacking} of it into {name}, where {free} are free"))
    };
    (finding, looked.is_complete)
}

async fn folder(config: &DoctorConfig) -> Vec<Finding> {
    let model = &config.service.model;
    let name = model.dir.display();
    let folder = model.dir.clone();
    let inspected =
        blocking(ANSWER_TIMEOUT, move || pipeline::inspect(&folder).map_err(|error| service::causes(&error))).await;
    let what = format!("model.folder {name}");
    let mut findings = match inspected.flatten() {
        Ok(inspection) => looked_at(&what, is_checkpoint(&model.dir), &inspection),
        // The error about a missing file has advice of its own.
        Err(error) if error.contains("--model") => vec![Finding::fail(what, error)],
        Err(error) => {
            let advice = "correct --model (EASEL_MODEL_DIR), or fill the folder by handler weights pull";
            vec![Finding::fail(what, format!("{error}; {advice}"))]
        }
    };
    if !findings.iter().any(Finding::is_failure) {
        let (folder, source) = (model.dir.clone(), model.checker.source_at_start());
        let inspect = move || {
            let inspected = pipeline::inspect_safety_checker(&folder, &source);
            inspected.map_err(|error| service::causes(&error))
        };
        let inspected = blocking(ANSWER_TIMEOUT, inspect).await.flatten();
        findings.extend(inspected.as_ref().ok().map(|found| safety_mode(config, found.is_some())));
        findings.extend(safety_checker(inspected));
    }
    let (folder, hash) = (model.dir.clone(), config.hash);
    let limit = if hash { READ_TIMEOUT } else { ANSWER_TIMEOUT };
    let manifest = blocking(limit, move || manifest(&folder, hash)).await;
    findings.push(manifest.unwrap_or_else(|error| Finding::fail("model.manifest", error)));
    if config.load && !findings.iter().any(Finding::is_failure) {
        let (model, clock) = (model.clone(), Instant::now());
        let load = move || Engine::open(&model, task::size(None)).map(|engine| engine.device_name().to_string());
        let loaded = blocking(READ_TIMEOUT, move || load().map_err(|error| service::causes(&error))).await;
        findings.push(match loaded.flatten() {
            Ok(device) => Finding::ok("model.load", format!("on {device}, in {:.1} s", clock.elapsed().as_secs_f32())),
            Err(error) => Finding::fail("model.load", format!("{error}; correct what it names")),
        });
    }
    findings
}

/// The lines about a model that can be loaded.
fn looked_at(what: &str, is_checkpoint: bool, inspection: &Inspection) -> Vec<Finding> {
    let tensors = inspection.tensors;
    let fine = match is_checkpoint {
        true => format!(
            "a checkpoint of Stable Diffusion 1.x in one file, with the {tensors} tensors of the networks; settings and tokenizer are \
             those of SD 1.5"
        ),
        false => format!("settings, tokenizer, and names and shapes of the {tensors} tensors of the networks"),
    };
    let mut findings = vec![Finding::ok(what, fine)];
    for (folder, number, first) in &inspection.unread {
        let note = format!(
            "{number} of its tensors are not read, the first is `{first}`: the network is a larger one, and its pictures may be others"
        );
        findings.push(Finding::warn(format!("model.tensors {folder}"), note));
    }
    for (kind, error) in &inspection.unusable {
        let note = format!("{error}; tasks with this scheduler fail, the default one is {}", Kind::default());
        findings.push(Finding::warn(format!("model.scheduler {kind}"), note));
    }
    findings
}

/// What becomes of flagged pictures.
fn safety_mode(config: &DoctorConfig, has_checker: bool) -> Finding {
    let (what, model) = ("model.safety", &config.service.model);
    match model.checker.mode(has_checker, &model.dir) {
        Ok(SafetyMode::Off) if model.checker.safety.is_none() => {
            Finding::ok(what, "off: the model has no safety checker, so pictures are not checked")
        }
        Ok(mode) => Finding::ok(what, mode.to_string()),
        Err(error) => Finding::fail(what, error.to_string()),
    }
}

/// The lines about the safety checker, if there is one.
fn safety_checker(inspected: Result<Option<CheckerInspection>, String>) -> Vec<Finding> {
    let what = "model.safety-checker";
    match inspected {
        Ok(None) => vec![],
        Ok(Some(CheckerInspection { folder, tensors, unread })) => {
            let fine = format!("settings, and names and shapes of its {tensors} tensors");
            let mut findings = vec![Finding::ok(format!("{what} {}", folder.display()), fine)];
            if let Some((number, first)) = unread {
                let note =
                    format!("{number} of its tensors are not read, the first is `{first}`: it may judge otherwise");
                findings.push(Finding::warn(format!("model.tensors {}", folder.display()), note));
            }
            findings
        }
        Err(error) => vec![Finding::fail(what, format!("{error}; correct its folder, or remove it"))],
    }
}

fn manifest(folder: &Path, hash: bool) -> Finding {
    match weights::check_folder(folder, hash) {
        Ok(None) if is_checkpoint(folder) => Finding::ok("model.manifest", "none: a checkpoint in one file has none"),
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
