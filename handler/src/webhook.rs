//! Webhooks to the backend: progress, complete and failed, as the Python worker sent them.
//!
//! Progress is told once and never waited for. Complete and failed are repeated with jitter, or after as long as the backend asks
//! for, until they are taken or tries run out, or the backend says that it does not want them. Answers are not read, redirects are not followed, proxies are not asked:
//! the token goes to the task's address and nowhere else, and there only if the [`Guard`] lets it.

mod body;
mod error;
mod event;
mod line;
pub mod network;
mod openapi;
mod probe;
pub mod progress;
mod retry_after;
mod signing;

pub use error::WebhookError;
pub use event::Subject;
pub use line::ProgressLine;
pub use openapi::openapi;
pub(crate) use probe::probe;
pub use signing::WebhookSecrets;

use crate::{observe::trace, secret::Secret, task::Task, webhook::network::Guard};
use backon::{ExponentialBuilder, Retryable};
use error::unanswered;
use event::Event;
use reqwest::{Client, StatusCode, header::CONTENT_TYPE, redirect};
use std::{
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};
use tracing::{Instrument, Span};
use url::Url;

/// Tries of complete and failed after the first one.
const RETRIES: usize = 5;
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(8);
/// All waits together that a backend asks for by Retry-After and that are spent here. For more, the queue keeps the message.
const PATIENCE: Duration = Duration::from_secs(30);
/// What a wait leaves of the invocation: for one more try, or to give the message back.
const RESERVE: Duration = Duration::from_secs(2);
/// Who sends, for every webhook the same.
const SOURCE_HEADER: &str = "X-Request-Source";
const SOURCE: &str = "inference-server";
const ID_HEADER: &str = "webhook-id";
const TIMESTAMP_HEADER: &str = "webhook-timestamp";
const SIGNATURE_HEADER: &str = "webhook-signature";
/// Where the webhooks are, below the task's address.
const FOLDER: &str = "/api/webhooks/inference";

/// Longest time for one webhook call, as in the Python worker.
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
    /// Builds the client; nothing is sent.
    ///
    /// # Errors
    /// The machine's TLS setup is unusable.
    pub fn new(token: Secret, signing: WebhookSecrets, guard: Guard) -> Result<Self, reqwest::Error> {
        let client = client(&guard)?;
        Ok(Self { client, token, signing, guard })
    }

    /// Tells that a task's pictures stand at `result_urls`. No wait between tries goes on beyond `deadline`.
    ///
    /// # Errors
    /// The last try's, when none was taken.
    pub async fn complete(
        &self,
        task: &Task,
        result_urls: &[String],
        deadline: Option<Instant>,
    ) -> Result<(), WebhookError> {
        self.insist(&task.webhook_url, &Subject::task(task).complete(task, result_urls), deadline).await
    }

    /// Tells that a task failed for good. No wait between tries goes on beyond `deadline`.
    ///
    /// # Errors
    /// The last try's, when none was taken.
    pub async fn failed(
        &self,
        subject: &Subject,
        code: &str,
        message: &str,
        retry_count: u32,
        deadline: Option<Instant>,
    ) -> Result<(), WebhookError> {
        self.insist(&subject.base, &subject.failed(code, message, retry_count), deadline).await
    }

    async fn insist(&self, base: &Url, event: &Event, deadline: Option<Instant>) -> Result<(), WebhookError> {
        let delays = ExponentialBuilder::default()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .with_max_times(RETRIES)
            .with_jitter();
        let tries = AtomicU32::new(0);
        let mut patience = PATIENCE;
        let wait = |error: &WebhookError, delay: Option<Duration>| {
            let (mut delay, asked) = (delay?, error.retry_after().unwrap_or_default());
            if asked > delay {
                patience = patience.checked_sub(asked)?;
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

    /// One try. The time in the signature is that of the try; the bytes that are signed are those that are sent.
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
        // The backend's spans are children of ours.
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
                let retry_after = retry_after::asked_for(status, answer.headers(), SystemTime::now());
                Err(WebhookError::Refused { path, status, retry_after })
            }
        }
    }
}

/// A client that calls nobody whom the guard does not let it call.
fn client(guard: &Guard) -> Result<Client, reqwest::Error> {
    Client::builder()
        .timeout(WEBHOOK_TIMEOUT)
        .redirect(redirect::Policy::none())
        // A proxy would resolve names itself, and nobody would check what it connects to.
        .no_proxy()
        .dns_resolver(guard.clone())
        .user_agent(concat!("easel/", env!("CARGO_PKG_VERSION")))
        .build()
}

/// The base may have a path of its own.
pub(crate) fn address(base: &Url, path: &str) -> Url {
    let mut address = base.clone();
    address.set_path(&format!("{}{FOLDER}/{path}", base.path().trim_end_matches('/')));
    address
}

#[cfg(test)]
mod tests;
