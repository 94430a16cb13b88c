//! Webhooks to the backend: progress, complete and failed, as the Python worker sent them.
//!
//! Progress is sent once and never waited for. Complete and failed are retried, with jitter or after the time that the backend asks
//! for, until it accepts them, says that it does not want them, or the tries run out. Response bodies are not read, redirects are
//! not followed and no proxy is used: the token goes to the task's address only, and only if the [`Guard`] allows that address.

mod detail;
mod error;
mod event;
pub mod network;
mod openapi;
pub mod progress;
mod signing;

pub use detail::{Detail, LoraDetail, Timings};
pub use error::WebhookError;
pub use event::Subject;
pub use openapi::openapi;
pub use progress::ProgressReporter;
pub use signing::WebhookSecrets;

use crate::{observe::trace, secret::Secret, task::Task, webhook::network::Guard};
use backon::{ExponentialBuilder, Retryable};
use error::unanswered;
use event::Event;
use reqwest::{Client, StatusCode, header::CONTENT_TYPE, redirect};
use service::retry_after;
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tracing::{Instrument, Span};
use url::Url;

/// Retries of complete and failed after the first try.
const RETRIES: usize = 5;
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(8);
/// The longest sum of waits by Retry-After that is spent in this process. For more, the message goes back to the queue.
const MAX_RETRY_AFTER: Duration = Duration::from_secs(30);
/// Time that a wait must leave before the deadline: for one more try, or to give the message back.
const RESERVE: Duration = Duration::from_secs(2);
/// Names the sender; the same for every webhook.
const SOURCE_HEADER: &str = "X-Request-Source";
const SOURCE: &str = "inference-server";
const ID_HEADER: &str = "webhook-id";
const TIMESTAMP_HEADER: &str = "webhook-timestamp";
const SIGNATURE_HEADER: &str = "webhook-signature";
/// Path of the webhooks below the task's address.
const BASE_PATH: &str = "/api/webhooks/inference";

/// Timeout of one webhook call, as in the Python worker.
pub const WEBHOOK_TIMEOUT: Duration = Duration::from_secs(10);

/// The client for every backend.
#[derive(Clone)]
pub struct Backend {
    client: Client,
    token: Secret,
    signing: WebhookSecrets,
    guard: Guard,
}

impl Backend {
    /// Builds the client. Sends nothing.
    ///
    /// # Errors
    /// TLS cannot be set up on this machine.
    pub fn new(token: Secret, signing: WebhookSecrets, guard: Guard) -> Result<Self, reqwest::Error> {
        let client = client(&guard)?;
        Ok(Self { client, token, signing, guard })
    }

    /// Reports that a task's pictures are stored at `result_urls`, the safety checker's verdict on each, if there is one, and `detail`, if
    /// the operator wants that. No wait between tries goes beyond `deadline`.
    ///
    /// # Errors
    /// The error of the last try, if no try succeeded.
    pub async fn complete(
        &self,
        task: &Task,
        result_urls: &[String],
        nsfw: &[bool],
        detail: Option<Detail>,
        deadline: Option<Instant>,
    ) -> Result<(), WebhookError> {
        let event = Subject::task(task).complete(task, result_urls, nsfw, detail);
        self.send_with_retries(&task.webhook_url, &event, deadline).await
    }

    /// Reports that a task failed for good. No wait between tries goes beyond `deadline`.
    ///
    /// # Errors
    /// The error of the last try, if no try succeeded.
    pub async fn failed(
        &self,
        subject: &Subject,
        code: &str,
        message: &str,
        retry_count: u32,
        deadline: Option<Instant>,
    ) -> Result<(), WebhookError> {
        self.send_with_retries(&subject.base, &subject.failed(code, message, retry_count), deadline).await
    }

    /// Reports that a task was cancelled by its id. No wait between tries goes beyond `deadline`.
    ///
    /// # Errors
    /// The error of the last try, if no try succeeded.
    pub async fn cancelled(&self, task: &Task, deadline: Option<Instant>) -> Result<(), WebhookError> {
        self.send_with_retries(&task.webhook_url, &Subject::task(task).cancelled(), deadline).await
    }

    async fn send_with_retries(
        &self,
        base: &Url,
        event: &Event,
        deadline: Option<Instant>,
    ) -> Result<(), WebhookError> {
        let delays = ExponentialBuilder::default()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .with_max_times(RETRIES)
            .with_jitter();
        let tries = AtomicU32::new(0);
        let mut remaining = MAX_RETRY_AFTER;
        let wait = |error: &WebhookError, delay: Option<Duration>| {
            let (mut delay, asked) = (delay?, error.retry_after().unwrap_or_default());
            if asked > delay {
                remaining = remaining.checked_sub(asked)?;
                delay = asked;
            }
            let fits = |deadline| Instant::now() + delay + RESERVE <= deadline;
            deadline.is_none_or(fits).then_some(delay)
        };
        (|| self.send(base, event, tries.fetch_add(1, Ordering::Relaxed)))
            .retry(delays)
            .when(|error| !matches!(error, WebhookError::Forbidden { .. } | WebhookError::Unwanted { .. }))
            .adjust(wait)
            .notify(|error, delay| tracing::warn!(%error, ?delay, "webhook is tried again"))
            .await
    }

    /// One try. The timestamp in the signature is that of the try, and the signed bytes are the sent bytes.
    async fn send(&self, base: &Url, event: &Event, resends: u32) -> Result<(), WebhookError> {
        let span = trace::webhook(event.kind.path(), &event.kind.method(), base, resends);
        let sent = self.send_in(&span, base, event).instrument(span.clone()).await;
        if let Err(error) = &sent {
            telemetry::fail(&span, error.kind());
        }
        sent
    }

    async fn send_in(&self, span: &Span, base: &Url, event: &Event) -> Result<(), WebhookError> {
        let path = event.kind.path();
        self.guard.check(base).map_err(|refused| WebhookError::Forbidden { path, refused })?;
        let mut request = self
            .client
            .request(event.kind.method(), address(base, path))
            .bearer_auth(self.token.expose())
            .header(SOURCE_HEADER, SOURCE)
            .header(CONTENT_TYPE, "application/json")
            .header(ID_HEADER, &event.id);
        // So the backend's spans become children of this one.
        for (name, value) in telemetry::outgoing(span) {
            request = request.header(name, value);
        }
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if let Some(signature) = self.signing.sign(&event.id, timestamp, &event.body) {
            request = request.header(TIMESTAMP_HEADER, timestamp).header(SIGNATURE_HEADER, signature);
        }
        let answer = request.body(event.body.clone()).send().await.map_err(|error| unanswered(path, error))?;
        span.record("http.response.status_code", answer.status().as_u16());
        match answer.status() {
            status if status.is_success() => Ok(()),
            status @ (StatusCode::CONFLICT | StatusCode::GONE) => Err(WebhookError::Unwanted { path, status }),
            status => {
                let retry_after = retry_after(status, answer.headers(), SystemTime::now());
                Err(WebhookError::Refused { path, status, retry_after })
            }
        }
    }
}

/// A client that connects only to addresses that the guard allows.
fn client(guard: &Guard) -> Result<Client, reqwest::Error> {
    service::http_client()
        .timeout(WEBHOOK_TIMEOUT)
        .redirect(redirect::Policy::none())
        // A proxy would resolve names itself, without the guard's check.
        .no_proxy()
        .dns_resolver(guard.clone())
        .user_agent(concat!("easel/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// The address of one webhook. `base` may have a path of its own.
pub(crate) fn address(base: &Url, path: &str) -> Url {
    let mut address = base.clone();
    address.set_path(&format!("{}{BASE_PATH}/{path}", base.path().trim_end_matches('/')));
    address
}

/// Sends HEAD to a backend's address for `handler doctor`, without token or event, and returns the status, whatever it is.
///
/// # Errors
/// The guard refuses the address, or the backend does not answer.
pub(crate) async fn probe(guard: &Guard, url: &Url) -> Result<StatusCode, WebhookError> {
    /// Stands in errors where a webhook has its path.
    const PATH: &str = "address";
    guard.check_ahead(url).await.map_err(|refused| WebhookError::Forbidden { path: PATH, refused })?;
    let asked = async { client(guard)?.head(url.clone()).send().await };
    Ok(asked.await.map_err(|error| unanswered(PATH, error))?.status())
}

#[cfg(test)]
mod tests;
