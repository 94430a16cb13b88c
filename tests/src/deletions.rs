//! A reverse proxy in front of SQS that keeps how many messages each request deletes, holds such requests back, and lets entries
//! of them fail. It keeps for how long messages are hidden, and can leave requests for that without an answer. All else passes.

use crate::{
    entries::{self, Refused},
    proxy::{Proxy, Request, Target},
    wait,
};
use anyhow::{Context, Result};
use axum::response::Response;
use serde_json::Value;
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
pub struct DeletionProxy {
    proxy: Proxy,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    /// Entries of each request to delete.
    batches: watch::Sender<Vec<usize>>,
    /// Seconds of each request to hide a message.
    hidden: watch::Sender<Vec<u64>>,
    /// Requests to delete that may pass.
    open: watch::Sender<bool>,
    /// First entries of coming requests that fail, and what is said of them.
    failures: Mutex<Failures>,
    /// Requests to extend a visibility timeout that had no answer, while they get none.
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
    /// Starts it in front of `target`, open.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: &str) -> Result<Self> {
        let shared = Arc::new(Shared {
            target: Target::new(target)?,
            batches: watch::Sender::default(),
            hidden: watch::Sender::default(),
            open: watch::Sender::new(true),
            failures: Mutex::default(),
            unanswered: watch::Sender::default(),
            is_mute: AtomicBool::new(false),
        });
        let passing = shared.clone();
        let proxy = Proxy::start(move |request| {
            let shared = passing.clone();
            async move { shared.pass(request).await }
        });
        Ok(Self { proxy: proxy.await?, shared })
    }

    /// Its address.
    pub fn url(&self) -> String {
        self.proxy.url()
    }

    /// Holds requests to delete back, or lets them go.
    pub fn hold(&self, hold: bool) {
        self.shared.open.send_replace(!hold);
    }

    /// From now on the first entry of so many requests is not deleted, through no fault of the sender.
    pub fn fail(&self, requests: usize) {
        self.shared.let_fail(Failures { left: requests, code: "InternalError", sender_fault: false });
    }

    /// The same, for its receipt handle, which will never be good.
    pub fn refuse(&self, requests: usize) {
        self.shared.let_fail(Failures { left: requests, code: "ReceiptHandleIsInvalid", sender_fault: true });
    }

    /// The same, because SQS is asked too often, which it calls the sender's fault.
    pub fn throttle(&self, requests: usize) {
        self.shared.let_fail(Failures { left: requests, code: "RequestThrottled", sender_fault: true });
    }

    /// From now on, requests to extend a visibility timeout get no answer.
    pub fn ignore_extensions(&self) {
        self.shared.is_mute.store(true, Ordering::Relaxed);
    }

    /// Waits for such a request without an answer.
    ///
    /// # Errors
    /// Not in time.
    pub async fn ignored(&self, within: Duration) -> Result<()> {
        let mut unanswered = self.shared.unanswered.subscribe();
        wait::at_most("a request to extend", within, unanswered.wait_for(|count| *count > 0)).await??;
        Ok(())
    }

    /// How many entries each request to delete had, those that are held back too.
    pub fn batches(&self) -> Vec<usize> {
        self.shared.batches.borrow().clone()
    }

    /// Waits until a message is hidden for at least `seconds`; for how many it is.
    ///
    /// # Errors
    /// Not in time.
    pub async fn hidden(&self, seconds: u64, within: Duration) -> Result<u64> {
        let mut hidden = self.shared.hidden.subscribe();
        let long = hidden.wait_for(|hidden| hidden.iter().any(|found| *found >= seconds));
        let hidden = wait::at_most(&format!("a message that is hidden for {seconds} s"), within, long).await??;
        hidden.iter().copied().find(|found| *found >= seconds).context("nothing is hidden")
    }

    /// Waits for so many requests to delete.
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

impl Shared {
    fn let_fail(&self, failures: Failures) {
        *self.failures.lock().unwrap_or_else(PoisonError::into_inner) = failures;
    }

    /// What is said of the first entry of this request, if it fails.
    fn failure(&self) -> Option<Refused> {
        let mut failures = self.failures.lock().unwrap_or_else(PoisonError::into_inner);
        failures.left = failures.left.checked_sub(1)?;
        Some(Refused { code: failures.code, sender_fault: failures.sender_fault })
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
            Some(refused) => entries::withhold(&self.target, request, refused, |index| index == 0).await,
        }
    }
}
