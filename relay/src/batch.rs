//! Groups messages into batches that SQS accepts: ten entries, one MiB, and nobody waits longer than the linger time.
//!
//! Pure: it knows no clock and no queue. It refuses to drop, copy or reorder anything.

use std::{mem, time::Duration};

use tokio::time::Instant;

use crate::entry::MAX_BYTES;

/// What `SendMessageBatch` takes.
pub const MAX_ENTRIES: usize = 10;

/// The bytes of a thing as SQS counts them.
pub trait Weigh {
    /// At most [`MAX_BYTES`].
    fn weight(&self) -> usize;

    /// The group that it must keep its place in, if there is one.
    fn lane(&self) -> Option<&str> {
        None
    }
}

/// The batch that is being filled.
#[derive(Debug)]
pub struct Batcher<T> {
    linger: Duration,
    pending: Vec<T>,
    bytes: usize,
    deadline: Option<Instant>,
}

impl<T: Weigh> Batcher<T> {
    /// An empty one.
    pub fn new(linger: Duration) -> Self {
        Self { linger, pending: Vec::new(), bytes: 0, deadline: None }
    }

    /// Adds an item that waits since the given time; gives a batch when that made one ready.
    pub fn push(&mut self, item: T, since: Instant) -> Option<Vec<T>> {
        let weight = item.weight();
        debug_assert!(weight <= MAX_BYTES, "an entry is checked before it comes here");
        // A full batch leaves at once, so at most one of the two ways to be ready can happen in one call.
        let sealed = if self.bytes + weight > MAX_BYTES { self.flush() } else { None };
        let due = since + self.linger;
        self.deadline = Some(self.deadline.map_or(due, |deadline| deadline.min(due)));
        self.bytes += weight;
        self.pending.push(item);
        if self.pending.len() == MAX_ENTRIES { self.flush() } else { sealed }
    }

    /// Gives what has gathered, ready or not.
    pub fn flush(&mut self) -> Option<Vec<T>> {
        self.bytes = 0;
        self.deadline = None;
        let batch = mem::take(&mut self.pending);
        (!batch.is_empty()).then_some(batch)
    }

    /// When the oldest item has waited long enough.
    pub fn deadline(&self) -> Option<Instant> {
        self.deadline
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Debug, PartialEq, Eq)]
    struct Item(usize, usize);

    impl Weigh for Item {
        fn weight(&self) -> usize {
            self.1
        }
    }

    fn batches(weights: &[usize]) -> Vec<Vec<usize>> {
        let mut batcher = Batcher::new(Duration::from_millis(20));
        let now = Instant::now();
        let mut got: Vec<Vec<Item>> = Vec::new();
        for (index, weight) in weights.iter().enumerate() {
            got.extend(batcher.push(Item(index, *weight), now));
        }
        got.extend(batcher.flush());
        got.into_iter().map(|batch| batch.into_iter().map(|item| item.0).collect()).collect()
    }

    #[test]
    fn limits_are_exact() {
        let half = MAX_BYTES / 2;
        for (weights, sizes) in [
            (vec![], vec![]),
            (vec![1; 9], vec![9]),
            (vec![1; 10], vec![10]),
            (vec![1; 11], vec![10, 1]),
            (vec![MAX_BYTES], vec![1]),
            (vec![MAX_BYTES, 1], vec![1, 1]),
            (vec![half, half], vec![2]),
            (vec![half, half, 1], vec![2, 1]),
            (vec![half, half + 1], vec![1, 1]),
            (vec![1, MAX_BYTES, 1], vec![1, 1, 1]),
            (vec![MAX_BYTES / 10; 10], vec![10]),
            (vec![MAX_BYTES / 10 + 1; 10], vec![9, 1]),
        ] {
            let got: Vec<usize> = batches(&weights).iter().map(Vec::len).collect();
            assert_eq!(got, sizes, "{weights:?}");
        }
    }

    #[test]
    fn the_oldest_item_sets_the_deadline() {
        let linger = Duration::from_millis(20);
        let mut batcher = Batcher::new(linger);
        let start = Instant::now();
        assert_eq!(batcher.deadline(), None);
        batcher.push(Item(0, 1), start);
        batcher.push(Item(1, 1), start + Duration::from_millis(5));
        assert_eq!(batcher.deadline(), Some(start + linger));
        // One that has waited elsewhere brings its own clock.
        batcher.push(Item(2, 1), start - Duration::from_millis(5));
        assert_eq!(batcher.deadline(), Some(start + linger - Duration::from_millis(5)));
        // The item that did not fit starts the next batch, and a clock of its own.
        let later = start + Duration::from_millis(7);
        assert!(batcher.push(Item(3, MAX_BYTES), later).is_some());
        assert_eq!(batcher.deadline(), Some(later + linger));
        assert!(batcher.flush().is_some());
        assert_eq!((batcher.deadline(), batcher.flush()), (None, None));
    }

    proptest! {
        #[test]
        fn nothing_is_dropped_doubled_reordered_or_over_a_limit(
            weights in prop::collection::vec(
                prop_oneof![0..64usize, 0..MAX_BYTES / 8, 0..=MAX_BYTES, Just(MAX_BYTES)], 0..200,
            )
        ) {
            let got = batches(&weights);
            for batch in &got {
                prop_assert!((1..=MAX_ENTRIES).contains(&batch.len()));
                prop_assert!(batch.iter().map(|index| weights[*index]).sum::<usize>() <= MAX_BYTES);
            }
            prop_assert_eq!(got.concat(), (0..weights.len()).collect::<Vec<_>>());
        }
    }
}
