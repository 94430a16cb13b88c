//! Signatures of webhooks, as an independent library reads them, and ids that stay.

use crate::{
    safety::{function, given_back},
    scene::{Scene, case},
};
use anyhow::{Context, Result, ensure};
use e2e::{
    backend::{COMPLETE, Call, FAILED, PROGRESS},
    paths::{self, repo},
};
use serde_json::{Value, json};
use std::{collections::HashSet, fs};
use tokio::process::Command;

const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
const OTHER: &str = "whsec_AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcY";

/// The library's verdict on each call with a secret.
pub(crate) async fn verdicts(scene: &Scene, name: &str, calls: &[Call], secret: &str) -> Result<Vec<String>> {
    let webhook = |call: &Call| json!({ "secret": secret, "headers": call.headers, "body": call.text });
    let file = scene.stack.run.path().join(format!("{name}.json"));
    fs::write(&file, Value::from_iter(calls.iter().map(webhook)).to_string())?;
    let script = repo().join("tests/cases/signatures.py");
    let output = Command::new(paths::tool("python")?).arg(script).arg(file).output().await?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.lines().map(str::to_string).collect())
}

fn ids<'a>(calls: &'a [Call], path: &str) -> Result<Vec<&'a str>> {
    let calls = calls.iter().filter(|call| call.path == path);
    calls.map(|call| call.headers.get("webhook-id").map(String::as_str).context("no webhook-id")).collect()
}

#[test]
fn webhooks_are_signed_with_every_secret_and_keep_their_ids() {
    case(|scene| async move {
        let secrets = [("EASEL_WEBHOOK_SECRET", &*format!("{NEW} {OLD}"))];
        let function = function(&scene, "function-signing", &secrets).await?;
        let task = scene.task().with("num_inference_steps", 4);
        scene.backend.refuse(COMPLETE, 503, 1);
        assert!(!given_back(&function, &task.body()).await?);
        // The queue delivers it once more.
        assert!(!given_back(&function, &task.body()).await?);
        let bad = scene.task().with("seed", "42");
        assert!(!given_back(&function, &bad.body()).await?);
        assert!(!given_back(&function, &bad.body()).await?);
        let calls = scene.backend.calls();
        for (secret, verdict) in [(OLD, "right"), (NEW, "right"), (OTHER, "wrong")] {
            assert_eq!(verdicts(&scene, "signing", &calls, secret).await?, vec![verdict; calls.len()], "{secret}");
        }
        let (progress, complete, failed) = (ids(&calls, PROGRESS)?, ids(&calls, COMPLETE)?, ids(&calls, FAILED)?);
        assert_eq!((progress.len(), complete.len(), failed.len()), (5, 3, 2));
        let different = |ids: &[&str]| ids.iter().copied().collect::<HashSet<_>>().len();
        assert_eq!((different(&progress), different(&complete), different(&failed)), (5, 1, 1));
        assert_eq!(different(&[progress, complete, failed].concat()), 7);
        Ok(())
    });
}

#[test]
fn without_a_secret_webhooks_have_an_id_and_no_signature() {
    case(|scene| async move {
        let task = scene.task();
        scene.paint(&task).await?;
        for call in scene.backend.calls() {
            assert!(call.headers["webhook-id"].starts_with("msg_"), "{:?}", call.headers);
            assert!(!call.headers.contains_key("webhook-signature"), "{:?}", call.headers);
        }
        Ok(())
    });
}
