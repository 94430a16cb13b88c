//! A reverse proxy in front of SQS that keeps how many messages each request deletes, holds such requests back, and lets entries
//! of them fail. All else passes.

use anyhow::{Context, Result};
use axum::{
    Router,
    body::{Body, Bytes},
    extract::State,
    http::{
        HeaderMap, Method, StatusCode, Uri,
        header::{CONTENT_LENGTH, TRANSFER_ENCODING},
    },
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::{
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};

use crate::wait;

/// The proxy. It ends when this is dropped.
#[derive(Debug)]
pub struct DeletionProxy {
    addr: SocketAddr,
    shared: Arc<Shared>,
    server: JoinHandle<io::Result<()>>,
}

#[derive(Debug)]
struct Shared {
    target: String,
    http: reqwest::Client,
    /// Entries of each request to delete.
    batches: watch::Sender<Vec<usize>>,
    /// Requests to delete that may pass.
    open: watch::Sender<bool>,
    /// First entries of coming requests that fail.
    failures: AtomicUsize,
}

impl DeletionProxy {
    /// Starts it in front of `target`, open.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: &str) -> Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("proxy of SQS")?;
        let shared = Arc::new(Shared {
            target: target.to_string(),
            http: reqwest::Client::builder().no_proxy().build()?,
            batches: watch::Sender::default(),
            open: watch::Sender::new(true),
            failures: AtomicUsize::new(0),
        });
        let (addr, app) = (listener.local_addr()?, Router::new().fallback(pass).with_state(shared.clone()));
        Ok(Self { addr, shared, server: tokio::spawn(async move { axum::serve(listener, app).await }) })
    }

    /// Its address.
    pub fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Holds requests to delete back, or lets them go.
    pub fn hold(&self, hold: bool) {
        self.shared.open.send_replace(!hold);
    }

    /// From now on the first entry of so many requests is not deleted, through no fault of the sender.
    pub fn fail(&self, requests: usize) {
        self.shared.failures.store(requests, Ordering::Relaxed);
    }

    /// How many entries each request to delete had, those that are held back too.
    pub fn batches(&self) -> Vec<usize> {
        self.shared.batches.borrow().clone()
    }

    /// Waits for so many requests to delete.
    ///
    /// # Errors
    /// Not in time.
    pub async fn requests(&self, count: usize, within: Duration) -> Result<()> {
        let mut batches = self.shared.batches.subscribe();
        let enough = batches.wait_for(|batches| batches.len() >= count);
        wait::at_most(&format!("{count} requests to delete"), within, enough).await??;
        Ok(())
    }
}

impl Drop for DeletionProxy {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn pass(
    State(shared): State<Arc<Shared>>,
    method: Method,
    uri: Uri,
    headers: HeaderMap,
    body: Bytes,
) -> Response {
    let target = headers.get("x-amz-target").and_then(|value| value.to_str().ok()).unwrap_or_default();
    let passed = match target {
        "AmazonSQS.DeleteMessageBatch" => shared.delete(headers, body).await,
        _ => shared.forward(method, uri, headers, body).await,
    };
    passed.unwrap_or_else(|error| (StatusCode::BAD_GATEWAY, format!("{error:#}")).into_response())
}

impl Shared {
    async fn delete(&self, headers: HeaderMap, body: Bytes) -> Result<Response> {
        let mut request: Value = serde_json::from_slice(&body)?;
        let entries = request["Entries"].as_array_mut().context("no Entries")?;
        self.batches.send_modify(|batches| batches.push(entries.len()));
        self.open.subscribe().wait_for(|open| *open).await?;
        let fails =
            self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if !fails {
            return self.forward(Method::POST, Uri::from_static("/"), headers, body).await;
        }
        let failed = entries.remove(0);
        let failed = json!([{ "Id": failed["Id"], "Code": "InternalError", "SenderFault": false }]);
        if entries.is_empty() {
            return Ok(axum::Json(json!({ "Successful": [], "Failed": failed })).into_response());
        }
        let passed = self.forward(Method::POST, Uri::from_static("/"), headers, request.to_string().into()).await?;
        let answer = axum::body::to_bytes(passed.into_body(), usize::MAX).await?;
        let mut answer: Value = serde_json::from_slice(&answer)?;
        answer["Failed"] = failed;
        Ok(axum::Json(answer).into_response())
    }

    async fn forward(&self, method: Method, uri: Uri, mut headers: HeaderMap, body: Bytes) -> Result<Response> {
        // The client says these for itself.
        headers.remove(CONTENT_LENGTH);
        let answer =
            self.http.request(method, format!("{}{uri}", self.target)).headers(headers).body(body).send().await?;
        let mut passed = Response::new(Body::empty());
        *passed.status_mut() = answer.status();
        *passed.headers_mut() = answer.headers().clone();
        passed.headers_mut().remove(TRANSFER_ENCODING);
        *passed.body_mut() = answer.bytes().await?.into();
        Ok(passed)
    }
}
