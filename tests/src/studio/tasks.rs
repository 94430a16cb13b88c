//! Everything that the page shows: the tasks of this run and of earlier ones, and the faults. It sends every change to its
//! followers and writes ended tasks to the gallery.

use super::{
    gallery::Gallery,
    record::{End, Ledger, Mark, Record, Station, Status},
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

/// A page that is more changes behind is sent everything again.
const BACKLOG: usize = 1024;

/// A change: the name of an event and its JSON.
#[derive(Debug, Clone)]
pub struct Change {
    /// `all`, `task`, `status` or `parts`.
    pub name: &'static str,
    /// The event's data.
    pub data: Value,
}

/// All tasks.
#[derive(Debug)]
pub struct TaskStore {
    inner: Mutex<Inner>,
    gallery: Gallery,
    changes: broadcast::Sender<Change>,
}

#[derive(Debug, Default)]
struct Inner {
    records: BTreeMap<i64, Record>,
    /// The first id of this run.
    first: i64,
    status: Status,
    /// What the parts said last.
    parts: Value,
    /// The previews of each task of this run.
    previews: BTreeMap<i64, Vec<Vec<u8>>>,
}

/// Of more tasks no previews are kept; the oldest go first.
const MAX_PREVIEWED: usize = 100;

/// The first id in a new gallery.
const FIRST_ID: i64 = 500;

impl TaskStore {
    /// Starts with the tasks of the gallery.
    ///
    /// # Errors
    /// The disk.
    pub fn open(gallery: Gallery) -> Result<Self> {
        let records: BTreeMap<_, _> = gallery.records()?.into_iter().map(|record| (record.id, record)).collect();
        let first = records.keys().next_back().map_or(FIRST_ID, |last| last + 1);
        let inner = Mutex::new(Inner { records, first, ..Inner::default() });
        Ok(Self { inner, gallery, changes: broadcast::channel(BACKLOG).0 })
    }

    /// Where the pictures are.
    pub fn gallery(&self) -> &Gallery {
        &self.gallery
    }

    /// Adds a task with a new id, for which `make` makes the body; gives the id.
    pub fn add(&self, style: &str, make: impl FnOnce(i64) -> Value) -> i64 {
        let mut inner = self.inner();
        let id = inner.records.keys().next_back().map_or(inner.first, |last| (last + 1).max(inner.first));
        inner.records.insert(id, Record::new(id, style, make(id), now_ms()));
        self.notify(&mut inner, id);
        id
    }

    /// Changes a task of this run; `change` gets the milliseconds since the publish. Ignores other tasks.
    pub fn change(&self, id: i64, change: impl FnOnce(&mut Record, u64)) {
        let mut inner = self.inner();
        if id < inner.first {
            return;
        }
        let Some(record) = inner.records.get_mut(&id) else { return };
        let at_ms = now_ms().saturating_sub(record.published_ms);
        change(record, at_ms);
        self.notify(&mut inner, id);
    }

    /// Adds an observation of a task.
    pub fn mark(&self, id: i64, station: Station, good: bool, what: impl Into<String>) {
        let what = what.into();
        self.change(id, |record, at_ms| record.marks.push(Mark { station, at_ms, what, good }));
    }

    /// As [`mark`](Self::mark), unless it has passed the station before.
    pub fn mark_once(&self, id: i64, station: Station, what: &str) {
        self.change(id, |record, at_ms| {
            if !record.was_at(station) {
                record.marks.push(Mark { station, at_ms, what: what.to_string(), good: true });
            }
        });
    }

    /// Ends a task whose message is in the dead-letter queue.
    pub fn dead_letter(&self, id: i64) {
        self.change(id, |record, at_ms| record.end(End::DeadLettered, at_ms));
    }

    /// Changes the status of the faults.
    pub fn set_status(&self, change: impl FnOnce(&mut Status)) {
        let mut inner = self.inner();
        change(&mut inner.status);
        self.send("status", &inner.summary());
    }

    /// Notes what the parts say. It is sent also where nothing is new: a page that hears nothing knows that the server is gone.
    pub fn set_parts(&self, parts: Value) {
        let mut inner = self.inner();
        self.send("parts", &parts);
        inner.parts = parts;
    }

    /// Whether somebody follows.
    pub fn has_followers(&self) -> bool {
        self.changes.receiver_count() > 0
    }

    /// Keeps a preview of a task; gives its number.
    pub fn keep_preview(&self, id: i64, file: Vec<u8>) -> usize {
        let mut inner = self.inner();
        let previews = inner.previews.entry(id).or_default();
        previews.push(file);
        let number = previews.len() - 1;
        while inner.previews.len() > MAX_PREVIEWED {
            inner.previews.pop_first();
        }
        number
    }

    /// A preview of a task of this run.
    pub fn preview(&self, id: i64, number: usize) -> Option<Vec<u8>> {
        self.inner().previews.get(&id)?.get(number).cloned()
    }

    /// Puts tasks that were published together into one series.
    pub fn join(&self, ids: &[i64]) {
        if let [first, _, ..] = ids {
            ids.iter().for_each(|id| self.change(*id, |record, _| record.series = Some(*first)));
        }
    }

    /// Whether a task was published in this run.
    pub fn is_of_this_run(&self, id: i64) -> bool {
        id >= self.inner().first
    }

    /// A task.
    pub fn record(&self, id: i64) -> Option<Record> {
        self.inner().records.get(&id).cloned()
    }

    /// The current state, and all changes after it.
    pub fn follow(&self) -> (Change, broadcast::Receiver<Change>) {
        let inner = self.inner();
        let tasks: Vec<_> = inner.records.values().collect();
        let all = json!({ "tasks": tasks, "status": inner.summary(), "parts": inner.parts, "first": inner.first });
        (Change { name: "all", data: all }, self.changes.subscribe())
    }

    fn notify(&self, inner: &mut Inner, id: i64) {
        let Some(record) = inner.records.get(&id) else { return };
        if record.end.is_some()
            && let Err(error) = self.gallery.keep(record)
        {
            inner.status.trouble = Some(format!("{error:#}"));
        }
        self.send("task", record);
        self.send("status", &inner.summary());
    }

    fn send(&self, name: &'static str, data: &impl Serialize) {
        let data = serde_json::to_value(data).unwrap_or_default();
        // There may be no followers.
        let _ = self.changes.send(Change { name, data });
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn summary(&self) -> Value {
        let ledger = Ledger::of(self.records.range(self.first..).map(|(_, record)| record));
        json!({ "faults": self.status, "ledger": ledger })
    }
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    fn tasks(folder: &Path) -> TaskStore {
        TaskStore::open(Gallery::open(folder).unwrap()).unwrap()
    }

    fn end(tasks: &TaskStore, id: i64) {
        tasks.change(id, |record, at_ms| {
            record.completes += 1;
            record.end(End::Complete, at_ms);
        });
    }

    #[test]
    fn ended_tasks_are_there_after_a_restart_and_not_counted() {
        let folder = tempfile::tempdir().unwrap();
        let first = tasks(folder.path());
        let [ended, open] = [(), ()].map(|()| first.add("halftone", |id| json!({ "generation_id": id })));
        end(&first, ended);
        let again = tasks(folder.path());
        assert_eq!(again.record(ended).unwrap().end, Some(End::Complete));
        assert!(again.record(open).is_none(), "a task whose stack is gone never ends");
        assert_eq!(again.follow().0.data["status"]["ledger"]["published"], 0);
        assert!(again.add("halftone", |id| json!({ "generation_id": id })) > ended, "two tasks of one id");
    }

    #[test]
    fn a_follower_gets_the_state_and_then_each_change() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = tasks(folder.path());
        let id = tasks.add("halftone", |id| json!({ "generation_id": id }));
        let (all, mut changes) = tasks.follow();
        assert_eq!(all.data["tasks"][0]["id"], id);
        tasks.mark_once(id, Station::Relay, "seen");
        tasks.mark_once(id, Station::Relay, "seen again");
        let seen = changes.try_recv().unwrap();
        assert_eq!((seen.name, &seen.data["marks"][0]["station"]), ("task", &json!("relay")));
        assert_eq!(tasks.record(id).unwrap().marks.len(), 1);
    }

    #[test]
    fn previews_are_there_in_order_until_many_other_tasks_have_some() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = tasks(folder.path());
        assert_eq!([tasks.keep_preview(7, vec![1]), tasks.keep_preview(7, vec![2])], [0, 1]);
        assert_eq!((tasks.preview(7, 1), tasks.preview(7, 2), tasks.preview(8, 0)), (Some(vec![2]), None, None));
        for id in 8..=107 {
            tasks.keep_preview(id, vec![0]);
        }
        assert_eq!((tasks.preview(7, 0), tasks.preview(8, 0)), (None, Some(vec![0])));
    }

    #[test]
    fn what_the_parts_say_is_sent_each_time_and_is_part_of_the_state() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = tasks(folder.path());
        assert!(!tasks.has_followers());
        let (_, mut changes) = tasks.follow();
        for waiting in [1, 1, 2] {
            tasks.set_parts(json!({ "waiting": waiting }));
        }
        let sent = [(); 3].map(|()| changes.try_recv().unwrap().data["waiting"].clone());
        assert!(tasks.has_followers());
        assert_eq!((sent, &tasks.follow().0.data["parts"]), ([1, 1, 2].map(|n| json!(n)), &json!({ "waiting": 2 })));
    }

    #[test]
    fn a_task_keeps_its_first_end() {
        let folder = tempfile::tempdir().unwrap();
        let tasks = tasks(folder.path());
        let id = tasks.add("halftone", |id| json!({ "generation_id": id }));
        end(&tasks, id);
        tasks.dead_letter(id);
        assert_eq!(tasks.record(id).unwrap().end, Some(End::Complete));
    }
}
