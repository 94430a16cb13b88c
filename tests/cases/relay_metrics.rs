//! What the relay tells of itself: its metrics and its log lines.

use crate::scene::{PATIENCE, case};
use anyhow::Context;
use e2e::{line::Relay, wait};
use serde_json::Value;
use std::time::Duration;

const VISIBILITY: Duration = Duration::from_secs(600);

fn value(text: &str, name: &str) -> Option<f64> {
    let line = text.lines().find(|line| line.strip_prefix(name).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[test]
fn metrics_count_exactly_and_every_log_line_is_json() {
    case(|scene| async move {
        let (name, stack) = ("metrics", scene.stack);
        let queue = stack.aws.queue(name, VISIBILITY, 3).await?;
        let relay = Relay::start(&stack.run, name, &stack.broker.url(), &stack.aws, &queue.url).await?;
        relay.ready().await?;
        let mut bodies: Vec<Vec<u8>> = (0..25).map(|number| format!("{{\"n\":{number}}}").into_bytes()).collect();
        bodies.insert(3, b"\xff\xfe".to_vec());
        bodies.push(b"\xfe".to_vec());
        stack.publisher.publish_all(name, bodies.iter().map(Vec::as_slice)).await?;
        let acked = async || (value(&relay.metrics().await.ok()?, "relay_acked_total")? >= 27.0).then_some(());
        wait::until("27 acknowledged messages", PATIENCE, acked).await?;
        let text = relay.metrics().await?;
        for (metric, want) in [
            ("received_total", 27.0),
            ("sent_total", 25.0),
            ("acked_total", 27.0),
            ("dead_lettered_total{reason=\"not-utf8\"}", 2.0),
            ("retries_total{cause=\"other\"}", 0.0),
            ("reconnects_total", 0.0),
            ("unacked_messages", 0.0),
            ("in_flight_batches", 0.0),
            ("oldest_unacked_age_seconds", 0.0),
            ("batch_entries_sum", 25.0),
            ("delivery_to_ack_seconds_count", 27.0),
            ("broker_ready", 1.0),
            ("sqs_ready", 1.0),
        ] {
            assert_eq!(value(&text, &format!("relay_{metric}")), Some(want), "{metric} in\n{text}");
        }
        assert!(relay.process.terminate(PATIENCE).await?.success());
        let log = relay.process.log_text();
        assert!(log.lines().count() >= 4, "{log}");
        for line in log.lines() {
            let Value::Object(object) = serde_json::from_str(line).with_context(|| line.to_owned())? else {
                anyhow::bail!("not an object: {line}");
            };
            for key in ["timestamp", "level", "message", "target"] {
                assert!(object.get(key).is_some_and(Value::is_string), "no {key}: {line}");
            }
        }
        assert!(log.contains("\"amqp.queue\":\"metrics\""), "{log}");
        Ok(())
    });
}
