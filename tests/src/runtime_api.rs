//! A Lambda Runtime API with a deadline for each invocation, which cargo-lambda's does not have. One function polls it, one event at
//! a time.

use anyhow::{Context, Result};
use axum::{
    Router,
    body::Bytes,
    extract::{Path, State},
    http::{HeaderMap, StatusCode},
    response::IntoResponse,
    routing::{get, post},
};
use serde_json::Value;
use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{
    net::TcpListener,
    sync::{Mutex, mpsc},
    task::JoinHandle,
};

/// The stand-in. It ends when it is dropped.
#[derive(Debug)]
pub struct RuntimeApi {
    addr: SocketAddr,
    events: mpsc::UnboundedSender<(Value, Duration)>,
    answers: mpsc::UnboundedReceiver<Result<Value, String>>,
    server: JoinHandle<std::io::Result<()>>,
}

struct Shared {
    events: Mutex<mpsc::UnboundedReceiver<(Value, Duration)>>,
    answers: mpsc::UnboundedSender<Result<Value, String>>,
}

impl RuntimeApi {
    /// Starts listening.
    ///
    /// # Errors
    /// No free port.
    pub async fn start() -> Result<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.context("Runtime API")?;
        let addr = listener.local_addr()?;
        let ((events, taken), (given, answers)) = (mpsc::unbounded_channel(), mpsc::unbounded_channel());
        let shared = Arc::new(Shared { events: Mutex::new(taken), answers: given });
        let app = Router::new()
            .route("/2018-06-01/runtime/invocation/next", get(next))
            .route("/2018-06-01/runtime/invocation/{id}/{end}", post(ended))
            .with_state(shared);
        Ok(Self { addr, events, answers, server: tokio::spawn(async move { axum::serve(listener, app).await }) })
    }

    /// The environment of a function that polls it.
    pub fn env(&self) -> [(&'static str, String); 4] {
        [
            ("AWS_LAMBDA_RUNTIME_API", self.addr.to_string()),
            ("AWS_LAMBDA_FUNCTION_NAME", "easel".into()),
            ("AWS_LAMBDA_FUNCTION_VERSION", "1".into()),
            ("AWS_LAMBDA_FUNCTION_MEMORY_SIZE", "4096".into()),
        ]
    }

    /// Sends an event whose invocation ends after `time`, and waits for the answer; the error is the function's own.
    ///
    /// # Errors
    /// The stand-in has ended.
    pub async fn invoke(&mut self, event: Value, time: Duration) -> Result<Result<Value, String>> {
        self.events.send((event, time)).context("the Runtime API has ended")?;
        self.answers.recv().await.context("the Runtime API has ended")
    }
}

impl Drop for RuntimeApi {
    fn drop(&mut self) {
        self.server.abort();
    }
}

async fn next(State(shared): State<Arc<Shared>>) -> impl IntoResponse {
    let Some((event, time)) = shared.events.lock().await.recv().await else {
        return Err(StatusCode::GONE);
    };
    let deadline = (SystemTime::now() + time).duration_since(UNIX_EPOCH).unwrap_or_default().as_millis();
    let mut headers = HeaderMap::new();
    for (name, value) in [
        ("lambda-runtime-aws-request-id", "1".to_string()),
        ("lambda-runtime-deadline-ms", deadline.to_string()),
        ("lambda-runtime-invoked-function-arn", "arn:aws:lambda:us-east-1:123456789012:function:easel".to_string()),
        ("lambda-runtime-trace-id", "Root=1-5bef4de7-ad49b0e87f6ef6c87fc2e700;Sampled=0".to_string()),
    ] {
        headers.insert(name, value.parse().map_err(|_| StatusCode::INTERNAL_SERVER_ERROR)?);
    }
    Ok((headers, event.to_string()))
}

async fn ended(State(shared): State<Arc<Shared>>, Path((_, end)): Path<(String, String)>, body: Bytes) -> StatusCode {
    let text = String::from_utf8_lossy(&body).into_owned();
    let answer = match serde_json::from_slice(&body) {
        Ok(answer) if end == "response" => Ok(answer),
        _ => Err(text),
    };
    // Nobody may be waiting any more.
    let _ = shared.answers.send(answer);
    StatusCode::ACCEPTED
}
