//! Webhooks to the backend: progress, complete and failed, as the Python worker sent them.
//!
//! Progress is told once and never waited for. Complete and failed are repeated with jitter until they are taken or tries
//! run out. Answers are not read, redirects are not followed, proxies are not asked: the token goes to the task's address and
//! nowhere else, and there only if the [`Guard`] lets it.

use crate::{
    config::{Secret, WEBHOOK_TIMEOUT},
    network::{Guard, Refused},
    progress::Progress,
    task::Task,
};
use backon::{ExponentialBuilder, Retryable};
use reqwest::{Client, Method, StatusCode, redirect};
use serde_json::{Value, json};
use std::{
    error::Error,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, task::JoinHandle, time::timeout};
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
    /// The backend answered that it did not take it. Retried too: it may be starting or overloaded.
    #[error("webhook {path}: the backend answered {status}")]
    Refused {
        /// Which webhook.
        path: &'static str,
        /// Its answer.
        status: StatusCode,
    },
}

/// The client for every backend.
#[derive(Clone)]
pub struct Backend {
    client: Client,
    token: Secret,
    guard: Guard,
}

impl Backend {
    /// Builds the client; nothing is sent.
    ///
    /// # Errors
    /// The machine's TLS setup is unusable.
    pub fn new(token: Secret, guard: Guard) -> Result<Self, reqwest::Error> {
        let client = Client::builder()
            .timeout(WEBHOOK_TIMEOUT)
            .redirect(redirect::Policy::none())
            // A proxy would resolve names itself, and nobody would check what it connects to.
            .no_proxy()
            .dns_resolver(guard.clone())
            .user_agent(concat!("easel/", env!("CARGO_PKG_VERSION")))
            .build()?;
        Ok(Self { client, token, guard })
    }

    /// Starts telling the progress of a task, in order, beside the painting. An answer of 409 or 410 says that the picture is
    /// not wanted any more.
    pub fn progress(&self, base: &Url, generation_id: i64) -> ProgressLine {
        let (sender, mut receiver) = mpsc::unbounded_channel::<Progress>();
        let (backend, base) = (self.clone(), base.clone());
        let unwanted = Arc::new(AtomicBool::new(false));
        let flag = unwanted.clone();
        let done = tokio::spawn(async move {
            while let Some(progress) = receiver.recv().await {
                let body = progress_body(generation_id, progress);
                match backend.send(Method::PATCH, &base, "progress", &body).await {
                    Ok(()) => {}
                    Err(WebhookError::Refused { status: StatusCode::CONFLICT | StatusCode::GONE, .. }) => {
                        flag.store(true, Ordering::Relaxed);
                        return;
                    }
                    Err(error) => tracing::warn!(%error, generation_id, "progress was not delivered"),
                }
            }
        });
        ProgressLine { sender, done, unwanted }
    }

    /// Tells that a task's pictures stand at `result_urls`.
    ///
    /// # Errors
    /// The last try's, when none was taken.
    pub async fn complete(&self, task: &Task, result_urls: &[String]) -> Result<(), WebhookError> {
        let body = complete_body(task, result_urls);
        self.insist(&task.webhook_url, "complete", &body).await
    }

    /// Tells that a task failed for good.
    ///
    /// # Errors
    /// The last try's, when none was taken.
    pub async fn failed(
        &self,
        base: &Url,
        generation_id: i64,
        code: &str,
        message: &str,
        retry_count: u32,
    ) -> Result<(), WebhookError> {
        let body = json!({
            "generation_id": generation_id,
            "error_message": message,
            "error_code": code,
            "retry_count": retry_count,
        });
        self.insist(base, "failed", &body).await
    }

    async fn insist(&self, base: &Url, path: &'static str, body: &Value) -> Result<(), WebhookError> {
        let delays = ExponentialBuilder::default()
            .with_min_delay(FIRST_DELAY)
            .with_max_delay(LONGEST_DELAY)
            .with_max_times(RETRIES)
            .with_jitter();
        (|| self.send(Method::POST, base, path, body))
            .retry(delays)
            .when(|error| !matches!(error, WebhookError::Forbidden { .. }))
            .notify(|error, delay| tracing::warn!(%error, ?delay, "webhook is tried again"))
            .await
    }

    async fn send(&self, method: Method, base: &Url, path: &'static str, body: &Value) -> Result<(), WebhookError> {
        self.guard.check(base).map_err(|refused| WebhookError::Forbidden { path, refused })?;
        let request = self
            .client
            .request(method, address(base, path))
            .bearer_auth(self.token.expose())
            .header("X-Request-Source", "inference-server")
            .json(body);
        let answer = request.send().await.map_err(|error| unanswered(path, error))?;
        match answer.status() {
            status if status.is_success() => Ok(()),
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
        let abort = self.done.abort_handle();
        if timeout(PROGRESS_GRACE, self.done).await.is_err() {
            abort.abort();
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
fn address(base: &Url, path: &str) -> Url {
    let mut address = base.clone();
    address.set_path(&format!("{}/api/webhooks/inference/{path}", base.path().trim_end_matches('/')));
    address
}

fn progress_body(generation_id: i64, progress: Progress) -> Value {
    json!({
        "generation_id": generation_id,
        "progress": {
            "current_step": progress.current_step,
            "total_steps": progress.total_steps,
            "progress_percent": progress.progress_percent,
            "estimated_seconds": progress.estimated_seconds,
        },
    })
}

fn complete_body(task: &Task, result_urls: &[String]) -> Value {
    let seed = i64::try_from(task.seed).map(Value::from).unwrap_or_else(|_| Value::from(task.seed_bits()));
    let mut body = json!({
        "generation_id": task.generation_id,
        "result_url": result_urls.first(),
        "metadata": { "seed": seed, "steps": task.steps, "guidance_scale": task.guidance_scale },
    });
    if result_urls.len() > 1 {
        body["result_urls"] = json!(result_urls);
    }
    body
}

#[cfg(test)]
mod tests {
    use super::*;

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
