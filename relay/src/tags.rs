//! Which delivery tags of one channel are settled, and the fewest frames that acknowledge them.
//!
//! Pure: no channel, no clock. A tag is never acknowledged twice, because the broker would close the channel, and a
//! frame never covers an unsettled tag, because that would lose a message.

use std::collections::{BTreeMap, BTreeSet};

/// The delivery tags of one channel, which are 1, 2, 3 and so on.
#[derive(Debug)]
pub(crate) struct Tags {
    /// The lowest unsettled tag.
    oldest: u64,
    /// Settled but not acknowledged, above `oldest`.
    settled: BTreeSet<u64>,
    /// Acknowledged above `oldest`, as ranges from first to last tag: no more than there are unsettled messages.
    acked: BTreeMap<u64, u64>,
}

impl Default for Tags {
    fn default() -> Self {
        Self { oldest: 1, settled: BTreeSet::new(), acked: BTreeMap::new() }
    }
}

impl Tags {
    /// The lowest tag that is not settled: everything below is acknowledged.
    pub(crate) fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Records settled tags. Returns the tag that the caller must then acknowledge with the flag `multiple`, if
    /// everything below it is settled.
    pub(crate) fn settle(&mut self, tags: impl IntoIterator<Item = u64>) -> Option<u64> {
        self.settled.extend(tags);
        let mut last = None;
        loop {
            if self.settled.remove(&self.oldest) {
                last = Some(self.oldest);
                self.oldest += 1;
            } else if let Some(end) = self.acked.remove(&self.oldest) {
                self.oldest = end + 1;
            } else {
                return last;
            }
        }
    }

    /// Stops waiting for lower tags. Returns those of `tags` not acknowledged yet; the caller must send each on its
    /// own.
    pub(crate) fn ack_each(&mut self, tags: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let open: Vec<u64> = tags.into_iter().filter(|tag| self.settled.remove(tag)).collect();
        for &tag in &open {
            self.join(tag);
        }
        open
    }

    /// Whether a tag is acknowledged.
    #[cfg(test)]
    pub(crate) fn is_acked(&self, tag: u64) -> bool {
        tag < self.oldest || self.acked.range(..=tag).next_back().is_some_and(|(_, last)| *last >= tag)
    }

    /// Adds a tag to the acknowledged ranges.
    fn join(&mut self, tag: u64) {
        let last = self.acked.remove(&(tag + 1)).unwrap_or(tag);
        match self.acked.range_mut(..tag).next_back() {
            Some((_, end)) if *end + 1 == tag => *end = last,
            _ => {
                self.acked.insert(tag, last);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn a_run_without_a_gap_takes_one_frame() {
        let mut tags = Tags::default();
        assert_eq!(tags.settle([2, 3]), None);
        assert_eq!(tags.settle([1]), Some(3));
        assert_eq!(tags.settle([5, 6]), None);
        assert_eq!(tags.ack_each([5]), [5]);
        assert_eq!(tags.ack_each([5]), [] as [u64; 0], "never twice");
        assert_eq!(tags.settle([4]), Some(6), "5 is acked already");
        assert_eq!(tags.oldest(), 7);
    }

    #[test]
    fn one_that_stays_unsettled_takes_no_memory_for_the_others() {
        let mut tags = Tags::default();
        for tag in 2..10_000 {
            assert_eq!(tags.settle([tag]), None);
            assert_eq!(tags.ack_each([tag]), [tag]);
        }
        assert_eq!((tags.acked.len(), tags.settled.len()), (1, 0));
        assert_eq!(tags.settle([1]), Some(1));
        assert_eq!(tags.oldest(), 10_000);
    }

    /// A model of the broker: the tags that it still waits for. It would close the channel over any other.
    #[derive(Default)]
    struct Broker(BTreeSet<u64>);

    impl Broker {
        fn ack(&mut self, tag: u64) {
            assert!(self.0.remove(&tag), "unknown delivery tag {tag}");
        }

        fn ack_up_to(&mut self, last: u64, settled: &BTreeSet<u64>) {
            assert!(self.0.contains(&last), "unknown delivery tag {last}");
            let rest = self.0.split_off(&(last + 1));
            assert!(std::mem::replace(&mut self.0, rest).is_subset(settled), "a frame covers an unsettled tag");
        }
    }

    proptest! {
        #[test]
        fn every_settled_tag_is_acknowledged_once_and_no_other(
            order in Just((1..=60u64).collect::<Vec<_>>()).prop_shuffle(),
            sizes in prop::collection::vec((1..10usize, any::<bool>()), 1..30),
        ) {
            let mut tags = Tags::default();
            let mut broker = Broker((1..=60).collect());
            let (mut order, mut settled) = (order.into_iter(), BTreeSet::new());
            let mut waiting: Vec<u64> = vec![];
            for (size, gives_up) in sizes {
                let batch: Vec<u64> = order.by_ref().take(size).collect();
                settled.extend(batch.iter().copied());
                if let Some(last) = tags.settle(batch.iter().copied()) {
                    broker.ack_up_to(last, &settled);
                }
                waiting.extend(batch);
                if gives_up {
                    tags.ack_each(waiting.drain(..)).into_iter().for_each(|tag| broker.ack(tag));
                }
                prop_assert!(broker.0.is_disjoint(&(1..tags.oldest()).collect()));
                prop_assert!((1..=60).all(|tag| tags.is_acked(tag) != broker.0.contains(&tag)));
            }
            tags.ack_each(waiting).into_iter().for_each(|tag| broker.ack(tag));
            prop_assert_eq!(broker.0, (1..=60).filter(|tag| !settled.contains(tag)).collect::<BTreeSet<_>>());
        }
    }
}
