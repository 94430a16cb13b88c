//! Everything that the page shows: the tasks of this run and of earlier ones, and the faults. Tells every change to whoever
//! follows, and has the shelf keep what has ended. Refuses to know where a fact comes from.

use super::{
    faults::Status,
    ledger::Ledger,
    record::{End, Mark, Record, Station},
    shelf::Shelf,
};
use anyhow::Result;
use serde::Serialize;
use serde_json::{Value, json};
use std::{
    collections::BTreeMap,
    sync::{Mutex, MutexGuard, PoisonError},
    time::{SystemTime, UNIX_EPOCH},
};
use tokio::sync::broadcast;

/// Changes that a slow page may be behind before it is sent everything again.
const BACKLOG: usize = 1024;

/// A change, as an event's name and its JSON.
#[derive(Debug, Clone)]
pub struct Change {
    /// `all`, `task` or `status`.
    pub name: &'static str,
    /// What the page reads.
    pub data: Value,
}

/// The book.
#[derive(Debug)]
pub struct Book {
    pages: Mutex<Pages>,
    shelf: Shelf,
    changes: broadcast::Sender<Change>,
}

#[derive(Debug, Default)]
struct Pages {
    records: BTreeMap<i64, Record>,
    /// The first that belongs to this run.
    first: i64,
    status: Status,
}

/// The first task of a new shelf, as everywhere in the demo.
const FIRST_ID: i64 = 500;

impl Book {
    /// Opens it with what the shelf has kept.
    ///
    /// # Errors
    /// The disk.
    pub fn open(shelf: Shelf) -> Result<Self> {
        let records: BTreeMap<_, _> = shelf.records()?.into_iter().map(|record| (record.id, record)).collect();
        let first = records.keys().next_back().map_or(FIRST_ID, |last| last + 1);
        let pages = Mutex::new(Pages { records, first, status: Status::default() });
        Ok(Self { pages, shelf, changes: broadcast::channel(BACKLOG).0 })
    }

    /// Where the pictures are.
    pub fn shelf(&self) -> &Shelf {
        &self.shelf
    }

    /// Enters a task that `make` makes for an id of its own; gives that id.
    pub fn enter(&self, style: &str, make: impl FnOnce(i64) -> Value) -> i64 {
        let mut pages = self.pages();
        let id = pages.records.keys().next_back().map_or(pages.first, |last| (last + 1).max(pages.first));
        pages.records.insert(id, Record::new(id, style, make(id), now_ms()));
        self.tell(&mut pages, id);
        id
    }

    /// Changes a task of this run, with the milliseconds since it was published. Nothing happens if there is none.
    pub fn change(&self, id: i64, change: impl FnOnce(&mut Record, u64)) {
        let mut pages = self.pages();
        if id < pages.first {
            return;
        }
        let Some(record) = pages.records.get_mut(&id) else { return };
        let at_ms = now_ms().saturating_sub(record.published_ms);
        change(record, at_ms);
        self.tell(&mut pages, id);
    }

    /// Notes that a task was seen at a station.
    pub fn mark(&self, id: i64, station: Station, good: bool, what: impl Into<String>) {
        let what = what.into();
        self.change(id, |record, at_ms| record.marks.push(Mark { station, at_ms, what, good }));
    }

    /// As [`mark`](Self::mark), unless it was seen there before.
    pub fn mark_once(&self, id: i64, station: Station, what: &str) {
        self.change(id, |record, at_ms| {
            if !record.was_at(station) {
                record.marks.push(Mark { station, at_ms, what: what.to_string(), good: true });
            }
        });
    }

    /// Ends a task that nobody could be told of.
    pub fn dead_letter(&self, id: i64) {
        self.change(id, |record, at_ms| record.end(End::DeadLettered, at_ms));
    }

    /// Changes what is known of the faults.
    pub fn set_status(&self, change: impl FnOnce(&mut Status)) {
        let mut pages = self.pages();
        change(&mut pages.status);
        self.send("status", &pages.summary());
    }

    /// A task.
    pub fn record(&self, id: i64) -> Option<Record> {
        self.pages().records.get(&id).cloned()
    }

    /// Everything as it is now, and all changes after that.
    pub fn follow(&self) -> (Change, broadcast::Receiver<Change>) {
        let pages = self.pages();
        let tasks: Vec<_> = pages.records.values().collect();
        let all = json!({ "tasks": tasks, "status": pages.summary() });
        (Change { name: "all", data: all }, self.changes.subscribe())
    }

    fn tell(&self, pages: &mut Pages, id: i64) {
        let Some(record) = pages.records.get(&id) else { return };
        if record.end.is_some()
            && let Err(error) = self.shelf.keep(record)
        {
            pages.status.trouble = Some(format!("{error:#}"));
        }
        self.send("task", record);
        self.send("status", &pages.summary());
    }

    fn send(&self, name: &'static str, data: &impl Serialize) {
        let data = serde_json::to_value(data).unwrap_or_default();
        // Nobody may be looking.
        let _ = self.changes.send(Change { name, data });
    }

    fn pages(&self) -> MutexGuard<'_, Pages> {
        self.pages.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Pages {
    fn summary(&self) -> Value {
        let ledger = Ledger::of(self.records.range(self.first..).map(|(_, record)| record));
        json!({ "faults": self.status, "ledger": ledger })
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

#[cfg(test)]
mod tests;
