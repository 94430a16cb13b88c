//! The relay's traces: they go on through it, and a collector that is gone or silent harms nothing.

use crate::scene::{PATIENCE, case};
use anyhow::Context;
use axum::{Router, body::Bytes, extract::State, routing::post};
use e2e::{
    fault::{Network, Proxy},
    line::Relay,
    ports,
};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable, LongString},
};
use std::time::{Duration, Instant};
use tokio::{net::TcpListener, sync::mpsc};

const VISIBILITY: Duration = Duration::from_secs(600);
const TRACE: [u8; 16] =
    [0x0a, 0xf7, 0x65, 0x19, 0x16, 0xcd, 0x43, 0xdd, 0x84, 0x48, 0xeb, 0x21, 0x1c, 0x80, 0x31, 0x9c];
const PARENT: [u8; 8] = [0xb7, 0xad, 0x6b, 0x71, 0x69, 0x20, 0x33, 0x31];
const TRACEPARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

#[test]
fn a_trace_goes_on_through_the_relay() {
    case(|scene| async move {
        let (name, stack) = ("traced", scene.stack);
        let (sender, mut requests) = mpsc::unbounded_channel::<Bytes>();
        let receive = async |State(sender): State<mpsc::UnboundedSender<Bytes>>, body: Bytes| drop(sender.send(body));
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let collector = format!("http://{}", listener.local_addr()?);
        let router = Router::new().route("/v1/traces", post(receive)).with_state(sender);
        tokio::spawn(async move { axum::serve(listener, router).await });
        let queue = stack.aws.queue(name, VISIBILITY, 3).await?;
        let env = [("OTEL_EXPORTER_OTLP_ENDPOINT", collector.as_str())];
        let relay = Relay::start_with(&stack.run, name, &stack.broker.url(), &stack.aws, &queue.url, &env).await?;
        relay.ready().await?;
        let connection = Connection::connect(&stack.broker.url(), ConnectionProperties::default()).await?;
        let channel = connection.create_channel().await?;
        let mut headers = FieldTable::default();
        headers.insert("traceparent".into(), AMQPValue::LongString(LongString::from(TRACEPARENT)));
        let properties = BasicProperties::default().with_headers(headers);
        channel.basic_publish("".into(), name.into(), BasicPublishOptions::default(), b"{}", properties).await?.await?;
        stack.aws.has_depth(&queue.url, (1, 0), PATIENCE).await?;
        let message = stack.aws.receive(&queue.url, 0, 1).await?.pop().context("no message")?;
        let attribute = message.message_attributes.as_ref().and_then(|map| map.get("traceparent"));
        let onward = attribute.and_then(|value| value.string_value()).context("no traceparent")?;
        assert!(onward.starts_with(&TRACEPARENT[..36]), "another trace: {onward}");
        assert_ne!(onward, TRACEPARENT, "the function's parent is the relay's span");
        // The end sends what has gathered.
        assert!(relay.process.terminate(PATIENCE).await?.success());
        let mut found = false;
        while let Ok(body) = requests.try_recv() {
            found |= spans_hold(&body, "delivery");
        }
        assert!(found, "no span named delivery in that trace and under that parent");
        Ok(())
    });
}

/// Whether a request holds a span with the name, the trace and the parent: fields 1, 4 and 5 of the protocol's `Span`,
/// each as key, length and bytes.
fn spans_hold(body: &[u8], span: &str) -> bool {
    let field = |key: u8, content: &[u8]| {
        let mut bytes = vec![key << 3 | 2, content.len() as u8];
        bytes.extend(content);
        body.windows(bytes.len()).position(|window| window == bytes)
    };
    // In the order of their numbers: trace, (own id, state,) parent, name.
    let [trace, parent, name] = [field(1, &TRACE), field(4, &PARENT), field(5, span.as_bytes())];
    matches!((trace, parent, name), (Some(trace), Some(parent), Some(name)) if trace < parent && parent < name)
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
