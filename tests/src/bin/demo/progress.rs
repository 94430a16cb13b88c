//! Follows one task to its end, by webhooks and by what the mapping does with its message, and shows it: one changing line on a
//! terminal, plain lines elsewhere.

use crate::task;
use anyhow::{Context, Result};
use e2e::{
    backend::{Backend, COMPLETE, Call, FAILED, PROGRESS},
    mapping::{Batch, Record},
    stack::Stack,
};
use serde_json::Value;
use std::{
    io::{IsTerminal, Write, stdout},
    time::Duration,
};

const BAR: u64 = 30;
/// The longest time from the last webhook to the function's answer.
const ANSWER: Duration = Duration::from_secs(60);

/// How the task ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Painted; the address of the picture.
    Complete(String),
    /// The failed webhook came, with this message.
    Failed(String),
    /// The backend could not be notified; the message is in the dead-letter queue.
    DeadLettered,
    /// The message was deleted, but its webhooks went to another address.
    OtherReceiver,
}

/// Shows what happens to the task until it has ended.
pub(crate) async fn outcome(screen: &mut Screen, stack: &Stack, backend: &Backend, body: &str) -> Result<Outcome> {
    let id = task::id(body);
    let (mut calls, mut batches) = (backend.follow(), stack.route.mapping.follow());
    let (mut shown, mut receives) = (0, 0);
    loop {
        let came = calls.borrow_and_update().clone();
        for call in &came[shown..] {
            screen.webhook(call);
            if call.is_end() && (id.is_none() || call.generation_id() == id) {
                // The function must still answer and log its timings.
                stack.route.mapping.handled(body, receives + 1, ANSWER).await?;
                return Ok(end_of(call));
            }
        }
        shown = came.len();
        let records = of_body(&batches.borrow_and_update(), body);
        for record in &records[receives..] {
            if record.deleted {
                return Ok(Outcome::OtherReceiver);
            }
            let (count, most) = (record.receive_count, stack.route.queue.max_receive_count);
            screen.line(&format!("the function gave the message back to the queue (receive {count} of {most})"));
            if count >= most {
                return Ok(Outcome::DeadLettered);
            }
        }
        receives = records.len();
        tokio::select! {
            changed = calls.changed() => changed.context("the webhook receiver has ended")?,
            changed = batches.changed() => changed.context("the mapping has ended")?,
        }
    }
}

fn of_body(batches: &[Batch], body: &str) -> Vec<Record> {
    batches.iter().flat_map(|batch| &batch.records).filter(|record| record.body == body).cloned().collect()
}

fn end_of(call: &Call) -> Outcome {
    let text = |name: &str| call.body[name].as_str().unwrap_or_default().to_string();
    match call.path.as_str() {
        COMPLETE => Outcome::Complete(text("result_url")),
        _ => Outcome::Failed(text("error_message")),
    }
}

/// Standard output.
pub(crate) struct Screen {
    terminal: bool,
    dirty: bool,
}

impl Screen {
    /// Checks whether standard output is a terminal.
    pub(crate) fn new() -> Self {
        Self { terminal: stdout().is_terminal(), dirty: false }
    }

    /// Shows a webhook that has come in.
    pub(crate) fn webhook(&mut self, call: &Call) {
        if call.path != PROGRESS || !self.terminal {
            return self.line(&format!("webhook {}: {}", short(&call.path), summary(call)));
        }
        let percent = call.body["progress"]["progress_percent"].as_u64().unwrap_or(0).min(100);
        let full = (BAR * percent / 100) as usize;
        let (done, rest) = ("#".repeat(full), ".".repeat(BAR as usize - full));
        print!("\r\x1b[K[{done}{rest}] {}", summary(call));
        self.dirty = true;
        // The terminal may be gone.
        let _ = stdout().flush();
    }

    /// Shows a line.
    pub(crate) fn line(&mut self, text: &str) {
        self.clear();
        println!("{text}");
    }

    /// Clears the changing line.
    pub(crate) fn clear(&mut self) {
        if std::mem::take(&mut self.dirty) {
            print!("\r\x1b[K");
        }
    }
}

/// The path of a webhook without the common prefix.
pub(crate) fn short(path: &str) -> &str {
    path.strip_prefix("/api/webhooks/inference/").unwrap_or(path)
}

/// What is added to `complete` if the safety checker flagged a picture.
fn flagged(body: &Value) -> &'static str {
    let verdicts = body["metadata"]["nsfw_content_detected"].as_array();
    let is_flagged = verdicts.is_some_and(|verdicts| verdicts.contains(&Value::Bool(true)));
    if is_flagged { " (flagged by the safety checker)" } else { "" }
}

/// A webhook in a few words.
pub(crate) fn summary(call: &Call) -> String {
    let body = &call.body;
    let text = |name: &str| body[name].as_str().unwrap_or("?").to_string();
    match call.path.as_str() {
        PROGRESS => {
            let progress = &body["progress"];
            let number = |name: &str| progress[name].as_u64().unwrap_or(0);
            let (step, steps) = (number("current_step"), number("total_steps"));
            let left = number("estimated_seconds");
            format!("{} %, step {step} of {steps}, about {left} s left", number("progress_percent"))
        }
        COMPLETE => text("result_url") + flagged(body),
        FAILED => text("error_message"),
        _ => body.to_string(),
    }
}
