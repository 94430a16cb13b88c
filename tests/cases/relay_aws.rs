//! Errors of SQS and S3: which the relay retries, which a person must correct, and what it logs of them.

use crate::context::{PATIENCE, TestContext, case, drained};
use anyhow::{Context, Result};
use aws_sdk_sqs::types::QueueAttributeName;
use axum::{
    http::{Method, StatusCode},
    response::{IntoResponse, Response},
};
use e2e::{
    aws::PAYLOADS,
    aws_proxies::{StubProxy, s3_error, sqs_error},
    paths::binary,
    ports,
    process::{Spec, output},
    wait,
};
use lapin::types::AMQPValue;
use serde_json::json;
use std::sync::{
    Arc,
    atomic::{AtomicBool, Ordering},
};

type Answer = fn() -> Response;

const MIB: usize = 1024 * 1024;
/// A text in the services' errors that no log may repeat.
const SECRET: &str = "zebrafinch";

/// A header of the next dead letter.
async fn dead(ctx: &TestContext, name: &str, header: &str) -> Result<String> {
    let letter = ctx.stack.publisher.take(&format!("{name}.dead-letter"), PATIENCE).await?;
    let headers = letter.properties.headers().clone().context("no headers")?;
    match headers.inner().get(header) {
        Some(AMQPValue::LongString(text)) => Ok(text.to_string()),
        other => anyhow::bail!("{header}: {other:?}"),
    }
}

/// An answer that reports the only entry of a batch as failed.
fn failed(code: &str, sender_fault: bool) -> Response {
    let entry = json!({ "Id": "0", "Code": code, "Message": SECRET, "SenderFault": sender_fault });
    axum::Json(json!({ "Successful": [], "Failed": [entry] })).into_response()
}

/// Answers only the next send request.
fn next(sqs: &StubProxy, answer: impl Fn() -> Response + Send + 'static) {
    let answered = AtomicBool::new(false);
    sqs.answer(move |asked| {
        let sends = asked.operation() == Some("SendMessageBatch");
        (sends && !answered.swap(true, Ordering::Relaxed)).then(&answer)
    });
}

#[test]
fn a_bucket_that_refuses_holds_back_its_own_messages_and_no_other() {
    case(|ctx| async move {
        let (name, stack) = ("bucket-403", ctx.stack);
        let queue = ctx.queue(name).await?;
        let s3 = StubProxy::start(stack.aws.endpoint()).await?;
        s3.answer(|asked| (asked.method == Method::PUT).then(|| s3_error(403, "AccessDenied", SECRET)));
        let endpoint = s3.url();
        let env = [("RELAY_PAYLOAD_BUCKET", PAYLOADS), ("AWS_ENDPOINT_URL_S3", &endpoint)];
        let relay = ctx.relay(name, &queue.url, &env).await?;
        let (large, small) = (vec![b'x'; MIB + 1], vec![b"{}".as_slice(); 20]);
        stack.publisher.publish_all(name, [&[large.as_slice()][..], &small].concat()).await?;
        stack.aws.has_depth(&queue.url, (20, 0), PATIENCE).await?;
        assert_eq!(relay.status("/readyz").await, Some(200), "{}", relay.process.log_text());
        let metrics = relay.metrics().await?;
        let retried =
            metrics.lines().find_map(|line| line.strip_prefix("relay_retries_total{cause=\"payload-bucket\"} "));
        assert!(retried.is_some_and(|count| count != "0"), "{metrics}");
        s3.pass();
        stack.aws.has_depth(&queue.url, (21, 0), PATIENCE).await?;
        drained(&relay, &stack.publisher).await?;
        let log = relay.process.log_text();
        let alarm = log.lines().find(|line| line.contains("\"ERROR\"")).with_context(|| log.clone())?;
        assert!(alarm.contains("not taken by the payload bucket, trying again"), "{alarm}");
        assert!(alarm.contains("AccessDenied (403): no permission"), "{alarm}");
        assert!(!log.contains(SECRET), "{log}");
        Ok(())
    });
}

#[test]
fn a_bucket_in_another_region_is_named() {
    case(|ctx| async move {
        let (name, stack) = ("bucket-region", ctx.stack);
        let queue = ctx.queue(name).await?.url;
        let s3 = StubProxy::start(stack.aws.endpoint()).await?;
        s3.answer(|_| Some((StatusCode::MOVED_PERMANENTLY, [("x-amz-bucket-region", "eu-west-1")]).into_response()));
        let spec = Spec::new("check-bucket-region", binary("relay")?)
            .envs(stack.aws.env())
            .env("AWS_ENDPOINT_URL_S3", s3.url())
            .env("AMQP_URL", stack.broker.url())
            .env("SQS_QUEUE_URL", queue)
            .args(["--check", "--declare", "--payload-bucket", PAYLOADS]);
        let (status, text) = output(&stack.run, spec, PATIENCE).await?;
        assert_eq!(status.code(), Some(69), "{text}");
        let expected = "lies in eu-west-1, and the relay works in us-east-1: name a bucket of us-east-1";
        assert!(text.contains(&format!("FAIL s3.payload-bucket {PAYLOADS}: the bucket {expected}")), "{text}");
        Ok(())
    });
}

#[test]
fn what_passes_is_tried_again_and_told_in_words_of_our_own() {
    case(|ctx| async move {
        let (name, stack) = ("sqs-says", ctx.stack);
        let queue = ctx.queue(name).await?;
        let sqs = StubProxy::start(stack.aws.endpoint()).await?;
        let endpoint = sqs.url();
        let relay = ctx.relay(name, &queue.url, &[("AWS_ENDPOINT_URL_SQS", &endpoint)]).await?;
        let passing: [(Answer, &str); 7] = [
            (|| sqs_error(403, "InvalidSignatureException", "Signature expired: zebrafinch"), "clock is off"),
            (|| sqs_error(400, "KmsThrottled", SECRET), "KmsThrottled (400): asked too often"),
            (|| failed("KMS.DependencyTimeoutException", false), "KMS.DependencyTimeoutException: the service failed"),
            (|| failed("KMSInternalException", false), "KMSInternalException: the service failed"),
            (|| failed("KeyUnavailableException", true), "KeyUnavailableException: the service failed"),
            (|| failed("RequestThrottled", true), "RequestThrottled: asked too often"),
            (
                || (StatusCode::PAYLOAD_TOO_LARGE, SECRET).into_response(),
                "something between the relay and SQS takes no such request",
            ),
        ];
        for (number, (answer, _)) in (1..).zip(&passing) {
            next(&sqs, *answer);
            stack.publisher.publish(name, b"{}").await?;
            stack.aws.has_depth(&queue.url, (number, 0), PATIENCE).await?;
        }
        next(&sqs, || failed("InvalidMessageContents", true));
        stack.publisher.publish(name, b"{\"never\":1}").await?;
        let detail = dead(&ctx, name, "x-relay-detail").await?;
        let content = "InvalidMessageContents: the request's content is not accepted";
        assert_eq!(detail, format!("SQS rejected the entry: {content}"));
        sqs.answer(|_| Some(sqs_error(400, "KmsDisabled", SECRET)));
        stack.publisher.publish(name, b"{\"later\":1}").await?;
        let ended = wait::at_most("end of the relay", PATIENCE, relay.process.exited()).await?;
        let log = relay.process.log_text();
        assert_eq!(ended.code(), Some(69), "{log}");
        assert!(log.contains("KmsDisabled (400): the KMS key cannot be used as it is"), "{log}");
        for (_, text) in passing {
            assert!(log.contains(text), "{text} in {log}");
        }
        assert!(!log.contains(SECRET), "{log}");
        Ok(())
    });
}

#[test]
fn a_queue_may_take_less_than_sqs_from_the_start_or_from_now_on() {
    case(|ctx| async move {
        let (name, stack) = ("queue-limit", ctx.stack);
        let queue = ctx.queue(name).await?;
        let limit = async |bytes: usize| {
            let request = stack.aws.sqs.set_queue_attributes().queue_url(&queue.url);
            request.attributes(QueueAttributeName::MaximumMessageSize, bytes.to_string()).send().await.map(drop)
        };
        limit(4096).await?;
        let relay = ctx.relay(name, &queue.url, &[("RELAY_PAYLOAD_BUCKET", PAYLOADS)]).await?;
        let pointers = async |number: usize| {
            let arrived = Arc::new(std::sync::Mutex::new(vec![]));
            let all = async || {
                let bodies = stack.aws.empty(&queue.url).await.ok()?;
                let mut arrived = arrived.lock().ok()?;
                arrived.extend(bodies);
                (arrived.len() >= number).then(|| arrived.iter().filter(|body| body.contains("s3Key")).count())
            };
            wait::until("messages in SQS", PATIENCE, all).await
        };
        stack.publisher.publish_all(name, [vec![b'a'; 4097].as_slice(), &[b'b'; 3000]]).await?;
        assert_eq!(pointers(2).await?, 1, "one over the limit, one under it");
        limit(2048).await?;
        stack.publisher.publish_all(name, [vec![b'c'; 3000].as_slice(), &[b'd'; 1000]]).await?;
        assert_eq!(pointers(2).await?, 1, "SQS refused it, and then it was known why");
        assert!(relay.process.terminate(PATIENCE).await?.success());
        let log = relay.process.log_text();
        assert!(log.contains("\"bytes\":4096") && log.contains("\"bytes\":2048"), "{log}");
        // Without a bucket.
        let relay = ctx.relay(name, &queue.url, &[]).await?;
        stack.publisher.publish(name, &[b'e'; 3000]).await?;
        let detail = dead(&ctx, name, "x-relay-detail").await?;
        assert!(detail.contains("takes 2048: raise its MaximumMessageSize, or set --payload-bucket"), "{detail}");
        assert!(relay.process.terminate(PATIENCE).await?.success());
        assert!(relay.process.log_text().contains("larger ones are dead-lettered"), "{}", relay.process.log_text());
        let spec = Spec::new("check-queue-limit", binary("relay")?)
            .envs(stack.aws.env())
            .env("AMQP_URL", stack.broker.url())
            .env("AMQP_QUEUE", name)
            .env("RELAY_HEALTH_ADDR", format!("127.0.0.1:{}", ports::free()?))
            .env("SQS_QUEUE_URL", &queue.url)
            .args(["--check"]);
        let (status, text) = output(&stack.run, spec, PATIENCE).await?;
        let line =
            "ok   sqs.maximum-message-size: 2048 bytes; larger ones are dead-lettered, as there is no --payload-bucket";
        assert!(status.success() && text.contains(line), "{text}");
        Ok(())
    });
}
