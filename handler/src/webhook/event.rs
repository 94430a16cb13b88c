//! What a webhook tells: its id, its path and its body.
//!
//! The id is a digest of what the event is, so that it stays the same whenever the same is told: by another try, by another
//! delivery of the message, or by another process. Refuses to hold anything from which the task could be read.

use super::body::{Complete, Failed, InProgress, Kind, Metadata};
use crate::{task::Task, webhook::progress::Progress};
use diffusion::{MAX_MESSAGE, cut};
use serde::Serialize;
use serde_json::json;
use sha2::{Digest, Sha256};
use url::Url;

/// Whom webhooks go to, and what they are about.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The backend's address.
    pub base: Url,
    /// The backend's id.
    pub generation_id: i64,
    /// Tells tasks with one id apart.
    origin: String,
}

/// One webhook, ready to be sent as often as it takes.
pub(super) struct Event {
    pub(super) kind: Kind,
    pub(super) id: String,
    pub(super) body: String,
}

impl Subject {
    /// A task.
    pub fn task(task: &Task) -> Self {
        Self { base: task.webhook_url.clone(), generation_id: task.generation_id, origin: task.fingerprint() }
    }

    /// A message that is no task, but says whom to tell.
    pub fn message(base: Url, generation_id: i64, body: &str) -> Self {
        Self { base, generation_id, origin: hex::encode(Sha256::digest(body)) }
    }

    pub(super) fn progress(&self, progress: Progress) -> Event {
        let part = progress.current_step.to_string();
        self.event(Kind::Progress, &part, &InProgress { generation_id: self.generation_id, progress })
    }

    pub(super) fn complete(&self, task: &Task, result_urls: &[String]) -> Event {
        let Task { seed, steps, guidance_scale, .. } = *task;
        let body = Complete {
            generation_id: self.generation_id,
            // A task has one picture at least.
            result_url: result_urls.first().map_or("", String::as_str),
            result_urls: if result_urls.len() > 1 { result_urls } else { &[] },
            metadata: Metadata { seed, steps, guidance_scale },
        };
        self.event(Kind::Complete, "", &body)
    }

    pub(super) fn failed(&self, code: &str, message: &str, retry_count: u32) -> Event {
        let generation_id = self.generation_id;
        let error_message = &*cut(message, MAX_MESSAGE);
        let body = Failed { generation_id, error_message, error_code: code, retry_count };
        self.event(Kind::Failed, "", &body)
    }

    fn event(&self, kind: Kind, part: &str, body: &impl Serialize) -> Event {
        let Self { generation_id, origin, .. } = self;
        let digest = Sha256::digest(format!("{generation_id}\n{origin}\n{}\n{part}", kind.path()));
        Event { kind, id: format!("msg_{}", hex::encode(digest)), body: json!(body).to_string() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    fn task(id: i64, tag: &str) -> Task {
        let body = json!({
            "generation_id": id, "style_id": 1, "lora_model_url": "s3://bucket/k", "prompt_tags": [tag],
            "artist_name": "Ada", "webhook_url": "http://backend",
        });
        Task::parse(&body.to_string()).unwrap()
    }

    fn progress(current_step: usize, estimated_seconds: u64) -> Progress {
        Progress { current_step, total_steps: 4, progress_percent: 0, estimated_seconds }
    }

    #[test]
    fn the_same_event_keeps_its_id_and_another_has_another() {
        let (first, again) = (Subject::task(&task(1, "cat")), Subject::task(&task(1, "cat")));
        assert_eq!(first.failed("A", "network", 0).id, again.failed("B", "storage", 2).id);
        assert_eq!(first.progress(progress(1, 9)).id, again.progress(progress(1, 3)).id);
        let base = || Url::parse("http://backend").unwrap();
        let ids = [
            first.progress(progress(0, 9)).id,
            first.progress(progress(1, 9)).id,
            first.complete(&task(1, "cat"), &[]).id,
            first.failed("A", "", 0).id,
            Subject::task(&task(2, "cat")).failed("A", "", 0).id,
            Subject::task(&task(1, "dog")).failed("A", "", 0).id,
            Subject::message(base(), 1, "{}").failed("A", "", 0).id,
            Subject::message(base(), 1, "{ }").failed("A", "", 0).id,
        ];
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "{ids:?}");
        assert!(ids.iter().all(|id| id.len() == 68 && id.starts_with("msg_")));
    }

    /// A backend that takes bodies up to a limit must hear of the end of every task.
    #[test]
    fn a_failure_is_told_in_few_bytes_whatever_it_names() {
        for text in ["x", "\u{0}", "金"] {
            let body = Subject::task(&task(1, "cat")).failed("A", &text.repeat(20_000_000), 0).body;
            assert!(body.len() < 7000, "{} bytes", body.len());
            assert!(body.contains("… (cut, "), "{body}");
        }
    }
}
