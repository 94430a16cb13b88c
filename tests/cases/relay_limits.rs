//! A broker whose limits are low: the relay works with them, or says which one is too low and what to do.

use crate::{
    relay_check,
    scene::{PATIENCE, case},
};
use e2e::{broker::Broker, line::Relay, wait};
use lapin::{
    BasicProperties,
    types::{AMQPValue, FieldTable},
};
use std::time::Duration;

const VISIBILITY: Duration = Duration::from_secs(600);
const UNAVAILABLE: i32 = 69;

#[test]
fn one_channel_is_enough_and_frames_that_are_too_small_are_named() {
    case(|scene| async move {
        let (name, stack) = ("limits", scene.stack);
        let broker = Broker::start_with(&stack.run, "rabbitmq-limits", "channel_max = 1\n").await?;
        let (publisher, sqs) = (broker.publisher().await?, stack.aws.queue(name, VISIBILITY, 3).await?.url);
        let (code, text) = relay_check::relay(&scene, "limits-none", name, &broker.url(), &sqs, &["--check"]).await?;
        let gone =
            ["FAIL amqp.queue limits: does not exist", "FAIL amqp.dead-letter-exchange limits.dead-letter: does not"];
        assert!(code == UNAVAILABLE && gone.iter().all(|line| text.contains(line)), "{code}: {text}");
        let relay = Relay::start(&stack.run, name, &broker.url(), &stack.aws, &sqs).await?;
        relay.ready().await?;
        publisher.publish(name, b"{}").await?;
        publisher.publish(name, b"\xff").await?;
        stack.aws.has_depth(&sqs, (1, 0), PATIENCE).await?;
        publisher.take("limits.dead-letter", PATIENCE).await?;
        assert!(!relay.process.log_text().contains("trying again"), "{}", relay.process.log_text());
        assert!(relay.process.terminate(PATIENCE).await?.success());
        let (code, text) = relay_check::relay(&scene, "limits-one", name, &broker.url(), &sqs, &["--check"]).await?;
        assert_eq!(code, 0, "{text}");
        // As `frame_max = 4096` in its configuration, for connections that are still to come.
        broker.control(&stack.run, &["eval", "application:set_env(rabbit, frame_max, 4096)."]).await?;
        for (run, args) in [("limits-frame", &["--check"][..]), ("limits-start", &[][..])] {
            let (code, text) = relay_check::relay(&scene, run, name, &broker.url(), &sqs, args).await?;
            let named = text.contains("frames of 4096 bytes, its AMQP clients need 8192");
            assert!(code == UNAVAILABLE && named && text.contains("rabbitmq.conf"), "{run}: {code}: {text}");
        }
        Ok(())
    });
}

#[test]
fn headers_that_are_larger_than_a_frame_are_told_with_what_to_do() {
    case(|scene| async move {
        let (name, stack) = ("limits-headers", scene.stack);
        let sqs = stack.aws.queue(name, VISIBILITY, 3).await?.url;
        let mut headers = FieldTable::default();
        headers.insert("large".into(), AMQPValue::LongString("x".repeat(20_000).into()));
        stack.publisher.declare(name).await?;
        stack
            .publisher
            .publish_with(name, [(b"{}".as_slice(), BasicProperties::default().with_headers(headers))])
            .await?;
        let amqp = format!("{}?frame_max=8192", stack.broker.url());
        let relay = Relay::start(&stack.run, name, &amqp, &stack.aws, &sqs).await?;
        let told = async || relay.process.log_text().contains("larger than frame_max; raise that").then_some(());
        wait::until("the reason", PATIENCE, told).await?;
        relay.process.terminate(PATIENCE).await?;
        // With the limit of the broker it goes through.
        let relay = Relay::start(&stack.run, name, &stack.broker.url(), &stack.aws, &sqs).await?;
        stack.aws.has_depth(&sqs, (1, 0), PATIENCE).await?;
        relay.process.terminate(PATIENCE).await?;
        Ok(())
    });
}
