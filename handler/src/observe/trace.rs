//! A task's trace: a span for the task, child of the relay's span, and below it one for each stage and each webhook call.
//!
//! Stages are measured whether traces are on or not. Spans hold no prompt, name or token, and of an address only the host.

use reqwest::Method;
use std::{
    collections::HashMap,
    time::{Duration, Instant},
};
use telemetry::DETAIL;
use tracing::{Instrument, Span, field, info_span};
use url::Url;

/// The service name, unless the environment sets another.
pub const SERVICE_NAME: &str = "easel-handler";
/// How long an answer to Lambda waits for its spans to be sent: after the answer Lambda freezes the process.
pub const FLUSH_LIMIT: Duration = Duration::from_millis(500);
/// The attributes of a message that carry its trace.
pub const CARRIER_FIELDS: [&str; 2] = [telemetry::TRACEPARENT, telemetry::TRACESTATE];

/// The `traceparent` and `tracestate` of a message.
pub type Carrier = HashMap<String, String>;

/// A stage and how long it took.
pub type StageTime = (&'static str, Duration);

/// A running stage of one task, or of several that are painted together.
#[derive(Debug)]
pub struct Stage {
    name: &'static str,
    clock: Instant,
    spans: Vec<Span>,
}

impl Stage {
    /// Begins a stage of the current task.
    pub fn begin(name: &'static str) -> Self {
        Self::of(name, [&Span::current()])
    }

    /// Begins a stage of these tasks.
    pub fn of<'a>(name: &'static str, tasks: impl IntoIterator<Item = &'a Span>) -> Self {
        let span = |task: &Span| info_span!(target: DETAIL, parent: task, "stage", otel.name = name);
        Self { name, clock: Instant::now(), spans: tasks.into_iter().map(span).collect() }
    }

    /// Runs `work` as this stage, and ends it.
    pub async fn measure<T>(self, work: impl Future<Output = T>) -> (T, StageTime) {
        (work.instrument(self.span()).await, self.end())
    }

    /// The span in the first task.
    pub fn span(&self) -> Span {
        self.spans.first().cloned().unwrap_or_else(Span::none)
    }

    /// Ends the stage.
    pub fn end(self) -> StageTime {
        (self.name, self.clock.elapsed())
    }
}

/// The span of a task: `id` is the message's in SQS, `receive_count` how often SQS has delivered it.
pub fn task(carrier: &Carrier, id: Option<&str>, receive_count: u32) -> Span {
    let span = info_span!("task", generation_id = field::Empty, receive_count, otel.kind = field::Empty);
    if telemetry::is_on() {
        telemetry::adopt(&span, carrier);
        // Only here, so that log lines without traces do not show it.
        span.record("otel.kind", "consumer");
        telemetry::set(&span, "messaging.system", "aws_sqs");
        telemetry::set(&span, "messaging.operation.type", "process");
        telemetry::set(&span, "retry_count", i64::from(receive_count.saturating_sub(1)));
        id.iter().for_each(|id| telemetry::set(&span, "messaging.message.id", id.to_string()));
    }
    span
}

/// The id of a task's trace; if traces are off, the one in its message.
pub fn id(span: &Span, carrier: &Carrier) -> Option<String> {
    telemetry::trace_id(span).or_else(|| telemetry::incoming_trace_id(carrier))
}

/// Records how a task ended, and the code of its fault.
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

/// Logs a phase of the start that began at `started` and ends now.
pub(crate) fn log_phase(phase: &'static str, started: Instant) {
    tracing::info!(phase, duration_ms = started.elapsed().as_millis() as u64, "startup");
}
