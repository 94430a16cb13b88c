//! Follows the webhooks and the event source mapping, updates the tasks, and downloads pictures into the gallery.

use super::{
    record::{Address, End, Mark, Progress, Record, Station},
    tasks::TaskStore,
};
use crate::{
    backend::{Backend, CANCELLED, COMPLETE, Call, FAILED, PROGRESS},
    mapping::{Batch, Mapping},
};
use anyhow::{Context, Result, ensure};
use base64::{Engine, prelude::BASE64_STANDARD};
use reqwest::Url;
use serde_json::Value;
use std::convert::Infallible;

/// Follows the webhooks.
///
/// # Errors
/// The receiver has ended.
pub async fn webhooks(backend: &Backend, tasks: &TaskStore) -> Result<Infallible> {
    let (mut calls, mut seen) = (backend.follow(), 0);
    let http = crate::http_client()?;
    loop {
        let new = calls.borrow_and_update()[seen..].to_vec();
        seen += new.len();
        for call in &new {
            let Some(id) = call.generation_id() else { continue };
            if call.status != 200 {
                tasks.set_status(|status| status.webhooks_dropped += 1);
            }
            let preview = preview_of(call).map(|file| tasks.keep_preview(id, file));
            tasks.change(id, |record, at_ms| note(record, at_ms, call, preview));
            if call.is_end() && call.path == COMPLETE {
                fetch(&http, tasks, id, call).await;
            }
        }
        calls.changed().await.context("the webhook receiver has ended")?;
    }
}

/// Follows what the mapping does with each message.
///
/// # Errors
/// The mapping has ended.
pub async fn batches(mapping: &Mapping, most: u32, tasks: &TaskStore) -> Result<Infallible> {
    let (mut batches, mut seen) = (mapping.follow(), 0);
    loop {
        let new: Vec<Batch> = batches.borrow_and_update()[seen..].to_vec();
        seen += new.len();
        for record in new.iter().flat_map(|batch| &batch.records).filter(|record| !record.deleted) {
            let body: Value = serde_json::from_str(&record.body).unwrap_or_default();
            let Some(id) = body["generation_id"].as_i64() else { continue };
            let what = format!("back in the queue after receive {} of {most}", record.receive_count);
            tasks.mark(id, Station::Queue, false, what);
            if record.receive_count >= most {
                tasks.dead_letter(id);
            }
        }
        batches.changed().await.context("the mapping has ended")?;
    }
}

/// The picture of the painting in a progress webhook that was accepted.
fn preview_of(call: &Call) -> Option<Vec<u8>> {
    let text = call.body["preview"].as_str().filter(|_| call.path == PROGRESS && call.status == 200)?;
    BASE64_STANDARD.decode(text).ok()
}

/// Notes a webhook in its task's record.
fn note(record: &mut Record, at_ms: u64, call: &Call, preview: Option<usize>) {
    let name = call.path.rsplit('/').next().unwrap_or_default();
    let taken = call.status == 200;
    let text = |field: &str| call.body[field].as_str().unwrap_or_default().to_string();
    if !taken {
        record.dropped += 1;
        let what = format!("webhook {name} was answered {}", call.status);
        return record.marks.push(Mark { station: Station::Backend, at_ms, what, good: false });
    }
    match call.path.as_str() {
        PROGRESS => {
            let number = |field: &str| call.body["progress"][field].as_u64().unwrap_or_default();
            record.progress.push(Progress {
                at_ms,
                percent: number("progress_percent"),
                step: number("current_step"),
                steps: number("total_steps"),
                seconds_left: number("estimated_seconds"),
                preview,
            });
        }
        COMPLETE => {
            record.completes += 1;
            if record.metadata.is_null() {
                record.metadata = call.body["metadata"].clone();
            }
            let verdicts = call.body["metadata"]["nsfw_content_detected"].as_array();
            record.nsfw = verdicts.is_some_and(|verdicts| verdicts.contains(&Value::Bool(true)));
        }
        FAILED => record.failures += 1,
        CANCELLED => record.cancels += 1,
        _ => {}
    }
    if call.is_end() || call.path == CANCELLED {
        let what = format!("webhook {name} was taken");
        record.marks.push(Mark { station: Station::Backend, at_ms, what, good: true });
        let retries = call.body["retry_count"].as_u64().unwrap_or_default();
        let end = match call.path.as_str() {
            COMPLETE => End::Complete,
            CANCELLED => End::Cancelled,
            _ => End::Failed { code: text("error_code"), message: text("error_message"), retries },
        };
        record.end(end, at_ms);
    }
}

/// Downloads a picture from the address in complete into the gallery, and notes what the address is worth without its signature.
async fn fetch(http: &reqwest::Client, tasks: &TaskStore, id: i64, call: &Call) {
    let fetched = async {
        let url = Url::parse(call.body["result_url"].as_str().context("complete without an address")?)?;
        let answer = http.get(url.clone()).send().await?;
        ensure!(answer.status().is_success(), "the picture's address answered {}", answer.status());
        let name = tasks.gallery().keep_picture(url.path(), &answer.bytes().await?)?;
        let expires = url.query_pairs().find(|(name, _)| name == "X-Amz-Expires");
        let expires_s = expires.and_then(|(_, seconds)| seconds.parse().ok());
        let mut plain = url;
        plain.set_query(None);
        let unsigned_status = http.get(plain).send().await?.status().as_u16();
        anyhow::Ok((name, Address { expires_s, unsigned_status }))
    };
    match fetched.await {
        Ok((name, address)) => tasks.change(id, |record, _| {
            (record.picture, record.address) = (Some(name), Some(address));
        }),
        Err(error) => tasks.set_status(|status| status.trouble = Some(format!("generation {id}: {error:#}"))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn call(path: &str, status: u16, body: Value) -> Call {
        let (method, headers, text) = ("POST".to_string(), Default::default(), String::new());
        Call { method, path: path.to_string(), headers, body, text, at_ms: 0, status }
    }

    #[test]
    fn a_webhook_that_was_not_taken_ends_nothing() {
        let mut record = Record::new(1, "halftone", json!({}), 0);
        note(&mut record, 5, &call(COMPLETE, 503, json!({ "generation_id": 1 })), None);
        assert_eq!((record.end.clone(), record.dropped, record.completes), (None, 1, 0));
        note(&mut record, 9, &call(COMPLETE, 200, json!({ "generation_id": 1 })), None);
        assert_eq!((record.end, record.ended_ms, record.completes), (Some(End::Complete), Some(9), 1));
    }

    #[test]
    fn the_verdict_of_the_safety_checker_is_kept() {
        for (metadata, nsfw) in [
            (json!({}), false),
            (json!({ "nsfw_content_detected": [false] }), false),
            (json!({ "nsfw_content_detected": [false, true] }), true),
        ] {
            let mut record = Record::new(1, "halftone", json!({}), 0);
            note(&mut record, 5, &call(COMPLETE, 200, json!({ "generation_id": 1, "metadata": metadata })), None);
            assert_eq!(record.nsfw, nsfw, "{metadata}");
        }
    }

    #[test]
    fn a_failure_keeps_code_message_and_retries() {
        let mut record = Record::new(1, "halftone", json!({}), 0);
        let body = json!({ "error_code": "TASK_INVALID", "error_message": "steps: 0", "retry_count": 2 });
        note(&mut record, 5, &call(FAILED, 200, body), None);
        let end = End::Failed { code: "TASK_INVALID".into(), message: "steps: 0".into(), retries: 2 };
        assert_eq!(record.end, Some(end));
    }
    #[test]
    fn previews_come_with_progress_that_was_accepted() {
        let told =
            |status| call(PROGRESS, status, json!({ "progress": { "progress_percent": 10 }, "preview": "AQI=" }));
        assert_eq!((preview_of(&told(200)), preview_of(&told(503))), (Some(vec![1, 2]), None));
        assert_eq!(preview_of(&call(PROGRESS, 200, json!({ "preview": "?" }))), None);
        let mut record = Record::new(1, "halftone", json!({}), 0);
        note(&mut record, 5, &told(200), Some(3));
        assert_eq!((record.progress[0].percent, record.progress[0].preview), (10, Some(3)));
        let text = serde_json::to_string(&record).unwrap();
        let kept: Record = serde_json::from_str(&text).unwrap();
        assert!(
            text.contains("\"preview\":3") && kept.progress[0].preview.is_none(),
            "previews do not outlive the stack"
        );
    }

    #[test]
    fn a_cancelled_task_has_ended_and_the_first_metadata_stay() {
        let mut record = Record::new(1, "halftone", json!({}), 0);
        note(&mut record, 5, &call(CANCELLED, 200, json!({ "generation_id": 1 })), None);
        assert_eq!((record.end, record.ended_ms, record.cancels), (Some(End::Cancelled), Some(5), 1));
        let mut record = Record::new(1, "halftone", json!({}), 0);
        for metadata in [json!({ "timings": { "queue": 1 } }), json!({})] {
            note(&mut record, 5, &call(COMPLETE, 200, json!({ "metadata": metadata })), None);
        }
        assert_eq!(record.metadata["timings"]["queue"], 1);
    }
}
