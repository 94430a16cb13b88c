//! `/healthz` says that the process lives, `/readyz` that it can relay now: consuming on one side, answered on the other.
//! `/metrics` is for Prometheus.
//!
//! It tests nothing by itself: it shows what the bridge last saw.

use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
};

use axum::{Json, response::IntoResponse};
use serde_json::json;
use service::{Health, Status};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use crate::{
    error::Error,
    metrics::{self, Metrics},
};

/// SQS counts as gone after this many requests in a row without an answer. One 500 among good answers is ordinary.
const SQS_GONE: u32 = 3;

/// Many times what `/metrics` answers; something else may listen where a relay is looked for.
const LONGEST_ANSWER: u64 = 1024 * 1024;

/// What the bridge last saw of its two sides.
#[derive(Debug, Clone)]
pub struct Readiness(Arc<Sides>);

#[derive(Debug)]
struct Sides {
    broker: AtomicBool,
    /// Requests in a row that SQS did not answer.
    sqs_failures: AtomicU32,
}

impl Readiness {
    /// Notes whether a consumer is running.
    pub fn set_broker(&self, ready: bool) {
        self.0.broker.store(ready, Ordering::Relaxed);
    }

    /// Notes whether SQS answered a request; true when it had been gone and is back.
    pub fn note_sqs(&self, answered: bool) -> bool {
        if answered {
            return self.0.sqs_failures.swap(0, Ordering::Relaxed) >= SQS_GONE;
        }
        // Stops at the limit: what is gone cannot be more gone.
        let more = |failures: u32| (failures < SQS_GONE).then_some(failures + 1);
        let _ = self.0.sqs_failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, more);
        false
    }

    /// Whether SQS answers.
    pub fn sqs(&self) -> bool {
        self.0.sqs_failures.load(Ordering::Relaxed) < SQS_GONE
    }

    fn broker(&self) -> bool {
        self.0.broker.load(Ordering::Relaxed)
    }
}

impl Default for Readiness {
    /// Nothing is known to work yet.
    fn default() -> Self {
        Self(Arc::new(Sides { broker: AtomicBool::new(false), sqs_failures: AtomicU32::new(SQS_GONE) }))
    }
}

/// What is shown of one queue.
#[derive(Debug, Clone, Default)]
pub struct Watched {
    /// What its bridge last saw.
    pub readiness: Readiness,
    /// Its metrics.
    pub metrics: Metrics,
}

impl Watched {
    /// Of the queue with messages that cancel tasks.
    pub fn of_cancels() -> Self {
        Self { metrics: Metrics::of_cancels(), ..Self::default() }
    }

    fn ready(&self) -> bool {
        self.readiness.broker() && self.readiness.sqs()
    }
}

#[derive(Clone)]
struct Relay {
    tasks: Watched,
    /// The queue with messages that cancel tasks, if there is one.
    cancels: Option<Watched>,
}

impl Status for Relay {
    fn ready(&self) -> (bool, impl IntoResponse) {
        let (broker, sqs) = (self.tasks.readiness.broker(), self.tasks.readiness.sqs());
        let ready = self.tasks.ready() && self.cancels.as_ref().is_none_or(Watched::ready);
        let mut body = json!({ "ready": ready, "broker": broker, "sqs": sqs });
        if let Some(Watched { readiness, .. }) = &self.cancels {
            body["cancels"] = json!({ "broker": readiness.broker(), "s3": readiness.sqs() });
        }
        (ready, Json(body))
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        let all = [Some(&self.tasks), self.cancels.as_ref()].into_iter().flatten();
        metrics::encode(all.map(|one| (&one.metrics, one.readiness.broker(), one.readiness.sqs())))
    }
}

/// Listens on `addr` and answers in the background.
pub async fn serve(addr: SocketAddr, tasks: Watched, cancels: Option<Watched>) -> Result<Health, Error> {
    Health::serve(addr, Relay { tasks, cancels }).await.map_err(|source| Error::Listen { addr, source })
}

/// How many dead letters that came back the relay at `addr` holds; `None` when no relay answers there.
pub(crate) async fn held_at(addr: SocketAddr) -> Option<u64> {
    let mut stream = TcpStream::connect(addr).await.ok()?;
    // Of 1.0, so that the answer is one piece and the connection ends with it.
    stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await.ok()?;
    let mut answer = String::new();
    stream.take(LONGEST_ANSWER).read_to_string(&mut answer).await.ok()?;
    metrics::held(&answer)
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::body::to_bytes;
    use serde_json::Value;
    use tokio::net::TcpListener;

    #[tokio::test]
    async fn ready_needs_both_sides() {
        for (broker, sqs) in [(false, false), (true, false), (false, true), (true, true)] {
            let readiness = Readiness::default();
            readiness.set_broker(broker);
            readiness.note_sqs(sqs);
            let one = Watched { readiness, metrics: Metrics::default() };
            let relay = Relay { tasks: one.clone(), cancels: None };
            assert_eq!(
                answer(&relay).await,
                (broker && sqs, json!({ "ready": broker && sqs, "broker": broker, "sqs": sqs }))
            );
            // With a second queue, both must be ready.
            let well = Watched::of_cancels();
            well.readiness.set_broker(true);
            well.readiness.note_sqs(true);
            let relay = Relay { tasks: well, cancels: Some(one) };
            let cancels = json!({ "broker": broker, "s3": sqs });
            let body = json!({ "ready": broker && sqs, "broker": true, "sqs": true, "cancels": cancels });
            assert_eq!(answer(&relay).await, (broker && sqs, body));
        }
    }

    async fn answer(relay: &Relay) -> (bool, Value) {
        let (ready, body) = relay.ready();
        let body = to_bytes(body.into_response().into_body(), 1024).await.unwrap();
        (ready, serde_json::from_slice(&body).unwrap())
    }

    #[test]
    fn sqs_is_gone_only_after_several_failures_in_a_row() {
        let readiness = Readiness::default();
        assert!(!readiness.sqs());
        for (answered, back, ready) in [
            (true, true, true),
            (false, false, true),
            (false, false, true),
            (true, false, true),
            (false, false, true),
            (false, false, true),
            (false, false, false),
            (false, false, false),
            (true, true, true),
        ] {
            assert_eq!((readiness.note_sqs(answered), readiness.sqs()), (back, ready));
        }
    }

    #[tokio::test]
    async fn what_is_held_can_be_asked_for() {
        let metrics = Metrics::default();
        let (first, second) = (metrics.receive(None), metrics.receive(None));
        let tasks = Watched { metrics, ..Watched::default() };
        let health = serve("127.0.0.1:0".parse().unwrap(), tasks, Some(Watched::of_cancels())).await.unwrap();
        assert_eq!(held_at(health.addr).await, Some(0));
        let _held = (first.held(), second.held());
        assert_eq!(held_at(health.addr).await, Some(2));
        let nobody = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap();
        assert_eq!(held_at(nobody).await, None);
    }

    #[tokio::test]
    async fn a_taken_address_names_the_option() {
        let first = serve("127.0.0.1:0".parse().unwrap(), Watched::default(), None).await.unwrap();
        let err = serve(first.addr, Watched::default(), None).await.unwrap_err();
        assert!(err.to_string().starts_with("--health-addr 127.0.0.1:"), "{err}");
        assert_eq!(err.exit_code(), 1);
    }
}
