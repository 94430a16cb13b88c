//! The accepted messages of the queue, and the deduplication ids of a FIFO queue.

use super::{
    Watcher,
    wire::{Attribute, Entry},
};
use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

/// How long a FIFO queue remembers a deduplication id.
const REMEMBERED: Duration = Duration::from_secs(300);

/// An entry when it is accepted.
#[derive(Debug)]
pub struct Accepted<'a> {
    /// Counts from 0.
    pub order: u64,
    /// The body.
    pub body: &'a str,
    /// The group.
    pub group: Option<&'a str>,
    /// The deduplication id.
    pub deduplication: Option<&'a str>,
}

/// An entry that was kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// The body.
    pub body: String,
    /// The group.
    pub group: Option<String>,
    /// The deduplication id.
    pub deduplication: Option<String>,
    /// The attributes.
    pub attributes: BTreeMap<String, Attribute>,
}

pub(super) struct Queue {
    fifo: bool,
    watcher: Option<Watcher>,
    kept: Vec<Kept>,
    count: u64,
    known: HashMap<String, u64>,
    /// The known ids in order of age.
    ages: VecDeque<(Instant, String)>,
}

impl Queue {
    pub(super) fn new(fifo: bool, watcher: Option<Watcher>) -> Self {
        Self { fifo, watcher, kept: Vec::new(), count: 0, known: HashMap::new(), ages: VecDeque::new() }
    }

    pub(super) fn fifo(&self) -> bool {
        self.fifo
    }

    pub(super) fn count(&self) -> u64 {
        self.count
    }

    pub(super) fn kept(&self) -> &[Kept] {
        &self.kept
    }

    /// Accepts an entry and gives its number: the earlier one for a known deduplication id.
    pub(super) fn accept(&mut self, entry: &Entry<'_>) -> u64 {
        if let Some(id) = entry.deduplication.as_deref().filter(|_| self.fifo) {
            self.forget(Instant::now());
            if let Some(&number) = self.known.get(id) {
                return number;
            }
            self.known.insert(id.to_string(), self.count);
            self.ages.push_back((Instant::now(), id.to_string()));
        }
        let order = self.count;
        self.count += 1;
        let (group, deduplication) = (entry.group.as_deref(), entry.deduplication.as_deref());
        match &self.watcher {
            Some(watcher) => watcher(&Accepted { order, body: &entry.body, group, deduplication }),
            None => self.kept.push(Kept {
                body: entry.body.to_string(),
                group: group.map(str::to_string),
                deduplication: deduplication.map(str::to_string),
                attributes: entry.attributes.clone(),
            }),
        }
        order
    }

    fn forget(&mut self, now: Instant) {
        while self.ages.front().is_some_and(|(at, _)| now.duration_since(*at) >= REMEMBERED) {
            if let Some((_, id)) = self.ages.pop_front() {
                self.known.remove(&id);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry<'a>(body: &'a str, deduplication: Option<&'a str>) -> Entry<'a> {
        Entry {
            id: "0".into(),
            body: body.into(),
            group: Some("g".into()),
            deduplication: deduplication.map(Into::into),
            attributes: BTreeMap::new(),
        }
    }

    #[test]
    fn a_fifo_queue_keeps_the_order_and_takes_an_id_once() {
        let mut queue = Queue::new(true, None);
        let numbers = [("a", "1"), ("b", "2"), ("other body", "1"), ("c", "3")];
        assert_eq!(numbers.map(|(body, id)| queue.accept(&entry(body, Some(id)))), [0, 1, 0, 2]);
        let bodies: Vec<&str> = queue.kept().iter().map(|kept| kept.body.as_str()).collect();
        assert_eq!((queue.count(), bodies), (3, vec!["a", "b", "c"]));
        queue.forget(Instant::now() + REMEMBERED - Duration::from_secs(1));
        assert_eq!(queue.accept(&entry("a", Some("1"))), 0);
        queue.forget(Instant::now() + REMEMBERED);
        assert_eq!(queue.accept(&entry("a", Some("1"))), 3, "five minutes later it is new");
    }

    #[test]
    fn a_standard_queue_takes_everything_again() {
        let mut queue = Queue::new(false, None);
        assert_eq!([queue.accept(&entry("a", None)), queue.accept(&entry("a", None))], [0, 1]);
        assert_eq!(queue.count(), 2);
    }
}
