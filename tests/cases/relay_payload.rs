//! Messages over SQS' limit: by way of S3, if the relay has a bucket for them.

use crate::scene::{PATIENCE, case};
use e2e::{aws::PAYLOADS, line::Relay, wait};
use std::time::Duration;

#[test]
fn a_task_over_the_limit_of_sqs_is_painted() {
    case(|scene| async move {
        let (name, stack) = ("payload", scene.stack);
        // Into the main line: from there on it is a task like any other.
        let url = &stack.line.queue.url;
        let env = [("RELAY_PAYLOAD_BUCKET", PAYLOADS)];
        let relay = Relay::start_with(&stack.run, name, &stack.broker.url(), &stack.aws, url, &env).await?;
        relay.ready().await?;
        let task = scene.task().with("not_a_field", "x".repeat(1024 * 1024));
        stack.publisher.publish(name, task.body().as_bytes()).await?;
        assert_eq!(scene.painting(&task).await?.picture.width(), 512);
        assert!(relay.process.terminate(PATIENCE).await?.success());
        assert_eq!(stack.publisher.ready_count(name).await?, 0, "not acknowledged");
        Ok(())
    });
}

#[test]
fn without_its_bucket_a_large_message_waits_and_the_others_pass() {
    case(|scene| async move {
        let (name, stack) = ("payload-lost", scene.stack);
        let queue = stack.aws.queue(name, Duration::from_secs(600), 3).await?;
        let env = [("RELAY_PAYLOAD_BUCKET", "not-a-bucket")];
        let relay = Relay::start_with(&stack.run, name, &stack.broker.url(), &stack.aws, &queue.url, &env).await?;
        relay.ready().await?;
        stack.publisher.publish(name, &vec![b'x'; 1024 * 1024 + 1]).await?;
        stack.publisher.publish(name, b"{}").await?;
        stack.aws.has_depth(&queue.url, (1, 0), PATIENCE).await?;
        let told = async || relay.process.log_text().contains("NoSuchBucket (404)").then_some(());
        wait::until("word of the bucket", PATIENCE, told).await?;
        assert!(relay.process.is_running(), "{}", relay.process.log_text());
        relay.process.kill().await;
        let back = async || (stack.publisher.ready_count(name).await.ok()? == 1).then_some(());
        wait::until("message back in the queue", PATIENCE, back).await
    });
}
