//! The relay between a real broker and SQS loses nothing, and poison is dead-lettered.

use crate::context::{PATIENCE, TestContext, case, drained};
use anyhow::{Context, Result};
use e2e::{
    aws::Queue,
    broker::{Broker, Publisher},
    paths::binary,
    process::{Spec, output},
    wait,
};
use lapin::types::AMQPValue;
use std::collections::BTreeSet;

fn numbered(from: u32, to: u32) -> Vec<String> {
    (from..to).map(|number| format!("{{\"number\":{number}}}")).collect()
}

async fn publish(publisher: &Publisher, queue: &str, bodies: &[String]) -> Result<()> {
    publisher.publish_all(queue, bodies.iter().map(String::as_bytes)).await
}

/// Waits until the relay has moved the first messages.
async fn under_way(ctx: &TestContext, queue: &Queue) -> Result<()> {
    let begun = async || (ctx.stack.aws.depth(&queue.url).await.ok()?.0 > 0).then_some(());
    wait::until("first message in SQS", PATIENCE, begun).await
}

/// Takes messages from SQS until each of `bodies` has arrived; gives the number of messages.
async fn all_arrive(ctx: &TestContext, queue: &Queue, bodies: &[String]) -> Result<usize> {
    let (mut missing, mut count): (BTreeSet<&str>, _) = (bodies.iter().map(String::as_str).collect(), 0);
    let arrived = async {
        while !missing.is_empty() {
            for body in ctx.stack.aws.empty(&queue.url).await? {
                missing.remove(body.as_str());
                count += 1;
            }
        }
        anyhow::Ok(())
    };
    let waited = wait::at_most("arrival of every message", PATIENCE, arrived).await;
    waited.and_then(|arrived| arrived).with_context(|| format!("{} are missing: {missing:?}", missing.len()))?;
    Ok(count)
}

/// Vector: a body that is not UTF-8 ends the process.
#[test]
fn poison_goes_to_the_dead_letter_exchange_and_the_rest_goes_on() {
    case(|ctx| async move {
        let (name, stack) = ("poison", ctx.stack);
        let queue = ctx.queue(name).await?;
        let relay = ctx.relay(name, &queue.url, &[]).await?;
        let poison: [(&[u8], &str); 4] = [
            (b"\xff\xfe", "not-utf8"),
            (b"{\"name\":\"\0\"}", "illegal-character"),
            (&vec![b'x'; 1024 * 1024 + 1], "too-large"),
            (b"", "empty-body"),
        ];
        for (body, reason) in poison {
            stack.publisher.publish(name, body).await?;
            let dead = stack.publisher.take("poison.dead-letter", PATIENCE).await?;
            assert!(dead.data == body, "{reason}: the body must stay as it was");
            let headers = dead.properties.headers().clone().context("no headers")?;
            let header = |key: &str| match headers.inner().get(key) {
                Some(AMQPValue::LongString(text)) => text.to_string(),
                other => format!("{other:?}"),
            };
            assert_eq!((header("x-relay-reason").as_str(), header("x-relay-queue").as_str()), (reason, name));
        }
        stack.publisher.publish(name, b"{\"good\":1}").await?;
        assert_eq!(all_arrive(&ctx, &queue, &["{\"good\":1}".to_string()]).await?, 1);
        drained(&relay, &stack.publisher).await?;
        Ok(())
    });
}

#[test]
fn a_restart_of_the_broker_loses_nothing() {
    case(|ctx| async move {
        let (name, stack) = ("broker-restart", ctx.stack);
        let mut broker = Broker::start(&stack.run, "rabbitmq-restart").await?;
        let queue = ctx.queue(name).await?;
        let (before, after) = (numbered(0, 400), numbered(400, 500));
        let publisher = broker.publisher().await?;
        publisher.declare(name).await?;
        publish(&publisher, name, &before).await?;
        let relay = ctx.start_relay(name, &queue.url, &[("AMQP_URL", &broker.url())]).await?;
        under_way(&ctx, &queue).await?;
        broker.stop().await?;
        wait::until("unready relay", PATIENCE, async || (relay.status("/readyz").await == Some(503)).then_some(()))
            .await?;
        assert_eq!(relay.status("/healthz").await, Some(200), "it lives without a broker");
        broker.start_again(&stack.run).await?;
        relay.ready().await?;
        let publisher = broker.publisher().await?;
        publish(&publisher, name, &after).await?;
        all_arrive(&ctx, &queue, &[before, after].concat()).await?;
        drained(&relay, &publisher).await?;
        Ok(())
    });
}

#[test]
fn a_killed_relay_loses_nothing() {
    case(|ctx| async move {
        let (name, stack) = ("relay-kill", ctx.stack);
        let queue = ctx.queue(name).await?;
        let bodies = numbered(0, 500);
        stack.publisher.declare(name).await?;
        publish(&stack.publisher, name, &bodies).await?;
        let first = ctx.start_relay(name, &queue.url, &[]).await?;
        under_way(&ctx, &queue).await?;
        first.process.kill().await;
        let left = async || stack.publisher.ready_count(name).await.ok().filter(|&count| count > 0);
        wait::until("messages back in the queue", PATIENCE, left).await.context("it had moved everything already")?;
        let second = ctx.start_relay(name, &queue.url, &[]).await?;
        all_arrive(&ctx, &queue, &bodies).await?;
        assert!(second.process.terminate(PATIENCE).await?.success());
        assert_eq!(stack.publisher.ready_count(name).await?, 0);
        Ok(())
    });
}

#[test]
fn sigterm_drains_the_relay() {
    case(|ctx| async move {
        let (name, stack) = ("relay-term", ctx.stack);
        let queue = ctx.queue(name).await?;
        let bodies = numbered(0, 1000);
        stack.publisher.declare(name).await?;
        publish(&stack.publisher, name, &bodies).await?;
        let relay = ctx.start_relay(name, &queue.url, &[]).await?;
        under_way(&ctx, &queue).await?;
        let status = relay.process.terminate(PATIENCE).await?;
        assert!(status.success(), "{}", relay.process.error(&status.to_string()));
        // Sent messages are acknowledged and the rest is requeued: nothing twice, nothing lost.
        let (left, moved) = (stack.publisher.ready_count(name).await?, stack.aws.depth(&queue.url).await?.0);
        assert!(left > 0, "it had moved everything already: the case shows nothing");
        assert_eq!(left + moved, 1000, "{moved} in SQS and {left} in RabbitMQ");
        Ok(())
    });
}

#[test]
fn a_wrong_setting_is_named_and_ends_with_64() {
    case(|ctx| async move {
        let spec = Spec::new("relay-wrong", binary("relay")?).args([
            "--amqp-url",
            "amqp://guest:hidden@127.0.0.1",
            "--sqs-queue-url",
            "http://h/q",
            "--prefetch",
            "0",
        ]);
        let (status, text) = output(&ctx.stack.run, spec, PATIENCE).await?;
        assert_eq!(status.code(), Some(64), "{text}");
        assert!(text.contains("--prefetch") && !text.contains("hidden"), "{text}");
        Ok(())
    });
}
