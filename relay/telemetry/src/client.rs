//! The HTTP client that sends spans to a collector.
//!
//! It has a runtime of its own, so that only the exporting thread waits for the collector. A collector that cannot be
//! reached is logged once, and again only after it came back.

use async_trait::async_trait;
use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
use service::causes;
use std::{
    error::Error,
    fmt, io,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};
use tokio::runtime::{Builder, Runtime};
use tracing::{info, warn};

/// For one request. The specification's default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// The client.
pub(crate) struct Client {
    http: reqwest::Client,
    runtime: Runtime,
    gone: AtomicBool,
}

impl Client {
    pub(crate) fn new() -> io::Result<Self> {
        let http = service::http_client().timeout(TIMEOUT).build().map_err(io::Error::other)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { http, runtime, gone: AtomicBool::new(false) })
    }

    fn note(&self, result: &Result<Response<Bytes>, HttpError>) {
        let problem = match result {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("HTTP status {}", response.status().as_u16())),
            // Without reqwest's own words, which name the address: it may hold a password.
            Err(err) => {
                let cause = err.downcast_ref::<reqwest::Error>().and_then(Error::source);
                Some(causes(cause.unwrap_or(&**err)))
            }
        };
        match (problem, self.gone.load(Ordering::Relaxed)) {
            (Some(cause), false) => warn!(cause, "the trace collector takes no spans, they are dropped"),
            (None, true) => info!("the trace collector takes spans again"),
            (Some(_), true) | (None, false) => return,
        }
        self.gone.fetch_xor(true, Ordering::Relaxed);
    }
}

#[async_trait]
impl HttpClient for Client {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        // On the exporter's own thread, which has nothing else to do.
        let result = self.runtime.block_on(self.http.send_bytes(request));
        self.note(&result);
        result
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
