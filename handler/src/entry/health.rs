//! A worker's `/healthz` (it lives), `/readyz` (the model is loaded and it polls) and `/metrics` (for Prometheus).

use crate::observe::metrics::{self, Metrics};
use anyhow::Context;
use axum::{
    Router,
    extract::State,
    http::{StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
    routing::get,
};
use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};
use tokio::{net::TcpListener, task::JoinHandle};

/// A health endpoint; it ends when this is dropped.
#[derive(Debug)]
pub struct Health {
    ready: Arc<AtomicBool>,
    task: JoinHandle<()>,
}

impl Health {
    /// Listens on `addr` and answers in the background: not ready yet.
    ///
    /// # Errors
    /// The address is taken.
    pub async fn serve(addr: SocketAddr, metrics: Metrics) -> anyhow::Result<Self> {
        let listener = TcpListener::bind(addr)
            .await
            .with_context(|| format!("--health-addr (EASEL_HEALTH_ADDR) {addr} cannot be used, choose another"))?;
        let ready = Arc::new(AtomicBool::new(false));
        let router = Router::new()
            .route("/healthz", get(|| async { "ok\n" }))
            .route("/readyz", get(show_ready))
            .with_state(ready.clone())
            .merge(Router::new().route("/metrics", get(scrape)).with_state(metrics));
        let task = tokio::spawn(async move {
            if let Err(error) = axum::serve(listener, router).await {
                tracing::error!(%error, "the health endpoint ended");
            }
        });
        Ok(Self { ready, task })
    }

    /// Whether tasks are taken now.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

impl Drop for Health {
    fn drop(&mut self) {
        self.task.abort();
    }
}

async fn show_ready(State(ready): State<Arc<AtomicBool>>) -> (StatusCode, &'static str) {
    match ready.load(Ordering::Relaxed) {
        true => (StatusCode::OK, "ready\n"),
        false => (StatusCode::SERVICE_UNAVAILABLE, "not ready\n"),
    }
}

async fn scrape(State(metrics): State<Metrics>) -> Response {
    match metrics.encode() {
        Ok(text) => ([(CONTENT_TYPE, metrics::CONTENT_TYPE)], text).into_response(),
        // Writing to a string does not fail; if it ever does, the scraper must not see half of it.
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}
