//! The relay's metrics, log lines and traces.

use crate::{
    context::{PATIENCE, case},
    traces::{PARENT, TRACE, publish},
};
use anyhow::Context;
use e2e::{
    broker::Broker,
    collector::Collector,
    ports,
    tcp_proxy::{Network, TcpProxy},
};
use serde_json::Value;
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

#[test]
fn metrics_count_exactly_and_every_log_line_is_json() {
    case(|ctx| async move {
        let (name, stack) = ("metrics", ctx.stack);
        let queue = ctx.queue(name).await?;
        let relay = ctx.relay(name, &queue.url, &[]).await?;
        let mut bodies: Vec<Vec<u8>> = (0..25).map(|number| format!("{{\"n\":{number}}}").into_bytes()).collect();
        bodies.insert(3, b"\xff\xfe".to_vec());
        bodies.push(b"\xfe".to_vec());
        stack.publisher.publish_all(name, bodies.iter().map(Vec::as_slice)).await?;
        relay.reaches("relay_acked_total", 27.0, PATIENCE).await?;
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
            assert_eq!(relay.metric(&format!("relay_{metric}")).await, Some(want), "{metric}");
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

#[test]
fn a_trace_goes_on_through_the_relay() {
    case(|ctx| async move {
        let (name, stack, collector) = ("traced", ctx.stack, Collector::start().await?);
        let queue = ctx.queue(name).await?;
        let endpoint = collector.url();
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
        let relay = ctx.relay(name, &queue.url, &env).await?;
        publish(&ctx, name, "{}").await?;
        stack.aws.has_depth(&queue.url, (1, 0), PATIENCE).await?;
        let message = stack.aws.receive(&queue.url, 0, 1).await?.pop().context("no message")?;
        let attribute = message.message_attributes.as_ref().and_then(|map| map.get("traceparent"));
        let onward = attribute.and_then(|value| value.string_value()).context("no traceparent")?;
        // The collected spans are sent at the end.
        assert!(relay.process.terminate(PATIENCE).await?.success());
        let spans = collector.spans();
        let span = spans.iter().find(|span| span.name == "delivery").context("no span named delivery")?;
        assert_eq!((span.service.as_str(), span.trace_id.as_str()), ("easel-relay", TRACE));
        assert_eq!(span.parent, PARENT, "the relay's parent is the publisher's span");
        assert_eq!(onward, format!("00-{TRACE}-{}-01", span.id), "the function's parent is the relay's span");
        Ok(())
    });
}

#[test]
fn a_collector_that_is_gone_is_told_once_and_harms_nothing() {
    case(|ctx| async move {
        let (name, stack) = ("untraced", ctx.stack);
        let queue = ctx.queue(name).await?;
        let collector = format!("http://127.0.0.1:{}", ports::free()?);
        // Short, so that the export fails more than once.
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
        let relay = ctx.relay(name, &queue.url, &env).await?;
        for number in 1..=4 {
            stack.publisher.publish(name, b"{}").await?;
            stack.aws.has_depth(&queue.url, (number, 0), PATIENCE).await?;
        }
        assert!(relay.process.terminate(PATIENCE).await?.success());
        let log = relay.process.log_text();
        assert_eq!(log.matches("the trace collector takes no spans").count(), 1, "{log}");
        Ok(())
    });
}

#[test]
fn a_collector_that_never_answers_does_not_prolong_the_end() {
    case(|ctx| async move {
        let (name, stack, limit) = ("untraced-silent", ctx.stack, 3);
        // The operating system accepts connections, and nobody reads from them.
        let silent = TcpListener::bind("127.0.0.1:0").await?;
        let collector = format!("http://{}", silent.local_addr()?);
        let queue = ctx.queue(name).await?;
        let proxy = TcpProxy::start(stack.broker.addr()).await?;
        let amqp = Broker::url_at(proxy.addr());
        let timeout = limit.to_string();
        let env = [
            ("AMQP_URL", amqp.as_str()),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &collector),
            ("RELAY_SHUTDOWN_TIMEOUT", &timeout),
        ];
        let relay = ctx.relay(name, &queue.url, &env).await?;
        stack.publisher.publish(name, b"{}").await?;
        stack.aws.has_depth(&queue.url, (1, 0), PATIENCE).await?;
        // A broker that does not answer the close takes up the whole time and leaves none for the spans.
        proxy.set(Network::Silent);
        let asked = Instant::now();
        assert!(relay.process.terminate(PATIENCE).await?.success());
        let took = asked.elapsed();
        assert!(took < Duration::from_millis(limit * 1_000 + 1_500), "{took:?}");
        Ok(())
    });
}
