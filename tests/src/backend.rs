//! The platform's backend as Easel sees it: a webhook receiver that keeps every call. It can refuse calls, inject random faults, and
//! be down.

use crate::{
    connection::{Connection, Connections},
    fault_injection::{FaultInjector, RequestFault},
    wait,
};
use anyhow::{Context, Result};
use axum::{
    Json, Router,
    body::Bytes,
    extract::{ConnectInfo, State},
    http::{HeaderMap, Method, StatusCode, Uri, header::RETRY_AFTER},
    response::{IntoResponse, Response},
};
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle, time::sleep};
use tokio_util::sync::CancellationToken;

/// Path of progress webhooks.
pub const PROGRESS: &str = "/api/webhooks/inference/progress";
/// Path of complete webhooks.
pub const COMPLETE: &str = "/api/webhooks/inference/complete";
/// Path of failed webhooks.
pub const FAILED: &str = "/api/webhooks/inference/failed";
/// Path of cancelled webhooks.
pub const CANCELLED: &str = "/api/webhooks/inference/cancelled";

/// The receiver.
#[derive(Debug)]
pub struct Backend {
    addr: SocketAddr,
    shared: Arc<Shared>,
    server: Option<Server>,
}

/// One webhook as it came in.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Call {
    /// HTTP method.
    pub method: String,
    /// Path with query.
    pub path: String,
    /// Headers, names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The JSON body; a string if it is not JSON.
    pub body: Value,
    /// The body as it came.
    #[serde(skip)]
    pub text: String,
    /// Milliseconds since the receiver was started.
    pub at_ms: u64,
    /// The status of the answer; 200 also if the call was taken and the answer lost.
    pub status: u16,
}

#[derive(Debug)]
struct Shared {
    started: Instant,
    calls: watch::Sender<Vec<Call>>,
    refusals: Mutex<Vec<Refusal>>,
    injector: Option<Arc<FaultInjector>>,
}

#[derive(Debug)]
struct Refusal {
    path: &'static str,
    status: u16,
    times: usize,
    /// Empty for none.
    retry_after: &'static str,
}

#[derive(Debug)]
struct Server {
    stop: CancellationToken,
    task: JoinHandle<std::io::Result<()>>,
}

impl Backend {
    /// Starts listening.
    ///
    /// # Errors
    /// No free port.
    pub async fn start() -> Result<Self> {
        Self::start_with(None).await
    }

    /// As [`start`](Self::start), with fault injection. A call that stalls is recorded before its answer.
    ///
    /// # Errors
    /// No free port.
    pub async fn start_with(injector: Option<Arc<FaultInjector>>) -> Result<Self> {
        let (calls, _) = watch::channel(Vec::new());
        let shared = Arc::new(Shared { started: Instant::now(), calls, refusals: Mutex::default(), injector });
        let mut backend = Self { addr: ([127, 0, 0, 1], 0).into(), shared, server: None };
        backend.open().await?;
        Ok(backend)
    }

    /// The base address for a task's `webhook_url`.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Milliseconds since it was started, the clock of [`Call::at_ms`].
    pub fn now_ms(&self) -> u64 {
        self.shared.started.elapsed().as_millis() as u64
    }

    /// Answers the next `times` calls to `path` with `status`.
    pub fn refuse(&self, path: &'static str, status: u16, times: usize) {
        self.refuse_with_retry_after(path, status, times, "");
    }

    /// As [`Self::refuse`], with a Retry-After header.
    pub fn refuse_with_retry_after(&self, path: &'static str, status: u16, times: usize, retry_after: &'static str) {
        self.shared.refusals().push(Refusal { path, status, times, retry_after });
    }

    /// Accepts every call again.
    pub fn accept_all(&self) {
        self.shared.refusals().clear();
    }

    /// Stops listening: connections are refused from now on.
    pub async fn close(&mut self) {
        if let Some(server) = self.server.take() {
            server.stop.cancel();
            // It ends when its connections have ended. Whatever the result, it no longer listens.
            let _ = server.task.await;
        }
    }

    /// Listens, on the same port as before.
    ///
    /// # Errors
    /// The port is taken.
    pub async fn open(&mut self) -> Result<()> {
        let listener = TcpListener::bind(self.addr).await.context("webhook receiver")?;
        self.addr = listener.local_addr()?;
        let app = Router::new().fallback(receive).with_state(self.shared.clone());
        let app = app.into_make_service_with_connect_info::<Connection>();
        let stop = CancellationToken::new();
        let serve = axum::serve(Connections::new(listener), app).with_graceful_shutdown(stop.clone().cancelled_owned());
        self.server = Some(Server { stop, task: tokio::spawn(async move { serve.await }) });
        Ok(())
    }

    /// All calls in order of arrival.
    pub fn calls(&self) -> Vec<Call> {
        self.shared.calls.borrow().clone()
    }

    /// The calls of one generation, in order of arrival.
    pub fn calls_of(&self, generation_id: i64) -> Vec<Call> {
        self.calls().into_iter().filter(|call| call.generation_id() == Some(generation_id)).collect()
    }

    /// Follows the calls as they come.
    pub fn follow(&self) -> watch::Receiver<Vec<Call>> {
        self.shared.calls.subscribe()
    }

    /// Waits for the first call that `wanted` accepts.
    ///
    /// # Errors
    /// None came in time; the error lists those that did.
    pub async fn call(&self, what: &str, within: Duration, wanted: impl Fn(&Call) -> bool) -> Result<Call> {
        let mut calls = self.follow();
        let came = async {
            let calls = calls.wait_for(|calls| calls.iter().any(&wanted)).await.ok()?;
            calls.iter().find(|call| wanted(call)).cloned()
        };
        let came = wait::at_most(what, within, came).await;
        let list = || self.calls().iter().map(|call| format!("\n    {}", call.line())).collect::<String>();
        came.with_context(|| format!("webhooks so far:{}", list()))?.context("the receiver is gone")
    }

    /// Waits for the webhook that ends a generation and was taken: complete or failed.
    ///
    /// # Errors
    /// Not in time.
    pub async fn end_of(&self, generation_id: i64, within: Duration) -> Result<Call> {
        let what = format!("end of generation {generation_id}");
        self.call(&what, within, |call| call.generation_id() == Some(generation_id) && call.is_end()).await
    }
}

impl Call {
    /// The generation id in its body.
    pub fn generation_id(&self) -> Option<i64> {
        self.body["generation_id"].as_i64()
    }

    /// The text of a failed webhook; empty in others.
    pub fn error_message(&self) -> &str {
        self.body["error_message"].as_str().unwrap_or_default()
    }

    /// Whether it ends a generation and was taken.
    pub fn is_end(&self) -> bool {
        self.status == 200 && (self.path == COMPLETE || self.path == FAILED)
    }

    /// One line for people.
    pub fn line(&self) -> String {
        format!("{:>7} ms  {} {:<5} {} {}", self.at_ms, self.status, self.method, self.path, self.body)
    }
}

impl Shared {
    fn refusals(&self) -> std::sync::MutexGuard<'_, Vec<Refusal>> {
        self.refusals.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The status and the Retry-After value.
    fn answer(&self, path: &str) -> (u16, &'static str) {
        let mut refusals = self.refusals();
        let due = refusals.iter_mut().find(|refusal| refusal.times > 0 && refusal.path == path);
        due.map_or((200, ""), |refusal| {
            refusal.times -= 1;
            (refusal.status, refusal.retry_after)
        })
    }
}

async fn receive(
    ConnectInfo(connection): ConnectInfo<Connection>,
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let fault = shared.injector.as_ref().and_then(|injector| injector.next());
    let (status, retry_after) = match fault {
        Some(RequestFault::Refuse(_)) => (500, ""),
        _ => shared.answer(uri.path()),
    };
    let text = |value: &axum::http::HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
    let call = Call {
        method: method.to_string(),
        path: uri.to_string(),
        headers: headers.iter().map(|(name, value)| (name.to_string(), text(value))).collect(),
        body: serde_json::from_slice(&body).unwrap_or_else(|_| String::from_utf8_lossy(&body).into_owned().into()),
        text: String::from_utf8_lossy(&body).into_owned(),
        at_ms: shared.started.elapsed().as_millis() as u64,
        status,
    };
    shared.calls.send_modify(|calls| calls.push(call));
    if let Some(RequestFault::Stall(time)) = fault {
        sleep(time).await;
    }
    let answer = |status: u16| {
        let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
        let body = Json(json!({ "success": status.is_success() }));
        match retry_after {
            "" => (status, body).into_response(),
            wait => (status, [(RETRY_AFTER, wait)], body).into_response(),
        }
    };
    match fault {
        Some(RequestFault::LostAnswer(loss)) => loss.lose(&connection, answer(500), answer(status)).await,
        _ => answer(status),
    }
}
