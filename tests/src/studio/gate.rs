//! A reverse proxy between the real binaries and the stand-in for SQS and S3: it sees which task was sent to the queue and whose
//! picture was stored, and can refuse what is sent. Refuses to change anything that it lets through.

use super::{book::Book, record::Station};
use crate::{aws::IMAGES, sqs::Trouble};
use anyhow::Result;
use axum::{
    Router,
    body::{Body, Bytes},
    extract::{DefaultBodyLimit, State},
    http::{HeaderMap, Method, StatusCode, Uri},
    response::{IntoResponse, Response},
};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
};
use tokio::{net::TcpListener, task::JoinHandle};

/// More than any picture has.
const MAX_REQUEST_BYTES: usize = 64 << 20;
const SEND: &str = "AmazonSQS.SendMessageBatch";

/// The proxy. It ends when it is dropped.
#[derive(Debug)]
pub struct Gate {
    addr: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<io::Result<()>>,
}

#[derive(Debug)]
struct Shared {
    target: String,
    http: reqwest::Client,
    book: Arc<Book>,
    trouble: Mutex<Option<Trouble>>,
}

impl Gate {
    /// Starts it in front of `target`.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: &str, book: Arc<Book>) -> Result<Self> {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await?;
        let addr = listener.local_addr()?;
        let http = reqwest::Client::builder().no_proxy().build()?;
        let shared = Arc::new(Shared { target: target.to_string(), http, book, trouble: Mutex::default() });
        let app = Router::new().fallback(pass).layer(DefaultBodyLimit::max(MAX_REQUEST_BYTES));
        let app = app.with_state(shared.clone());
        Ok(Self { addr, shared, server: tokio::spawn(async move { axum::serve(listener, app).await }) })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Refuses what is sent to queues from now on, or lets it pass again.
    pub fn set_trouble(&self, trouble: Option<Trouble>) {
        *self.shared.trouble.lock().unwrap_or_else(PoisonError::into_inner) = trouble;
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        self.server.abort();
    }
}

impl Shared {
    fn refusal(&self) -> Option<Response> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(Trouble::answer)
    }

    /// Passes a batch on, unless it is refused; notes what became of each task in it.
    async fn send(&self, request: reqwest::RequestBuilder, body: &[u8]) -> Response {
        let sent = entries(body);
        for id in sent.values() {
            self.book.mark_once(*id, Station::Relay, "the relay sends it to SQS");
        }
        if let Some(refusal) = self.refusal() {
            self.book.set_status(|status| status.sends_refused += 1);
            for id in sent.values() {
                self.book.change(*id, |record, _| record.refusals += 1);
            }
            return refusal;
        }
        let (answer, body) = forward(request).await;
        let accepted: Value = serde_json::from_slice(&body).unwrap_or_default();
        for entry in accepted["Successful"].as_array().into_iter().flatten() {
            if let Some(id) = entry["Id"].as_str().and_then(|entry| sent.get(entry)) {
                self.book.mark_once(*id, Station::Queue, "SQS has it");
            }
        }
        answer
    }
}

async fn pass(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let is_send = headers.get("x-amz-target").is_some_and(|target| target == SEND);
    let stored = (method == Method::PUT).then(|| picture_of(uri.path())).flatten();
    let request = shared.http.request(method, format!("{}{uri}", shared.target)).headers(headers).body(body.clone());
    if is_send {
        return shared.send(request, &body).await;
    }
    let (answer, _) = forward(request).await;
    if let Some(id) = stored.filter(|_| answer.status().is_success()) {
        shared.book.mark(id, Station::Storage, true, "S3 has the picture");
    }
    answer
}

async fn forward(request: reqwest::RequestBuilder) -> (Response, Bytes) {
    let Ok(answer) = request.send().await else {
        return (StatusCode::BAD_GATEWAY.into_response(), Bytes::new());
    };
    let (status, headers) = (answer.status(), answer.headers().clone());
    // An answer that broke off must not look like one that is empty.
    let Ok(body) = answer.bytes().await else {
        return (StatusCode::BAD_GATEWAY.into_response(), Bytes::new());
    };
    let mut passed = Response::new(Body::from(body.clone()));
    *passed.status_mut() = status;
    *passed.headers_mut() = headers;
    (passed, body)
}

/// The generations in a request to send, by the entries' ids.
fn entries(body: &[u8]) -> BTreeMap<String, i64> {
    let batch: Value = serde_json::from_slice(body).unwrap_or_default();
    let entry = |entry: &Value| {
        let message: Value = serde_json::from_str(entry["MessageBody"].as_str()?).ok()?;
        Some((entry["Id"].as_str()?.to_string(), message["generation_id"].as_i64()?))
    };
    batch["Entries"].as_array().into_iter().flatten().filter_map(entry).collect()
}

/// The generation whose picture has this path.
fn picture_of(path: &str) -> Option<i64> {
    let name = path.strip_prefix('/')?.strip_prefix(IMAGES)?.strip_prefix("/generations/gen_")?;
    name.split(['.', '_']).next()?.parse().ok()
}
