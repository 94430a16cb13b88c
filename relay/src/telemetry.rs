//! Logs: text or JSON lines on standard error, filtered by `RUST_LOG`.
//!
//! Refuses to let another crate log below INFO, whatever `RUST_LOG` says: the AMQP and AWS clients print bodies and
//! authorization headers at their lower levels.

use std::io::{self, IsTerminal};

use tracing::{Level, Metadata};
use tracing_subscriber::{EnvFilter, Layer, filter::filter_fn, fmt, layer::SubscriberExt, util::SubscriberInitExt};

use crate::config::LogFormat;

/// The AMQP client reports each failure that it also returns; ours is the line that counts.
const DEFAULT_FILTER: &str = "warn,relay=info,lapin=off";

/// Installs the process-wide subscriber.
pub fn init(format: LogFormat) {
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(DEFAULT_FILTER));
    let lines = match format {
        LogFormat::Json => {
            fmt::layer().json().flatten_event(true).with_span_list(false).with_writer(io::stderr).boxed()
        }
        LogFormat::Text => fmt::layer().with_ansi(io::stderr().is_terminal()).with_writer(io::stderr).boxed(),
    };
    tracing_subscriber::registry().with(lines.with_filter(filter_fn(is_allowed))).with(filter).init();
}

fn is_allowed(metadata: &Metadata<'_>) -> bool {
    let own = metadata.target() == "relay" || metadata.target().starts_with("relay::");
    own || *metadata.level() <= Level::INFO
}
