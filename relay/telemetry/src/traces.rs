//! Sends spans to an OTLP collector.
//!
//! Off, and without cost, unless an OTLP endpoint is set. A collector never slows the process down: spans are sent from
//! a thread of their own, those that do not fit its queue are dropped, and an unreachable collector is reported once.

use std::{
    env,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry::trace::TracerProvider;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::{
    Resource,
    trace::{SdkTracer, SdkTracerProvider},
};
use url::Url;

use crate::{BadEndpoint, client::Client, endpoint, is_set};

const SERVICE_NAME_VARIABLE: &str = "OTEL_SERVICE_NAME";
/// For the last spans: a collector that does not answer must not delay the exit.
const FLUSH_TIMEOUT: Duration = Duration::from_secs(2);

pub(crate) static ON: AtomicBool = AtomicBool::new(false);

/// Whether spans are made.
pub fn is_on() -> bool {
    ON.load(Ordering::Relaxed)
}

/// Traces that are on. Call [`Traces::end`] when the process ends. Clones share the exporter.
#[derive(Debug, Clone)]
pub struct Traces {
    provider: SdkTracerProvider,
    scope: &'static str,
}

impl Traces {
    /// Starts traces if an endpoint is set: spans of the crate `scope`, under `service_name` unless `OTEL_SERVICE_NAME`
    /// is set.
    ///
    /// # Errors The endpoint is no URL, or the exporter refuses it.
    pub fn from_env(scope: &'static str, service_name: &'static str) -> Result<Option<Self>, BadEndpoint> {
        let Some(option) = endpoint() else { return Ok(None) };
        let invalid = |problem: String| BadEndpoint { option, problem };
        // The exporter accepts addresses that cannot work, such as a port that is no number.
        if !env::var(option).is_ok_and(|value| is_endpoint(&value)) {
            return Err(invalid("must be an http or https URL".into()));
        }
        let client = Client::new().map_err(|err| invalid(format!("no HTTP client: {err}")))?;
        let exporter = SpanExporter::builder()
            .with_http()
            .with_http_client(client)
            .with_protocol(Protocol::HttpBinary)
            .build()
            // The error's own text would repeat the value.
            .map_err(|_| invalid("the exporter refuses it, or another of the OTEL_EXPORTER_OTLP_ variables".into()))?;
        let mut resource = Resource::builder();
        if !is_set(SERVICE_NAME_VARIABLE) {
            resource = resource.with_service_name(service_name);
        }
        let provider = SdkTracerProvider::builder().with_batch_exporter(exporter).with_resource(resource.build());
        ON.store(true, Ordering::Relaxed);
        Ok(Some(Self { provider: provider.build(), scope }))
    }

    /// The tracer for spans.
    pub(crate) fn tracer(&self) -> SdkTracer {
        self.provider.tracer(self.scope)
    }

    /// Sends the collected spans, and waits at most `limit` for that. Later spans are sent as before.
    pub async fn flush(&self, limit: Duration) {
        let provider = self.provider.clone();
        // What is not sent in time may still be sent while the process runs.
        let _ = tokio::time::timeout(limit, tokio::task::spawn_blocking(move || provider.force_flush())).await;
    }

    /// Sends the collected spans, for at most `limit`.
    pub fn end(self, limit: Duration) {
        // Spans that cannot be sent now are lost; the client has logged why.
        let _ = self.provider.shutdown_with_timeout(limit.min(FLUSH_TIMEOUT));
    }
}

fn is_endpoint(value: &str) -> bool {
    Url::parse(value).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host())
}
