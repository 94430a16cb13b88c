//! Webhooks to the backend: progress, complete and failed, as the Python worker sent them.
//!
//! Progress is told once and never waited for. Complete and failed are repeated with jitter until they are taken or tries
//! run out, or the backend says that it does not want them. Answers are not read, redirects are not followed, proxies are not asked: the token goes to the task's address and
//! nowhere else, and there only if the [`Guard`] lets it.

mod event;
mod signing;

pub use event::Subject;
pub use signing::WebhookSecrets;

use crate::{
    config::{Secret, WEBHOOK_TIMEOUT},
    network::{Guard, Refused},
    progress::Progress,
    secrets::Secrets,
    task::Task,
    trace,
};
use backon::{ExponentialBuilder, Retryable};
use event::Event;
use reqwest::{Client, Method, StatusCode, header::CONTENT_TYPE, redirect};
use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU32, Ordering},
    },
    time::{Duration, SystemTime, UNIX_EPOCH},
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
use tracing::{Instrument, Span};
use url::Url;

/// Tries of complete and failed after the first one.
const RETRIES: usize = 5;
const FIRST_DELAY: Duration = Duration::from_millis(250);
const LONGEST_DELAY: Duration = Duration::from_secs(8);
/// How long the end of a task waits for progress that is still on its way.
const PROGRESS_GRACE: Duration = Duration::from_secs(2);

/// Why a webhook was not delivered. Never holds the token.
#[derive(Debug, thiserror::Error)]
pub enum WebhookError {
    /// No answer: try again later.
    #[error("webhook {path}: {source}")]
    Unreachable {
        /// Which webhook.
        path: &'static str,
        /// What the client said.
        source: reqwest::Error,
    },
    /// It may not be called, and trying again would change nothing.
    #[error("webhook {path}: {refused}")]
    Forbidden {
        /// Which webhook.
        path: &'static str,
        /// Why.
        refused: Refused,
    },
    /// The backend answered, with 409 or 410, that it does not want to hear of this picture. Not retried.
    #[error("webhook {path}: the backend does not want it: {status}")]
    Unwanted {
        /// Which webhook.
        path: &'static str,
        /// Its answer.
        status: StatusCode,
    },
    /// The backend answered that it did not take it. Retried too: it may be starting or overloaded.
    #[error("webhook {path}: the backend answered {status}")]
    Refused {
        /// Which webhook.
        path: &'static str,
        /// Its answer.
        status: StatusCode,
    },
}

impl WebhookError {
    /// A word for each.
    fn kind(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => "unreachable",
            Self::Forbidden { .. } => "forbidden",
            Self::Refused { .. } => "refused",
            Self::Unwanted { .. } => "unwanted",
        }
    }
}

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
    pub fn new(secrets: Secrets, guard: Guard) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .timeout(WEBHOOK_TIMEOUT)
            .redirect(redirect::Policy::none())
            // A proxy would resolve names itself, and nobody would check what it connects to.
            .no_proxy()
            .dns_resolver(guard.clone())
            .user_agent(concat!("easel/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, token: secrets.token, signing: secrets.signing, guard })
    }

    /// Starts telling the progress of a task, in order, beside the painting. An answer of 409 or 410 says that the picture is
    /// not wanted any more.
    pub fn progress(&self, task: &Task) -> ProgressLine {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Progress>();
        let (backend, subject) = (self.clone(), Subject::task(task));
        let unwanted = Arc::new(AtomicBool::new(false));
        let flag = unwanted.clone();
        let telling = async move {
            while let Some(progress) = receiver.recv().await {
                match backend.send(Method::PATCH, &subject.base, &subject.progress(progress), 0).await {
                    Ok(()) => {}
                    Err(WebhookError::Unwanted { .. }) => {
                        flag.store(true, Ordering::Relaxed);
                        return;
                    }
                    Err(error) => {
                        let generation_id = subject.generation_id;
                        tracing::warn!(%error, generation_id, "progress was not delivered");
                    }
                }
            }
        };
        let done = tokio::spawn(telling.in_current_span());
        ProgressLine { sender, done, unwanted }
    }

    /// Tells that a task's pictures stand at `result_urls`.
    ///
    /// # Errors
    /// The last try's, when none was taken.
    pub async fn complete(&self, task: &Task, result_urls: &[String]) -> Result<(), WebhookError> {
        self.insist(&task.webhook_url, &Subject::task(task).complete(task, result_urls)).await
    }

    /// Tells that a task failed for good.
    ///
    /// # Errors
    /// The last try's, when none was taken.
    pub async fn failed(
        &self,
        subject: &Subject,
        code: &str,
        message: &str,
        retry_count: u32,
    ) -> Result<(), WebhookError> {
        self.insist(&subject.base, &subject.failed(code, message, retry_count)).await
    }

    async fn insist(&self, base: &Url, event: &Event) -> Result<(), WebhookError> {
        let delays = ExponentialBuilder::default()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .with_max_times(RETRIES)
            .with_jitter();
        let tries = AtomicU32::new(0);
        (|| self.send(Method::POST, base, event, tries.fetch_add(1, Ordering::Relaxed)))
            .retry(delays)
            .when(|error| !matches!(error, WebhookError::Forbidden { .. } | WebhookError::Unwanted { .. }))
            .notify(|error, delay| tracing::warn!(%error, ?delay, "webhook is tried again"))
            .await
    }

    /// One try. The time in the signature is that of the try; the bytes that are signed are those that are sent.
    async fn send(&self, method: Method, base: &Url, event: &Event, resends: u32) -> Result<(), WebhookError> {
        let span = trace::webhook(event.path, &method, base, resends);
        let sent = self.send_in(&span, method, base, event).instrument(span.clone()).await;
        if let Err(error) = &sent {
            telemetry::fail(&span, error.kind());
        }
        sent
    }

    async fn send_in(&self, span: &Span, method: Method, base: &Url, event: &Event) -> Result<(), WebhookError> {
        let path = event.path;
        self.guard.check(base).map_err(|refused| WebhookError::Forbidden { path, refused })?;
        let mut request = self
            .client
            .request(method, address(base, path))
            .bearer_auth(self.token.expose())
            .header("X-Request-Source", "inference-server")
            .header(CONTENT_TYPE, "application/json")
            .header("webhook-id", &event.id);
        // The backend's spans are children of ours.
        for (name, value) in telemetry::outgoing(span) {
            request = request.header(name, value);
        }
        let timestamp = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs();
        if let Some(signature) = self.signing.sign(&event.id, timestamp, &event.body) {
            request = request.header("webhook-timestamp", timestamp).header("webhook-signature", signature);
        }
        let answer = request.body(event.body.clone()).send().await.map_err(|error| unanswered(path, error))?;
        span.record("http.response.status_code", answer.status().as_u16());
        match answer.status() {
            status if status.is_success() => Ok(()),
            status @ (StatusCode::CONFLICT | StatusCode::GONE) => Err(WebhookError::Unwanted { path, status }),
            status => Err(WebhookError::Refused { path, status }),
        }
    }
}

/// The progress of one task. Telling never blocks and never fails.
pub struct ProgressLine {
    sender: mpsc::UnboundedSender<Progress>,
    done: JoinHandle<()>,
    unwanted: Arc<AtomicBool>,
}

impl ProgressLine {
    /// A handle to tell progress with, from any thread.
    pub fn teller(&self) -> impl Fn(Progress) + Send + use<> {
        let sender = self.sender.clone();
        move |progress| {
            // Nobody listens any more once the task is over.
            let _ = sender.send(progress);
        }
    }

    /// Says, from any thread, whether the backend wants the picture no more.
    pub fn is_unwanted(&self) -> impl Fn() -> bool + Send + use<> {
        let unwanted = self.unwanted.clone();
        move || unwanted.load(Ordering::Relaxed)
    }

    /// Lets what was told go out, so that the backend hears of the end last; gives up on a slow backend.
    pub async fn finish(self) {
        drop(self.sender);
        let mut done = self.done;
        if timeout(PROGRESS_GRACE, &mut done).await.is_err() {
            done.abort();
            // Nothing of the task goes on after this; that it was broken off is known.
            let _ = done.await;
        }
    }
}

/// Why there is no answer. What the guard refused comes back inside the client's error.
fn unanswered(path: &'static str, error: reqwest::Error) -> WebhookError {
    let mut cause = error.source();
    while let Some(inner) = cause {
        if let Some(refused) = inner.downcast_ref::<Refused>() {
            return WebhookError::Forbidden { path, refused: *refused };
        }
        cause = inner.source();
    }
    WebhookError::Unreachable { path, source: error.without_url() }
}

/// The base may have a path of its own.
pub(crate) fn address(base: &Url, path: &str) -> Url {
    let mut address = base.clone();
    address.set_path(&format!("{}/api/webhooks/inference/{path}", base.path().trim_end_matches('/')));
    address
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::SafetyConfig;
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
        sync::oneshot,
        time::Instant,
    };

    #[tokio::test]
    async fn an_endless_answer_is_not_read() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = Url::parse(&format!("http://{}", listener.local_addr().unwrap())).unwrap();
        let (dropped, was_dropped) = oneshot::channel();
        tokio::spawn(async move {
            let (mut socket, _) = listener.accept().await.unwrap();
            socket.read_buf(&mut Vec::with_capacity(4096)).await.unwrap();
            socket.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await.unwrap();
            let chunk = [b"10000\r\n", [b'x'; 0x10000].as_slice(), b"\r\n"].concat();
            let mut sent = 0;
            while socket.write_all(&chunk).await.is_ok() {
                sent += chunk.len();
            }
            dropped.send(sent).unwrap();
        });
        let guard = Guard::new(&SafetyConfig { allow_private_webhooks: true, ..SafetyConfig::default() });
        let secrets = Secrets { token: "token".parse().unwrap(), signing: WebhookSecrets::default(), credential: None };
        let backend = Backend::new(secrets, guard).unwrap();
        let told = Instant::now();
        backend.failed(&Subject::message(base, 1, "{}"), "CODE", "reason", 0).await.unwrap();
        assert!(told.elapsed() < WEBHOOK_TIMEOUT, "it waited for the end of the answer");
        let sent = timeout(WEBHOOK_TIMEOUT, was_dropped).await.expect("the connection is kept").unwrap();
        assert!(sent < 64 << 20, "{sent} bytes were taken");
    }

    #[test]
    fn the_base_may_end_in_a_slash_or_have_a_path() {
        for (base, expected) in [
            ("http://b:8000", "http://b:8000/api/webhooks/inference/complete"),
            ("http://b:8000/", "http://b:8000/api/webhooks/inference/complete"),
            ("https://b/v2/", "https://b/v2/api/webhooks/inference/complete"),
        ] {
            assert_eq!(address(&Url::parse(base).unwrap(), "complete").as_str(), expected);
        }
    }
}
