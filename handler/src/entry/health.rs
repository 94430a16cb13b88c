//! A worker's health endpoint: ready once the model is loaded and it polls.

use crate::observe::metrics::Metrics;
use anyhow::Context;
use service::Status;
use std::{
    fmt,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

/// A health endpoint. It ends when this is dropped.
#[derive(Debug)]
pub struct Health {
    ready: Arc<AtomicBool>,
    _endpoint: service::Health,
}

#[derive(Clone)]
struct Worker {
    ready: Arc<AtomicBool>,
    metrics: Metrics,
}

impl Health {
    /// Listens on `addr` and answers in the background: not ready yet.
    ///
    /// # Errors
    /// The address is taken.
    pub async fn serve(addr: SocketAddr, metrics: Metrics) -> anyhow::Result<Self> {
        let ready = Arc::new(AtomicBool::new(false));
        let endpoint = service::Health::serve(addr, Worker { ready: ready.clone(), metrics })
            .await
            .with_context(|| format!("--health-addr (EASEL_HEALTH_ADDR) {addr} cannot be used, choose another"))?;
        Ok(Self { ready, _endpoint: endpoint })
    }

    /// Whether tasks are taken now.
    pub fn set_ready(&self, ready: bool) {
        self.ready.store(ready, Ordering::Relaxed);
    }
}

impl Status for Worker {
    fn ready(&self) -> (bool, impl axum::response::IntoResponse) {
        match self.ready.load(Ordering::Relaxed) {
            true => (true, "ready\n"),
            false => (false, "not ready\n"),
        }
    }

    fn metrics(&self) -> Result<String, fmt::Error> {
        self.metrics.encode()
    }
}
