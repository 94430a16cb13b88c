//! What the backend was told of each task, and whether it may be.
//!
//! Refuses to count what was not taken: a webhook that the backend answered with 500 has told nothing.

use crate::backend::{COMPLETE, Call, FAILED};
use std::collections::{BTreeMap, BTreeSet};

/// What became of the tasks, by generation id. Each is in exactly one of the first four.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Books {
    /// Complete was told, and failed was not.
    pub complete: Vec<i64>,
    /// Failed was told, and complete was not.
    pub failed: Vec<i64>,
    /// Nothing was told of their end.
    pub neither: Vec<i64>,
    /// Complete was told, and failed too.
    pub both: Vec<i64>,
    /// How often an end was told that the backend had taken already, with the same webhook-id.
    pub announced_again: u64,
    /// One end came under several webhook-ids, or without one.
    pub announced_with_another_id: Vec<i64>,
}

impl Books {
    /// The books of these tasks.
    pub(super) fn of(tasks: &[i64], calls: &[Call]) -> Self {
        let mut ends: BTreeMap<i64, Vec<&Call>> = BTreeMap::new();
        for call in calls.iter().filter(|call| call.path == COMPLETE || call.path == FAILED) {
            ends.entry(call.generation_id().unwrap_or(-1)).or_default().push(call);
        }
        let mut books = Self::default();
        for &task in tasks {
            let told = ends.get(&task).map_or(&[][..], Vec::as_slice);
            let taken = |path| told.iter().any(|call| call.is_end() && call.path == path);
            match (taken(COMPLETE), taken(FAILED)) {
                (true, false) => books.complete.push(task),
                (false, true) => books.failed.push(task),
                (false, false) => books.neither.push(task),
                (true, true) => books.both.push(task),
            }
            for path in [COMPLETE, FAILED] {
                books.note_ids(task, told.iter().filter(|call| call.path == path));
            }
        }
        books
    }

    fn note_ids<'a>(&mut self, task: i64, told: impl Iterator<Item = &'a &'a Call>) {
        let (mut ids, mut taken) = (BTreeSet::new(), BTreeSet::new());
        for call in told {
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

/// How many tasks have ended so far, as the backend sees it.
pub(super) fn ended(calls: &[Call]) -> usize {
    let ids: BTreeSet<_> = calls.iter().filter(|call| call.is_end()).filter_map(Call::generation_id).collect();
    ids.len()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::PROGRESS;
    use serde_json::json;

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
        let expected =
            Books { complete: vec![1], failed: vec![2], neither: vec![3, 5, 6], both: vec![4], ..Books::default() };
        assert_eq!(Books::of(&[1, 2, 3, 4, 5, 6], &calls), expected);
        assert_eq!(ended(&calls), 3);
    }

    #[test]
    fn an_end_told_again_keeps_its_id() {
        let calls = [
            // The first try was refused: telling it once more is no repetition.
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
        let books = Books::of(&[1, 2, 3, 4, 5], &calls);
        assert_eq!((books.announced_again, books.announced_with_another_id), (2, vec![3, 4, 5]));
    }
}
