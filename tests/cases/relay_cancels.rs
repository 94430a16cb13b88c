//! Messages that cancel tasks, from a queue of their own: the relay makes the markers.

use crate::{
    context::{PATIENCE, TestContext, case, drained},
    relay_check,
    worker::{SHORT_VISIBILITY, worker},
};
use anyhow::{Context, Result};
use axum::http::Method;
use e2e::{
    aws::IMAGES,
    aws_proxies::{StubProxy, s3_error},
    backend::{COMPLETE, PROGRESS},
    relay::Relay,
    wait,
};
use lapin::types::AMQPValue;
use serde_json::{Value, json};

fn cancel(id: i64) -> String {
    json!({ "cancel": id }).to_string()
}

fn marker(id: i64) -> String {
    format!("cancelled/gen_{id}")
}

/// What `/readyz` says, and its status.
async fn readiness(relay: &Relay) -> Result<(u16, Value)> {
    let answer = e2e::http_client()?.get(format!("{}/readyz", relay.health)).send().await?;
    Ok((answer.status().as_u16(), answer.json().await?))
}

async fn has_marker(ctx: &TestContext, id: i64) -> Result<()> {
    let there = async || ctx.stack.aws.etag(IMAGES, &marker(id)).await.map(drop);
    wait::until(&marker(id), PATIENCE, there).await
}

#[test]
fn a_task_is_cancelled_while_it_waits_behind_another() {
    case(|ctx| async move {
        let (name, aws, publisher) = ("cancel-waiting", &ctx.stack.aws, &ctx.stack.publisher);
        let queue = aws.queue(name, SHORT_VISIBILITY, 3).await?;
        let options = [("AMQP_CANCEL_QUEUE", "cancel-waiting.cancels"), ("RELAY_CANCEL_BUCKET", IMAGES)];
        let relay = ctx.relay(name, &queue.url, &options).await?;
        let cancels = json!({ "broker": true, "s3": true });
        let ready = json!({ "ready": true, "broker": true, "sqs": true, "cancels": cancels });
        assert_eq!(readiness(&relay).await?, (200, ready));
        let worker = worker(&ctx, name, &queue, &[("EASEL_CONCURRENCY", "1")])?;
        let first = ctx.task().with("num_inference_steps", 150);
        let (second, third) = (ctx.task(), ctx.task());
        publisher.publish(name, first.body().as_bytes()).await?;
        let of_first = |call: &e2e::backend::Call| call.path == PROGRESS && call.generation_id() == Some(first.id());
        ctx.backend.call("first progress", PATIENCE, of_first).await?;
        for task in [&second, &third] {
            publisher.publish(name, task.body().as_bytes()).await?;
        }
        aws.has_depth(&queue.url, (2, 1), PATIENCE).await?;
        // Twice, which is the same as once.
        for _ in 0..2 {
            publisher.publish("cancel-waiting.cancels", cancel(second.id()).as_bytes()).await?;
        }
        relay.reaches("relay_cancel_acked_total", 2.0, PATIENCE).await?;
        has_marker(&ctx, second.id()).await?;
        let ended = ctx.backend.calls_of(first.id()).iter().any(|call| call.path == COMPLETE);
        assert!(!ended, "the marker came after the task before it");
        ctx.painting(&first).await?;
        ctx.painting(&third).await?;
        aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        assert!(ctx.backend.calls_of(second.id()).is_empty(), "somebody was told");
        assert_eq!(ctx.etag(&second).await, None, "painted");
        assert_eq!(relay.metric("relay_sent_total").await, Some(3.0), "a cancel went to SQS");
        drained(&relay, publisher).await?;
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn what_cancels_nothing_is_a_dead_letter_with_its_reason_and_the_rest_goes_on() {
    case(|ctx| async move {
        let (name, cancels, publisher) = ("cancel-poison", "cancel-poison.cancels", &ctx.stack.publisher);
        let queue = ctx.queue(name).await?;
        let options = [("AMQP_CANCEL_QUEUE", cancels), ("RELAY_CANCEL_BUCKET", IMAGES)];
        let relay = ctx.relay(name, &queue.url, &options).await?;
        let task = ctx.task();
        let bodies = [
            (task.body(), "cancels-nothing", "tasks go to the other queue"),
            (r#"{"cancel":"7"}"#.to_string(), "cancels-nothing", "`cancel` is a string, must be an integer from 0"),
            (r#"{"cancel":7,"reason":"x"}"#.to_string(), "cancels-nothing", "`reason` is no field of a message"),
            ("{".to_string(), "cancels-nothing", "is no JSON object"),
        ];
        for (body, ..) in &bodies {
            publisher.publish(cancels, body.as_bytes()).await?;
        }
        publisher.publish(cancels, cancel(task.id()).as_bytes()).await?;
        has_marker(&ctx, task.id()).await?;
        let mut letters = Vec::new();
        for _ in &bodies {
            let letter = publisher.take("cancel-poison.cancels.dead-letter", PATIENCE).await?.delivery;
            let headers = letter.properties.headers().clone().context("no headers")?;
            let text = |header: &str| match headers.inner().get(header) {
                Some(AMQPValue::LongString(text)) => text.to_string(),
                other => format!("{other:?}"),
            };
            letters.push((String::from_utf8(letter.data)?, text("x-relay-reason"), text("x-relay-detail")));
        }
        for (body, reason, detail) in &bodies {
            let letter = letters.iter().find(|(letter, ..)| letter == body).with_context(|| body.clone())?;
            assert!(letter.1 == *reason && letter.2.contains(detail), "{letter:?}");
        }
        relay.reaches("relay_cancel_dead_lettered_total{reason=\"cancels-nothing\"}", 4.0, PATIENCE).await?;
        relay.reaches("relay_cancel_acked_total", 5.0, PATIENCE).await?;
        assert_eq!(ctx.stack.aws.depth(&queue.url).await?, (0, 0), "something went to SQS");
        assert_eq!(publisher.ready_count(cancels).await?, 0);
        Ok(())
    });
}

#[test]
fn a_cancel_waits_in_the_broker_until_its_marker_is_stored_and_tasks_pass_meanwhile() {
    case(|ctx| async move {
        let (name, cancels, stack) = ("cancel-403", "cancel-403.cancels", ctx.stack);
        let queue = ctx.queue(name).await?;
        let s3 = StubProxy::start(stack.aws.endpoint()).await?;
        s3.answer(|asked| (asked.method == Method::PUT).then(|| s3_error(403, "AccessDenied", "hidden")));
        let endpoint = s3.url();
        let options =
            [("AMQP_CANCEL_QUEUE", cancels), ("RELAY_CANCEL_BUCKET", IMAGES), ("AWS_ENDPOINT_URL_S3", &endpoint)];
        let relay = ctx.relay(name, &queue.url, &options).await?;
        let ids = [ctx.task(), ctx.task(), ctx.task()].map(|task| task.id());
        for id in ids {
            stack.publisher.publish(cancels, cancel(id).as_bytes()).await?;
        }
        let unready = async || (relay.status("/readyz").await == Some(503)).then_some(());
        wait::until("not ready", PATIENCE, unready).await?;
        let (_, body) = readiness(&relay).await?;
        let cancels_side = json!({ "broker": true, "s3": false });
        assert_eq!(body, json!({ "ready": false, "broker": true, "sqs": true, "cancels": cancels_side }));
        relay.process.logs("--cancel-bucket: AccessDenied (403)", PATIENCE).await?;
        stack.publisher.publish(name, b"{}").await?;
        stack.aws.has_depth(&queue.url, (1, 0), PATIENCE).await?;
        assert_eq!(relay.metric("relay_cancel_acked_total").await, Some(0.0));
        assert!(!relay.process.log_text().contains("hidden"), "{}", relay.process.log_text());
        // Killed, so that the broker hands them to the next relay.
        relay.process.kill().await;
        let back = async || (stack.publisher.ready_count(cancels).await.ok()? == 3).then_some(());
        wait::until("cancels back in the queue", PATIENCE, back).await?;
        s3.pass();
        let next = ctx.relay(name, &queue.url, &options).await?;
        next.reaches("relay_cancel_acked_total", 3.0, PATIENCE).await?;
        for id in ids {
            has_marker(&ctx, id).await?;
        }
        assert!(next.process.terminate(PATIENCE).await?.success());
        assert_eq!(stack.publisher.ready_count(cancels).await?, 0);
        Ok(())
    });
}

#[test]
fn a_wrong_queue_or_bucket_of_cancels_is_named_by_the_check_and_at_the_start() {
    case(|ctx| async move {
        let (name, cancels, stack) = ("cancel-check", "cancel-check.cancels", ctx.stack);
        let (sqs, broker) = (ctx.queue(name).await?.url, stack.broker.url());
        stack.publisher.declare(name).await?;
        for (run, bucket, more, code, wanted) in [
            ("queue", IMAGES, &["--check"][..], 69, "FAIL amqp.queue cancel-check.cancels: does not exist"),
            (
                "bucket",
                "not-a-bucket",
                &["--check", "--declare"][..],
                69,
                "FAIL s3.cancel-bucket not-a-bucket: does not exist",
            ),
            ("good", IMAGES, &["--check", "--declare"][..], 0, "ok   s3.cancel-bucket"),
            ("start-queue", IMAGES, &[][..], 69, "cancel-check.cancels"),
            ("start-bucket", "not-a-bucket", &["--declare"][..], 69, "S3 refuses every message: --cancel-bucket: "),
            ("same", IMAGES, &["--cancel-queue", name][..], 64, "--cancel-queue: is the queue of the tasks"),
        ] {
            let given = ["--cancel-queue", cancels, "--cancel-bucket", bucket];
            let given = if run == "same" { &given[2..] } else { &given[..] };
            let args = [given, more].concat();
            let (ended, text) = relay_check::relay(&ctx, &format!("cancel-{run}"), name, &broker, &sqs, &args).await?;
            assert!(ended == code && text.contains(wanted), "{run}: {ended}: {text}");
        }
        Ok(())
    });
}
