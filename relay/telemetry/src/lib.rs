//! Logs and traces of relay and handler. Traces continue from one process to the next.
//!
//! It knows neither AMQP nor SQS: trace context is read through OpenTelemetry's `Extractor`. An unreachable collector
//! never disturbs the process, and other crates log at INFO and above only.

#[cfg(feature = "otlp")]
mod client;
#[cfg(feature = "otlp")]
mod context;
mod logs;
#[cfg(not(feature = "otlp"))]
mod no_traces;
#[cfg(feature = "otlp")]
mod traces;

#[cfg(feature = "otlp")]
pub use context::{adopt, fail, incoming_trace_id, outgoing, outgoing_traceparent, set, trace_id};
pub use logs::{DETAIL, Logs};
#[cfg(not(feature = "otlp"))]
pub use no_traces::{
    Extractor, Traces, adopt, fail, incoming_trace_id, is_on, outgoing, outgoing_traceparent, set, trace_id,
};
/// Reads the headers or attributes that carry a trace.
#[cfg(feature = "otlp")]
pub use opentelemetry::propagation::Extractor;
#[cfg(feature = "otlp")]
pub use traces::{Traces, is_on};

/// The header or attribute with the trace context.
pub const TRACEPARENT: &str = "traceparent";
/// The header beside it with the vendors' part.
pub const TRACESTATE: &str = "tracestate";

/// Either of these turns traces on.
const ENDPOINTS: [&str; 2] = ["OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT"];

/// A variable that turns traces on and cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{option}: {problem}")]
pub struct BadEndpoint {
    /// The variable.
    pub option: &'static str,
    /// What is wrong, without its value.
    pub problem: String,
}

/// The variable that turns traces on, if one is set.
fn endpoint() -> Option<&'static str> {
    ENDPOINTS.into_iter().find(|name| is_set(name))
}

fn is_set(name: &str) -> bool {
    std::env::var_os(name).is_some_and(|value| !value.is_empty())
}

/// The section on traces in `--help`.
pub const HELP: &str = "Traces, off unless one of the first two is set:
  OTEL_EXPORTER_OTLP_ENDPOINT          where a collector takes OTLP over HTTP, such as http://localhost:4318
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT   the same for traces alone, with its path
  OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_…
                                       as OpenTelemetry specifies them";
