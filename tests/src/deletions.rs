//! A reverse proxy in front of SQS that keeps how many messages each request deletes, holds such requests back, and lets entries
//! of them fail. All else passes.

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
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
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
    /// Requests to delete that may pass.
    open: watch::Sender<bool>,
    /// First entries of coming requests that fail, and whether trying again could not help.
    failures: AtomicUsize,
    is_final: AtomicBool,
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
            open: watch::Sender::new(true),
            failures: AtomicUsize::new(0),
            is_final: AtomicBool::new(false),
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
        self.shared.failures.store(requests, Ordering::Relaxed);
    }

    /// As [`Self::fail`], but SQS says that the sender is at fault.
    pub fn refuse(&self, requests: usize) {
        self.shared.is_final.store(true, Ordering::Relaxed);
        self.fail(requests);
    }

    /// How many entries each request to delete had, those that are held back too.
    pub fn batches(&self) -> Vec<usize> {
        self.shared.batches.borrow().clone()
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
    async fn pass(&self, request: Request) -> Result<Response> {
        match request.headers.get("x-amz-target").map(|target| target.as_bytes()) {
            Some(b"AmazonSQS.DeleteMessageBatch") => self.delete(request).await,
            _ => self.target.pass(request).await,
        }
    }

    async fn delete(&self, request: Request) -> Result<Response> {
        let batch: Value = serde_json::from_slice(&request.body)?;
        let count = batch["Entries"].as_array().context("no Entries")?.len();
        self.batches.send_modify(|batches| batches.push(count));
        self.open.subscribe().wait_for(|open| *open).await?;
        let fails =
            self.failures.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_ok();
        if !fails {
            return self.target.pass(request).await;
        }
        let refused = Refused { code: "InternalError", sender_fault: self.is_final.load(Ordering::Relaxed) };
        entries::withhold(&self.target, request, refused, |index| index == 0).await
    }
}
