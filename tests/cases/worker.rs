//! `handler worker`: the same job without Lambda, on a queue of its own.

use crate::context::{PATIENCE, TestContext, case};
use anyhow::{Context, Result};
use e2e::{
    aws::Queue,
    backend::{COMPLETE, FAILED, PROGRESS},
    paths::binary,
    ports,
    process::{Process, Spec},
    wait,
};
use handler::observe::report::STAGES;
use rustix::process::Signal;
use serde_json::{Value, json};
use std::time::Duration;

/// Short, so that it must be extended during a task, and a killed worker's task is soon received by the next.
pub(crate) const SHORT_VISIBILITY: Duration = Duration::from_secs(3);

/// Starts a worker on this queue; `options` are environment variables.
pub(crate) fn worker(ctx: &TestContext, name: &str, queue: &Queue, options: &[(&str, &str)]) -> Result<Process> {
    Spec::new(name, binary("handler")?)
        .args(["worker"])
        .envs(ctx.env(name)?)
        .env("SQS_QUEUE_URL", &queue.url)
        .env("EASEL_VISIBILITY_TIMEOUT", SHORT_VISIBILITY.as_secs().to_string())
        .env("EASEL_CLAIM_LEASE", "5")
        .envs(options.iter().copied())
        .start(&ctx.stack.run)
}

#[test]
fn it_paints_tells_deletes_and_ends_in_order() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("worker", SHORT_VISIBILITY, 3).await?;
        let worker = worker(&ctx, "worker", &queue, &[])?;
        let (good, bad) = (ctx.task().with("num_inference_steps", 20), ctx.task().with("prompt_tags", 1));
        for task in [&good, &bad] {
            aws.send(&queue.url, &task.body()).await?;
        }
        let painting = ctx.painting(&good).await?;
        assert_eq!(painting.progress.len(), 5, "painted more than once");
        assert_eq!(ctx.backend.end_of(bad.id(), PATIENCE).await?.path, FAILED);
        aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        assert_eq!(aws.depth(&queue.dead_letter_url).await?, (0, 0));
        let status = worker.terminate(PATIENCE).await?;
        assert!(status.success(), "{}", worker.error(&status.to_string()));
        Ok(())
    });
}

#[test]
fn sigterm_lets_the_task_in_work_finish() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("worker-term", SHORT_VISIBILITY, 3).await?;
        let worker = worker(&ctx, "worker-term", &queue, &[])?;
        let (first, second) = (ctx.task().with("num_inference_steps", 7), ctx.task());
        for task in [&first, &second] {
            aws.send(&queue.url, &task.body()).await?;
        }
        let id = Some(first.id());
        ctx.backend.call("progress", PATIENCE, |call| call.path == PROGRESS && call.generation_id() == id).await?;
        let status = worker.terminate(PATIENCE).await?;
        assert!(status.success(), "{}", worker.error(&status.to_string()));
        assert_eq!(ctx.backend.end_of(first.id(), Duration::ZERO).await?.path, COMPLETE);
        assert_eq!(ctx.backend.calls_of(second.id()), [], "it took another task after SIGTERM");
        // The first was deleted; the second waits for the next worker.
        assert_eq!(aws.empty(&queue.url).await?, [second.body()]);
        Ok(())
    });
}

#[test]
fn a_second_signal_ends_it_at_once() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("worker-twice", SHORT_VISIBILITY, 3).await?;
        let worker = worker(&ctx, "worker-twice", &queue, &[])?;
        // The task stays in work until the backend takes its webhook.
        ctx.backend.refuse_with_retry_after(COMPLETE, 503, usize::MAX, "1");
        let task = ctx.task();
        aws.send(&queue.url, &task.body()).await?;
        ctx.backend.call("progress", PATIENCE, |call| call.path == PROGRESS).await?;
        worker.signal(Signal::TERM);
        worker.logs("a second signal", PATIENCE).await?;
        assert!(worker.is_running(), "{}", worker.error("ended by the first one"));
        worker.signal(Signal::INT);
        let status = wait::at_most("end", Duration::from_secs(3), worker.exited()).await?;
        assert_eq!(status.code(), Some(128 + Signal::INT.as_raw()), "{}", worker.error(&status.to_string()));
        Ok(())
    });
}

#[test]
fn a_worker_killed_while_it_paints_loses_nothing() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("worker-kill", SHORT_VISIBILITY, 3).await?;
        let task = ctx.task().with("num_inference_steps", 7);
        aws.send(&queue.url, &task.body()).await?;
        let first = worker(&ctx, "worker-kill-1", &queue, &[])?;
        ctx.backend.call("progress", PATIENCE, |call| call.path == PROGRESS).await?;
        first.kill().await;
        assert_eq!(ctx.etag(&task).await, None, "it had finished already");
        let _second = worker(&ctx, "worker-kill-2", &queue, &[])?;
        assert_eq!(ctx.painting(&task).await?.picture.width(), 512);
        aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        Ok(())
    });
}

#[test]
fn failures_have_finer_codes_where_they_are_asked_for() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("worker-codes", SHORT_VISIBILITY, 3).await?;
        let _worker = worker(&ctx, "worker-codes", &queue, &[("EASEL_ERROR_CODES", "fine")])?;
        for (field, value, code) in [
            ("prompt_tags", json!(1), "TASK_INVALID"),
            ("lora_model_url", json!("s3://stylelicense-models/none.safetensors"), "LORA_UNUSABLE"),
        ] {
            let task = ctx.task().with(field, value);
            aws.send(&queue.url, &task.body()).await?;
            let failed = ctx.backend.end_of(task.id(), PATIENCE).await?;
            assert_eq!((failed.path.as_str(), &failed.body["error_code"]), (FAILED, &json!(code)));
        }
        aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        Ok(())
    });
}

#[test]
fn it_says_when_it_is_ready_and_what_it_did_and_ends_when_there_is_nothing_to_do() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("worker-idle", SHORT_VISIBILITY, 3).await?;
        let addr = format!("127.0.0.1:{}", ports::free()?);
        let options =
            [("EASEL_HEALTH_ADDR", addr.as_str()), ("EASEL_IDLE_EXIT", "10"), ("EASEL_EMBEDDED_METRICS", "true")];
        let worker = worker(&ctx, "worker-idle", &queue, &options)?;
        let http = e2e::http_client()?;
        let get = async |path: &str| http.get(format!("http://{addr}{path}")).send().await?.error_for_status();
        worker.ready(PATIENCE, async || get("/readyz").await.is_ok()).await?;
        let task = ctx.task();
        aws.send(&queue.url, &task.body()).await?;
        ctx.painting(&task).await?;
        let counted = async || {
            get("/metrics").await.ok()?.text().await.ok().filter(|text| text.contains("{ending=\"painted\"} 1"))
        };
        let text = wait::until("the task is counted", PATIENCE, counted).await?;
        for line in [
            "easel_images_total 1",
            "easel_stage_seconds_count{stage=\"claim\"} 1",
            "easel_stage_seconds_count{stage=\"upload\"} 1",
            "easel_queue_age_seconds_count 1",
            "easel_lora_lookups_total{found=\"storage\"} 1",
        ] {
            assert!(text.lines().any(|shown| shown == line), "{line} is not in\n{text}");
        }
        let status = wait::at_most("idle exit", PATIENCE, worker.exited()).await?;
        assert!(status.success(), "{}", worker.error(&status.to_string()));
        let lines: Vec<Value> = worker.log_text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let end = lines.iter().find(|line| line["message"] == "task ended").context("no line at the end")?;
        assert_eq!((&end["ending"], &end["span"]["generation_id"]), (&json!("painted"), &json!(task.id())));
        assert_eq!((&end["cache_hits"], &end["cache_misses"]), (&json!(0), &json!(1)));
        assert!(end["queue_age_ms"].is_u64() && end["trace_id"].is_null(), "{end}");
        // Without a certificate no credential is written, and without a checker nothing is checked.
        let with_time = |stage: &&str| end[format!("{stage}_ms")].is_u64();
        let is_left_out = |stage: &str| ["credential", "safety"].contains(&stage);
        assert!(STAGES.iter().all(|stage| with_time(stage) != is_left_out(stage)), "{end}");
        assert!(end["safety"].is_null() && end["nsfw_content_detected"].is_null(), "{end}");
        let embedded = lines.iter().find(|line| line["_aws"].is_object()).context("no embedded metrics")?;
        assert_eq!((&embedded["Ending"], &embedded["Images"]), (&json!("painted"), &json!(1)));
        assert_eq!((&embedded["LoraCacheHits"], &embedded["LoraCacheMisses"]), (&json!(0), &json!(1)));
        Ok(())
    });
}
