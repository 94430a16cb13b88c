//! Dead letters when the broker is not set up for them: nothing is lost, and there is no hot loop.

use crate::{
    context::{PATIENCE, TestContext, case, drained},
    relay_check,
};
use anyhow::{Context, Result};
use e2e::{broker::Broker, relay::Relay, tcp_proxy::TcpProxy, wait};
use lapin::{
    BasicProperties, ExchangeKind,
    types::{AMQPValue, FieldTable},
};
use std::time::Duration;

const POISON: &[u8] = b"\xff\xfe";
const GOOD: &[u8] = b"{\"good\":1}";

/// A relay on an existing queue, without `--declare`.
async fn relay(ctx: &TestContext, queue: &str, amqp: &str, sqs: &str, exchange: &str) -> Result<Relay> {
    let options = [("AMQP_URL", amqp), ("RELAY_DECLARE", "false"), ("AMQP_DEAD_LETTER_EXCHANGE", exchange)];
    ctx.relay(queue, sqs, &options).await
}

#[test]
fn a_hundred_stuck_dead_letters_share_one_connection() {
    case(|ctx| async move {
        let (name, stack) = ("dead-unroutable", ctx.stack);
        let (publisher, sqs) = (&stack.publisher, ctx.queue(name).await?.url);
        let proxy = TcpProxy::start(stack.broker.addr()).await?;
        let amqp = Broker::url_at(proxy.addr());
        publisher.declare(name).await?;
        publisher.declare_exchange("dead-unroutable.x", ExchangeKind::Fanout).await?;
        let relay = relay(&ctx, name, &amqp, &sqs, "dead-unroutable.x").await?;
        let before = proxy.accepted();
        publisher.publish_all(name, vec![POISON; 99]).await?;
        // Each has been tried, most more than once.
        let tries = async || (relay.process.log_text().matches("routes to no queue").count() >= 150).then_some(());
        wait::until("150 tries", PATIENCE, tries).await?;
        assert_eq!(proxy.accepted() - before, 1, "connections for dead letters");
        publisher.publish(name, GOOD).await?;
        stack.aws.has_depth(&sqs, (1, 0), PATIENCE).await?;
        publisher.declare("dead-unroutable.q").await?;
        publisher.bind("dead-unroutable.q", "dead-unroutable.x", "").await?;
        relay.reaches("relay_dead_lettered_total{reason=\"not-utf8\"}", 99.0, PATIENCE).await?;
        relay.reaches("relay_acked_total", 100.0, PATIENCE).await?;
        assert_eq!(publisher.ready_count("dead-unroutable.q").await?, 99, "each once");
        drained(&relay, publisher).await?;
        Ok(())
    });
}

#[test]
fn an_exchange_that_is_not_there_is_asked_for_over_one_connection_and_with_growing_waits() {
    case(|ctx| async move {
        let (name, stack) = ("dead-missing", ctx.stack);
        let (publisher, sqs) = (&stack.publisher, ctx.queue(name).await?.url);
        let proxy = TcpProxy::start(stack.broker.addr()).await?;
        let amqp = Broker::url_at(proxy.addr());
        publisher.declare(name).await?;
        let relay = relay(&ctx, name, &amqp, &sqs, "dead-missing.x").await?;
        let before = proxy.accepted();
        publisher.publish_all(name, vec![POISON; 50]).await?;
        let tries = async || (relay.process.log_text().matches("not dead-lettered").count() >= 4).then_some(());
        wait::until("4 tries", PATIENCE, tries).await?;
        assert_eq!(proxy.accepted() - before, 1, "connections for dead letters");
        let tried = relay.process.log_text().matches("not dead-lettered").count();
        assert!(tried < 10, "{tried} tries: each of 50 messages made its own");
        publisher.declare("dead-missing.q").await?;
        publisher.declare_exchange("dead-missing.x", ExchangeKind::Fanout).await?;
        publisher.bind("dead-missing.q", "dead-missing.x", "").await?;
        relay.reaches("relay_acked_total", 50.0, PATIENCE).await?;
        assert_eq!(publisher.ready_count("dead-missing.q").await?, 50, "each once");
        relay.process.terminate(PATIENCE).await?;
        Ok(())
    });
}

#[test]
fn dead_letters_that_come_back_are_held_and_leave_once_the_exchange_is_right() {
    case(|ctx| async move {
        let (name, stack) = ("dead-loop", ctx.stack);
        let (publisher, sqs) = (&stack.publisher, ctx.queue(name).await?.url);
        publisher.declare(name).await?;
        publisher.declare_exchange("dead-loop.x", ExchangeKind::Fanout).await?;
        publisher.bind(name, "dead-loop.x", "").await?;
        let relay = relay(&ctx, name, &stack.broker.url(), &sqs, "dead-loop.x").await?;
        publisher.publish_all(name, [POISON; 3]).await?;
        relay.reaches("relay_returned_dead_letters_total", 12.0, PATIENCE).await?;
        let dead = relay.metric("relay_dead_lettered_total{reason=\"not-utf8\"}").await.unwrap_or_default();
        assert!(dead < 30.0, "{dead} dead letters of three messages: a hot loop");
        relay.reaches("relay_held_messages", 1.0, PATIENCE).await?;
        let log = relay.process.log_text();
        assert!(log.contains("leads back to the queue") && log.contains("\"hold_ms\""), "{log}");
        let args = [
            "--check",
            "--dead-letter-exchange=dead-loop.x",
            "--health-addr",
            relay.health.trim_start_matches("http://"),
        ];
        let (code, text) = relay_check::relay(&ctx, name, name, &stack.broker.url(), &sqs, &args).await?;
        let wanted = "came back to queue dead-loop and are held; exchange dead-loop.x leads back to it";
        assert!(code == 69 && text.contains("FAIL amqp.dead-letters ") && text.contains(wanted), "{code}: {text}");
        publisher.publish(name, GOOD).await?;
        stack.aws.has_depth(&sqs, (1, 0), PATIENCE).await?;
        // A person repairs the bindings. Held dead letters leave after their wait.
        publisher.declare("dead-loop.q").await?;
        publisher.bind("dead-loop.q", "dead-loop.x", "").await?;
        publisher.unbind(name, "dead-loop.x", "").await?;
        let mut counts = vec![];
        while counts.len() < 3 {
            let letter = publisher.take("dead-loop.q", PATIENCE).await?;
            let headers = letter.delivery.properties.headers().clone().context("no headers")?;
            assert_eq!(letter.delivery.data, POISON);
            let count = headers.inner().get("x-relay-count").cloned();
            let Some(AMQPValue::LongLongInt(count)) = count else { anyhow::bail!("no count: {count:?}") };
            counts.push(count);
        }
        assert!(counts.iter().all(|count| *count >= 4), "{counts:?}");
        let received = relay.metric("relay_received_total").await.context("no count")?;
        relay.reaches("relay_acked_total", received, PATIENCE).await?;
        drained(&relay, publisher).await?;
        Ok(())
    });
}

#[test]
fn what_a_person_publishes_again_is_tried_at_once_and_what_is_held_holds_up_no_end() {
    case(|ctx| async move {
        let (name, stack) = ("dead-again", ctx.stack);
        let (publisher, sqs) = (&stack.publisher, ctx.queue(name).await?.url);
        publisher.declare(name).await?;
        publisher.declare_exchange("dead-again.x", ExchangeKind::Fanout).await?;
        let relay = relay(&ctx, name, &stack.broker.url(), &sqs, "dead-again.x").await?;
        let mut headers = FieldTable::default();
        headers.insert("x-relay-queue".into(), AMQPValue::LongString(name.into()));
        headers.insert("x-relay-reason".into(), AMQPValue::LongString("too-large".into()));
        headers.insert("x-relay-count".into(), AMQPValue::LongLongInt(50));
        let again = BasicProperties::default().with_headers(headers).with_delivery_mode(2);
        // A held message would take ten seconds at least.
        publisher.publish_with(name, [(GOOD, again.clone())]).await?;
        stack.aws.has_depth(&sqs, (1, 0), Duration::from_secs(8)).await?;
        publisher.publish_with(name, [(POISON, again)]).await?;
        relay.reaches("relay_held_messages", 1.0, PATIENCE).await?;
        assert!(relay.process.terminate(Duration::from_secs(8)).await?.success(), "it waited for what it holds");
        assert_eq!(publisher.ready_count(name).await?, 1, "what was held goes back to the queue");
        Ok(())
    });
}

#[test]
fn copies_that_a_publisher_asked_for_are_not_made_of_its_dead_letter() {
    case(|ctx| async move {
        let (name, stack) = ("dead-cc", ctx.stack);
        let (publisher, sqs) = (&stack.publisher, ctx.queue(name).await?.url);
        for queue in [name, "dead-cc.letters", "dead-cc.elsewhere"] {
            publisher.declare(queue).await?;
        }
        publisher.declare_exchange("dead-cc.x", ExchangeKind::Direct).await?;
        publisher.bind("dead-cc.letters", "dead-cc.x", name).await?;
        publisher.bind("dead-cc.elsewhere", "dead-cc.x", "other").await?;
        let relay = relay(&ctx, name, &stack.broker.url(), &sqs, "dead-cc.x").await?;
        let mut headers = FieldTable::default();
        let keys = AMQPValue::FieldArray(vec![AMQPValue::LongString("other".into())].into());
        headers.insert("CC".into(), keys.clone());
        publisher.publish_with(name, [(POISON, BasicProperties::default().with_headers(headers))]).await?;
        let letter = publisher.take("dead-cc.letters", PATIENCE).await?;
        let headers = letter.delivery.properties.headers().clone().context("no headers")?;
        assert_eq!((headers.inner().get("CC"), headers.inner().get("x-relay-cc")), (None, Some(&keys)));
        assert_eq!(publisher.ready_count("dead-cc.elsewhere").await?, 0, "a copy went elsewhere");
        relay.process.terminate(PATIENCE).await?;
        Ok(())
    });
}
