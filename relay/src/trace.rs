//! Traces: the span of a message goes on where its publisher's ended, and what SQS carries goes on where ours is.
//!
//! Off, and without cost, unless an OTLP endpoint is set. It refuses to let a collector matter: spans are sent from a
//! thread of their own, what does not fit its queue is dropped, and a collector that is gone is told once.

use std::{
    env,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use lapin::types::{AMQPValue, FieldTable};
use opentelemetry::{
    propagation::{Extractor, TextMapPropagator},
    trace::{TraceContextExt, TracerProvider},
};
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    propagation::TraceContextPropagator,
    trace::{SdkTracer, SdkTracerProvider},
};
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;
use url::Url;

use crate::{config::ConfigError, trace::client::Client};

mod client;

/// Either of these turns traces on.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];
const SERVICE_NAME_VARIABLE: &str = "OTEL_SERVICE_NAME";
const SERVICE_NAME: &str = "easel-relay";
/// For the last spans; a collector that does not answer must not hold up the end.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

/// The AMQP header and SQS attribute that carries a trace on.
pub const TRACEPARENT: &str = "traceparent";

static ON: AtomicBool = AtomicBool::new(false);

/// Traces that are on. To be ended when the process ends.
#[derive(Debug)]
pub struct Traces(SdkTracerProvider);

impl Traces {
    /// Starts them if the environment asks for it.
    pub fn from_env() -> Result<Option<Self>, ConfigError> {
        let set = |name: &&str| env::var_os(name).is_some_and(|value| !value.is_empty());
        let Some(option) = ENDPOINTS.into_iter().find(|name| set(name)) else { return Ok(None) };
        let invalid = |problem: String| ConfigError::Invalid { option, problem };
        // The exporter takes more than it can reach, such as a port that is no number.
        if !env::var(option).is_ok_and(|value| is_endpoint(&value)) {
            return Err(invalid("must be an http or https URL".into()));
        }
        let client = Client::new().map_err(|err| invalid(format!("no HTTP client: {err}")))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .build()
            // The error's own words would repeat the value.
            .map_err(|_| invalid("the exporter refuses it, or another of the OTEL_EXPORTER_OTLP_ variables".into()))?;
        let mut resource = Resource::builder();
        if !set(&SERVICE_NAME_VARIABLE) {
            resource = resource.with_service_name(SERVICE_NAME);
        }
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build());
        ON.store(true, Ordering::Relaxed);
        Ok(Some(Self(provider.build())))
    }

    /// What makes spans.
    pub(crate) fn tracer(&self) -> SdkTracer {
        self.0.tracer("relay")
    }

    /// Sends what has gathered, for at most `limit`.
    pub fn end(self, limit: Duration) {
        // Spans that cannot be sent now are lost, and the client has told why.
        let _ = self.0.shutdown_with_timeout(limit.min(FLUSH_TIMEOUT));
    }
}

fn is_endpoint(value: &str) -> bool {
    Url::parse(value).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}

/// Ties a message's span to the trace that its headers name. Must come before anything else is done with the span.
pub(crate) fn adopt(span: &Span, headers: &Option<FieldTable>) {
    let Some(headers) = headers.as_ref().filter(|_| ON.load(Ordering::Relaxed)) else { return };
    let parent = TraceContextPropagator::new().extract_with_context(&opentelemetry::Context::new(), &Headers(headers));
    if parent.span().span_context().is_valid() {
        // Fails for a span that nobody records, which needs no parent.
        let _ = span.set_parent(parent);
    }
}

/// The `traceparent` that makes what comes after SQS a child of `span`; `None` when traces are off.
pub fn outgoing_traceparent(span: &Span) -> Option<String> {
    if !ON.load(Ordering::Relaxed) {
        return None;
    }
    let context = span.context();
    let span = context.span();
    let own = span.span_context();
    let flags = own.trace_flags().to_u8() & 1;
    own.is_valid().then(|| format!("00-{}-{}-{flags:02x}", own.trace_id(), own.span_id()))
}

struct Headers<'a>(&'a FieldTable);

impl Extractor for Headers<'_> {
    fn get(&self, key: &str) -> Option<&str> {
        match self.0.inner().get(key)? {
            AMQPValue::LongString(text) => std::str::from_utf8(text.as_bytes()).ok(),
            AMQPValue::ShortString(text) => Some(text.as_str()),
            _ => None,
        }
    }

    fn keys(&self) -> Vec<&str> {
        self.0.inner().keys().map(|key| key.as_str()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use lapin::types::LongString;
    use tracing::info_span;
    use tracing_subscriber::layer::SubscriberExt;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    fn headers(value: AMQPValue) -> FieldTable {
        let mut table = FieldTable::default();
        table.insert(TRACEPARENT.into(), value);
        table
    }

    #[test]
    fn a_trace_goes_on_and_nonsense_starts_a_new_one() {
        ON.store(true, Ordering::Relaxed);
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let good = format!("00-{TRACE}-b7ad6b7169203331-01");
        let text = |text: &str| AMQPValue::LongString(LongString::from(text));
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for (value, adopted) in [
                (text(&good), true),
                (AMQPValue::ShortString(good.as_str().into()), true),
                (text(""), false),
                (text("00-zz-b7ad6b7169203331-01"), false),
                (text(&good.replace(TRACE, &"0".repeat(32))), false),
                (text(&good.to_uppercase()), false),
                (AMQPValue::LongString(LongString::from(b"\xff\xfe".to_vec())), false),
                (AMQPValue::LongLongInt(1), false),
                (AMQPValue::Void, false),
            ] {
                let span = info_span!("delivery");
                adopt(&span, &Some(headers(value.clone())));
                let outgoing = outgoing_traceparent(&span).unwrap();
                assert_eq!(outgoing.contains(TRACE), adopted, "{value:?} gave {outgoing}");
                assert!(!outgoing.contains("b7ad6b7169203331"), "the span id must be our own: {outgoing}");
                assert!(outgoing.len() == 55 && outgoing.starts_with("00-") && outgoing.ends_with("-01"), "{outgoing}");
            }
        });
        // A span that nobody records has no context to go on from.
        assert_eq!(outgoing_traceparent(&info_span!("delivery")), None);
    }
}
