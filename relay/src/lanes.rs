//! Keeps the order inside each group: of every group at most one item is out, and the next leaves only when that one is
//! settled.
//!
//! SQS may refuse an entry of a batch and take a later one of the same group. So a batch must be made of different groups,
//! and an item that is sent again must find its place still free. Here both follow from one rule: a lane is held by the
//! item that left it last, until somebody says that this item is settled. Items without a lane only pass through.
//!
//! Pure, like the [`Batcher`] behind it. It refuses to drop, copy or reorder anything. No call takes longer
//! when more items wait.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::batch::{Batcher, Weigh};

/// Items that wait for their turn, and in front of them the batch that is being filled.
#[derive(Debug)]
pub struct Lanes<T> {
    batcher: Batcher<T>,
    /// A lane is in here as long as an item of it is out. With each item since when it waits.
    waiting: HashMap<String, VecDeque<(T, Instant)>>,
    /// How many wait in all lanes together.
    count: usize,
}

impl<T: Weigh> Lanes<T> {
    /// Empty lanes.
    pub fn new(linger: Duration) -> Self {
        Self { batcher: Batcher::new(linger), waiting: HashMap::new(), count: 0 }
    }

    /// Adds an item that is new; gives a batch when that made one ready.
    pub fn push(&mut self, item: T, now: Instant) -> Option<Vec<T>> {
        if let Some(lane) = item.lane() {
            if let Some(queue) = self.waiting.get_mut(lane) {
                queue.push_back((item, now));
                self.count += 1;
                return None;
            }
            self.waiting.insert(lane.to_owned(), VecDeque::new());
        }
        self.batcher.push(item, now)
    }

    /// Adds an item that is out and must be sent again. It has its lane still, so it goes before all others of it.
    pub fn again(&mut self, item: T, now: Instant) -> Option<Vec<T>> {
        self.batcher.push(item, now)
    }

    /// Says that the item that is out of this lane is settled. Lets the next one out, which need not linger again if it
    /// has waited long enough here.
    pub fn settle(&mut self, lane: &str) -> Option<Vec<T>> {
        let queue = self.waiting.get_mut(lane)?;
        let Some((item, since)) = queue.pop_front() else {
            self.waiting.remove(lane);
            return None;
        };
        self.count -= 1;
        self.batcher.push(item, since)
    }

    /// Gives what may be sent, ready or not.
    pub fn flush(&mut self) -> Option<Vec<T>> {
        self.batcher.flush()
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.batcher.flush();
        self.waiting.clear();
        self.count = 0;
    }

    /// When the oldest item that may be sent has waited long enough; `None` when there is none.
    pub fn deadline(&self) -> Option<Instant> {
        self.batcher.deadline()
    }

    /// Whether it holds no item. Those that are out do not count.
    pub fn is_empty(&self) -> bool {
        self.deadline().is_none() && self.count == 0
    }
}

#[cfg(test)]
mod tests;
