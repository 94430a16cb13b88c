//! Reverse proxies in front of SQS and S3 for the cases: one counts requests, one answers some of them itself, one controls
//! deletions and visibility timeouts.

use crate::{
    http_proxy::{HttpProxy, RefusedEntry, Request, Target, withhold},
    wait,
};
use anyhow::{Context, Result};
use axum::{
    http::{HeaderMap, Method, StatusCode, header::CONTENT_TYPE},
    response::{IntoResponse, Response},
};
use serde_json::{Value, json};
use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::sync::watch;

/// The proxy. It ends when this is dropped.
#[derive(Debug)]
pub struct CountingProxy {
    proxy: HttpProxy,
    seen: Arc<watch::Sender<Vec<(Method, String)>>>,
}

impl CountingProxy {
    /// Starts it in front of `target`. A GET of a path that had a HEAD request waits until it had `heads` of them.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: &str, heads: usize) -> Result<Self> {
        let (target, seen) = (Arc::new(Target::new(target)?), Arc::new(watch::Sender::default()));
        let shared = seen.clone();
        let proxy = HttpProxy::start(move |request| {
            let (target, seen) = (target.clone(), shared.clone());
            async move {
                let (method, path) = (request.method.clone(), request.uri.path().to_string());
                seen.send_modify(|seen: &mut Vec<_>| seen.push((method.clone(), path.clone())));
                if method == Method::GET {
                    let enough = |seen: &Vec<(Method, String)>| {
                        let asked = seen.iter().filter(|(method, at)| method == Method::HEAD && *at == path).count();
                        asked == 0 || asked >= heads
                    };
                    seen.subscribe().wait_for(enough).await?;
                }
                target.pass(request).await
            }
        });
        Ok(Self { proxy: proxy.await?, seen })
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// How many requests of this method went to paths with this ending.
    pub fn count(&self, method: &Method, ending: &str) -> usize {
        self.seen.borrow().iter().filter(|(seen, path)| seen == method && path.ends_with(ending)).count()
    }
}

/// What a rule sees of a request.
#[derive(Debug)]
pub struct RequestHead<'a> {
    /// The method.
    pub method: &'a Method,
    /// The path, percent-encoded.
    pub path: &'a str,
    /// The headers.
    pub headers: &'a HeaderMap,
}

type Rule = Box<dyn Fn(&RequestHead<'_>) -> Option<Response> + Send>;

/// The proxy. It ends when this is dropped.
pub struct StubProxy {
    proxy: HttpProxy,
    rule: Arc<Mutex<Option<Rule>>>,
}

impl StubProxy {
    /// Starts it in front of `target`; it forwards everything.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: &str) -> Result<Self> {
        let (target, rule) = (Arc::new(Target::new(target)?), Arc::new(Mutex::new(None::<Rule>)));
        let shared = rule.clone();
        let proxy = HttpProxy::start(move |request| {
            let (target, shared) = (target.clone(), shared.clone());
            async move {
                let asked =
                    RequestHead { method: &request.method, path: request.uri.path(), headers: &request.headers };
                let answer =
                    shared.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(|rule| rule(&asked));
                match answer {
                    Some(answer) => Ok(answer),
                    None => target.pass(request).await,
                }
            }
        });
        Ok(Self { proxy: proxy.await?, rule })
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// From now on `rule` may answer requests. Where it gives `None` they are forwarded.
    pub fn answer(&self, rule: impl Fn(&RequestHead<'_>) -> Option<Response> + Send + 'static) {
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = Some(Box::new(rule));
    }

    /// From now on everything is forwarded.
    pub fn pass(&self) {
        *self.rule.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }
}

impl RequestHead<'_> {
    /// The SQS operation, if it is a request to SQS.
    pub fn operation(&self) -> Option<&str> {
        self.headers.get("x-amz-target")?.to_str().ok()?.strip_prefix("AmazonSQS.")
    }

    /// Whether it is signed for this region.
    pub fn is_signed_for(&self, region: &str) -> bool {
        let signature = self.headers.get("authorization").and_then(|value| value.to_str().ok());
        signature.is_some_and(|signature| signature.contains(&format!("/{region}/")))
    }
}

/// An error as S3 writes it, with the text `repeated` in it. The answer to `HEAD` has no body.
pub fn s3_error(status: u16, code: &str, repeated: &str) -> Response {
    let body = format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>{code}</Code><Message>The provided token {repeated} is \
         refused.</Message><Token-0>{repeated}</Token-0><AWSAccessKeyId>{repeated}</AWSAccessKeyId>\
         <RequestId>1</RequestId></Error>"
    );
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    (status, [(CONTENT_TYPE, "application/xml")], body).into_response()
}

/// An error as SQS writes it, with the text `repeated` in it.
pub fn sqs_error(status: u16, code: &str, repeated: &str) -> Response {
    let body = json!({ "__type": format!("com.amazonaws.sqs#{code}"), "message": format!("{repeated} is refused") });
    let status = StatusCode::from_u16(status).unwrap_or(StatusCode::BAD_REQUEST);
    (status, [(CONTENT_TYPE, "application/x-amz-json-1.0")], body.to_string()).into_response()
}

/// The proxy. It ends when this is dropped.
#[derive(Debug)]
pub struct DeletionProxy {
    proxy: HttpProxy,
    shared: Arc<Deletions>,
}

#[derive(Debug)]
struct Deletions {
    target: Target,
    /// Number of entries of each deletion request.
    batches: watch::Sender<Vec<usize>>,
    /// Seconds of each change of a visibility timeout.
    hidden: watch::Sender<Vec<u64>>,
    /// Whether deletion requests are forwarded.
    open: watch::Sender<bool>,
    /// How many of the next deletion requests fail in their first entry, and with which code.
    failures: Mutex<Failures>,
    /// Number of visibility requests that got no answer.
    unanswered: watch::Sender<usize>,
    is_mute: AtomicBool,
}

#[derive(Debug, Default)]
struct Failures {
    left: usize,
    code: &'static str,
    sender_fault: bool,
}

impl DeletionProxy {
    /// Starts it in front of `target`; it forwards everything.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: &str) -> Result<Self> {
        let shared = Arc::new(Deletions {
            target: Target::new(target)?,
            batches: watch::Sender::default(),
            hidden: watch::Sender::default(),
            open: watch::Sender::new(true),
            failures: Mutex::default(),
            unanswered: watch::Sender::default(),
            is_mute: AtomicBool::new(false),
        });
        let passing = shared.clone();
        let proxy = HttpProxy::start(move |request| {
            let shared = passing.clone();
            async move { shared.pass(request).await }
        });
        Ok(Self { proxy: proxy.await?, shared })
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// Holds deletion requests back, or forwards them.
    pub fn hold(&self, hold: bool) {
        self.shared.open.send_replace(!hold);
    }

    /// The first entry of each of the next deletion requests fails with an internal error.
    pub fn fail(&self, requests: usize) {
        self.shared.let_fail(Failures { left: requests, code: "InternalError", sender_fault: false });
    }

    /// The same with an invalid receipt handle, a permanent error.
    pub fn refuse(&self, requests: usize) {
        self.shared.let_fail(Failures { left: requests, code: "ReceiptHandleIsInvalid", sender_fault: true });
    }

    /// The same with throttling, which SQS reports with `SenderFault` true.
    pub fn throttle(&self, requests: usize) {
        self.shared.let_fail(Failures { left: requests, code: "RequestThrottled", sender_fault: true });
    }

    /// From now on requests to change a visibility timeout get no answer.
    pub fn ignore_extensions(&self) {
        self.shared.is_mute.store(true, Ordering::Relaxed);
    }

    /// Waits for a visibility request that gets no answer.
    ///
    /// # Errors
    /// Not in time.
    pub async fn ignored(&self, within: Duration) -> Result<()> {
        let mut unanswered = self.shared.unanswered.subscribe();
        wait::at_most("a request to extend", within, unanswered.wait_for(|count| *count > 0)).await??;
        Ok(())
    }

    /// The number of entries of each deletion request, those held back included.
    pub fn batches(&self) -> Vec<usize> {
        self.shared.batches.borrow().clone()
    }

    /// Waits until a visibility timeout is set to `seconds` or more, and gives it.
    ///
    /// # Errors
    /// Not in time.
    pub async fn hidden(&self, seconds: u64, within: Duration) -> Result<u64> {
        let mut hidden = self.shared.hidden.subscribe();
        let long = hidden.wait_for(|hidden| hidden.iter().any(|found| *found >= seconds));
        let hidden = wait::at_most(&format!("a message that is hidden for {seconds} s"), within, long).await??;
        hidden.iter().copied().find(|found| *found >= seconds).context("nothing is hidden")
    }

    /// Waits until `count` deletion requests have come.
    ///
    /// # Errors
    /// Not in time.
    pub async fn requests(&self, count: usize, within: Duration) -> Result<()> {
        let mut batches = self.shared.batches.subscribe();
        let enough = batches.wait_for(|batches| batches.len() >= count);
        wait::at_most(&format!("{count} requests to delete"), within, enough).await??;
        Ok(())
    }
}

impl Deletions {
    fn let_fail(&self, failures: Failures) {
        *self.failures.lock().unwrap_or_else(PoisonError::into_inner) = failures;
    }

    /// The error of this request's first entry, if it has one.
    fn failure(&self) -> Option<RefusedEntry> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.left = failures.left.checked_sub(1)?;
        Some(RefusedEntry { code: failures.code, sender_fault: failures.sender_fault })
    }

    async fn pass(&self, request: Request) -> Result<Response> {
        match request.headers.get("x-amz-target").map(|target| target.as_bytes()) {
            Some(b"AmazonSQS.DeleteMessageBatch") => self.delete(request).await,
            Some(b"AmazonSQS.ChangeMessageVisibility") if self.is_mute.load(Ordering::Relaxed) => {
                self.unanswered.send_modify(|count| *count += 1);
                std::future::pending().await
            }
            Some(b"AmazonSQS.ChangeMessageVisibility") => {
                let asked: Value = serde_json::from_slice(&request.body)?;
                let seconds = asked["VisibilityTimeout"].as_u64().context("no VisibilityTimeout")?;
                self.hidden.send_modify(|hidden| hidden.push(seconds));
                self.target.pass(request).await
            }
            _ => self.target.pass(request).await,
        }
    }

    async fn delete(&self, request: Request) -> Result<Response> {
        let batch: Value = serde_json::from_slice(&request.body)?;
        let count = batch["Entries"].as_array().context("no Entries")?.len();
        self.batches.send_modify(|batches| batches.push(count));
        self.open.subscribe().wait_for(|open| *open).await?;
        match self.failure() {
            None => self.target.pass(request).await,
            Some(refused) => withhold(&self.target, request, refused, |index| index == 0).await,
        }
    }
}
