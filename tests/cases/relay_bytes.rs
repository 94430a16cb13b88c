//! The relay's byte budget: what it holds is bounded whatever the prefetch is, and everything arrives in order.

use crate::context::{PATIENCE, case, drained};
use e2e::{
    aws::PAYLOADS,
    broker::Broker,
    sqs::{Sqs, SqsFault},
    tcp_proxy::TcpProxy,
    wait,
};
use std::time::Duration;

const KIB: usize = 1024;
/// 2 MiB in bytes, as the metrics have it.
const BUDGET: f64 = 2_097_152.0;

fn body(number: usize, padding: &str) -> String {
    format!("{{\"group\":{},\"number\":{number},\"padding\":\"{padding}\"}}", number % 3)
}

/// Each group arrived completely, once and in order.
fn assert_order(sqs: &Sqs, bodies: &[String]) {
    let kept: Vec<String> = sqs.kept().into_iter().map(|kept| kept.body).collect();
    for group in 0..3 {
        let prefix = format!("{{\"group\":{group},");
        // The padding would fill the screen.
        let heads = |all: &[String]| -> Vec<String> {
            all.iter().filter(|body| body.starts_with(&prefix)).map(|body| body.chars().take(40).collect()).collect()
        };
        assert_eq!(heads(&kept), heads(bodies), "group {group} came otherwise");
    }
}

/// SQS throttles for longer than a client waits for the broker's heartbeats, which come after the unread bytes.
#[test]
fn no_more_bytes_are_held_than_the_budget_has_and_the_order_stays() {
    case(|ctx| async move {
        let (name, stack) = ("bytes.fifo", ctx.stack);
        let sqs = Sqs::start(name, None).await?;
        sqs.set_fault(Some(SqsFault::throttle()));
        let env =
            [("AMQP_PREFETCH_BYTES", "2097152"), ("AMQP_HEARTBEAT", "1"), ("SQS_MESSAGE_GROUP_ID", "json:/group")];
        let relay = ctx.relay_to(&sqs, name, &env).await?;
        let padding = "x".repeat(300 * KIB);
        let bodies: Vec<String> = (0..60).map(|number| body(number, &padding)).collect();
        stack.publisher.publish_all(name, bodies.iter().map(String::as_bytes)).await?;
        let full = async || relay.metric("relay_held_bytes").await.filter(|held| *held >= BUDGET);
        let held = wait::until("full budget", PATIENCE, full).await?;
        assert!(held < BUDGET + 301.0 * 1024.0, "{held} bytes: more than one over the limit");
        // A client waits for twice the heartbeat.
        tokio::time::sleep(Duration::from_millis(2500)).await;
        sqs.set_fault(None);
        sqs.accepts(60, PATIENCE).await?;
        assert_order(&sqs, &bodies);
        let settled = async || (relay.metric("relay_held_bytes").await? == 0.0).then_some(());
        wait::until("nothing held", PATIENCE, settled).await?;
        drained(&relay, &stack.publisher).await?;
        let log = relay.process.log_text();
        assert!(!log.contains("the connection to the broker broke"), "{log}");
        Ok(())
    });
}

/// RabbitMQ closes a connection that is not read for 30 s. Here it is cut earlier, and twice.
#[test]
fn connections_cut_while_the_budget_is_full_change_no_order() {
    case(|ctx| async move {
        let (name, stack) = ("bytes-cut.fifo", ctx.stack);
        let sqs = Sqs::start(name, None).await?;
        sqs.set_fault(Some(SqsFault::throttle()));
        let proxy = TcpProxy::start(stack.broker.addr()).await?;
        let amqp = Broker::url_at(proxy.addr());
        let env = [
            ("AMQP_URL", amqp.as_str()),
            ("AMQP_PREFETCH_BYTES", "2097152"),
            ("AMQP_PREFETCH", "20"),
            // The end of a connection that is not read shows at the next write.
            ("AMQP_HEARTBEAT", "1"),
            ("SQS_MESSAGE_GROUP_ID", "json:/group"),
        ];
        let relay = ctx.relay_to(&sqs, name, &env).await?;
        let padding = "x".repeat(300 * KIB);
        let bodies: Vec<String> = (0..40).map(|number| body(number, &padding)).collect();
        stack.publisher.publish_all(name, bodies.iter().map(String::as_bytes)).await?;
        for cuts in [1.0, 2.0] {
            relay.reaches("relay_held_bytes", BUDGET, PATIENCE).await?;
            proxy.cut();
            relay.reaches("relay_reconnects_total", cuts, PATIENCE).await?;
        }
        sqs.set_fault(None);
        sqs.accepts(40, PATIENCE).await?;
        assert_order(&sqs, &bodies);
        let settled = async || (relay.metric("relay_held_bytes").await? == 0.0).then_some(());
        wait::until("nothing held", PATIENCE, settled).await?;
        drained(&relay, &stack.publisher).await?;
        Ok(())
    });
}

/// Unread deliveries must not hide the broker's answers at the end.
#[test]
fn sigterm_ends_a_relay_that_waits_for_room() {
    case(|ctx| async move {
        let (name, stack) = ("bytes-term", ctx.stack);
        let sqs = Sqs::start(name, None).await?;
        sqs.set_fault(Some(SqsFault::throttle()));
        let env = [("AMQP_PREFETCH_BYTES", "1000000"), ("RELAY_SHUTDOWN_TIMEOUT", "2")];
        let relay = ctx.relay_to(&sqs, name, &env).await?;
        stack.publisher.publish_all(name, vec![vec![b'x'; 600 * KIB].as_slice(); 20]).await?;
        relay.reaches("relay_held_bytes", 1_000_000.0, PATIENCE).await?;
        assert!(relay.process.terminate(PATIENCE).await?.success(), "{}", relay.process.log_text());
        let log = relay.process.log_text();
        assert!(!log.contains("the consumer could not be cancelled in order"), "{log}");
        let back = async || (stack.publisher.ready_count(name).await.ok()? == 20).then_some(());
        wait::until("all back in the queue", PATIENCE, back).await
    });
}

/// More bytes in the queue than the memory limit of the manifest in `infra/kubernetes`.
#[test]
fn large_messages_fit_the_memory_of_the_manifest() {
    case(|ctx| async move {
        let (name, stack) = ("bytes-large", ctx.stack);
        let queue = stack.aws.queue(name, PATIENCE, 3).await?;
        stack.publisher.declare(name).await?;
        let body = vec![b'x'; 12_000_000];
        stack.publisher.publish_all(name, vec![body.as_slice(); 40]).await?;
        let env = [("RELAY_PAYLOAD_BUCKET", PAYLOADS)];
        let relay = ctx.start_relay(name, &queue.url, &env).await?;
        relay.reaches("relay_acked_total", 40.0, PATIENCE).await?;
        let peak = relay.process.memory_kib("VmHWM")? / 1024;
        println!("40 messages of 12 MB: the relay's peak is {peak} MiB");
        assert!(peak < 384, "{peak} MiB");
        assert!(relay.process.terminate(PATIENCE).await?.success());
        Ok(())
    });
}
