//! One trace from the publisher to the webhook: through the relay, SQS, and the function or a worker.

use crate::{
    context::{PATIENCE, TestContext, case},
    safety::function,
    worker::worker,
};
use anyhow::{Context, Result, ensure};
use e2e::{
    aws::Queue,
    backend::COMPLETE,
    collector::{Collector, Span},
    mapping::Mapping,
    relay::Relay,
    task::Task,
};
use lapin::{
    BasicProperties, Connection, ConnectionProperties,
    options::BasicPublishOptions,
    types::{AMQPValue, FieldTable, LongString},
};
use opentelemetry_proto::tonic::trace::v1::span::SpanKind;
use serde_json::Value;
use std::{
    sync::Arc,
    time::{Duration, Instant},
};
use tokio::net::TcpListener;

const ENDPOINT: &str = "OTEL_EXPORTER_OTLP_ENDPOINT";
pub(crate) const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
pub(crate) const PARENT: &str = "b7ad6b7169203331";
/// The stages of a painted task.
const STAGES: [&str; 11] =
    ["claim", "fetch", "wait", "lora", "denoise", "decode", "sign", "encode", "metadata", "upload", "complete"];

/// Publishes a body with a trace context.
pub(crate) async fn publish(ctx: &TestContext, queue: &str, body: &str) -> Result<()> {
    let connection = Connection::connect(&ctx.stack.broker.url(), ConnectionProperties::default()).await?;
    let channel = connection.create_channel().await?;
    let mut headers = FieldTable::default();
    let traceparent = format!("00-{TRACE}-{PARENT}-01");
    headers.insert("traceparent".into(), AMQPValue::LongString(LongString::from(traceparent)));
    let properties = BasicProperties::default().with_headers(headers);
    let sent =
        channel.basic_publish("".into(), queue.into(), BasicPublishOptions::default(), body.as_bytes(), properties);
    sent.await?.await?;
    Ok(())
}

/// A queue, and a relay to it that exports spans.
async fn queue_and_relay(ctx: &TestContext, name: &str, collector: &Collector) -> Result<(Queue, Relay)> {
    let queue = ctx.queue(name).await?;
    let relay = ctx.relay(name, &queue.url, &[(ENDPOINT, &collector.url())]).await?;
    Ok((queue, relay))
}

fn named<'a>(spans: &'a [Span], service: &str, name: &str) -> Result<&'a Span> {
    let found = spans.iter().find(|span| span.service == service && span.name == name && span.trace_id == TRACE);
    found.with_context(|| format!("no span {name} of {service}"))
}

/// The spans are one tree under the publisher's span, and the webhooks belong to it.
fn assert_joined(ctx: &TestContext, task: &Task, spans: &[Span]) -> Result<()> {
    let delivery = named(spans, "easel-relay", "delivery")?;
    assert_eq!(delivery.parent, PARENT, "the relay's parent is the publisher's span");
    let whole = named(spans, "easel-handler", "task")?;
    assert_eq!(
        (&whole.parent, whole.kind),
        (&delivery.id, SpanKind::Consumer),
        "the task's parent is the relay's span"
    );
    let id = task.id().to_string();
    for (key, value) in [
        ("generation_id", id.as_str()),
        ("messaging.system", "aws_sqs"),
        ("receive_count", "1"),
        ("retry_count", "0"),
        ("ending", "painted"),
    ] {
        assert_eq!(whole.attributes.get(key).map(String::as_str), Some(value), "{key} in {:?}", whole.attributes);
    }
    assert!(whole.attributes.contains_key("messaging.message.id"), "{:?}", whole.attributes);
    assert_eq!(whole.error, None);
    for stage in STAGES {
        let span = named(spans, "easel-handler", stage)?;
        assert_eq!(span.parent, whole.id, "{stage} is no stage of the task");
        assert!(span.start >= whole.start && span.end <= whole.end, "{stage} is not within the task");
    }
    let calls = ctx.backend.calls_of(task.id());
    ensure!(calls.len() > 1, "no progress webhook came");
    let webhooks: Vec<&Span> = spans.iter().filter(|span| span.name == "webhook").collect();
    assert_eq!(webhooks.len(), calls.len());
    for call in calls {
        let sent = call.headers.get("traceparent").with_context(|| format!("no traceparent: {}", call.line()))?;
        let span = webhooks.iter().find(|span| *sent == format!("00-{TRACE}-{}-01", span.id));
        let span = span.with_context(|| format!("{sent} is of no span of a webhook"))?;
        assert_eq!((span.kind, span.attributes["http.response.status_code"].as_str()), (SpanKind::Client, "200"));
    }
    for word in ["red circle", "Kowalska", "token-of-this-run", "stylelicense"] {
        assert!(spans.iter().all(|span| !span.text.contains(word)), "{word} is in a span");
    }
    Ok(())
}

#[test]
fn a_trace_goes_from_the_publisher_to_the_webhooks_of_the_function() {
    case(|ctx| async move {
        let (name, stack, collector) = ("traced-function", ctx.stack, Collector::start().await?);
        let (queue, relay) = queue_and_relay(&ctx, name, &collector).await?;
        let function = Arc::new(function(&ctx, name, &[(ENDPOINT, &collector.url())]).await?);
        let mapping = Mapping::start(stack.aws.clone(), queue, function.clone(), 1);
        let task = ctx.task();
        publish(&ctx, name, &task.body()).await?;
        mapping.handled(&task.body(), 1, PATIENCE).await?;
        // Lambda may freeze the process after its answer, so the spans are sent before.
        let spans = collector.spans();
        assert!(spans.iter().any(|span| span.name == "task"), "the answer came before the task's span");
        assert!(relay.process.terminate(PATIENCE).await?.success());
        assert_joined(&ctx, &task, &collector.spans())
    });
}

#[test]
fn a_trace_goes_from_the_publisher_to_the_webhooks_of_a_worker() {
    case(|ctx| async move {
        let (name, collector) = ("traced-worker", Collector::start().await?);
        let (queue, relay) = queue_and_relay(&ctx, name, &collector).await?;
        let worker = worker(&ctx, name, &queue, &[(ENDPOINT, &collector.url())])?;
        let (task, bad) = (ctx.task(), ctx.task().with("prompt_tags", 1));
        publish(&ctx, name, &task.body()).await?;
        ctx.painting(&task).await?;
        ctx.stack.aws.send(&queue.url, &bad.body()).await?;
        ctx.backend.end_of(bad.id(), PATIENCE).await?;
        let third = ctx.task();
        ctx.backend.refuse(COMPLETE, 503, 1);
        ctx.stack.aws.send(&queue.url, &third.body()).await?;
        ctx.painting(&third).await?;
        ctx.stack.aws.has_depth(&queue.url, (0, 0), PATIENCE).await?;
        assert!(relay.process.terminate(PATIENCE).await?.success());
        // The collected spans are sent at the end.
        assert!(worker.terminate(PATIENCE).await?.success());
        let (joined, others): (Vec<Span>, Vec<Span>) =
            collector.spans().into_iter().partition(|span| span.trace_id == TRACE);
        assert_joined(&ctx, &task, &joined)?;
        // A task without a trace context begins its own trace, with its error.
        let failed = others.iter().find(|span| span.name == "task").context("no span of the bad task")?;
        assert_eq!((failed.parent.as_str(), failed.error.as_deref()), ("", Some("TASK_INVALID")));
        let refused = others.iter().find(|span| span.error.as_deref() == Some("refused"));
        assert_eq!(refused.context("no failed webhook")?.attributes["http.response.status_code"], "503");
        let lines: Vec<Value> = worker.log_text().lines().filter_map(|line| serde_json::from_str(line).ok()).collect();
        let line = |message: &str| lines.iter().find(|line| line["message"] == message).context(message.to_string());
        assert_eq!(line("task ended")?["trace_id"], TRACE, "the line that ends a task names its trace");
        // A log line inside a stage or webhook still has the task's fields.
        assert_eq!(line("webhook is tried again")?["span"]["generation_id"], third.id());
        Ok(())
    });
}

#[test]
fn a_collector_that_never_answers_holds_up_no_task_of_the_function() {
    case(|ctx| async move {
        let (name, stack) = ("traced-silent", ctx.stack);
        // The operating system accepts connections, and nobody reads from them.
        let silent = TcpListener::bind("127.0.0.1:0").await?;
        let endpoint = format!("http://{}", silent.local_addr()?);
        let function = Arc::new(function(&ctx, name, &[(ENDPOINT, &endpoint)]).await?);
        let queue = ctx.queue(name).await?;
        let mapping = Mapping::start(stack.aws.clone(), queue.clone(), function.clone(), 1);
        let task = ctx.task();
        stack.aws.send(&queue.url, &task.body()).await?;
        ctx.backend.end_of(task.id(), PATIENCE).await?;
        let ended = Instant::now();
        assert!(mapping.handled(&task.body(), 1, PATIENCE).await?.deleted);
        // The limit is half a second. The rest is for a busy machine, and less than the export timeout.
        assert!(ended.elapsed() < Duration::from_secs(4), "{:?}", ended.elapsed());
        Ok(())
    });
}
