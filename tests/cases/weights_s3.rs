//! A model in S3: fetched by hand and by a worker at its start, and checked by `handler doctor`.

use crate::{
    context::{PATIENCE, TestContext, case},
    doctor::doctor,
    weights::{UNET, files, pull, verify},
    worker::{SHORT_VISIBILITY, worker},
};
use anyhow::{Context, Result};
use e2e::{
    aws::MODELS,
    aws_proxies::CountingProxy,
    aws_proxies::{StubProxy, s3_error},
    hub::{COMMIT, Hub},
    paths::binary,
    process::{Process, Spec, output},
    wait,
};
use reqwest::Method;
use rustix::process::Signal;
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use std::{
    fs,
    path::{Path, PathBuf},
    time::Duration,
};

const MANIFEST: &str = "easel-weights.json";

/// Uploads a pulled model folder to S3 below the prefix `name`; gives its URL and the files, the manifest last.
async fn brought(ctx: &TestContext, name: &str) -> Result<(String, Vec<String>)> {
    let run = &ctx.stack.run;
    let (hub, folder) = (Hub::start(files()?).await?, run.folder(&format!("{name}-pulled"))?);
    let (fine, text) = pull(run, &format!("{name}-pull"), &hub, &folder, false).await?;
    assert!(fine, "{text}");
    let manifest: Value = serde_json::from_slice(&fs::read(folder.join(MANIFEST))?)?;
    let listed = manifest["files"].as_array().context("no files")?;
    let mut paths: Vec<String> = listed.iter().filter_map(|file| Some(file["path"].as_str()?.to_string())).collect();
    paths.push(MANIFEST.to_string());
    for path in &paths {
        ctx.stack.aws.put(MODELS, &format!("{name}/{path}"), fs::read(folder.join(path))?).await?;
    }
    Ok((format!("s3://{MODELS}/{name}"), paths))
}

/// Runs `handler weights fetch`; whether it succeeded, and its output.
async fn fetch(ctx: &TestContext, name: &str, url: &str, to: &Path) -> Result<(bool, String)> {
    let to = to.display().to_string();
    let spec = Spec::new(name, binary("handler")?).args(["weights", "fetch", url, "--to", &to]);
    let (status, text) = output(&ctx.stack.run, spec.envs(ctx.stack.aws.env()), PATIENCE).await?;
    assert!(!text.contains("panicked"), "{text}");
    Ok((status.success(), text))
}

/// Files and bytes in the line of a worker's log about its fetch.
fn fetched(worker: &Process) -> Result<(u64, u64)> {
    let text = worker.log_text();
    let mut lines = text.lines().rev().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let line = lines.find(|line| line["phase"] == "fetch_model").context("no line of the fetch")?;
    Ok((line["files"].as_u64().context("no files")?, line["bytes"].as_u64().context("no bytes")?))
}

#[test]
fn a_model_is_fetched_from_s3_by_hand_and_verified() {
    case(|ctx| async move {
        let (url, paths) = brought(&ctx, "by-hand").await?;
        let (run, aws) = (&ctx.stack.run, &ctx.stack.aws);
        let folder = run.folder("by-hand")?.join("below");
        let (fine, text) = fetch(&ctx, "fetch", &url, &folder).await?;
        assert!(fine && text.contains(COMMIT), "{text}");
        assert!(text.contains(&format!("{} files fetched, ", paths.len() - 1)) && text.contains(" MB/s"), "{text}");
        assert!(verify(run, "fetch-verify", &folder).await?.0);
        let (fine, text) = fetch(&ctx, "fetch-again", &url, &folder).await?;
        assert!(fine && text.contains(&format!("{UNET}: there already")), "{text}");
        assert!(text.contains("0 files fetched, 0 bytes"), "{text}");
        // Other content of the same length.
        let right = fs::read(folder.join(UNET))?;
        let mut corrupted = right.clone();
        corrupted[1000] ^= 1;
        aws.put(MODELS, &format!("by-hand/{UNET}"), corrupted.clone()).await?;
        let empty = run.folder("by-hand-corrupted")?;
        let (fine, text) = fetch(&ctx, "fetch-corrupted", &url, &empty).await?;
        let sums = [&corrupted, &right].map(|bytes| hex(bytes));
        assert!(!fine && text.contains(&format!("model {url}/{UNET} is corrupt")), "{text}");
        assert!(sums.iter().all(|sum| text.contains(sum)) && text.contains("aws s3 cp DIR/unet"), "{text}");
        assert!(!empty.join(MANIFEST).exists() && !empty.join(UNET).exists());
        let (fine, text) = fetch(&ctx, "fetch-nothing", &format!("s3://{MODELS}/nothing"), &empty).await?;
        assert!(!fine && text.contains(MANIFEST) && text.contains("does not exist; bring a folder there"), "{text}");
        Ok(())
    });
}

fn hex(bytes: &[u8]) -> String {
    hex::encode(Sha256::digest(bytes))
}

#[test]
fn a_worker_paints_with_a_model_from_s3_and_fetches_it_once() {
    case(|ctx| async move {
        let (url, paths) = brought(&ctx, "at-start").await?;
        let aws = &ctx.stack.aws;
        let queue = aws.queue("model-url", SHORT_VISIBILITY, 3).await?;
        let s3 = CountingProxy::start(aws.endpoint(), 0).await?;
        let (folder, endpoint) = (folder(&ctx, "at-start-model")?, s3.url());
        let options = options(&url, &folder, &endpoint);
        let gets = || paths.iter().map(|path| s3.count(&Method::GET, &format!("at-start/{path}"))).collect::<Vec<_>>();
        for (name, files) in [("model-url-first", paths.len() as u64 - 1), ("model-url-again", 0)] {
            let before = gets();
            let worker = worker(&ctx, name, &queue, &options)?;
            let task = ctx.task();
            aws.send(&queue.url, &task.body()).await?;
            assert_eq!(ctx.painting(&task).await?.picture.width(), 512);
            assert_eq!(fetched(&worker)?.0, files, "{name}");
            let read: Vec<usize> = gets().iter().zip(&before).map(|(after, before)| after - before).collect();
            let (manifest, others) = read.split_last().context("no files")?;
            assert_eq!(*manifest, 1, "{name}");
            assert!(others.iter().all(|count| (*count > 0) == (files > 0)), "{name}: {read:?}");
            assert!(worker.terminate(PATIENCE).await?.success());
        }
        Ok(())
    });
}

#[test]
fn a_model_that_cannot_be_fetched_ends_the_worker_with_the_reason_and_fails_no_task() {
    case(|ctx| async move {
        let (url, _) = brought(&ctx, "unfit").await?;
        let aws = &ctx.stack.aws;
        let queue = aws.queue("model-url-unfit", SHORT_VISIBILITY, 3).await?;
        let task = ctx.task();
        aws.send(&queue.url, &task.body()).await?;
        let right = fs::read(crate::context::model().join(UNET))?;
        let mut corrupted = right.clone();
        corrupted[1000] ^= 1;
        aws.put(MODELS, &format!("unfit/{UNET}"), corrupted.clone()).await?;
        let (none, no_bucket) = (format!("s3://{MODELS}/none"), "s3://not-a-bucket/sd15".to_string());
        let sums = format!("has SHA-256 {}, and must have {}", hex(&corrupted), hex(&right));
        for (name, url, said) in [
            ("corrupt", &url, sums.as_str()),
            ("no-manifest", &none, "easel-weights.json does not exist; bring a folder there"),
            ("no-bucket", &no_bucket, "there is no such bucket"),
        ] {
            let name = format!("model-url-{name}");
            let folder = folder(&ctx, &name)?;
            let worker = worker(&ctx, &name, &queue, &options(url, &folder, aws.endpoint()))?;
            let ended = wait::at_most("end of the worker", PATIENCE, worker.exited()).await?;
            let text = worker.log_text();
            assert_eq!(ended.code(), Some(1), "{text}");
            assert!(text.contains(&format!("--model-url (EASEL_MODEL_URL) {url}/")) && text.contains(said), "{text}");
            assert!(!Path::new(&folder).join(MANIFEST).exists());
        }
        assert_eq!(ctx.backend.calls(), [], "a task heard of it");
        assert_eq!(aws.empty(&queue.url).await?, [task.body()]);
        Ok(())
    });
}

#[test]
fn a_worker_that_ends_while_it_fetches_leaves_what_the_next_one_goes_on_with() {
    case(|ctx| async move {
        let (url, paths) = brought(&ctx, "broken-off").await?;
        let aws = &ctx.stack.aws;
        let queue = aws.queue("model-url-killed", SHORT_VISIBILITY, 3).await?;
        let s3 = StubProxy::start(aws.endpoint()).await?;
        // The largest file never arrives and is requested again and again.
        s3.answer(|asked| {
            (asked.method == Method::GET && asked.path.ends_with(UNET)).then(|| s3_error(503, "SlowDown", "it"))
        });
        let (folder, endpoint) = (folder(&ctx, "broken-off-model")?, s3.url());
        let (options, dir) = (options(&url, &folder, &endpoint), PathBuf::from(&folder));
        let other = dir.join("text_encoder/model.safetensors");
        for (name, signal) in [("model-url-term", Signal::TERM), ("model-url-kill", Signal::KILL)] {
            let worker = worker(&ctx, name, &queue, &options)?;
            wait::until("a file of the model", PATIENCE, async || other.exists().then_some(())).await?;
            let partial = dir.join("unet/.diffusion_pytorch_model.safetensors.partial");
            wait::until("the begun file", PATIENCE, async || partial.exists().then_some(())).await?;
            worker.signal(signal);
            let ended = wait::at_most("end of the worker", PATIENCE, worker.exited()).await?;
            // SIGTERM does not wait for the end of the fetch.
            assert_eq!(ended.success(), signal == Signal::TERM, "{}", worker.error(&ended.to_string()));
            assert_eq!(partial.exists(), signal == Signal::KILL, "{name}");
            assert!(!dir.join(MANIFEST).exists() && other.exists(), "{name}");
        }
        s3.pass();
        let worker = worker(&ctx, "model-url-repaired", &queue, &options)?;
        let task = ctx.task();
        aws.send(&queue.url, &task.body()).await?;
        assert_eq!(ctx.painting(&task).await?.picture.width(), 512);
        let files = fetched(&worker)?.0;
        assert!(files >= 1 && files < paths.len() as u64 - 1, "{files} files were fetched");
        let left = fs::read_dir(dir.join("unet"))?
            .flatten()
            .filter(|entry| entry.file_name().display().to_string().ends_with(".partial"));
        assert_eq!(left.count(), 0);
        Ok(())
    });
}

#[test]
fn the_doctor_looks_at_a_model_in_s3_and_at_the_room_for_it() {
    case(|ctx| async move {
        let (url, paths) = brought(&ctx, "examined").await?;
        let queue = ctx.stack.aws.queue("doctor-model-url", Duration::from_secs(900), 3).await?.url;
        let folder = folder(&ctx, "examined-model")?;
        let at = |name: &'static str, url: String| {
            let (ctx, queue, folder) = (&ctx, &queue, &folder);
            async move {
                let changed = [("EASEL_MODEL_DIR", folder.as_str()), ("EASEL_MODEL_URL", url.as_str())];
                doctor(ctx, name, queue, &changed).await
            }
        };
        let shown = format!("ok   model.bucket {url}: easel/tiny at {COMMIT}, {} files, ", paths.len() - 1);
        let line =
            |text: &str, start: &str| text.lines().find(|line| line.starts_with(start)).unwrap_or_default().to_string();
        let (_, text) = at("bucket", url.clone()).await?;
        let said = line(&text, &shown);
        assert!(
            said.contains("the start fetches ") && said.contains(&format!(" of it into {folder}, where ")),
            "{text}"
        );
        let said = line(&text, "warn model.folder ");
        assert!(said.contains(&format!("handler weights fetch {url} --to {folder}")), "{text}");
        assert!(!Path::new(&folder).exists(), "the doctor fetches nothing");
        assert!(fetch(&ctx, "examined-fetch", &url, Path::new(&folder)).await?.0);
        let (_, text) = at("bucket-there", url.clone()).await?;
        assert!(line(&text, &shown).ends_with(&format!(", all of them in {folder}")), "{text}");
        assert!(line(&text, "ok   model.manifest").contains(COMMIT), "{text}");
        let (code, text) = at("bucket-none", format!("s3://{MODELS}/none")).await?;
        let said = line(&text, "FAIL model.bucket ");
        assert!(code == 1 && said.contains("EASEL_MODEL_URL") && said.contains("aws s3 sync"), "{text}");
        // A manifest with more bytes than any disk.
        let sum = "0".repeat(64);
        let huge = json!({
            "repo": "easel/tiny", "revision": "main", "commit": COMMIT, "variant": "full",
            "files": [{ "path": "model_index.json", "bytes": 1_u64 << 60, "sha256": sum }],
        });
        ctx.stack.aws.put(MODELS, &format!("huge/{MANIFEST}"), huge.to_string().into_bytes()).await?;
        let (code, text) = at("bucket-huge", format!("s3://{MODELS}/huge")).await?;
        assert!(code == 1 && line(&text, "FAIL model.bucket ").contains("EphemeralStorage"), "{text}");
        Ok(())
    });
}

/// The path of a model folder that does not exist yet.
fn folder(ctx: &TestContext, name: &str) -> Result<String> {
    Ok(ctx.stack.run.folder(name)?.join("model").display().to_string())
}

/// The variables with which a worker fetches its model.
fn options<'a>(url: &'a str, folder: &'a str, endpoint: &'a str) -> [(&'static str, &'a str); 3] {
    [("EASEL_MODEL_URL", url), ("EASEL_MODEL_DIR", folder), ("AWS_ENDPOINT_URL_S3", endpoint)]
}
