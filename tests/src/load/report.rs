//! What became of the tasks of a run: what the backend heard, which pictures are in S3, and which promises were broken.

use crate::{
    aws::{Aws, IMAGES},
    backend::{COMPLETE, Call, FAILED},
    fault_injection::Counts,
    task::Task,
};
use anyhow::{Context, Result};
use aws_sdk_s3::operation::get_object::GetObjectError;
use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

const ID_TAG: &[u8] = b"<easel:GenerationId>";

/// The results of a run.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Tasks that were published and confirmed.
    pub tasks: usize,
    /// What the backend heard.
    pub outcomes: Outcomes,
    /// The pictures in S3 of the completed tasks.
    pub pictures: Pictures,
    /// Messages left in the SQS queue and its dead-letter queue at the end.
    pub left_in_queue: u32,
    /// Workers killed with SIGKILL.
    pub kills: u64,
    /// Faults of the workers' requests to S3.
    pub s3_faults: Counts,
    /// Faults of the workers' requests to SQS.
    pub sqs_faults: Counts,
    /// Faults of the relay's requests to SQS.
    pub relay_faults: Counts,
    /// Faults of webhooks.
    pub webhook_faults: Counts,
    /// The resident memory of the largest worker, in MiB.
    pub memory: Memory,
    /// From the first publish to the last end.
    pub seconds: f64,
}

/// The peak resident memory of the workers, in MiB.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Memory {
    /// Until a quarter of the tasks had ended.
    pub first_quarter: f64,
    /// From when three quarters had.
    pub last_quarter: f64,
}

impl Memory {
    /// Notes a sample, taken when `ended` of `tasks` had ended.
    pub(super) fn note(&mut self, ended: usize, tasks: usize, mib: f64) {
        if ended * 4 < tasks {
            self.first_quarter = self.first_quarter.max(mib);
        } else if ended * 4 >= tasks * 3 {
            self.last_quarter = self.last_quarter.max(mib);
        }
    }
}

impl Report {
    /// Every broken promise with its generation ids. All injected faults are temporary and receives do not run out, so no task may
    /// fail.
    pub fn violations(&self) -> Vec<String> {
        let Self { outcomes, pictures, .. } = self;
        let mut violations = Vec::new();
        for (what, ids) in [
            ("failed, though every fault here passes", &outcomes.failed),
            ("neither complete nor failed", &outcomes.neither),
            ("complete and failed", &outcomes.both),
            ("announced with another webhook-id", &outcomes.announced_with_another_id),
            ("picture missing", &pictures.missing),
            ("picture of another task", &pictures.of_another_task),
        ] {
            if !ids.is_empty() {
                violations.push(format!("{what}: generations {ids:?}"));
            }
        }
        if self.left_in_queue > 0 {
            violations.push(format!("messages left in the queue: {}", self.left_in_queue));
        }
        violations
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { outcomes, pictures, memory, .. } = self;
        writeln!(f, "tasks: {}", self.tasks)?;
        writeln!(f, "complete: {}\nfailed: {}", outcomes.complete.len(), outcomes.failed.len())?;
        writeln!(f, "neither: {}\nboth: {}", outcomes.neither.len(), outcomes.both.len())?;
        writeln!(f, "announced-again: {}", outcomes.announced_again)?;
        writeln!(f, "announced-with-another-id: {}", outcomes.announced_with_another_id.len())?;
        writeln!(f, "pictures-missing: {}", pictures.missing.len())?;
        writeln!(f, "pictures-of-another-task: {}", pictures.of_another_task.len())?;
        writeln!(f, "left-in-queue: {}\nkills: {}", self.left_in_queue, self.kills)?;
        writeln!(f, "s3-violations: {}\nsqs-violations: {}", self.s3_faults, self.sqs_faults)?;
        writeln!(f, "relay-violations: {}\nwebhook-violations: {}", self.relay_faults, self.webhook_faults)?;
        writeln!(f, "rss-mib-first-quarter: {:.0}", memory.first_quarter)?;
        write!(f, "rss-mib-last-quarter: {:.0}\nseconds: {:.0}", memory.last_quarter, self.seconds)
    }
}

/// How the tasks ended, by generation id. Each is in exactly one of the first four.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Outcomes {
    /// The backend took complete, and not failed.
    pub complete: Vec<i64>,
    /// The backend took failed, and not complete.
    pub failed: Vec<i64>,
    /// It took neither.
    pub neither: Vec<i64>,
    /// It took both.
    pub both: Vec<i64>,
    /// Webhooks that repeated an end which the backend had taken, with the same webhook-id.
    pub announced_again: u64,
    /// Their end came with several webhook-ids, or without one.
    pub announced_with_another_id: Vec<i64>,
}

impl Outcomes {
    /// The outcomes of these tasks. A webhook that was answered with an error counts as not taken.
    pub(super) fn of(tasks: &[i64], calls: &[Call]) -> Self {
        let mut ends: BTreeMap<i64, Vec<&Call>> = BTreeMap::new();
        for call in calls.iter().filter(|call| call.path == COMPLETE || call.path == FAILED) {
            ends.entry(call.generation_id().unwrap_or(-1)).or_default().push(call);
        }
        let mut outcomes = Self::default();
        for &task in tasks {
            let heard = ends.get(&task).map_or(&[][..], Vec::as_slice);
            let taken = |path| heard.iter().any(|call| call.is_end() && call.path == path);
            match (taken(COMPLETE), taken(FAILED)) {
                (true, false) => outcomes.complete.push(task),
                (false, true) => outcomes.failed.push(task),
                (false, false) => outcomes.neither.push(task),
                (true, true) => outcomes.both.push(task),
            }
            for path in [COMPLETE, FAILED] {
                outcomes.note_ids(task, heard.iter().filter(|call| call.path == path));
            }
        }
        outcomes
    }

    fn note_ids<'a>(&mut self, task: i64, calls: impl Iterator<Item = &'a &'a Call>) {
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for call in calls {
            let id = call.headers.get("webhook-id").map_or("", String::as_str);
            ids.insert(id);
            if call.is_end() && !taken.insert(id) {
                self.announced_again += 1;
            }
        }
        if ids.len() > 1 || ids.contains("") {
            self.announced_with_another_id.push(task);
        }
    }
}

/// The number of tasks that have ended so far for the backend.
pub(super) fn ended(calls: &[Call]) -> usize {
    let ids: BTreeSet<_> = calls.iter().filter(|call| call.is_end()).filter_map(Call::generation_id).collect();
    ids.len()
}

/// Tasks without their picture, by generation id. The file's XMP says which generation it was painted for.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Pictures {
    /// There is no picture.
    pub missing: Vec<i64>,
    /// The picture is another generation's, or does not say which.
    pub of_another_task: Vec<i64>,
}

impl Pictures {
    /// Checks the picture of each of these tasks.
    ///
    /// # Errors
    /// S3 does not answer.
    pub(super) async fn check(aws: &Aws, tasks: impl Iterator<Item = &Task>) -> Result<Self> {
        let mut found = Self::default();
        for task in tasks {
            let file = match aws.s3.get_object().bucket(IMAGES).key(task.key()).send().await {
                Ok(object) => object.body.collect().await.context("a picture breaks off")?.into_bytes(),
                Err(error) if matches!(error.as_service_error(), Some(GetObjectError::NoSuchKey(_))) => {
                    found.missing.push(task.id());
                    continue;
                }
                Err(error) => return Err(error).context("S3"),
            };
            if owner(&file) != Some(task.id()) || image::load_from_memory(&file).is_err() {
                found.of_another_task.push(task.id());
            }
        }
        Ok(found)
    }
}

/// The generation id in a file's XMP.
fn owner(file: &[u8]) -> Option<i64> {
    let start = file.windows(ID_TAG.len()).position(|window| window == ID_TAG)? + ID_TAG.len();
    let length = file[start..].iter().position(|&byte| byte == b'<')?;
    std::str::from_utf8(&file[start..start + length]).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::PROGRESS;
    use serde_json::json;

    #[test]
    fn every_broken_promise_is_reported_with_its_generations() {
        assert_eq!(Report::default().violations(), [] as [String; 0]);
        let outcomes = Outcomes {
            complete: vec![1],
            failed: vec![2],
            neither: vec![3],
            both: vec![4],
            announced_again: 1,
            announced_with_another_id: vec![5],
        };
        let pictures = Pictures { missing: vec![6], of_another_task: vec![7, 8] };
        let violations = Report { outcomes, pictures, left_in_queue: 9, ..Report::default() }.violations();
        let ids = ["[2]", "[3]", "[4]", "[5]", "[6]", "[7, 8]", "9"];
        assert!(
            violations.len() == ids.len()
                && violations.iter().zip(ids).all(|(violation, ids)| violation.ends_with(ids)),
            "{violations:?}"
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

    fn call(task: i64, path: &str, id: &str, status: u16) -> Call {
        let headers = [("webhook-id".to_string(), id.to_string())];
        Call {
            method: "POST".into(),
            path: path.into(),
            headers: headers.into_iter().filter(|(_, id)| !id.is_empty()).collect(),
            body: json!({ "generation_id": task }),
            text: String::new(),
            at_ms: 0,
            status,
        }
    }

    #[test]
    fn each_task_has_one_end_as_far_as_the_backend_took_it() {
        let calls = [
            call(1, COMPLETE, "a", 200),
            call(2, FAILED, "b", 200),
            call(3, COMPLETE, "c", 500),
            call(4, COMPLETE, "d", 200),
            call(4, FAILED, "e", 200),
            call(5, PROGRESS, "f", 200),
        ];
        let expected = Outcomes {
            complete: vec![1],
            failed: vec![2],
            neither: vec![3, 5, 6],
            both: vec![4],
            ..Outcomes::default()
        };
        assert_eq!(Outcomes::of(&[1, 2, 3, 4, 5, 6], &calls), expected);
        assert_eq!(ended(&calls), 3);
    }

    #[test]
    fn a_repeated_end_keeps_its_id() {
        let calls = [
            // The first try was refused, so the second is no repetition.
            call(1, COMPLETE, "a", 500),
            call(1, COMPLETE, "a", 200),
            call(2, COMPLETE, "b", 200),
            call(2, COMPLETE, "b", 200),
            call(2, COMPLETE, "b", 200),
            call(3, COMPLETE, "c", 200),
            call(3, COMPLETE, "x", 200),
            call(4, COMPLETE, "d", 500),
            call(4, COMPLETE, "y", 200),
            call(5, COMPLETE, "", 200),
        ];
        let outcomes = Outcomes::of(&[1, 2, 3, 4, 5], &calls);
        assert_eq!((outcomes.announced_again, outcomes.announced_with_another_id), (2, vec![3, 4, 5]));
    }

    #[test]
    fn a_file_has_the_id_of_its_generation_or_none() {
        for (file, expected) in [
            ("\u{fffd}..<easel:GenerationId>512</easel:GenerationId>..", Some(512)),
            ("<easel:GenerationId>x</easel:GenerationId>", None),
            ("<easel:GenerationId>512", None),
            ("512", None),
        ] {
            assert_eq!(owner(file.as_bytes()), expected, "{file}");
        }
    }
}
