//! Webhooks against the published contract, as a validator reads it that shares no code with their writer.

use crate::scene::{PATIENCE, Scene, case};
use anyhow::{Result, ensure};
use e2e::{
    backend::{COMPLETE, FAILED, PROGRESS},
    paths::{repo, tool},
    process::{Spec, output},
};
use serde_json::{Value, json};
use std::{collections::BTreeSet, fs, path::Path};

/// The validator's word on each call.
async fn verdicts(scene: &Scene, name: &str, calls: &Value) -> Result<Vec<String>> {
    let run = &scene.stack.run;
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
    case(|scene| async move {
        scene.paint(&scene.task().with("seed", u64::MAX)).await?;
        scene.paint(&scene.task().with("num_images", 2)).await?;
        let bad = scene.task().with("num_images", 5);
        scene.publish(&bad.body()).await?;
        scene.backend.end_of(bad.id(), PATIENCE).await?;
        let calls = scene.backend.calls();
        let seen: BTreeSet<&str> = calls.iter().map(|call| call.path.as_str()).collect();
        assert_eq!(seen, BTreeSet::from([PROGRESS, COMPLETE, FAILED]));
        let mut calls = json!(calls);
        let told = verdicts(&scene, "contract", &calls).await?;
        assert!(told.iter().all(|verdict| verdict == "right"), "{told:#?}");
        // The validator notices a field that is missing.
        for call in calls.as_array_mut().into_iter().flatten() {
            call["body"].as_object_mut().map(|body| body.remove("generation_id"));
        }
        let told = verdicts(&scene, "contract-less", &calls).await?;
        assert!(told.iter().all(|verdict| verdict.contains("'generation_id' is a required property")), "{told:#?}");
        Ok(())
    });
}
