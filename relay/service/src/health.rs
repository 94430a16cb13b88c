//! The health endpoint: `/healthz` (the process is alive), `/readyz` (it can work now) and `/metrics` for Prometheus.

use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use std::{fmt, io, net::SocketAddr};
use tokio::{net::TcpListener, task::JoinHandle};
use tracing::error;

/// What Prometheus negotiates for OpenMetrics.
const METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the endpoint asks the process.
pub trait Status: Clone + Send + Sync + 'static {
    /// Whether it can work now, and the body of `/readyz` that says so.
    fn ready(&self) -> (bool, impl IntoResponse);

    /// The metrics as OpenMetrics text.
    ///
    /// # Errors
    /// They could not be written.
    fn metrics(&self) -> Result<String, fmt::Error>;
}

/// A health endpoint. It ends when this is dropped.
#[derive(Debug)]
pub struct Health {
    /// The address it listens on.
    pub addr: SocketAddr,
    task: JoinHandle<()>,
}

impl Health {
    /// Listens on `addr` and answers in the background.
    ///
    /// # Errors
    /// The address cannot be used.
    pub async fn serve<S: Status>(addr: SocketAddr, process: S) -> io::Result<Self> {
        let listener = TcpListener::bind(addr).await?;
        let addr = listener.local_addr()?;
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(ready::<S>))
            .route("/metrics", get(metrics::<S>))
            .with_state(process);
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                error!(%error, "the health endpoint ended");
            }
        });
        Ok(Self { addr, task })
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn ready<S: Status>(State(process): State<S>) -> Response {
    let (ready, body) = process.ready();
    let status = if ready { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE };
    (status, body).into_response()
}

async fn metrics<S: Status>(State(process): State<S>) -> Response {
    match process.metrics() {
        Ok(text) => ([(CONTENT_TYPE, METRICS)], text).into_response(),
        // Writing to a string does not fail. If it ever does, the scraper must not see half of it.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
