//! Logs and traces of relay and handler. Traces continue from one process to the next.
//!
//! It knows neither AMQP nor SQS: trace context is read through OpenTelemetry's `Extractor`. An unreachable collector
//! never disturbs the process, and other crates log at INFO and above only.

mod client;
mod context;
mod logs;
mod traces;

pub use context::{
    TRACEPARENT, TRACESTATE, adopt, fail, incoming_trace_id, outgoing, outgoing_traceparent, set, trace_id,
};
pub use logs::{DETAIL, Logs};
pub use traces::{BadEndpoint, Traces, is_on};

/// Reads the headers or attributes that carry a trace.
pub use opentelemetry::propagation::Extractor;

/// The section on traces in `--help`.
pub const HELP: &str = "Traces, off unless one of the first two is set:
  OTEL_EXPORTER_OTLP_ENDPOINT          where a collector takes OTLP over HTTP, such as http://localhost:4318
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT   the same for traces alone, with its path
  OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_…
                                       as OpenTelemetry specifies them";
