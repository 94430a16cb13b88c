//! The backend's answers to webhooks: errors, Retry-After, cancellation, or none because it is down.

use crate::{
    context::{PATIENCE, TestContext, case},
    worker::worker,
};
use anyhow::{Context, Result};
use e2e::{
    aws_proxies::DeletionProxy,
    backend::{COMPLETE, Call, FAILED, PROGRESS},
    lambda::Function,
    stack::{Route, RouteOptions},
    task::Task,
    wait,
};
use serde_json::Value;
use std::{sync::Arc, time::Duration};

/// The five milestones of seven steps.
fn task(ctx: &TestContext) -> Task {
    ctx.task().with("num_inference_steps", 7)
}

fn statuses(calls: &[Call], path: &str) -> Vec<u16> {
    calls.iter().filter(|call| call.path == path).map(|call| call.status).collect()
}

/// The case's own route and function, so that no other case waits for the backend that is down.
async fn own_route(ctx: &TestContext, name: &str) -> Result<Route> {
    let stack = ctx.stack;
    let env = ctx.env(name)?;
    let function = Arc::new(Function::start(&stack.run, &format!("function-{name}"), &env).await?);
    let options = RouteOptions { visibility: Duration::from_secs(2), max_receive_count: 3, batch_size: 1 };
    Route::start(&stack.run, name, &stack.broker.url(), &stack.aws, &function, options).await
}

#[test]
fn refused_progress_does_no_harm() {
    case(|ctx| async move {
        let task = task(&ctx);
        ctx.backend.refuse(PROGRESS, 500, usize::MAX);
        let painting = ctx.paint(&task).await?;
        let calls = ctx.backend.calls();
        assert_eq!(statuses(&calls, PROGRESS), [500; 5], "one webhook for each milestone, accepted or not");
        assert_eq!(statuses(&calls, COMPLETE), [200]);
        assert_eq!(painting.picture.width(), 512);
        let record = ctx.stack.route.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "{record:?}");
        Ok(())
    });
}

#[test]
fn a_backend_that_is_down_while_it_is_painted_hears_of_the_end() {
    case(|mut ctx| async move {
        let route = own_route(&ctx, "down-while-painting").await?;
        let task = task(&ctx);
        ctx.backend.close().await;
        ctx.stack.publisher.publish("down-while-painting", task.body().as_bytes()).await?;
        wait::until("picture in S3", PATIENCE, async || ctx.etag(&task).await).await?;
        ctx.backend.open().await?;
        let painting = ctx.painting(&task).await?;
        assert_eq!(painting.progress, [], "progress is never repeated");
        assert_eq!(statuses(&ctx.backend.calls(), COMPLETE), [200]);
        let record = route.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "{record:?}");
        Ok(())
    });
}

#[test]
fn complete_is_tried_again_until_it_is_taken() {
    case(|ctx| async move {
        let route = own_route(&ctx, "complete-refused-twice").await?;
        let task = task(&ctx);
        ctx.backend.refuse(COMPLETE, 503, 2);
        ctx.stack.publisher.publish("complete-refused-twice", task.body().as_bytes()).await?;
        let painting = ctx.painting(&task).await?;
        let calls = ctx.backend.calls();
        assert_eq!(statuses(&calls, COMPLETE), [503, 503, 200]);
        for call in calls.iter().filter(|call| call.path == COMPLETE) {
            assert_eq!(call.body, painting.complete.body, "every try says the same");
        }
        assert_eq!(painting.progress.len(), 5, "painted once");
        let record = route.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted && record.receive_count == 1, "{record:?}");
        Ok(())
    });
}

#[test]
fn complete_that_nobody_takes_brings_the_message_back_with_the_same_result() {
    case(|ctx| async move {
        let route = own_route(&ctx, "complete-refused").await?;
        let task = task(&ctx);
        ctx.backend.refuse(COMPLETE, 500, usize::MAX);
        ctx.stack.publisher.publish("complete-refused", task.body().as_bytes()).await?;
        let record = route.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(!record.deleted, "nobody heard of the end, and the message is gone: {record:?}");
        let tries = statuses(&ctx.backend.calls(), COMPLETE).len();
        assert!(tries >= 5, "only {tries} tries");
        let first = ctx.etag(&task).await;
        ctx.backend.accept_all();
        let painting = ctx.painting(&task).await?;
        assert_eq!(painting.complete.body["generation_id"], task.id());
        assert!(first.is_some() && ctx.etag(&task).await == first, "another result");
        assert_eq!(painting.progress.len(), 5, "a picture that stands is announced again, not painted again");
        let record = route.mapping.handled(&task.body(), 2, PATIENCE).await?;
        assert!(record.deleted && record.receive_count == 2, "{record:?}");
        Ok(())
    });
}

#[test]
fn a_picture_that_stands_is_never_told_as_failed_and_rests_as_long_as_retry_after_says() {
    case(|ctx| async move {
        let (aws, name) = (&ctx.stack.aws, "retry-after");
        let queue = aws.queue(name, Duration::from_secs(60), 9).await?;
        let proxy = DeletionProxy::start(aws.endpoint()).await?;
        // Every receive is the last one.
        let options = [("AWS_ENDPOINT_URL_SQS", proxy.url()), ("EASEL_MAX_RECEIVE_COUNT", "1".to_string())];
        let options = options.each_ref().map(|(name, value)| (*name, value.as_str()));
        let worker = worker(&ctx, name, &queue, &options)?;
        let task = task(&ctx);
        ctx.backend.refuse_with_retry_after(COMPLETE, 429, usize::MAX, "3600");
        aws.send(&queue.url, &task.body()).await?;
        assert_eq!(proxy.hidden(60, PATIENCE).await?, 3600);
        let calls = ctx.backend.calls();
        assert_eq!(statuses(&calls, COMPLETE), [429], "the backend was called before it wanted to be");
        assert_eq!(statuses(&calls, FAILED), [0; 0]);
        assert!(ctx.etag(&task).await.is_some(), "no picture");
        ctx.backend.accept_all();
        // Another delivery, as by a redrive of the dead-letter queue.
        aws.send(&queue.url, &task.body()).await?;
        let painting = ctx.painting(&task).await?;
        assert_eq!(painting.progress.len(), 5, "painted again");
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn a_failure_that_the_backend_has_no_time_for_is_told_later() {
    case(|ctx| async move {
        let (aws, name) = (&ctx.stack.aws, "retry-after-failed");
        let queue = aws.queue(name, Duration::from_secs(60), 9).await?;
        let proxy = DeletionProxy::start(aws.endpoint()).await?;
        let worker = worker(&ctx, name, &queue, &[("AWS_ENDPOINT_URL_SQS", &proxy.url())])?;
        let task = ctx.task().with("prompt_tags", 1);
        ctx.backend.refuse_with_retry_after(FAILED, 503, 1, "120");
        aws.send(&queue.url, &task.body()).await?;
        assert_eq!(proxy.hidden(60, PATIENCE).await?, 120);
        assert_eq!(statuses(&ctx.backend.calls(), FAILED), [503]);
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn an_answer_of_410_to_progress_ends_the_painting_without_a_word() {
    case(|ctx| async move {
        // So many steps that the first answer comes long before the second milestone.
        let task = ctx.task().with("num_inference_steps", 150);
        ctx.backend.refuse(PROGRESS, 410, usize::MAX);
        ctx.publish(&task.body()).await?;
        let record = ctx.stack.route.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "it would come again: {record:?}");
        let calls = ctx.backend.calls();
        assert_eq!(calls.len(), 1, "further webhooks: {calls:?}");
        assert_eq!(ctx.etag(&task).await, None, "it was painted to its end");
        Ok(())
    });
}

#[test]
fn an_answer_of_409_to_complete_is_the_last_word() {
    case(|ctx| async move {
        let task = ctx.task();
        ctx.backend.refuse(COMPLETE, 409, usize::MAX);
        ctx.publish(&task.body()).await?;
        let record = ctx.stack.route.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "it would come again: {record:?}");
        assert_eq!(ends(&ctx), [(COMPLETE.to_string(), 409)], "sent again");
        assert!(ctx.etag(&task).await.is_some(), "the picture is gone");
        assert_eq!(ending(&ctx, &task)?, "refused-by-backend");
        Ok(())
    });
}

#[test]
fn an_answer_of_410_to_failed_is_the_last_word() {
    case(|ctx| async move {
        let task = ctx.task().with("num_images", 5);
        ctx.backend.refuse(FAILED, 410, usize::MAX);
        ctx.publish(&task.body()).await?;
        let record = ctx.stack.route.mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "it would come again: {record:?}");
        assert_eq!(ends(&ctx), [(FAILED.to_string(), 410)], "sent again");
        assert_eq!(ending(&ctx, &task)?, "refused-by-backend");
        Ok(())
    });
}

/// The complete and failed webhooks, refused or not.
fn ends(ctx: &TestContext) -> Vec<(String, u16)> {
    let calls = ctx.backend.calls();
    let ends = calls.iter().filter(|call| [COMPLETE, FAILED].contains(&call.path.as_str()));
    ends.map(|call| (call.path.to_string(), call.status)).collect()
}

/// How a task ended, by the function's log.
fn ending(ctx: &TestContext, task: &Task) -> Result<String> {
    let log = ctx.stack.function.process().log_text();
    let lines = log.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok());
    let ended = |line: &Value| line["message"] == "task ended" && line["span"]["generation_id"] == task.id();
    let line = lines.into_iter().find(ended).context("no line says that it ended")?;
    Ok(line["ending"].as_str().unwrap_or_default().to_string())
}
