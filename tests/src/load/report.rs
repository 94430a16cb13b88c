//! The ledger of a run, and which musts it breaks.

use super::{books::Books, pictures::Pictures};
use crate::mishap::Counts;
use std::fmt;

/// What came out of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Tasks that were published and confirmed.
    pub tasks: usize,
    /// What the backend was told.
    pub books: Books,
    /// What lies in S3 for those of which complete was told.
    pub pictures: Pictures,
    /// Messages that the SQS queue and its dead-letter queue still held when the patience was over.
    pub left_in_queue: u32,
    /// Workers killed with -9.
    pub kills: u64,
    /// What requests of workers to S3 met with.
    pub s3_faults: Counts,
    /// What requests of workers to SQS met with.
    pub sqs_faults: Counts,
    /// What requests of the relay to SQS met with.
    pub relay_faults: Counts,
    /// What webhooks met with.
    pub webhook_faults: Counts,
    /// The resident memory of the largest worker, in MiB.
    pub memory: Memory,
    /// From the first publishing to the last end.
    pub seconds: f64,
}

/// The most resident memory that a worker was seen with, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Memory {
    /// Until a quarter of the tasks had ended.
    pub first_quarter: f64,
    /// From when three quarters had.
    pub last_quarter: f64,
}

impl Memory {
    /// Notes what was seen when `ended` of `tasks` had ended.
    pub(super) fn note(&mut self, ended: usize, tasks: usize, mib: f64) {
        if ended * 4 < tasks {
            self.first_quarter = self.first_quarter.max(mib);
        } else if ended * 4 >= tasks * 3 {
            self.last_quarter = self.last_quarter.max(mib);
        }
    }
}

impl Report {
    /// Every broken must, and of which generations. Every fault here passes and receives do not run out: so no task may fail.
    pub fn faults(&self) -> Vec<String> {
        let Self { books, pictures, .. } = self;
        let mut faults = Vec::new();
        for (what, ids) in [
            ("failed, though every fault here passes", &books.failed),
            ("neither complete nor failed", &books.neither),
            ("complete and failed", &books.both),
            ("announced with another webhook-id", &books.announced_with_another_id),
            ("picture missing", &pictures.missing),
            ("picture of another task", &pictures.of_another_task),
        ] {
            if !ids.is_empty() {
                faults.push(format!("{what}: generations {ids:?}"));
            }
        }
        if self.left_in_queue > 0 {
            faults.push(format!("messages left in the queue: {}", self.left_in_queue));
        }
        faults
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { books, pictures, memory, .. } = self;
        writeln!(f, "tasks: {}", self.tasks)?;
        writeln!(f, "complete: {}\nfailed: {}", books.complete.len(), books.failed.len())?;
        writeln!(f, "neither: {}\nboth: {}", books.neither.len(), books.both.len())?;
        writeln!(f, "announced-again: {}", books.announced_again)?;
        writeln!(f, "announced-with-another-id: {}", books.announced_with_another_id.len())?;
        writeln!(f, "pictures-missing: {}", pictures.missing.len())?;
        writeln!(f, "pictures-of-another-task: {}", pictures.of_another_task.len())?;
        writeln!(f, "left-in-queue: {}\nkills: {}", self.left_in_queue, self.kills)?;
        writeln!(f, "s3-faults: {}\nsqs-faults: {}", self.s3_faults, self.sqs_faults)?;
        writeln!(f, "relay-faults: {}\nwebhook-faults: {}", self.relay_faults, self.webhook_faults)?;
        writeln!(f, "rss-mib-first-quarter: {:.0}", memory.first_quarter)?;
        write!(f, "rss-mib-last-quarter: {:.0}\nseconds: {:.0}", memory.last_quarter, self.seconds)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_broken_must_is_told_with_its_generations() {
        assert_eq!(Report::default().faults(), [] as [String; 0]);
        let books = Books {
            complete: vec![1],
            failed: vec![2],
            neither: vec![3],
            both: vec![4],
            announced_again: 1,
            announced_with_another_id: vec![5],
        };
        let pictures = Pictures { missing: vec![6], of_another_task: vec![7, 8] };
        let faults = Report { books, pictures, left_in_queue: 9, ..Report::default() }.faults();
        let told = ["[2]", "[3]", "[4]", "[5]", "[6]", "[7, 8]", "9"];
        assert!(
            faults.len() == told.len() && faults.iter().zip(told).all(|(fault, ids)| fault.ends_with(ids)),
            "{faults:?}"
        );
    }

    #[test]
    fn memory_is_that_of_the_first_and_the_last_quarter() {
        let mut memory = Memory::default();
        for (ended, mib) in [(0, 1.0), (2, 3.0), (3, 9.0), (8, 9.0), (9, 2.0), (12, 4.0), (12, 1.0)] {
            memory.note(ended, 12, mib);
        }
        assert_eq!(memory, Memory { first_quarter: 3.0, last_quarter: 4.0 });
    }
}
