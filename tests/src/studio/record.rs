//! What is known of one task: what was published, where it was seen, and how it ended; and the counts over all tasks. A station
//! counts as passed only if the task was seen there.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// A station on the way of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Station {
    /// RabbitMQ has confirmed it.
    Broker,
    /// The relay sends it on.
    Relay,
    /// SQS has it.
    Queue,
    /// The function has it.
    Function,
    /// The bucket has its picture.
    Storage,
    /// The backend has heard of its end.
    Backend,
    /// Somebody wants it cancelled. No station that a task passes.
    Cancel,
}

/// An observation.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mark {
    /// Where.
    pub station: Station,
    /// Milliseconds since the publish.
    pub at_ms: u64,
    /// The text for the page.
    pub what: String,
    /// Whether the task went on from there; otherwise it was held up.
    pub good: bool,
}

/// An accepted progress webhook.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Progress {
    /// Milliseconds since the publish.
    pub at_ms: u64,
    /// `progress_percent`.
    pub percent: u64,
    /// `current_step`.
    pub step: u64,
    /// `total_steps`.
    pub steps: u64,
    /// `estimated_seconds`.
    pub seconds_left: u64,
    /// The number of its preview, if it came with one. Previews live as long as the stack.
    #[serde(default, skip_deserializing)]
    pub preview: Option<usize>,
}

/// How a task ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum End {
    /// The complete webhook was accepted.
    Complete,
    /// The failed webhook was accepted.
    Failed {
        /// `error_code`.
        code: String,
        /// `error_message`.
        message: String,
        /// `retry_count`.
        retries: u64,
    },
    /// The cancelled webhook was accepted.
    Cancelled,
    /// The backend could not be notified; the message is in the dead-letter queue.
    DeadLettered,
}

/// The address of a picture.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Address {
    /// For how many seconds its signature works; none without one.
    pub expires_s: Option<u64>,
    /// What S3 answers without the signature.
    pub unsigned_status: u16,
}

/// One task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Record {
    /// `generation_id`.
    pub id: i64,
    /// The style's name.
    pub style: String,
    /// The message's body.
    pub task: Value,
    /// When it was published, in milliseconds since the epoch.
    pub published_ms: u64,
    /// In order of time.
    pub marks: Vec<Mark>,
    /// In order of arrival.
    pub progress: Vec<Progress>,
    /// What the function logged: stages and their milliseconds.
    pub stages: Vec<(String, u64)>,
    /// Receives of its message.
    pub receives: u32,
    /// Send requests with it that SQS refused.
    pub refusals: u64,
    /// Its webhooks that were not accepted.
    pub dropped: u64,
    /// Accepted complete webhooks.
    pub completes: u64,
    /// Accepted failed webhooks.
    pub failures: u64,
    /// Accepted cancelled webhooks.
    #[serde(default)]
    pub cancels: u64,
    /// When somebody wanted it cancelled, in milliseconds since the publish.
    #[serde(default)]
    pub cancel_ms: Option<u64>,
    /// The first of the tasks that were published together, if there were several.
    #[serde(default)]
    pub series: Option<i64>,
    /// `metadata` of complete.
    #[serde(default)]
    pub metadata: Value,
    /// How its picture's address is protected.
    #[serde(default)]
    pub address: Option<Address>,
    /// The first end.
    pub end: Option<End>,
    /// Milliseconds from the publish to the first end.
    pub ended_ms: Option<u64>,
    /// The picture's file in the gallery.
    pub picture: Option<String>,
    /// Whether the safety checker flagged one of its pictures.
    #[serde(default)]
    pub nsfw: bool,
}

impl Record {
    /// A task that is about to be published.
    pub fn new(id: i64, style: &str, task: Value, published_ms: u64) -> Self {
        Self {
            id,
            style: style.to_string(),
            task,
            published_ms,
            marks: vec![],
            progress: vec![],
            stages: vec![],
            receives: 0,
            refusals: 0,
            dropped: 0,
            completes: 0,
            failures: 0,
            cancels: 0,
            cancel_ms: None,
            series: None,
            metadata: Value::Null,
            address: None,
            end: None,
            ended_ms: None,
            picture: None,
            nsfw: false,
        }
    }

    /// Whether it has passed this station.
    pub fn was_at(&self, station: Station) -> bool {
        self.marks.iter().any(|mark| mark.station == station && mark.good)
    }

    /// Ends it, unless it has ended already.
    pub fn end(&mut self, end: End, at_ms: u64) {
        if self.end.is_none() {
            (self.end, self.ended_ms) = (Some(end), Some(at_ms));
        }
    }
}

/// The faults now and so far.
#[derive(Debug, Clone, Default, Serialize)]
pub struct Status {
    /// Whether the function can take work.
    pub function_ready: bool,
    /// How often it was killed.
    pub kills: u64,
    /// Whether webhooks are refused now.
    pub drops_webhooks: bool,
    /// Webhooks that were refused.
    pub webhooks_dropped: u64,
    /// Whether SQS throttles now.
    pub throttles_queue: bool,
    /// Send requests that SQS refused.
    pub sends_refused: u64,
    /// An error of the studio itself.
    pub trouble: Option<String>,
}

/// What the function is doing.
#[derive(Debug, Clone, Default, Serialize)]
pub struct FunctionState {
    /// Its process; none while it starts.
    pub pid: Option<i32>,
    /// The tasks of its invocation.
    pub tasks: Vec<i64>,
    /// Invocations that it has answered since it was started.
    pub answered: u64,
    /// Resident memory in MiB.
    pub memory_mib: Option<u64>,
}

/// The counts over the tasks of this run: every published task must end exactly once.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Published tasks.
    pub published: u64,
    /// Ended with complete.
    pub complete: u64,
    /// Ended with failed.
    pub failed: u64,
    /// In the dead-letter queue.
    pub dead_lettered: u64,
    /// Ended with cancelled.
    pub cancelled: u64,
    /// Not ended yet.
    pub in_flight: u64,
    /// Repeated ends; the backend recognises them by their `webhook-id`.
    pub repeats: u64,
    /// Tasks with different ends: there must be none.
    pub contradictions: u64,
}

impl Ledger {
    /// Counts these tasks.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut ledger = Self::default();
        for record in records {
            ledger.published += 1;
            match &record.end {
                None => ledger.in_flight += 1,
                Some(End::Complete) => ledger.complete += 1,
                Some(End::Failed { .. }) => ledger.failed += 1,
                Some(End::Cancelled) => ledger.cancelled += 1,
                Some(End::DeadLettered) => ledger.dead_lettered += 1,
            }
            let ends = [record.completes, record.failures, record.cancels];
            ledger.repeats += ends.iter().sum::<u64>().saturating_sub(1);
            ledger.contradictions += u64::from(ends.iter().filter(|count| **count > 0).count() > 1);
        }
        ledger
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn record(completes: u64, failures: u64, end: Option<End>) -> Record {
        Record { completes, failures, end, ..Record::new(1, "halftone", json!({}), 0) }
    }

    #[test]
    fn each_task_is_counted_once_and_repeated_ends_apart() {
        let failed = || Some(End::Failed { code: "C".into(), message: "m".into(), retries: 0 });
        let records = [
            record(0, 0, None),
            record(1, 0, Some(End::Complete)),
            record(3, 0, Some(End::Complete)),
            record(0, 1, failed()),
            record(1, 1, failed()),
            record(0, 0, Some(End::DeadLettered)),
            Record { cancels: 2, ..record(0, 0, Some(End::Cancelled)) },
            Record { cancels: 1, ..record(1, 0, Some(End::Complete)) },
        ];
        let ledger = Ledger::of(&records);
        let expected = Ledger {
            published: 8,
            complete: 3,
            failed: 2,
            dead_lettered: 1,
            cancelled: 1,
            in_flight: 1,
            repeats: 5,
            contradictions: 2,
        };
        assert_eq!(ledger, expected);
    }
}
