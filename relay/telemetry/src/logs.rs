//! Logs: text or JSON lines on standard error, filtered by `RUST_LOG`; and spans, if traces are on.
//!
//! Other crates log at INFO and above only, whatever `RUST_LOG` says: the AMQP, HTTP and AWS clients print bodies and
//! authorization headers at lower levels. Modules of the AWS client that print whole answers as warnings log nothing.

use std::io::{self, IsTerminal};

use tracing::{Level, Metadata, Subscriber};
use tracing_subscriber::{
    EnvFilter, Layer, Registry,
    filter::{FilterExt, filter_fn},
    fmt,
    layer::{Filter, SubscriberExt},
    registry::LookupSpan,
    util::SubscriberInitExt,
};

use crate::Traces;

/// The target of spans that are for traces only. Log lines do not show them.
pub const DETAIL: &str = "detail";

/// Modules in which the AWS client asks for credentials. Their warnings contain the answers; our own errors say why
/// there are no credentials.
const QUOTING: [&str; 9] = [
    "aws_config::credential_process",
    "aws_config::ecs",
    "aws_config::imds",
    "aws_config::login",
    "aws_config::meta",
    "aws_config::profile::credentials",
    "aws_config::sso",
    "aws_config::sts",
    "aws_config::web_identity_token",
];

/// How a process logs.
#[derive(Debug, Clone, Copy)]
pub struct Logs {
    /// The crate whose lines and spans these are.
    pub own: &'static str,
    /// One JSON object per line instead of text.
    pub json: bool,
    /// What is logged unless `RUST_LOG` says otherwise.
    pub filter: &'static str,
}

impl Logs {
    /// Installs the process-wide subscriber.
    pub fn init(self, traces: Option<&Traces>) {
        let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(self.filter));
        let allowed = filter_fn(move |metadata| self.allows(metadata));
        let Some(traces) = traces else {
            return tracing_subscriber::registry().with(self.lines().with_filter(allowed)).with(filter).init();
        };
        self.init_with_traces(traces, filter.and(allowed));
    }

    #[cfg(not(feature = "otlp"))]
    fn init_with_traces(self, traces: &Traces, _: impl Filter<Registry>) {
        match traces.0 {}
    }

    #[cfg(feature = "otlp")]
    fn init_with_traces(self, traces: &Traces, lines: impl Filter<Registry> + Send + Sync + 'static) {
        let spans = tracing_opentelemetry::layer().with_tracer(traces.tracer());
        let traced = move |metadata: &Metadata<'_>| {
            (self.owns(metadata) || metadata.target() == DETAIL) && *metadata.level() <= Level::INFO
        };
        tracing_subscriber::registry()
            .with(self.lines().with_filter(lines))
            // A trace is complete, whatever the lines leave out.
            .with(spans.with_filter(filter_fn(traced)))
            .init();
    }

    fn lines<S: Subscriber + for<'a> LookupSpan<'a>>(self) -> Box<dyn Layer<S> + Send + Sync> {
        match self.json {
            true => fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(io::stderr).boxed(),
            false => fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).boxed(),
        }
    }

    fn allows(self, metadata: &Metadata<'_>) -> bool {
        let is_quoting = QUOTING.iter().any(|module| is_in(metadata.target(), module));
        metadata.target() != DETAIL && (self.owns(metadata) || (*metadata.level() <= Level::INFO && !is_quoting))
    }

    fn owns(self, metadata: &Metadata<'_>) -> bool {
        is_in(metadata.target(), self.own)
    }
}

fn is_in(target: &str, module: &str) -> bool {
    target.strip_prefix(module).is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
}
