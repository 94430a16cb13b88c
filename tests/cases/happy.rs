//! A task that is painted: webhooks and picture field by field against the seed document.

use crate::context::{PATIENCE, Painting, TestContext, case};
use anyhow::{Context, Result};
use e2e::{
    aws::IMAGES,
    backend::{COMPLETE, Call, PROGRESS},
    stack::TOKEN,
    task::Task,
};
use image::ImageFormat;
use serde_json::json;

/// The headers that the seed sends with every webhook.
pub(crate) fn assert_headers(call: &Call) {
    let header = |name: &str| call.headers.get(name).map(String::as_str);
    assert_eq!(header("authorization"), Some(format!("Bearer {TOKEN}").as_str()));
    assert_eq!(header("x-request-source"), Some("inference-server"));
    assert_eq!(header("content-type"), Some("application/json"));
}

/// The progress webhooks are exactly those of these steps, in order.
fn assert_progress(painting: &Painting, id: i64, total: u64, steps: &[u64]) {
    let current: Vec<_> = painting.progress.iter().map(|call| call.body["progress"]["current_step"].as_u64()).collect();
    assert_eq!(current, steps.iter().copied().map(Some).collect::<Vec<_>>());
    for (call, &step) in painting.progress.iter().zip(steps) {
        assert_eq!((call.method.as_str(), call.path.as_str(), call.status), ("PATCH", PROGRESS, 200));
        assert_headers(call);
        let estimated = call.body["progress"]["estimated_seconds"].as_u64().expect("whole seconds");
        let percent = 100 * step / total;
        assert_eq!(
            call.body,
            json!({ "generation_id": id, "progress": {
                "current_step": step, "total_steps": total, "progress_percent": percent,
                "estimated_seconds": estimated,
            }})
        );
        assert!(step < total || estimated == 0, "nothing is left after the last step: {}", call.body);
    }
}

fn assert_complete(call: &Call, url: &str, task: &Task, seed: i64, steps: u64) {
    assert_eq!((call.method.as_str(), call.path.as_str()), ("POST", COMPLETE));
    assert_headers(call);
    assert_eq!(
        call.body,
        json!({ "generation_id": task.id(), "result_url": url,
                "metadata": { "seed": seed, "steps": steps, "guidance_scale": 7.5 } })
    );
}

#[test]
fn a_task_of_the_seeds_shape_is_painted_and_told() {
    case(|ctx| async move {
        // Only the six fields of the seed: 50 steps, seed 42, 512x512.
        let task = ctx.task().without("num_inference_steps");
        let painting = ctx.paint(&task).await?;
        assert_progress(&painting, task.id(), 50, &[0, 13, 25, 38, 45]);
        let url = format!("{}/{IMAGES}/generations/gen_{}.jpg", ctx.stack.aws.endpoint(), task.id());
        assert_complete(&painting.complete, &url, &task, 42, 50);
        let calls = ctx.backend.calls();
        assert_eq!(calls.len(), 6, "five milestones and the end, nothing else");
        assert_eq!(calls.last(), Some(&painting.complete), "the end comes last");
        assert_jpeg(&ctx, &task, &painting).await?;
        let record = ctx.stack.route.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted && record.receive_count == 1, "{record:?}");
        Ok(())
    });
}

async fn assert_jpeg(ctx: &TestContext, task: &Task, painting: &Painting) -> Result<()> {
    assert_eq!(image::guess_format(&painting.file)?, ImageFormat::Jpeg);
    assert_eq!((painting.picture.width(), painting.picture.height()), (512, 512));
    let pixels = painting.picture.to_rgb8();
    assert!(pixels.pixels().any(|pixel| pixel != pixels.get_pixel(0, 0)), "one colour is no picture");
    let s3 = &ctx.stack.aws.s3;
    let head = s3.head_object().bucket(IMAGES).key(task.key()).send().await?;
    assert_eq!(head.content_type(), Some("image/jpeg"));
    let acl = s3.get_object_acl().bucket(IMAGES).key(task.key()).send().await?;
    let everybody = acl.grants().iter().find(|grant| {
        grant.grantee().and_then(|grantee| grantee.uri()).is_some_and(|uri| uri.ends_with("/global/AllUsers"))
    });
    let permission = everybody.and_then(|grant| grant.permission()).context("not for everybody to read")?;
    assert_eq!(permission.as_str(), "READ");
    Ok(())
}

fn milestones(total: u64, steps: &'static [u64]) {
    case(|ctx| async move {
        let task = ctx.task().with("num_inference_steps", total);
        let painting = ctx.paint(&task).await?;
        assert_progress(&painting, task.id(), total, steps);
        assert_eq!(painting.complete.body["metadata"]["steps"], total);
        assert_eq!(ctx.backend.calls().len(), steps.len() + 1);
        Ok(())
    });
}

#[test]
fn each_milestone_comes_once_at_20_steps() {
    milestones(20, &[0, 5, 10, 15, 18]);
}

#[test]
fn each_milestone_comes_once_at_7_steps() {
    milestones(7, &[0, 2, 4, 6, 7]);
}
