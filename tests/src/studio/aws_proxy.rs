//! A reverse proxy between the real binaries and the stand-in for SQS and S3. It notes which tasks were sent and whose picture was
//! stored, and can inject SQS faults.

use super::{record::Station, tasks::TaskStore};
use crate::{
    aws::IMAGES,
    http_proxy::{HttpProxy, Request, Target},
    sqs::SqsFault,
};
use anyhow::Result;
use axum::{body, http::Method, response::Response};
use serde_json::Value;
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
};

const SEND: &str = "AmazonSQS.SendMessageBatch";

/// The proxy. It ends when this is dropped.
#[derive(Debug)]
pub struct AwsProxy {
    proxy: HttpProxy,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    target: Target,
    tasks: Arc<TaskStore>,
    fault: Mutex<Option<SqsFault>>,
}

impl AwsProxy {
    /// Starts it in front of `target`.
    ///
    /// # Errors
    /// No free port.
    pub async fn start(target: &str, tasks: Arc<TaskStore>) -> Result<Self> {
        let shared = Arc::new(Shared { target: Target::new(target)?, tasks, fault: Mutex::default() });
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

    /// Answers requests to send with this fault from now on; `None` forwards them again.
    pub fn set_fault(&self, fault: Option<SqsFault>) {
        *self.shared.fault.lock().unwrap_or_else(PoisonError::into_inner) = fault;
    }
}

impl Shared {
    async fn pass(&self, request: Request) -> Result<Response> {
        if request.headers.get("x-amz-target").is_some_and(|target| target == SEND) {
            return self.send(request).await;
        }
        let is_put = request.method == Method::PUT;
        let stored = is_put.then(|| picture_of(request.uri.path())).flatten();
        let cancelled = is_put.then(|| marker_of(request.uri.path())).flatten();
        let answer = self.target.pass(request).await?;
        if let Some(id) = cancelled.filter(|_| answer.status().is_success()) {
            self.tasks.mark(id, Station::Cancel, true, "S3 has the marker that the function looks for");
        }
        if let Some(id) = stored.filter(|_| answer.status().is_success()) {
            self.tasks.mark(id, Station::Storage, true, "S3 has the picture");
        }
        Ok(answer)
    }

    /// Forwards a batch unless a fault is set, and notes what became of each task in it.
    async fn send(&self, request: Request) -> Result<Response> {
        let sent = entries(&request.body);
        for id in sent.values() {
            self.tasks.mark_once(*id, Station::Relay, "the relay sends it to SQS");
        }
        if let Some(refusal) = self.refusal() {
            self.tasks.set_status(|status| status.sends_refused += 1);
            for id in sent.values() {
                self.tasks.change(*id, |record, _| record.refusals += 1);
            }
            return Ok(refusal);
        }
        let (head, body) = self.target.pass(request).await?.into_parts();
        let body = body::to_bytes(body, usize::MAX).await?;
        let accepted: Value = serde_json::from_slice(&body).unwrap_or_default();
        for entry in accepted["Successful"].as_array().into_iter().flatten() {
            if let Some(id) = entry["Id"].as_str().and_then(|entry| sent.get(entry)) {
                self.tasks.mark_once(*id, Station::Queue, "SQS has it");
            }
        }
        Ok(Response::from_parts(head, body.into()))
    }

    fn refusal(&self) -> Option<Response> {
        self.fault.lock().unwrap_or_else(PoisonError::into_inner).as_ref().and_then(SqsFault::answer)
    }
}

/// The generations in a request to send, by the entries' ids.
fn entries(body: &[u8]) -> BTreeMap<String, i64> {
    let batch: Value = serde_json::from_slice(body).unwrap_or_default();
    let entry = |entry: &Value| {
        let message: Value = serde_json::from_str(entry["MessageBody"].as_str()?).ok()?;
        Some((entry["Id"].as_str()?.to_string(), message["generation_id"].as_i64()?))
    };
    batch["Entries"].as_array().into_iter().flatten().filter_map(entry).collect()
}

/// The generation whose picture has this path.
fn picture_of(path: &str) -> Option<i64> {
    let name = path.strip_prefix('/')?.strip_prefix(IMAGES)?.strip_prefix("/generations/gen_")?;
    name.split(['.', '_']).next()?.parse().ok()
}

/// The generation whose marker, which cancels it, has this path.
fn marker_of(path: &str) -> Option<i64> {
    path.strip_prefix('/')?.strip_prefix(IMAGES)?.strip_prefix("/cancelled/gen_")?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pictures_and_markers_are_told_apart_by_their_paths() {
        for (path, picture, marker) in [
            ("/stylelicense-images/generations/gen_500.jpg", Some(500), None),
            ("/stylelicense-images/generations/gen_500_2.jpg", Some(500), None),
            ("/stylelicense-images/cancelled/gen_500", None, Some(500)),
            ("/stylelicense-models/cancelled/gen_500", None, None),
        ] {
            assert_eq!((picture_of(path), marker_of(path)), (picture, marker), "{path}");
        }
    }
}
