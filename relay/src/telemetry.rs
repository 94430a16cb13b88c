//! Logs: text or JSON lines on standard error, filtered by `RUST_LOG`; and spans for [`crate::trace`] where that is on.
//!
//! Refuses to let another crate log below INFO, whatever `RUST_LOG` says: the AMQP and AWS clients print bodies and
//! authorization headers at their lower levels.

use std::io::{self, IsTerminal};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::SubscriberExt,
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::{config::LogFormat, trace::Traces};

/// The AMQP client reports each failure that it also returns; ours is the line that counts.
const DEFAULT_FILTER: &str = "warn,relay=info,lapin=off";

/// Installs the process-wide subscriber.
pub fn init(format: LogFormat, traces: Option<&Traces>) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let Some(traces) = traces else {
        return tracing_subscriber::registry()
            .with(lines(format).with_filter(filter_fn(is_allowed)))
            .with(filter)
            .init();
    };
    let spans = tracing_opentelemetry::layer().with_tracer(traces.tracer());
    tracing_subscriber::registry()
        .with(lines(format).with_filter(filter.and(filter_fn(is_allowed))))
        // Whatever the lines leave out, a trace is whole.
        .with(spans.with_filter(filter_fn(|metadata| is_own(metadata) && *metadata.level() <= Level::INFO)))
        .init();
}

fn lines<S: Subscriber + for<'a> LookupSpan<'a>>(format: LogFormat) -> Box<dyn Layer<S> + Send + Sync> {
    match format {
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(io::stderr).boxed()
        }
        LogFormat::Text => fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).boxed(),
    }
}

fn is_allowed(metadata: &Metadata<'_>) -> bool {
    is_own(metadata) || *metadata.level() <= Level::INFO
}

fn is_own(metadata: &Metadata<'_>) -> bool {
    metadata.target() == "relay" || metadata.target().starts_with("relay::")
}
