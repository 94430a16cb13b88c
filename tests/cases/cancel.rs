//! Tasks that the backend cancels by their id: before they come, while they are painted, and after.

use crate::{
    context::{PATIENCE, TestContext, case},
    happy::assert_headers,
    redelivery::second_complete,
    worker::{SHORT_VISIBILITY, worker},
};
use anyhow::{Context, Result};
use e2e::{
    aws::IMAGES,
    backend::{CANCELLED, Call, PROGRESS},
    wait,
};
use serde_json::json;
use std::time::Duration;

fn cancel(id: i64) -> String {
    json!({ "cancel": id }).to_string()
}

/// Waits for the webhook `cancelled` of this count.
async fn told(ctx: &TestContext, count: usize) -> Result<Vec<Call>> {
    let mut calls = ctx.backend.follow();
    let enough = |calls: &Vec<Call>| calls.iter().filter(|call| call.path == CANCELLED).count() == count;
    wait::at_most("cancelled webhooks", PATIENCE, calls.wait_for(enough)).await??;
    Ok(ctx.backend.calls().into_iter().filter(|call| call.path == CANCELLED).collect())
}

#[test]
fn a_task_that_was_cancelled_before_it_came_is_not_painted_and_nobody_hears_of_it() {
    case(|ctx| async move {
        let task = ctx.task();
        let mapping = &ctx.stack.route.mapping;
        // On the same way as tasks: through broker, relay, queue and function.
        ctx.publish(&cancel(task.id())).await?;
        let record = mapping.handled(&cancel(task.id()), 1, PATIENCE).await?;
        assert!(record.deleted, "{record:?}");
        ctx.publish(&task.body()).await?;
        let record = mapping.handled(&task.body(), 1, PATIENCE).await?;
        assert!(record.deleted, "it would come again: {record:?}");
        assert_eq!(ctx.backend.calls(), [], "nobody asked to be told");
        assert_eq!(ctx.etag(&task).await, None, "painted");
        // Another task is not meant.
        ctx.paint(&ctx.task()).await?;
        Ok(())
    });
}

#[test]
fn a_task_is_cancelled_while_it_is_painted_and_the_same_webhook_tells_it_each_time() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("cancel-painting", Duration::from_secs(60), 3).await?;
        let options = [("EASEL_CONCURRENCY", "2"), ("EASEL_CANCELLED_WEBHOOK", "true")];
        let worker = worker(&ctx, "cancel-painting", &queue, &options)?;
        let task = ctx.task().with("num_inference_steps", 150);
        aws.send(&queue.url, &task.body()).await?;
        let of_task = |call: &Call| call.path == PROGRESS && call.generation_id() == Some(task.id());
        ctx.backend.call("first progress", PATIENCE, of_task).await?;
        for _ in 0..2 {
            aws.send(&queue.url, &cancel(task.id())).await?;
        }
        let first = told(&ctx, 1).await?.pop().context("no webhook")?;
        assert_eq!((first.method.as_str(), &first.body), ("POST", &json!({ "generation_id": task.id() })));
        assert_headers(&first);
        aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        assert_eq!(ctx.etag(&task).await, None, "painted to its end");
        assert_eq!(ctx.backend.calls().last(), Some(&first), "something came after it");
        // Delivered again: nothing is painted, and the backend can see that it was told before.
        aws.send(&queue.url, &task.body()).await?;
        let second = told(&ctx, 2).await?.pop().context("no webhook")?;
        assert_eq!(first.headers["webhook-id"], second.headers["webhook-id"]);
        assert_eq!(ctx.etag(&task).await, None);
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn cancelling_a_stored_picture_changes_nothing() {
    case(|ctx| async move {
        let task = ctx.task();
        let painting = ctx.paint(&task).await?;
        let first = ctx.etag(&task).await;
        ctx.publish(&cancel(task.id())).await?;
        ctx.stack.route.mapping.handled(&cancel(task.id()), 1, PATIENCE).await?;
        ctx.publish(&task.body()).await?;
        let calls = second_complete(&ctx).await?;
        assert_eq!(calls.last().map(|call| &call.body), Some(&painting.complete.body), "another webhook");
        assert!(first.is_some() && ctx.etag(&task).await == first, "another picture");
        Ok(())
    });
}

#[test]
fn an_old_marker_cancels_nothing() {
    case(|ctx| async move {
        let task = ctx.task();
        ctx.stack.aws.put(IMAGES, &format!("cancelled/gen_{}", task.id()), b"expires 1\n".to_vec()).await?;
        ctx.paint(&task).await?;
        Ok(())
    });
}

#[test]
fn a_bad_message_that_cancels_is_refused_by_name_and_left_for_a_person() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        for (name, options, body, reason) in [
            (
                "cancel-kind",
                [("EASEL_CANCEL_EXPIRY", "60")],
                r#"{"cancel":"7"}"#,
                "`cancel` is a string, must be an integer from 0",
            ),
            (
                "cancel-none",
                [("EASEL_CANCEL_EXPIRY", "60")],
                r#"{"cancel":null}"#,
                "`cancel` is missing, must be an integer from 0",
            ),
            ("cancel-more", [("EASEL_CANCEL_EXPIRY", "60")], r#"{"cancel":7,"reason":"x"}"#, "`reason` is no field"),
            ("cancel-off", [("EASEL_CANCEL_EXPIRY", "0")], r#"{"cancel":7}"#, "EASEL_CANCEL_EXPIRY) is 0"),
        ] {
            let queue = aws.queue(name, SHORT_VISIBILITY, 1).await?;
            let worker = worker(&ctx, name, &queue, &options)?;
            aws.send(&queue.url, body).await?;
            aws.has_depth(&queue.dead_letter_url, (1, 0), PATIENCE).await?;
            let log = worker.log_text();
            assert!(log.contains(reason), "{log}");
            assert!(worker.terminate(PATIENCE).await?.success());
        }
        Ok(())
    });
}
