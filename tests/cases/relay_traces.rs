//! The relay's traces: they go on through it, and a collector that is gone or silent harms nothing.

use crate::{
    scene::{PATIENCE, case},
    traces::{PARENT, TRACE, publish},
};
use anyhow::Context;
use e2e::{
    collector::Collector,
    fault::{Network, Proxy},
    line::Relay,
    ports,
};
use std::time::{Duration, Instant};
use tokio::net::TcpListener;

const VISIBILITY: Duration = Duration::from_secs(600);

#[test]
fn a_trace_goes_on_through_the_relay() {
    case(|scene| async move {
        let (name, stack, collector) = ("traced", scene.stack, Collector::start().await?);
        let queue = stack.aws.queue(name, VISIBILITY, 3).await?;
        let endpoint = collector.url();
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint.as_str())];
        let relay = Relay::start_with(&stack.run, name, &stack.broker.url(), &stack.aws, &queue.url, &env).await?;
        relay.ready().await?;
        publish(&scene, name, "{}").await?;
        stack.aws.has_depth(&queue.url, (1, 0), PATIENCE).await?;
        let message = stack.aws.receive(&queue.url, 0, 1).await?.pop().context("no message")?;
        let attribute = message.message_attributes.as_ref().and_then(|map| map.get("traceparent"));
        let onward = attribute.and_then(|value| value.string_value()).context("no traceparent")?;
        // The end sends what has gathered.
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
    case(|scene| async move {
        let (name, stack) = ("untraced", scene.stack);
        let queue = stack.aws.queue(name, VISIBILITY, 3).await?;
        let collector = format!("http://127.0.0.1:{}", ports::free()?);
        // Often enough that it fails more than once.
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.as_str()), ("OTEL_BSP_SCHEDULE_DELAY", "50")];
        let relay = Relay::start_with(&stack.run, name, &stack.broker.url(), &stack.aws, &queue.url, &env).await?;
        relay.ready().await?;
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
    case(|scene| async move {
        let (name, stack, limit) = ("untraced-silent", scene.stack, 3);
        // The system takes connections for it, and nobody reads from them.
        let silent = TcpListener::bind("127.0.0.1:0").await?;
        let collector = format!("http://{}", silent.local_addr()?);
        let queue = stack.aws.queue(name, VISIBILITY, 3).await?;
        let proxy = Proxy::start(stack.broker.addr()).await?;
        let amqp = format!("amqp://guest:guest@{}/%2f", proxy.addr());
        let timeout = limit.to_string();
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.as_str()), ("RELAY_SHUTDOWN_TIMEOUT", &timeout)];
        let relay = Relay::start_with(&stack.run, name, &amqp, &stack.aws, &queue.url, &env).await?;
        relay.ready().await?;
        stack.publisher.publish(name, b"{}").await?;
        stack.aws.has_depth(&queue.url, (1, 0), PATIENCE).await?;
        // A broker that does not say goodbye takes up the whole time, and leaves none for the spans.
        proxy.set(Network::Silent);
        let asked = Instant::now();
        assert!(relay.process.terminate(PATIENCE).await?.success());
        let took = asked.elapsed();
        assert!(took < Duration::from_millis(limit * 1_000 + 1_500), "{took:?}");
        Ok(())
    });
}
