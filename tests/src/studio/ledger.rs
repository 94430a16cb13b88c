//! The books of a run: that every task that was published ended exactly once. Refuses to count tasks of earlier runs.

use super::record::{End, Record};
use serde::Serialize;

/// What became of the tasks of this run.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct Ledger {
    /// Tasks that RabbitMQ was given.
    pub published: u64,
    /// Painted, stored and told.
    pub complete: u64,
    /// Told as failed.
    pub failed: u64,
    /// Told to nobody; in the dead-letter queue.
    pub dead_lettered: u64,
    /// Not ended yet.
    pub in_flight: u64,
    /// Ends that were told once more; the backend knows them by their `webhook-id`.
    pub repeats: u64,
    /// Tasks that were told as complete and as failed: there must be none.
    pub contradictions: u64,
}

impl Ledger {
    /// Of these tasks.
    pub fn of<'a>(records: impl IntoIterator<Item = &'a Record>) -> Self {
        let mut ledger = Self::default();
        for record in records {
            ledger.published += 1;
            match &record.end {
                None => ledger.in_flight += 1,
                Some(End::Complete) => ledger.complete += 1,
                Some(End::Failed { .. }) => ledger.failed += 1,
                Some(End::DeadLettered) => ledger.dead_lettered += 1,
            }
            ledger.repeats += (record.completes + record.failures).saturating_sub(1);
            ledger.contradictions += u64::from(record.completes > 0 && record.failures > 0);
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
    fn each_task_is_counted_once_and_what_was_told_again_apart() {
        let failed = || Some(End::Failed { code: "C".into(), message: "m".into(), retries: 0 });
        let records = [
            record(0, 0, None),
            record(1, 0, Some(End::Complete)),
            record(3, 0, Some(End::Complete)),
            record(0, 1, failed()),
            record(1, 1, failed()),
            record(0, 0, Some(End::DeadLettered)),
        ];
        let ledger = Ledger::of(&records);
        let expected = Ledger {
            published: 6,
            complete: 2,
            failed: 2,
            dead_lettered: 1,
            in_flight: 1,
            repeats: 3,
            contradictions: 1,
        };
        assert_eq!(ledger, expected);
    }
}
