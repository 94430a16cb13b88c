//! An SQS stand-in for load and fault tests: one queue, AWS JSON 1.0 over HTTP, the limits of the real SQS.
//!
//! It is faster than moto and can inject faults ([`SqsFault`]). Nobody can receive from it: accepted messages are counted and kept,
//! or given to a watcher. It answers violated limits as SQS does, and keeps a list of them.

mod fault;
mod limits;
mod queue;
mod wire;

pub use fault::SqsFault;
pub use queue::{Accepted, Kept};

use self::{
    queue::Queue,
    wire::{Answer, Batch, Refusal},
};
use crate::{
    connection::{Connection, Connections},
    fault_injection::Loss,
    wait,
};
use anyhow::{Context, Result};
use axum::{
    Router,
    body::Bytes,
    extract::{ConnectInfo, DefaultBodyLimit, State},
    http::HeaderMap,
    response::Response,
};
use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, task::JoinHandle, time::sleep};

/// More than any batch with its escapes: a batch that is too long must get the error of SQS and not 413.
const MAX_REQUEST_BYTES: usize = 16 << 20;

/// Called with every accepted entry, in order.
pub type Watcher = Box<dyn Fn(&Accepted<'_>) + Send + Sync>;

/// The stand-in. It ends when this is dropped.
#[derive(Debug)]
pub struct Sqs {
    addr: SocketAddr,
    shared: Arc<Shared>,
    task: JoinHandle<()>,
}

struct Shared {
    name: String,
    latency_us: AtomicU64,
    requests: AtomicU64,
    fault: Mutex<Option<SqsFault>>,
    queue: Mutex<Queue>,
    broken: Mutex<Vec<String>>,
}

impl Sqs {
    /// Starts one with the queue `name`; a name that ends with `.fifo` makes a FIFO queue. With a watcher no messages are kept,
    /// so that a million of them need no memory.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(name: &str, watcher: Option<Watcher>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.context("SQS stand-in")?;
        let addr = listener.local_addr()?;
        let shared = Arc::new(Shared {
            name: name.to_string(),
            latency_us: AtomicU64::default(),
            requests: AtomicU64::default(),
            fault: Mutex::default(),
            queue: Mutex::new(Queue::new(name.ends_with(".fifo"), watcher)),
            broken: Mutex::default(),
        });
        let app =
            Router::new().fallback(serve).layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES)).with_state(shared.clone());
        let service = app.into_make_service_with_connect_info::<Connection>();
        let task = tokio::spawn(async move { drop(axum::serve(Connections::new(listener), service).await) });
        Ok(Self { addr, shared, task })
    }

    /// Where it listens.
    pub fn addr(&self) -> SocketAddr {
        self.addr
    }

    /// The queue's URL for clients that reach the stand-in at `addr`, which may be a proxy's.
    pub fn queue_url(&self, addr: SocketAddr) -> String {
        format!("http://{addr}/000000000000/{}", self.shared.name)
    }

    /// Delays every answer by this time from now on.
    pub fn set_latency(&self, latency: Duration) {
        self.shared.latency_us.store(latency.as_micros() as u64, Ordering::Relaxed);
    }

    /// Injects this fault from now on, or none.
    pub fn set_fault(&self, fault: Option<SqsFault>) {
        *lock(&self.shared.fault) = fault;
    }

    /// Number of send requests, refused ones included.
    pub fn requests(&self) -> u64 {
        self.shared.requests.load(Ordering::Relaxed)
    }

    /// Number of accepted entries.
    pub fn count(&self) -> u64 {
        lock(&self.shared.queue).count()
    }

    /// Waits until `count` entries were accepted.
    ///
    /// # Errors
    /// Not in time.
    pub async fn accepts(&self, count: u64, within: Duration) -> Result<()> {
        wait::until(&format!("{count} messages in SQS"), within, async || (self.count() >= count).then_some(())).await
    }

    /// The accepted entries, in order. Empty with a watcher.
    pub fn kept(&self) -> Vec<Kept> {
        lock(&self.shared.queue).kept().to_vec()
    }

    /// The violations of SQS's limits so far.
    pub fn broken_limits(&self) -> Vec<String> {
        lock(&self.shared.broken).clone()
    }
}

impl Drop for Sqs {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("name", &self.name).finish_non_exhaustive()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

async fn serve(
    ConnectInfo(connection): ConnectInfo<Connection>,
    State(shared): State<Arc<Shared>>,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let latency = Duration::from_micros(shared.latency_us.load(Ordering::Relaxed));
    let target = headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let mut loss = None;
    let response = match target.strip_prefix("AmazonSQS.").unwrap_or_default() {
        "SendMessageBatch" => shared.batch(&body, &mut loss).map(|answer| wire::ok(&answer)),
        "SendMessage" => shared.single(&body, &mut loss).map(|answer| wire::ok(&answer)),
        "GetQueueAttributes" => shared.attributes(&body).map(|answer| wire::ok(&answer)),
        "GetQueueUrl" => Ok(wire::ok(&serde_json::json!({ "QueueUrl": shared.url(&headers) }))),
        other => Err(Refusal::sender("UnsupportedOperation", format!("{other:?} is not played here"))),
    };
    if !latency.is_zero() {
        sleep(latency).await;
    }
    let response = response.unwrap_or_else(Refusal::into_response);
    match loss {
        Some(loss) => loss.lose(&connection, internal(), response).await,
        None => response,
    }
}

/// SQS's answer to a throttled request.
pub(crate) fn throttled() -> Response {
    Refusal::throttled().into_response()
}

/// SQS's answer when it fails.
pub(crate) fn internal() -> Response {
    Refusal::internal("We encountered an internal error. Please try again.").into_response()
}

impl Shared {
    fn batch(&self, body: &[u8], loss: &mut Option<Loss>) -> Result<Answer, Refusal> {
        self.requests.fetch_add(1, Ordering::Relaxed);
        let fault = lock(&self.fault);
        if let Some(refusal) = fault.as_ref().and_then(SqsFault::refusal) {
            return Err(refusal);
        }
        let batch: Batch<'_> = wire::read(body)?;
        self.named(&batch.queue_url)?;
        let mut queue = lock(&self.queue);
        limits::batch(&batch, queue.fifo()).map_err(|refusal| self.remember(refusal))?;
        let mut answer = Answer::default();
        for entry in &batch.entries {
            let failed = match limits::entry(entry) {
                Err(refusal) => Some(self.remember(refusal)),
                Ok(()) => fault.as_ref().and_then(|fault| fault.of_entry(&entry.body)),
            };
            match failed {
                Some(refusal) => answer.failed(&entry.id, refusal),
                None => answer.accepted(&entry.id, queue.accept(entry)),
            }
        }
        *loss = fault.as_ref().and_then(SqsFault::loss);
        Ok(answer)
    }

    fn single(&self, body: &[u8], loss: &mut Option<Loss>) -> Result<serde_json::Value, Refusal> {
        // It differs from a batch of one only in its shape.
        let mut answer = self.batch(&wire::as_batch(body)?, loss)?;
        answer.only()
    }

    fn attributes(&self, body: &[u8]) -> Result<serde_json::Value, Refusal> {
        let asked: wire::QueueOnly<'_> = wire::read(body)?;
        self.named(&asked.queue_url)?;
        let arn = format!("arn:aws:sqs:us-east-1:000000000000:{}", self.name);
        Ok(serde_json::json!({ "Attributes": { "QueueArn": arn } }))
    }

    fn url(&self, headers: &HeaderMap) -> String {
        let host = headers.get("host").and_then(|value| value.to_str().ok()).unwrap_or("127.0.0.1");
        format!("http://{host}/000000000000/{}", self.name)
    }

    fn named(&self, url: &str) -> Result<(), Refusal> {
        if url.rsplit('/').next() == Some(&self.name) {
            return Ok(());
        }
        Err(Refusal::sender("QueueDoesNotExist", "The specified queue does not exist.".to_string()))
    }

    fn remember(&self, refusal: Refusal) -> Refusal {
        lock(&self.broken).push(format!("{}: {}", refusal.code, refusal.message));
        refusal
    }
}
