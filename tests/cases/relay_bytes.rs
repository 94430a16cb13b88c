//! The relay's budget of bytes: what it holds is bounded whatever the prefetch is, everything comes through, and in order.

use crate::scene::{PATIENCE, case};
use anyhow::{Context, Result};
use e2e::{
    aws::PAYLOADS,
    fault::Proxy,
    line::Relay,
    process::Process,
    sqs::{Sqs, Trouble},
    wait,
};
use std::{fs, time::Duration};

const KIB: usize = 1024;
const MIB: usize = 1024 * KIB;

fn value(metrics: &str, name: &str) -> Option<usize> {
    let line = metrics.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '))?;
    line.parse().ok()
}

/// The most memory that a process ever had, in MiB.
fn peak_mib(process: &Process) -> Result<usize> {
    let status = fs::read_to_string(format!("/proc/{}/status", process.id()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<usize>()? / KIB)
}

fn body(number: usize, padding: &str) -> String {
    format!("{{\"group\":{},\"number\":{number},\"padding\":\"{padding}\"}}", number % 3)
}

/// Each group came whole, once and in its order.
fn assert_order(sqs: &Sqs, bodies: &[String]) {
    let kept: Vec<String> = sqs.kept().into_iter().map(|kept| kept.body).collect();
    for group in 0..3 {
        let prefix = format!("{{\"group\":{group},");
        // The paddings would fill the screen.
        let heads = |all: &[String]| -> Vec<String> {
            all.iter().filter(|body| body.starts_with(&prefix)).map(|body| body.chars().take(40).collect()).collect()
        };
        assert_eq!(heads(&kept), heads(bodies), "group {group} came otherwise");
    }
}

/// With a throttled SQS for longer than a client waits for the broker's heartbeats, which are behind what is not read.
#[test]
fn no_more_bytes_are_held_than_the_budget_has_and_the_order_stays() {
    case(|scene| async move {
        let (name, stack) = ("bytes.fifo", scene.stack);
        let sqs = Sqs::start(name, None).await?;
        sqs.set_trouble(Some(Trouble::throttle()));
        let (url, endpoint) = (sqs.queue_url(sqs.addr()), format!("http://{}", sqs.addr()));
        let env = [
            ("AWS_ENDPOINT_URL_SQS", endpoint.as_str()),
            ("AMQP_PREFETCH_BYTES", "2097152"),
            ("AMQP_HEARTBEAT", "1"),
            ("SQS_MESSAGE_GROUP_ID", "json:/group"),
        ];
        let relay = Relay::start_with(&stack.run, name, &stack.broker.url(), &stack.aws, &url, &env).await?;
        relay.ready().await?;
        let padding = "x".repeat(300 * KIB);
        let bodies: Vec<String> = (0..60).map(|number| body(number, &padding)).collect();
        stack.publisher.publish_all(name, bodies.iter().map(String::as_bytes)).await?;
        let full = async || {
            let held = value(&relay.metrics().await.ok()?, "relay_held_bytes")?;
            (held >= 2 * MIB).then_some(held)
        };
        let held = wait::until("full budget", PATIENCE, full).await?;
        assert!(held < 2 * MIB + 301 * KIB, "{held} bytes: more than one over the limit");
        // Twice the heartbeat is what a client waits for.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        sqs.set_trouble(None);
        let arrived = async || (sqs.count() >= 60).then_some(());
        wait::until("every message in SQS", PATIENCE, arrived).await?;
        assert_order(&sqs, &bodies);
        let settled = async || (value(&relay.metrics().await.ok()?, "relay_held_bytes")? == 0).then_some(());
        wait::until("nothing held", PATIENCE, settled).await?;
        assert!(relay.process.terminate(PATIENCE).await?.success());
        let log = relay.process.log_text();
        assert!(!log.contains("the connection to the broker broke"), "{log}");
        assert_eq!(stack.publisher.ready_count(name).await?, 0, "something was not acknowledged");
        Ok(())
    });
}

/// RabbitMQ closes a connection that is not read from for 30 s: here it is cut before, and more than once.
#[test]
fn connections_cut_while_the_budget_is_full_change_no_order() {
    case(|scene| async move {
        let (name, stack) = ("bytes-cut.fifo", scene.stack);
        let sqs = Sqs::start(name, None).await?;
        sqs.set_trouble(Some(Trouble::throttle()));
        let (url, endpoint) = (sqs.queue_url(sqs.addr()), format!("http://{}", sqs.addr()));
        let proxy = Proxy::start(stack.broker.addr()).await?;
        let amqp = stack.broker.url().replace(&stack.broker.addr().to_string(), &proxy.addr().to_string());
        let env = [
            ("AWS_ENDPOINT_URL_SQS", endpoint.as_str()),
            ("AMQP_PREFETCH_BYTES", "2097152"),
            ("AMQP_PREFETCH", "20"),
            // A connection that is not read shows its end at the next write.
            ("AMQP_HEARTBEAT", "1"),
            ("SQS_MESSAGE_GROUP_ID", "json:/group"),
        ];
        let relay = Relay::start_with(&stack.run, name, &amqp, &stack.aws, &url, &env).await?;
        relay.ready().await?;
        let padding = "x".repeat(300 * KIB);
        let bodies: Vec<String> = (0..40).map(|number| body(number, &padding)).collect();
        stack.publisher.publish_all(name, bodies.iter().map(String::as_bytes)).await?;
        for cuts in 1..=2 {
            let full = async || (value(&relay.metrics().await.ok()?, "relay_held_bytes")? >= 2 * MIB).then_some(());
            wait::until("full budget", PATIENCE, full).await?;
            proxy.cut();
            let again = async || (value(&relay.metrics().await.ok()?, "relay_reconnects_total")? >= cuts).then_some(());
            wait::until("another connection", PATIENCE, again).await?;
        }
        sqs.set_trouble(None);
        let arrived = async || (sqs.count() >= 40).then_some(());
        wait::until("every message in SQS", PATIENCE, arrived).await?;
        assert_order(&sqs, &bodies);
        let settled = async || (value(&relay.metrics().await.ok()?, "relay_held_bytes")? == 0).then_some(());
        wait::until("nothing held", PATIENCE, settled).await?;
        assert!(relay.process.terminate(PATIENCE).await?.success());
        assert_eq!(stack.publisher.ready_count(name).await?, 0, "something was not acknowledged");
        Ok(())
    });
}

/// What is not read must not hide the broker's answers when the relay is to end.
#[test]
fn sigterm_ends_a_relay_that_waits_for_room() {
    case(|scene| async move {
        let (name, stack) = ("bytes-term", scene.stack);
        let sqs = Sqs::start(name, None).await?;
        sqs.set_trouble(Some(Trouble::throttle()));
        let (url, endpoint) = (sqs.queue_url(sqs.addr()), format!("http://{}", sqs.addr()));
        let env = [
            ("AWS_ENDPOINT_URL_SQS", endpoint.as_str()),
            ("AMQP_PREFETCH_BYTES", "1000000"),
            ("RELAY_SHUTDOWN_TIMEOUT", "2"),
        ];
        let relay = Relay::start_with(&stack.run, name, &stack.broker.url(), &stack.aws, &url, &env).await?;
        relay.ready().await?;
        stack.publisher.publish_all(name, vec![vec![b'x'; 600 * KIB].as_slice(); 20]).await?;
        let full = async || (value(&relay.metrics().await.ok()?, "relay_held_bytes")? >= 1_000_000).then_some(());
        wait::until("full budget", PATIENCE, full).await?;
        assert!(relay.process.terminate(PATIENCE).await?.success(), "{}", relay.process.log_text());
        let log = relay.process.log_text();
        assert!(!log.contains("the consumer could not be cancelled in order"), "{log}");
        let back = async || (stack.publisher.ready_count(name).await.ok()? == 20).then_some(());
        wait::until("all back in the queue", PATIENCE, back).await
    });
}

/// The limit of the manifest in `infra/kubernetes`, and more bytes in the queue than that.
#[test]
fn large_messages_fit_the_memory_of_the_manifest() {
    case(|scene| async move {
        let (name, stack) = ("bytes-large", scene.stack);
        let queue = stack.aws.queue(name, PATIENCE, 3).await?;
        stack.publisher.declare(name).await?;
        let body = vec![b'x'; 12_000_000];
        stack.publisher.publish_all(name, vec![body.as_slice(); 40]).await?;
        let env = [("RELAY_PAYLOAD_BUCKET", PAYLOADS)];
        let relay = Relay::start_with(&stack.run, name, &stack.broker.url(), &stack.aws, &queue.url, &env).await?;
        let settled = async || (value(&relay.metrics().await.ok()?, "relay_acked_total")? >= 40).then_some(());
        wait::until("40 messages", PATIENCE, settled).await?;
        let peak = peak_mib(&relay.process)?;
        println!("40 messages of 12 MB: the relay's peak is {peak} MiB");
        assert!(peak < 384, "{peak} MiB");
        assert!(relay.process.terminate(PATIENCE).await?.success());
        Ok(())
    });
}
