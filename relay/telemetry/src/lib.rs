//! What relay and handler tell of themselves beside metrics: log lines, and traces that go from one process to the next.
//!
//! Knows neither AMQP nor SQS: what carries a trace is behind OpenTelemetry's extractor. Refuses to let a
//! collector matter, and another crate log below INFO.

mod client;
mod context;
mod logs;
mod traces;

pub use context::{
    TRACEPARENT, TRACESTATE, adopt, fail, incoming_trace_id, outgoing, outgoing_traceparent, set, trace_id,
};
pub use logs::{DETAIL, Logs};
pub use traces::{BadEndpoint, Traces, is_on};

/// What a trace is carried by.
pub use opentelemetry::propagation::Extractor;

/// For the end of `--help`.
pub const HELP: &str = "Traces, off unless one of the first two is set:
  OTEL_EXPORTER_OTLP_ENDPOINT          where a collector takes OTLP over HTTP, such as http://localhost:4318
  OTEL_EXPORTER_OTLP_TRACES_ENDPOINT   the same for traces alone, with its path
  OTEL_EXPORTER_OTLP_HEADERS, _TIMEOUT, OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_BSP_…
                                       as OpenTelemetry specifies them";
