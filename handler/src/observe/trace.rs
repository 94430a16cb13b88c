//! A task's trace: a span for the task, the child of what the relay sent, with one for each stage and for each call of a webhook.
//!
//! Stages are measured whether traces are on or not. Refuses to hold what a task says or where it points: no prompt, name or token, and
//! of addresses the host alone.

use reqwest::Method;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use telemetry::DETAIL;
use tracing::{Instrument, Span, field, info_span};
use url::Url;

/// Unless the environment says otherwise.
pub const SERVICE_NAME: &str = "easel-handler";
/// How long an answer to Lambda waits for its spans: after it the process stands still.
pub const FLUSH_LIMIT: Duration = Duration::from_millis(500);
/// What of a message carries its trace.
pub const CARRIED: [&str; 2] = [telemetry::TRACEPARENT, telemetry::TRACESTATE];

/// `traceparent` and `tracestate` of a message.
pub type Carrier = HashMap<String, String>;

/// A stage and how long it took.
pub type Lap = (&'static str, Duration);

/// A stage that goes on, for one task or for several that are painted together. Dropped before its end, it has failed.
#[derive(Debug)]
pub struct Stage {
    name: &'static str,
    clock: Instant,
    spans: Vec<Span>,
}

impl Stage {
    /// Begins one of the task that is current.
    pub fn begin(name: &'static str) -> Self {
        Self::of(name, [&Span::current()])
    }

    /// Begins one of these tasks.
    pub fn of<'a>(name: &'static str, tasks: impl IntoIterator<Item = &'a Span>) -> Self {
        let span = |task: &Span| info_span!(target: DETAIL, parent: task, "stage", otel.name = name);
        Self { name, clock: Instant::now(), spans: tasks.into_iter().map(span).collect() }
    }

    /// Does `work` as this stage, and ends it.
    pub async fn around<T>(self, work: impl Future<Output = T>) -> (T, Lap) {
        (work.instrument(self.span()).await, self.end())
    }

    /// Its span, of the first task.
    pub fn span(&self) -> Span {
        self.spans.first().cloned().unwrap_or_else(Span::none)
    }

    /// Ends it.
    pub fn end(self) -> Lap {
        (self.name, self.clock.elapsed())
    }
}

/// The span of a message that is worked on, with its id in the queue, and how often the queue has handed it out.
pub fn task(carrier: &Carrier, id: Option<&str>, receive_count: u32) -> Span {
    let span = info_span!("task", generation_id = field::Empty, receive_count, otel.kind = field::Empty);
    if telemetry::is_on() {
        telemetry::adopt(&span, carrier);
        // Not shown in the lines of those who have no traces.
        span.record("otel.kind", "consumer");
        telemetry::set(&span, "messaging.system", "aws_sqs");
        telemetry::set(&span, "messaging.operation.type", "process");
        telemetry::set(&span, "retry_count", i64::from(receive_count.saturating_sub(1)));
        id.iter().for_each(|id| telemetry::set(&span, "messaging.message.id", id.to_string()));
    }
    span
}

/// The trace that a task belongs to; where traces are off, the one that its message names.
pub fn id(span: &Span, carrier: &Carrier) -> Option<String> {
    telemetry::trace_id(span).or_else(|| telemetry::incoming_trace_id(carrier))
}

/// Says how a task ended, and by what code what was at fault is known.
pub fn end(span: &Span, ending: &'static str, fault: Option<&'static str>) {
    telemetry::set(span, "ending", ending);
    if let Some(code) = fault {
        telemetry::fail(span, code);
    }
}

/// The span of one call of a webhook.
pub fn webhook(event: &'static str, method: &Method, base: &Url, resends: u32) -> Span {
    info_span!(
        target: DETAIL,
        "webhook",
        otel.kind = "client",
        webhook.event = event,
        http.request.method = method.as_str(),
        http.request.resend_count = resends,
        http.response.status_code = field::Empty,
        server.address = base.host_str(),
        server.port = base.port_or_known_default(),
    )
}

/// A line of the log for a phase that began at `started` and is over now.
pub(crate) fn log_phase(phase: &'static str, started: Instant) {
    tracing::info!(phase, duration_ms = started.elapsed().as_millis() as u64, "startup");
}
