//! Messages over SQS' limit: by way of S3, if the relay has a bucket for them.

use crate::scene::{HOUR, PATIENCE, Solo, case};
use anyhow::{Context, Result};
use e2e::{aws::PAYLOADS, backend::FAILED, line::Relay, mapping, process::Process, wait};
use serde_json::json;
use std::{fs, time::Duration};

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

/// KiB that a line of the process's status says.
fn memory(process: &Process, line: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let value = status.lines().find_map(|each| each.strip_prefix(line)).context("no such line")?;
    Ok(value.trim_start_matches(':').trim().trim_end_matches(" kB").parse()?)
}

/// 16 MiB of the smallest objects are two million of them: held as values they were a gigabyte.
#[test]
fn a_body_of_16_mib_takes_little_more_memory_than_its_length() {
    case(|scene| async move {
        let (aws, Solo { queue, mut api, function }) = (&scene.stack.aws, scene.solo("large-body").await?);
        let ready = wait::at_most("function", PATIENCE, api.invoke(json!({ "Records": [] }), HOUR)).await??;
        assert_eq!(ready, Ok(json!({ "batchItemFailures": [] })));
        for (field, expected) in [("loras", "`loras` is an array of "), ("not_a_field", "`seed` is a string")] {
            let task = scene.task().with("seed", "many");
            let head = format!("{},\"{field}\":[{{\"\":0}}", task.body().trim_end_matches('}'));
            let more = ",{\"\":0}".repeat((16 * 1024 * 1024 - head.len() - 2) / 7);
            aws.put(PAYLOADS, field, format!("{head}{more}]}}").into_bytes()).await?;
            let class = "software.amazon.payloadoffloading.PayloadS3Pointer";
            aws.send(&queue.url, &json!([class, { "s3BucketName": PAYLOADS, "s3Key": field }]).to_string()).await?;
            let event = mapping::event(&aws.receive(&queue.url, 20, 1).await?, &queue.arn());
            // From here on the process's peak is counted anew.
            fs::write(format!("/proc/{}/clear_refs", function.id()), "5")?;
            let before = memory(&function, "VmRSS")?;
            let answer = wait::at_most("answer", PATIENCE, api.invoke(event, HOUR)).await??;
            assert_eq!(answer, Ok(json!({ "batchItemFailures": [] })));
            let failed = scene.backend.end_of(task.id(), PATIENCE).await?;
            let message = failed.body["error_message"].as_str().unwrap_or_default();
            assert!(failed.path == FAILED && message.starts_with(expected), "{}", failed.line());
            let more = memory(&function, "VmHWM")?.saturating_sub(before) / 1024;
            assert!(more < 80, "{field}: it took {more} MiB");
            println!("{field}: {more} MiB more");
        }
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
        // What SQS has is acknowledged a moment later; until then the broker would bring it again.
        let acked = async || relay.metrics().await.ok()?.contains("relay_acked_total 1\n").then_some(());
        wait::until("the other acknowledged", PATIENCE, acked).await?;
        assert!(relay.process.is_running(), "{}", relay.process.log_text());
        relay.process.kill().await;
        let back = async || (stack.publisher.ready_count(name).await.ok()? == 1).then_some(());
        wait::until("message back in the queue", PATIENCE, back).await
    });
}
