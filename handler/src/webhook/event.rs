//! What a webhook sends: its id, its path and its body.
//!
//! The id is a digest of the event, so it stays the same whenever the same event is sent again: by a retry, by another
//! delivery of the message, or by another process. Nothing about the task can be read from it.

use crate::{
    task::{self, Task},
    webhook::{Detail, progress::Progress},
};
use diffusion::{MAX_MESSAGE, cut};
use reqwest::Method;
use schemars::JsonSchema;
use serde::Serialize;
use sha2::{Digest, Sha256};
use url::Url;

/// Which webhook.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EventKind {
    Progress,
    Complete,
    Failed,
    Cancelled,
}

impl EventKind {
    pub(super) const ALL: [Self; 4] = [Self::Progress, Self::Complete, Self::Failed, Self::Cancelled];

    /// The last segment of its path.
    pub(super) fn path(self) -> &'static str {
        match self {
            Self::Progress => "progress",
            Self::Complete => "complete",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }

    pub(super) fn method(self) -> Method {
        match self {
            Self::Progress => Method::PATCH,
            Self::Complete | Self::Failed | Self::Cancelled => Method::POST,
        }
    }
}

/// Which backend webhooks go to, and which task they are about.
#[derive(Debug, Clone)]
pub struct Subject {
    /// The backend's address: the task's `webhook_url`.
    pub base: Url,
    /// The backend's id of the task.
    pub generation_id: i64,
    /// The task's fingerprint, or the digest of the message: tells tasks with the same id apart.
    fingerprint: String,
}

/// One webhook, which may be sent several times.
pub(super) struct Event {
    pub(super) kind: EventKind,
    pub(super) id: String,
    pub(super) body: String,
}

impl Subject {
    /// Of a task.
    pub fn task(task: &Task) -> Self {
        Self { base: task.webhook_url.clone(), generation_id: task.generation_id, fingerprint: task.fingerprint() }
    }

    /// Of a message that is not a valid task, but names its backend.
    pub fn message(base: Url, generation_id: i64, body: &str) -> Self {
        Self { base, generation_id, fingerprint: hex::encode(Sha256::digest(body)) }
    }

    pub(super) fn progress(&self, progress: Progress, preview: Option<&str>) -> Event {
        let part = progress.current_step.to_string();
        self.event(EventKind::Progress, &part, &InProgress { generation_id: self.generation_id, progress, preview })
    }

    pub(super) fn complete(&self, task: &Task, result_urls: &[String], nsfw: &[bool], detail: Option<Detail>) -> Event {
        let Task { seed, steps, guidance_scale, .. } = *task;
        let body = Complete {
            generation_id: self.generation_id,
            // A task has at least one picture.
            result_url: result_urls.first().map_or("", String::as_str),
            result_urls: if result_urls.len() > 1 { result_urls } else { &[] },
            metadata: Metadata { seed, steps, guidance_scale, nsfw_content_detected: nsfw, detail },
        };
        self.event(EventKind::Complete, "", &body)
    }

    pub(super) fn failed(&self, code: &str, message: &str, retry_count: u32) -> Event {
        let generation_id = self.generation_id;
        let error_message = &*cut(message, MAX_MESSAGE);
        let body = Failed { generation_id, error_message, error_code: code, retry_count };
        self.event(EventKind::Failed, "", &body)
    }

    pub(super) fn cancelled(&self) -> Event {
        self.event(EventKind::Cancelled, "", &Cancelled { generation_id: self.generation_id })
    }

    fn event(&self, kind: EventKind, part: &str, body: &impl Serialize) -> Event {
        let Self { generation_id, fingerprint, .. } = self;
        let digest = Sha256::digest(format!("{generation_id}\n{fingerprint}\n{}\n{part}", kind.path()));
        // Straight to text: by a `Value`, the order of the fields would depend on features that other crates ask for.
        let body = serde_json::to_string(body).expect("every field is a number, a text or a list");
        Event { kind, id: format!("msg_{}", hex::encode(digest)), body }
    }
}

// The bodies, as they are sent and as `handler schema webhooks` describes them: a doc comment here is the description there.

/// The progress of a task.
#[derive(Serialize, JsonSchema)]
pub(super) struct InProgress<'a> {
    /// The id of the task.
    #[schemars(range(min = 0))]
    pub(super) generation_id: i64,
    /// How far the painting is.
    pub(super) progress: Progress,
    /// A small picture of it, a JPEG of less than 10,000 bytes in base64, if the operator turned that on. Absent before the first step.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[schemars(with = "String", extend("contentEncoding" = "base64", "contentMediaType" = "image/jpeg"))]
    pub(super) preview: Option<&'a str>,
}

/// All pictures of a task are stored.
#[derive(Serialize, JsonSchema)]
pub(super) struct Complete<'a> {
    /// The id of the task.
    #[schemars(range(min = 0))]
    pub(super) generation_id: i64,
    /// Address of the first picture.
    #[schemars(url)]
    pub(super) result_url: &'a str,
    /// Addresses of all pictures, if there are several.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schemars(length(min = 2, max = task::MAX_IMAGES as u64))]
    pub(super) result_urls: &'a [String],
    /// Settings of the painting.
    pub(super) metadata: Metadata<'a>,
}

/// Settings of the painting.
#[derive(Serialize, JsonSchema)]
pub(super) struct Metadata<'a> {
    /// The seed, as the task has it.
    #[schemars(range(min = i64::MIN, max = u64::MAX))]
    pub(super) seed: i128,
    /// Denoising steps.
    #[schemars(range(min = 1, max = task::MAX_STEPS as u64))]
    pub(super) steps: usize,
    /// Classifier-free guidance scale.
    #[schemars(range(min = 0.0, max = task::MAX_GUIDANCE))]
    pub(super) guidance_scale: f64,
    /// Of each picture, whether the safety checker flagged it as not safe for work; absent if no check was made.
    #[serde(skip_serializing_if = "<[_]>::is_empty")]
    #[schemars(length(min = 1, max = task::MAX_IMAGES as u64))]
    pub(super) nsfw_content_detected: &'a [bool],
    /// How the pictures came about, if the operator turned that on.
    #[serde(flatten)]
    pub(super) detail: Option<Detail>,
}

/// A task failed, and there will be no more tries.
#[derive(Serialize, JsonSchema)]
pub(super) struct Failed<'a> {
    /// The id of the task. Of a message that is not a valid task it may be negative.
    pub(super) generation_id: i64,
    /// The invalid field with its value and limit, or what failed. At most 1000 bytes: longer text is cut and says so.
    #[schemars(length(max = MAX_MESSAGE as u64))]
    pub(super) error_message: &'a str,
    /// GENERATION_FAILED, or a finer code if the operator turned those on.
    #[schemars(extend("enum" = codes()))]
    pub(super) error_code: &'a str,
    /// How often the queue had delivered the task before.
    pub(super) retry_count: u32,
}

/// A task was cancelled by its id. Nothing of it is stored, and nothing more is sent.
#[derive(Serialize, JsonSchema)]
pub(super) struct Cancelled {
    /// The id of the task.
    #[schemars(range(min = 0))]
    pub(super) generation_id: i64,
}

/// Every `error_code`. A backend that does not answer is not among them: it cannot be told, and the picture is stored.
fn codes() -> Vec<&'static str> {
    use crate::task::fault::{GENERATION_FAILED, TaskFault};
    let sent = TaskFault::ALL.into_iter().filter(|fault| *fault != TaskFault::Backend);
    [GENERATION_FAILED].into_iter().chain(sent.map(TaskFault::code)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::webhook::{LoraDetail, Timings};
    use serde_json::json;
    use std::collections::{BTreeMap, HashSet};

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
        assert_eq!(first.progress(progress(1, 9), None).id, again.progress(progress(1, 3), None).id);
        let base = || Url::parse("http://backend").unwrap();
        let ids = [
            first.progress(progress(0, 9), None).id,
            first.progress(progress(1, 9), None).id,
            first.complete(&task(1, "cat"), &[], &[], None).id,
            first.failed("A", "", 0).id,
            first.cancelled().id,
            Subject::task(&task(2, "cat")).failed("A", "", 0).id,
            Subject::task(&task(1, "dog")).failed("A", "", 0).id,
            Subject::message(base(), 1, "{}").failed("A", "", 0).id,
            Subject::message(base(), 1, "{ }").failed("A", "", 0).id,
        ];
        assert_eq!(ids.iter().collect::<HashSet<_>>().len(), ids.len(), "{ids:?}");
        assert!(ids.iter().all(|id| id.len() == 68 && id.starts_with("msg_")));
    }

    /// The Python worker's bodies, field by field and in its order, and what is added only where it is asked for.
    #[test]
    fn each_body_is_the_python_workers_byte_for_byte() {
        let (task, url) = (task(1, "cat"), ["http://s3/a.jpg".to_string()]);
        let subject = Subject::task(&task);
        let progress = Progress { current_step: 25, total_steps: 50, progress_percent: 50, estimated_seconds: 3 };
        let complete = |told: &str| {
            format!(
                r#"{{"generation_id":1,"result_url":"http://s3/a.jpg","metadata":{{"seed":42,"steps":50,"guidance_scale":7.5{told}}}}}"#
            )
        };
        let in_progress = r#"{"generation_id":1,"progress":{"current_step":25,"total_steps":50,"progress_percent":50,"estimated_seconds":3}}"#;
        let failed =
            r#"{"generation_id":1,"error_message":"no such LoRA","error_code":"GENERATION_FAILED","retry_count":0}"#;
        let detail = Detail {
            scheduler: "euler".into(),
            width: 512,
            height: 768,
            strength: Some(0.5),
            model: Some("m".into()),
            loras: vec![LoraDetail { name: "k".into(), hash: None, scale: 1.0, weights: BTreeMap::new() }],
            timings: Some(Timings { queue: None, fetch: 1, wait: 2, denoise: 3, decode: 4, upload: 5 }),
            warnings: vec![],
        };
        let told = r#","scheduler":"euler","width":512,"height":768,"strength":0.5,"model":"m","loras":[{"name":"k","scale":1.0}],"timings":{"fetch":1,"wait":2,"denoise":3,"decode":4,"upload":5},"warnings":[]"#;
        for (event, body) in [
            (subject.progress(progress, None), in_progress),
            (subject.progress(progress, Some("/9j/")), &in_progress.replace("3}}", r#"3},"preview":"/9j/"}"#)),
            (subject.complete(&task, &url, &[], None), &complete("")),
            (subject.failed("GENERATION_FAILED", "no such LoRA", 0), failed),
            // What only an operator's options bring about.
            (subject.complete(&task, &url, &[], Some(detail)), &complete(told)),
            (
                subject.complete(&task, &url, &[true, false], None),
                &complete(r#","nsfw_content_detected":[true,false]"#),
            ),
            (subject.cancelled(), r#"{"generation_id":1}"#),
        ] {
            assert_eq!(event.body, body);
        }
    }

    /// A backend with a limit on request bodies must still learn that a task failed.
    #[test]
    fn a_failure_is_told_in_few_bytes_whatever_it_names() {
        for text in ["x", "\u{0}", "金"] {
            let body = Subject::task(&task(1, "cat")).failed("A", &text.repeat(20_000_000), 0).body;
            assert!(body.len() < 7000, "{} bytes", body.len());
            assert!(body.contains("… (cut, "), "{body}");
        }
    }
}
