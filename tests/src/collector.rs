//! A trace collector: takes OTLP over HTTP and keeps every span. It answers anything else with 400.

use anyhow::{Context, Result};
use axum::{Router, body::Bytes, extract::State, http::StatusCode, routing::post};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest,
    common::v1::{KeyValue, any_value},
    trace::v1::{Span as Exported, span::SpanKind, status::StatusCode as Code},
};
use prost::Message;
use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::wait;

/// The collector. It ends when it is dropped.
#[derive(Debug)]
pub struct Collector {
    addr: SocketAddr,
    spans: watch::Receiver<Vec<Span>>,
    server: JoinHandle<std::io::Result<()>>,
}

/// A span that has ended. Ids are in hexadecimal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// `service.name` of its process.
    pub service: String,
    /// Its name.
    pub name: String,
    /// Its trace.
    pub trace_id: String,
    /// Its id.
    pub id: String,
    /// The id of its parent, empty if it has none.
    pub parent: String,
    /// Consumer, client and the like.
    pub kind: SpanKind,
    /// The text of its error, if it has failed.
    pub error: Option<String>,
    /// Its attributes as texts.
    pub attributes: BTreeMap<String, String>,
    /// Nanoseconds since 1970.
    pub start: u64,
    /// Nanoseconds since 1970.
    pub end: u64,
    /// All of it as a text, events too.
    pub text: String,
}

impl Collector {
    /// Starts listening.
    ///
    /// # Errors
    /// No free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("collector")?;
        let addr = listener.local_addr()?;
        let (sender, spans) = watch::channel(Vec::new());
        let app = Router::new().route("/v1/traces", post(take)).with_state(sender);
        Ok(Self { addr, spans, server: tokio::spawn(async move { axum::serve(listener, app).await }) })
    }

    /// Its address, for `OTEL_EXPORTER_OTLP_ENDPOINT`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// What has arrived so far.
    pub fn spans(&self) -> Vec<Span> {
        self.spans.borrow().clone()
    }

    /// Waits until `wanted` accepts the spans; gives all of them.
    ///
    /// # Errors
    /// Not in time.
    pub async fn until(&self, what: &str, within: Duration, wanted: impl Fn(&[Span]) -> bool) -> Result<Vec<Span>> {
        let mut spans = self.spans.clone();
        let found = wait::at_most(what, within, spans.wait_for(|spans| wanted(spans))).await;
        let names = || self.spans().iter().map(|span| format!("{} {}", span.service, span.name)).collect::<Vec<_>>();
        Ok(found.with_context(|| format!("spans so far: {:?}", names()))??.clone())
    }
}

impl Drop for Collector {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn take(State(spans): State<watch::Sender<Vec<Span>>>, body: Bytes) -> StatusCode {
    let Ok(request) = ExportTraceServiceRequest::decode(body) else { return StatusCode::BAD_REQUEST };
    for resource in request.resource_spans {
        let attributes = texts(&resource.resource.unwrap_or_default().attributes);
        let service = attributes.get("service.name").cloned().unwrap_or_default();
        let exported = resource.scope_spans.into_iter().flat_map(|scope| scope.spans);
        let arrived: Vec<Span> = exported.map(|span| Span::new(&service, &span)).collect();
        spans.send_modify(|spans| spans.extend(arrived));
    }
    StatusCode::OK
}

impl Span {
    fn new(service: &str, span: &Exported) -> Self {
        let failed = span.status.as_ref().filter(|status| status.code() == Code::Error);
        Self {
            service: service.to_string(),
            name: span.name.clone(),
            trace_id: hex::encode(&span.trace_id),
            id: hex::encode(&span.span_id),
            parent: hex::encode(&span.parent_span_id),
            kind: span.kind(),
            error: failed.map(|status| status.message.clone()),
            attributes: texts(&span.attributes),
            start: span.start_time_unix_nano,
            end: span.end_time_unix_nano,
            text: format!("{span:?}"),
        }
    }
}

fn texts(attributes: &[KeyValue]) -> BTreeMap<String, String> {
    let text = |value: &any_value::Value| match value {
        any_value::Value::StringValue(text) => text.clone(),
        any_value::Value::IntValue(number) => number.to_string(),
        any_value::Value::BoolValue(truth) => truth.to_string(),
        other => format!("{other:?}"),
    };
    let value = |attribute: &KeyValue| attribute.value.as_ref()?.value.as_ref().map(text);
    attributes.iter().map(|each| (each.key.clone(), value(each).unwrap_or_default())).collect()
}
