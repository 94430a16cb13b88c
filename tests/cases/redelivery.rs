//! A task that is delivered twice is painted once, also by two processes at once. A LoRA that two processes share is
//! downloaded once.

use crate::{
    context::{PATIENCE, TestContext, case, lora_file},
    worker::{SHORT_VISIBILITY, worker},
};
use anyhow::Result;
use e2e::{
    aws::IMAGES,
    aws_proxies::CountingProxy,
    backend::{COMPLETE, Call, PROGRESS},
    paths::binary,
    process::Spec,
    wait,
};
use reqwest::Method;
use std::{fs, time::Duration};

/// Waits for the second complete webhook.
pub(crate) async fn second_complete(ctx: &TestContext) -> Result<Vec<Call>> {
    let mut calls = ctx.backend.follow();
    let twice = |calls: &Vec<Call>| calls.iter().filter(|call| call.path == COMPLETE).count() == 2;
    wait::at_most("second complete", PATIENCE, calls.wait_for(twice)).await??;
    Ok(ctx.backend.calls())
}

#[test]
fn a_task_delivered_twice_is_painted_once_and_told_twice() {
    case(|ctx| async move {
        let task = ctx.task();
        let painting = ctx.paint(&task).await?;
        let first = ctx.etag(&task).await;
        ctx.publish(&task.body()).await?;
        let calls = second_complete(&ctx).await?;
        assert_eq!(calls.len(), painting.progress.len() + 2, "painted again");
        assert_eq!(calls.last().map(|call| &call.body), Some(&painting.complete.body), "another webhook");
        assert!(first.is_some() && ctx.etag(&task).await == first, "another picture");
        Ok(())
    });
}

#[test]
fn another_task_with_the_same_id_replaces_the_picture() {
    case(|ctx| async move {
        let task = ctx.task();
        let first = ctx.paint(&task).await?;
        let other = task.with("seed", 43);
        ctx.publish(&other.body()).await?;
        second_complete(&ctx).await?;
        let second = ctx.painting(&other).await?;
        assert_eq!(second.progress.len(), 2 * first.progress.len(), "not painted");
        assert!(first.picture != second.picture, "the first task's picture still stands");
        Ok(())
    });
}

#[test]
fn two_deliveries_at_once_paint_once() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("claim", SHORT_VISIBILITY, 3).await?;
        let _workers = [worker(&ctx, "claim-1", &queue, &[])?, worker(&ctx, "claim-2", &queue, &[])?];
        let task = ctx.task().with("num_inference_steps", 10);
        for _ in 0..2 {
            aws.send(&queue.url, &task.body()).await?;
        }
        let mut calls = ctx.backend.follow();
        let twice = calls.wait_for(|calls| calls.iter().filter(|call| call.path == COMPLETE).count() == 2);
        wait::at_most("two complete webhooks", PATIENCE, twice).await??;
        let calls = ctx.backend.calls_of(task.id());
        assert_eq!(calls.iter().filter(|call| call.path == PROGRESS).count(), 5, "painted more than once");
        assert!(calls.iter().all(|call| call.path == COMPLETE || call.path == PROGRESS), "{calls:?}");
        aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        Ok(())
    });
}

#[test]
fn two_processes_that_share_a_volume_download_a_lora_once() {
    case(|ctx| async move {
        let stack = ctx.stack;
        // Its own key, so that no other reads are counted.
        let key = "models/style_shared/lora_weights.safetensors";
        let url = stack.put_lora(key, fs::read(lora_file())?).await?;
        // Both have sent their HEAD before the first may read.
        let s3 = CountingProxy::start(stack.aws.endpoint(), 2).await?;
        let mut workers = Vec::new();
        let mut tasks = Vec::new();
        for name in ["shared-one", "shared-two"] {
            let queue = stack.aws.queue(name, Duration::from_secs(60), 3).await?;
            let task = ctx.task().with("lora_model_url", url.as_str());
            stack.aws.send(&queue.url, &task.body()).await?;
            tasks.push(task);
            let worker = Spec::new(name, binary("handler")?)
                .args(["worker"])
                .envs(ctx.env("shared")?)
                .env("SQS_QUEUE_URL", &queue.url)
                .env("AWS_ENDPOINT_URL_S3", s3.url())
                // Not through the proxy, where GETs of pictures would wait, too.
                .env("EASEL_RESULT_BASE_URL", format!("{}/{IMAGES}", stack.aws.endpoint()));
            workers.push(worker.start(&stack.run)?);
        }
        for task in &tasks {
            assert_eq!(ctx.painting(task).await?.picture.width(), 512);
        }
        assert_eq!(s3.count(&Method::HEAD, key), 2);
        assert_eq!(s3.count(&Method::GET, key), 1);
        for worker in workers {
            assert!(worker.terminate(PATIENCE).await?.success());
        }
        Ok(())
    });
}
