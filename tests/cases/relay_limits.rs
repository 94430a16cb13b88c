//! Limits of SQS and of the broker: what the relay does with messages that exceed them.

use crate::{
    context::{HOUR, PATIENCE, case, drained},
    relay_check,
};
use e2e::{aws::PAYLOADS, backend::FAILED, broker::Broker, wait};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use serde_json::json;
use std::fs;

#[test]
fn a_task_over_the_limit_of_sqs_is_painted() {
    case(|ctx| async move {
        let (name, stack) = ("payload", ctx.stack);
        // Into the main route.
        let url = &stack.route.queue.url;
        let env = [("RELAY_PAYLOAD_BUCKET", PAYLOADS)];
        let relay = ctx.relay(name, url, &env).await?;
        let task = ctx.task().with("not_a_field", "x".repeat(1024 * 1024));
        stack.publisher.publish(name, task.body().as_bytes()).await?;
        assert_eq!(ctx.painting(&task).await?.picture.width(), 512);
        drained(&relay, &stack.publisher).await?;
        Ok(())
    });
}

/// 16 MiB of the smallest objects are two million of them; parsed into values they took a gigabyte.
#[test]
fn a_body_of_16_mib_takes_little_more_memory_than_its_length() {
    case(|ctx| async move {
        let (aws, mut own) = (&ctx.stack.aws, ctx.own_function("large-body").await?);
        // Waits for the model.
        own.invoke(&[], HOUR).await?;
        for (field, expected) in [("loras", "`loras` is an array of "), ("not_a_field", "`seed` is a string")] {
            let task = ctx.task().with("seed", "many");
            let head = format!("{},\"{field}\":[{{\"\":0}}", task.body().trim_end_matches('}'));
            let more = ",{\"\":0}".repeat((16 * 1024 * 1024 - head.len() - 2) / 7);
            aws.put(PAYLOADS, field, format!("{head}{more}]}}").into_bytes()).await?;
            let class = "software.amazon.payloadoffloading.PayloadS3Pointer";
            let pointer = json!([class, { "s3BucketName": PAYLOADS, "s3Key": field }]);
            let messages = own.receive(aws, &pointer.to_string()).await?;
            // Resets the process's peak memory.
            fs::write(format!("/proc/{}/clear_refs", own.function.id()), "5")?;
            let before = own.function.memory_kib("VmRSS")?;
            assert_eq!(own.invoke(&messages, HOUR).await?, [""; 0]);
            let failed = ctx.backend.end_of(task.id(), PATIENCE).await?;
            let message = failed.error_message();
            assert!(failed.path == FAILED && message.starts_with(expected), "{}", failed.line());
            let more = own.function.memory_kib("VmHWM")?.saturating_sub(before) / 1024;
            assert!(more < 80, "{field}: it took {more} MiB");
            println!("{field}: {more} MiB more");
        }
        Ok(())
    });
}

#[test]
fn without_its_bucket_a_large_message_waits_and_the_others_pass() {
    case(|ctx| async move {
        let (name, stack) = ("payload-lost", ctx.stack);
        let queue = ctx.queue(name).await?;
        let env = [("RELAY_PAYLOAD_BUCKET", "not-a-bucket")];
        let relay = ctx.relay(name, &queue.url, &env).await?;
        stack.publisher.publish(name, &vec![b'x'; 1024 * 1024 + 1]).await?;
        stack.publisher.publish(name, b"{}").await?;
        stack.aws.has_depth(&queue.url, (1, 0), PATIENCE).await?;
        relay.process.logs("NoSuchBucket (404)", PATIENCE).await?;
        // The accepted message is acknowledged a moment later; a kill before that would requeue it.
        relay.reaches("relay_acked_total", 1.0, PATIENCE).await?;
        assert!(relay.process.is_running(), "{}", relay.process.log_text());
        relay.process.kill().await;
        let back = async || (stack.publisher.ready_count(name).await.ok()? == 1).then_some(());
        wait::until("message back in the queue", PATIENCE, back).await
    });
}

const UNAVAILABLE: i32 = 69;

#[test]
fn one_channel_is_enough_and_frames_that_are_too_small_are_named() {
    case(|ctx| async move {
        let (name, stack) = ("limits", ctx.stack);
        let broker = Broker::start_with(&stack.run, "rabbitmq-limits", "channel_max = 1\n").await?;
        let (publisher, sqs) = (broker.publisher().await?, ctx.queue(name).await?.url);
        let (code, text) = relay_check::relay(&ctx, "limits-none", name, &broker.url(), &sqs, &["--check"]).await?;
        let gone =
            ["FAIL amqp.queue limits: does not exist", "FAIL amqp.dead-letter-exchange limits.dead-letter: does not"];
        assert!(code == UNAVAILABLE && gone.iter().all(|line| text.contains(line)), "{code}: {text}");
        let relay = ctx.relay(name, &sqs, &[("AMQP_URL", &broker.url())]).await?;
        publisher.publish(name, b"{}").await?;
        publisher.publish(name, b"\xff").await?;
        stack.aws.has_depth(&sqs, (1, 0), PATIENCE).await?;
        publisher.take("limits.dead-letter", PATIENCE).await?;
        assert!(!relay.process.log_text().contains("trying again"), "{}", relay.process.log_text());
        assert!(relay.process.terminate(PATIENCE).await?.success());
        let (code, text) = relay_check::relay(&ctx, "limits-one", name, &broker.url(), &sqs, &["--check"]).await?;
        assert_eq!(code, 0, "{text}");
        // As `frame_max = 4096` in its configuration, for new connections.
        broker.control(&stack.run, &["eval", "application:set_env(rabbit, frame_max, 4096)."]).await?;
        for (run, args) in [("limits-frame", &["--check"][..]), ("limits-start", &[][..])] {
            let (code, text) = relay_check::relay(&ctx, run, name, &broker.url(), &sqs, args).await?;
            let named = text.contains("frames of 4096 bytes, its AMQP clients need 8192");
            assert!(code == UNAVAILABLE && named && text.contains("rabbitmq.conf"), "{run}: {code}: {text}");
        }
        Ok(())
    });
}

#[test]
fn headers_that_are_larger_than_a_frame_are_told_with_what_to_do() {
    case(|ctx| async move {
        let (name, stack) = ("limits-headers", ctx.stack);
        let sqs = ctx.queue(name).await?.url;
        let mut headers = FieldTable::default();
        headers.insert("large".into(), AMQPValue::LongString("x".repeat(20_000).into()));
        stack.publisher.declare(name).await?;
        stack
            .publisher
            .publish_with(name, [(b"{}".as_slice(), BasicProperties::default().with_headers(headers))])
            .await?;
        let amqp = format!("{}?frame_max=8192", stack.broker.url());
        let relay = ctx.start_relay(name, &sqs, &[("AMQP_URL", &amqp)]).await?;
        relay.process.logs("larger than frame_max; raise that", PATIENCE).await?;
        relay.process.terminate(PATIENCE).await?;
        // It fits the broker's own limit.
        let relay = ctx.start_relay(name, &sqs, &[]).await?;
        stack.aws.has_depth(&sqs, (1, 0), PATIENCE).await?;
        relay.process.terminate(PATIENCE).await?;
        Ok(())
    });
}
