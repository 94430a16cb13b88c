//! Trace context between processes: a span continues its sender's trace, and what is sent continues ours.
//!
//! While traces are off, only reading a trace id works.

use opentelemetry::{
    Context, Value,
    propagation::{Extractor, TextMapPropagator},
    trace::{SpanContext, Status, TraceContextExt},
};
use opentelemetry_sdk::propagation::TraceContextPropagator;
use tracing::Span;
use tracing_opentelemetry::OpenTelemetrySpanExt;

use crate::{TRACEPARENT, TRACESTATE, is_on};

/// The longest `tracestate` that is passed on, in bytes: what W3C Trace Context requires everybody to accept. A longer
/// one could make the receiver refuse the request for its headers.
const LONGEST_STATE: usize = 512;

/// Makes a span part of the trace that its message carries. Must be the first thing done with the span.
pub fn adopt(span: &Span, carrier: &dyn Extractor) {
    if !is_on() {
        return;
    }
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), carrier);
    if parent.span().span_context().is_valid() {
        // Fails for a span that is not recorded, which needs no parent.
        let _ = span.set_parent(parent);
    }
}

/// The `traceparent` for what is sent, which makes the receiver's span a child of `span`; `None` while traces are off.
pub fn outgoing_traceparent(span: &Span) -> Option<String> {
    let own = own(span)?;
    let flags = own.trace_flags().to_u8() & 1;
    Some(format!("00-{}-{}-{flags:02x}", own.trace_id(), own.span_id()))
}

/// The trace headers for what is sent: none while traces are off, and no empty or too long one.
pub fn outgoing(span: &Span) -> Vec<(&'static str, String)> {
    let Some(own) = own(span) else { return vec![] };
    let state = Some(own.trace_state().header()).filter(|state| (1..=LONGEST_STATE).contains(&state.len()));
    let parent = outgoing_traceparent(span).map(|parent| (TRACEPARENT, parent));
    parent.into_iter().chain(state.map(|state| (TRACESTATE, state))).collect()
}

/// The id of a span's trace; `None` while traces are off.
pub fn trace_id(span: &Span) -> Option<String> {
    Some(own(span)?.trace_id().to_string())
}

/// The id of the trace that a message carries, also while traces are off.
pub fn incoming_trace_id(carrier: &dyn Extractor) -> Option<String> {
    let parent = TraceContextPropagator::new().extract_with_context(&Context::new(), carrier);
    let parent = parent.span().span_context().clone();
    parent.is_valid().then(|| parent.trace_id().to_string())
}

/// Sets an attribute of the span.
pub fn set(span: &Span, key: &'static str, value: impl Into<Value>) {
    if is_on() {
        span.set_attribute(key, value);
    }
}

/// Marks the span as failed, with a code of ours: never with text from a service or a task.
pub fn fail(span: &Span, code: &'static str) {
    if is_on() {
        span.set_attribute("error.type", code);
        span.set_status(Status::error(code));
    }
}

fn own(span: &Span) -> Option<SpanContext> {
    let context = is_on().then(|| span.context())?;
    let own = context.span().span_context().clone();
    own.is_valid().then_some(own)
}

#[cfg(test)]
mod tests {
    use std::{collections::HashMap, sync::atomic::Ordering};

    use opentelemetry::trace::TracerProvider;
    use opentelemetry_sdk::trace::SdkTracerProvider;
    use tracing::info_span;
    use tracing_subscriber::layer::SubscriberExt;

    use super::*;
    use crate::traces::ON;

    const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";

    #[test]
    fn a_trace_is_continued_and_an_invalid_one_is_replaced() {
        ON.store(true, Ordering::Relaxed);
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let good = format!("00-{TRACE}-b7ad6b7169203331-01");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            for (value, adopted) in [
                (good.clone(), true),
                (String::new(), false),
                ("00-zz-b7ad6b7169203331-01".to_owned(), false),
                (good.replace(TRACE, &"0".repeat(32)), false),
                (good.to_uppercase(), false),
            ] {
                let carrier = HashMap::from([(TRACEPARENT.to_owned(), value.clone())]);
                let span = info_span!("delivery");
                adopt(&span, &carrier);
                let outgoing = outgoing_traceparent(&span).unwrap();
                assert_eq!(outgoing.contains(TRACE), adopted, "{value:?} gave {outgoing}");
                assert_eq!(incoming_trace_id(&carrier).is_some(), adopted, "{value:?}");
                assert!(!outgoing.contains("b7ad6b7169203331"), "the span id must be our own: {outgoing}");
                assert!(outgoing.len() == 55 && outgoing.starts_with("00-") && outgoing.ends_with("-01"), "{outgoing}");
            }
        });
        // A span that is not recorded has no context.
        assert_eq!(outgoing_traceparent(&info_span!("delivery")), None);
    }

    #[test]
    fn tracestate_is_passed_on_unless_it_is_missing_or_long() {
        ON.store(true, Ordering::Relaxed);
        let provider = SdkTracerProvider::builder().build();
        let layer = tracing_opentelemetry::layer().with_tracer(provider.tracer("test"));
        let traceparent = format!("00-{TRACE}-b7ad6b7169203331-01");
        tracing::subscriber::with_default(tracing_subscriber::registry().with(layer), || {
            let long =
                (0..32).map(|vendor| format!("vendor{vendor}={}", "x".repeat(200))).collect::<Vec<_>>().join(",");
            let both = vec![TRACEPARENT, TRACESTATE];
            for (state, headers) in
                [(None, vec![TRACEPARENT]), (Some("vendor=1"), both), (Some(&*long), vec![TRACEPARENT])]
            {
                let mut carrier = HashMap::from([(TRACEPARENT.to_owned(), traceparent.clone())]);
                carrier.extend(state.map(|state| (TRACESTATE.to_owned(), state.to_owned())));
                let span = info_span!("task");
                adopt(&span, &carrier);
                let sent = outgoing(&span);
                assert_eq!(sent.iter().map(|(name, _)| *name).collect::<Vec<_>>(), headers);
                assert!(sent[0].1.contains(TRACE));
                assert_eq!(sent.get(1).map(|(_, state)| state.as_str()), state.filter(|state| *state != long));
            }
        });
    }
}
