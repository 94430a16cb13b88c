//! The HTTP client that brings spans to a collector.
//!
//! Refuses to borrow the process' runtime: the thread that exports waits here, and nobody waits for it. It tells of a
//! collector that is gone once, and again only after it was back.

use std::{
    error::Error,
    fmt,
    future::Future,
    io,
    pin::Pin,
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use opentelemetry_http::{Bytes, HttpClient, HttpError, Request, Response};
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
        let http = reqwest::Client::builder().timeout(TIMEOUT).build().map_err(io::Error::other)?;
        let runtime = Builder::new_current_thread().enable_all().build()?;
        Ok(Self { http, runtime, gone: AtomicBool::new(false) })
    }

    async fn send(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let answer = self.http.execute(request.try_into()?).await?;
        let status = answer.status();
        let mut response = Response::new(answer.bytes().await?);
        *response.status_mut() = status;
        Ok(response)
    }

    fn note(&self, result: &Result<Response<Bytes>, HttpError>) {
        let problem = match result {
            Ok(response) if response.status().is_success() => None,
            Ok(response) => Some(format!("HTTP status {}", response.status().as_u16())),
            Err(err) => Some(causes(&**err)),
        };
        match (problem, self.gone.load(Ordering::Relaxed)) {
            (Some(cause), false) => warn!(cause, "the trace collector takes no spans, they are dropped"),
            (None, true) => info!("the trace collector takes spans again"),
            (Some(_), true) | (None, false) => return,
        }
        self.gone.fetch_xor(true, Ordering::Relaxed);
    }
}

/// The chain of causes without the address, which may hold a password.
fn causes(err: &(dyn Error + 'static)) -> String {
    let first: &(dyn Error + 'static) = err.downcast_ref::<reqwest::Error>().and_then(Error::source).unwrap_or(err);
    let chain = std::iter::successors(Some(first), |err| (**err).source());
    chain.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

impl HttpClient for Client {
    // Written out, what `#[async_trait]` would make of an `async fn`.
    fn send_bytes<'life, 'async_trait>(
        &'life self,
        request: Request<Bytes>,
    ) -> Pin<Box<dyn Future<Output = Result<Response<Bytes>, HttpError>> + Send + 'async_trait>>
    where
        'life: 'async_trait,
        Self: 'async_trait,
    {
        Box::pin(async move {
            // On the exporter's own thread, which has nothing else to do.
            let result = self.runtime.block_on(self.send(request));
            self.note(&result);
            result
        })
    }
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}
