//! What is known of one task: what was published, where it was seen, and how it ended. Refuses to guess: a station is lit by
//! what was seen there, never by what must have happened.

use serde::{Deserialize, Serialize};
use serde_json::Value;

/// Where a task is seen on its way.
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
    /// The backend was told of its end.
    Backend,
}

/// Something that was seen.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mark {
    /// Where.
    pub station: Station,
    /// Since it was published.
    pub at_ms: u64,
    /// In words.
    pub what: String,
    /// Whether it went on from there; otherwise it was held up.
    pub good: bool,
}

/// A progress webhook that was taken.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Progress {
    /// Since it was published.
    pub at_ms: u64,
    /// `progress_percent`.
    pub percent: u64,
    /// `current_step`.
    pub step: u64,
    /// `total_steps`.
    pub steps: u64,
    /// `estimated_seconds`.
    pub seconds_left: u64,
}

/// How it ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case", tag = "kind")]
pub enum End {
    /// The complete webhook was taken.
    Complete,
    /// The failed webhook was taken.
    Failed {
        /// `error_code`.
        code: String,
        /// `error_message`.
        message: String,
        /// `retry_count`.
        retries: u64,
    },
    /// Nobody could be told; the message lies in the dead-letter queue.
    DeadLettered,
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
    /// When it was published, since the epoch.
    pub published_ms: u64,
    /// In the order in which they were seen.
    pub marks: Vec<Mark>,
    /// In order of arrival.
    pub progress: Vec<Progress>,
    /// What the function logged: stages and their milliseconds.
    pub stages: Vec<(String, u64)>,
    /// How often the queue has handed it out.
    pub receives: u32,
    /// How often SQS did not take it.
    pub refusals: u64,
    /// Webhooks of it that were not taken.
    pub dropped: u64,
    /// Complete webhooks that were taken.
    pub completes: u64,
    /// Failed webhooks that were taken.
    pub failures: u64,
    /// The first end that was told.
    pub end: Option<End>,
    /// When that was, since it was published.
    pub ended_ms: Option<u64>,
    /// The picture's file on the shelf.
    pub picture: Option<String>,
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
            end: None,
            ended_ms: None,
            picture: None,
        }
    }

    /// Whether it was seen there.
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
