//! Groups messages into batches that SQS accepts: ten entries and 1 MiB at most. No message waits longer than the
//! linger time.
//!
//! Pure: no clock, no I/O. Nothing is dropped, copied or reordered.

use std::{mem, time::Duration};

use tokio::time::Instant;

use crate::entry::MAX_BYTES;

/// The most entries that `SendMessageBatch` takes.
pub const MAX_ENTRIES: usize = 10;

/// What a batch is made of.
pub trait BatchItem {
    /// The size in bytes as SQS counts it, at most [`MAX_BYTES`].
    fn size(&self) -> usize;

    /// The FIFO group whose order it must keep, if any.
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

impl<T: BatchItem> Batcher<T> {
    /// An empty batch.
    pub fn new(linger: Duration) -> Self {
        Self { linger, pending: Vec::new(), bytes: 0, deadline: None }
    }

    /// Adds an item that has waited since `since`. Returns a batch if one is ready now.
    pub fn push(&mut self, item: T, since: Instant) -> Option<Vec<T>> {
        let size = item.size();
        debug_assert!(size <= MAX_BYTES, "an entry is checked before it comes here");
        // A full batch leaves at once, so only one of the two batches can be ready in one call.
        let sealed = if self.bytes + size > MAX_BYTES { self.flush() } else { None };
        let due = since + self.linger;
        self.deadline = Some(self.deadline.map_or(due, |deadline| deadline.min(due)));
        self.bytes += size;
        self.pending.push(item);
        if self.pending.len() == MAX_ENTRIES { self.flush() } else { sealed }
    }

    /// Returns what was collected, full or not.
    pub fn flush(&mut self) -> Option<Vec<T>> {
        self.bytes = 0;
        self.deadline = None;
        let batch = mem::take(&mut self.pending);
        (!batch.is_empty()).then_some(batch)
    }

    /// When the linger time of the oldest item is over.
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

    impl BatchItem for Item {
        fn size(&self) -> usize {
            self.1
        }
    }

    fn batches(sizes: &[usize]) -> Vec<Vec<usize>> {
        let mut batcher = Batcher::new(Duration::from_millis(20));
        let now = Instant::now();
        let mut got: Vec<Vec<Item>> = Vec::new();
        for (index, size) in sizes.iter().enumerate() {
            got.extend(batcher.push(Item(index, *size), now));
        }
        got.extend(batcher.flush());
        got.into_iter().map(|batch| batch.into_iter().map(|item| item.0).collect()).collect()
    }

    #[test]
    fn limits_are_exact() {
        let half = MAX_BYTES / 2;
        for (sizes, lengths) in [
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
            let got: Vec<usize> = batches(&sizes).iter().map(Vec::len).collect();
            assert_eq!(got, lengths, "{sizes:?}");
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
        // The linger time counts from when the item began to wait elsewhere.
        batcher.push(Item(2, 1), start - Duration::from_millis(5));
        assert_eq!(batcher.deadline(), Some(start + linger - Duration::from_millis(5)));
        // The item that did not fit starts the next batch and its linger time.
        let later = start + Duration::from_millis(7);
        assert!(batcher.push(Item(3, MAX_BYTES), later).is_some());
        assert_eq!(batcher.deadline(), Some(later + linger));
        assert!(batcher.flush().is_some());
        assert_eq!((batcher.deadline(), batcher.flush()), (None, None));
    }

    proptest! {
        #[test]
        fn nothing_is_dropped_doubled_reordered_or_over_a_limit(
            sizes in prop::collection::vec(
                prop_oneof![0..64usize, 0..MAX_BYTES / 8, 0..=MAX_BYTES, Just(MAX_BYTES)], 0..200,
            )
        ) {
            let got = batches(&sizes);
            for batch in &got {
                prop_assert!((1..=MAX_ENTRIES).contains(&batch.len()));
                prop_assert!(batch.iter().map(|index| sizes[*index]).sum::<usize>() <= MAX_BYTES);
            }
            prop_assert_eq!(got.concat(), (0..sizes.len()).collect::<Vec<_>>());
        }
    }
}
