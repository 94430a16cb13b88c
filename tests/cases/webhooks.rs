//! Webhooks against the published contract and their signatures, as independent libraries read them.

use crate::{
    context::{PATIENCE, TestContext, case},
    safety::{function, given_back},
};
use anyhow::{Context, Result, ensure};
use e2e::{
    backend::{COMPLETE, Call, FAILED, PROGRESS},
    paths::{self, repo, tool},
    process::{Spec, output},
};
use serde_json::{Value, json};
use std::{
    collections::{BTreeSet, HashSet},
    fs,
    path::Path,
};
use tokio::process::Command;

/// The validator's result for each call.
async fn schema_verdicts(ctx: &TestContext, name: &str, calls: &Value) -> Result<Vec<String>> {
    let run = &ctx.stack.run;
    let file = run.path().join(format!("{name}.json"));
    fs::write(&file, calls.to_string())?;
    let script = repo().join("tests/cases/contract.py");
    let (status, text) =
        output(run, Spec::new(name, tool("python")?).args([&script, &file] as [&Path; 2]), PATIENCE).await?;
    ensure!(status.success(), "{text}");
    Ok(text.lines().map(str::to_string).collect())
}

#[test]
fn webhooks_are_as_the_published_contract_says() {
    case(|ctx| async move {
        ctx.paint(&ctx.task().with("seed", u64::MAX)).await?;
        ctx.paint(&ctx.task().with("num_images", 2)).await?;
        let bad = ctx.task().with("num_images", 5);
        ctx.publish(&bad.body()).await?;
        ctx.backend.end_of(bad.id(), PATIENCE).await?;
        let calls = ctx.backend.calls();
        let seen: BTreeSet<&str> = calls.iter().map(|call| call.path.as_str()).collect();
        assert_eq!(seen, BTreeSet::from([PROGRESS, COMPLETE, FAILED]));
        let mut calls = json!(calls);
        let verdicts = schema_verdicts(&ctx, "contract", &calls).await?;
        assert!(verdicts.iter().all(|verdict| verdict == "right"), "{verdicts:#?}");
        // The validator notices a field that is missing.
        for call in calls.as_array_mut().into_iter().flatten() {
            call["body"].as_object_mut().map(|body| body.remove("generation_id"));
        }
        let verdicts = schema_verdicts(&ctx, "contract-less", &calls).await?;
        assert!(
            verdicts.iter().all(|verdict| verdict.contains("'generation_id' is a required property")),
            "{verdicts:#?}"
        );
        Ok(())
    });
}

const OLD: &str = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw";
const NEW: &str = "whsec_AAECAwQFBgcICQoLDA0ODxAREhMUFRYX";
const OTHER: &str = "whsec_AQIDBAUGBwgJCgsMDQ4PEBESExQVFhcY";

/// The library's result for each call with this secret.
pub(crate) async fn signature_verdicts(
    ctx: &TestContext,
    name: &str,
    calls: &[Call],
    secret: &str,
) -> Result<Vec<String>> {
    let webhook = |call: &Call| json!({ "secret": secret, "headers": call.headers, "body": call.text });
    let file = ctx.stack.run.path().join(format!("{name}.json"));
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
    case(|ctx| async move {
        let secrets = [("EASEL_WEBHOOK_SECRET", &*format!("{NEW} {OLD}"))];
        let function = function(&ctx, "function-signing", &secrets).await?;
        let task = ctx.task().with("num_inference_steps", 4);
        ctx.backend.refuse(COMPLETE, 503, 1);
        assert!(!given_back(&function, &task.body()).await?);
        // A redelivery.
        assert!(!given_back(&function, &task.body()).await?);
        let bad = ctx.task().with("seed", "42");
        assert!(!given_back(&function, &bad.body()).await?);
        assert!(!given_back(&function, &bad.body()).await?);
        let calls = ctx.backend.calls();
        for (secret, verdict) in [(OLD, "right"), (NEW, "right"), (OTHER, "wrong")] {
            assert_eq!(
                signature_verdicts(&ctx, "signing", &calls, secret).await?,
                vec![verdict; calls.len()],
                "{secret}"
            );
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
    case(|ctx| async move {
        let task = ctx.task();
        ctx.paint(&task).await?;
        for call in ctx.backend.calls() {
            assert!(call.headers["webhook-id"].starts_with("msg_"), "{:?}", call.headers);
            assert!(!call.headers.contains_key("webhook-signature"), "{:?}", call.headers);
        }
        Ok(())
    });
}
