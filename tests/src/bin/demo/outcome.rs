//! Follows one task to its end, by the webhooks that come in and by what the mapping does with its message.

use crate::{screen::Screen, task};
use anyhow::{Context, Result};
use e2e::{
    backend::{Backend, COMPLETE, Call},
    mapping::{Batch, Record},
    stack::Stack,
};
use std::time::Duration;

/// From the last webhook to the function's answer.
const ANSWER: Duration = Duration::from_secs(60);

/// How the task ended.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// Painted; the address of the picture.
    Complete(String),
    /// The failed webhook came, with this message.
    Failed(String),
    /// Nobody could be told; the message lies in the dead-letter queue.
    DeadLettered,
    /// The message is done with, but its webhooks went to an address that is not ours.
    ToldElsewhere,
}

/// Shows what happens to the task until it has ended.
pub(crate) async fn of(screen: &mut Screen, stack: &Stack, backend: &Backend, body: &str) -> Result<Outcome> {
    let id = task::id(body);
    let (mut calls, mut batches) = (backend.follow(), stack.line.mapping.follow());
    let (mut shown, mut receives) = (0, 0);
    loop {
        let came = calls.borrow_and_update().clone();
        for call in &came[shown..] {
            screen.webhook(call);
            if call.is_end() && (id.is_none() || call.generation_id() == id) {
                // The function has still to answer, and to log its timings.
                stack.line.mapping.handled(body, receives + 1, ANSWER).await?;
                return Ok(told(call));
            }
        }
        shown = came.len();
        let records = of_body(&batches.borrow_and_update(), body);
        for record in &records[receives..] {
            if record.deleted {
                return Ok(Outcome::ToldElsewhere);
            }
            let (count, most) = (record.receive_count, stack.line.queue.max_receive_count);
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

fn told(call: &Call) -> Outcome {
    let text = |name: &str| call.body[name].as_str().unwrap_or_default().to_string();
    match call.path.as_str() {
        COMPLETE => Outcome::Complete(text("result_url")),
        _ => Outcome::Failed(text("error_message")),
    }
}
