//! Which delivery tags of one channel are settled, and which acknowledgements say so in the fewest frames.
//!
//! Pure: it knows no channel and no clock. It refuses to acknowledge a tag twice, which the broker answers by closing the
//! channel, and to cover one that is not settled, which would lose a message.

use std::collections::{BTreeMap, BTreeSet};

/// The tags of one channel, which counts them from 1 without a gap.
#[derive(Debug)]
pub(crate) struct Tags {
    /// The lowest that is not settled.
    oldest: u64,
    /// Settled and not yet acknowledged, above `oldest`.
    settled: BTreeSet<u64>,
    /// Acknowledged above `oldest`: first and last of each run. There are no more runs than unsettled messages.
    told: BTreeMap<u64, u64>,
}

/// One acknowledgement of every settled tag up to `last`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Run {
    /// The tag to send, with the flag `multiple`.
    pub(crate) last: u64,
    /// How many messages it acknowledges.
    pub(crate) count: usize,
}

impl Default for Tags {
    fn default() -> Self {
        Self { oldest: 1, settled: BTreeSet::new(), told: BTreeMap::new() }
    }
}

impl Tags {
    /// The lowest tag that is not settled: everything below is acknowledged.
    pub(crate) fn oldest(&self) -> u64 {
        self.oldest
    }

    /// Notes settled tags. If nothing below them is unsettled, one acknowledgement covers them all; it must be sent.
    pub(crate) fn settle(&mut self, tags: impl IntoIterator<Item = u64>) -> Option<Run> {
        self.settled.extend(tags);
        let mut run: Option<Run> = None;
        loop {
            if self.settled.remove(&self.oldest) {
                run = Some(Run { last: self.oldest, count: run.map_or(1, |run| run.count + 1) });
                self.oldest += 1;
            } else if let Some(last) = self.told.remove(&self.oldest) {
                self.oldest = last + 1;
            } else {
                return run;
            }
        }
    }

    /// Gives up waiting for those below: of `tags`, those not acknowledged yet, each of which must be sent on its own.
    pub(crate) fn tell(&mut self, tags: impl IntoIterator<Item = u64>) -> Vec<u64> {
        let open: Vec<u64> = tags.into_iter().filter(|tag| self.settled.remove(tag)).collect();
        for &tag in &open {
            self.join(tag);
        }
        open
    }

    /// Whether the broker was told of a tag.
    #[cfg(test)]
    pub(crate) fn is_told(&self, tag: u64) -> bool {
        tag < self.oldest || self.told.range(..=tag).next_back().is_some_and(|(_, last)| *last >= tag)
    }

    /// Adds a tag to the runs that were told.
    fn join(&mut self, tag: u64) {
        let last = self.told.remove(&(tag + 1)).unwrap_or(tag);
        match self.told.range_mut(..tag).next_back() {
            Some((_, end)) if *end + 1 == tag => *end = last,
            _ => {
                self.told.insert(tag, last);
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
        assert_eq!(tags.settle([1]), Some(Run { last: 3, count: 3 }));
        assert_eq!(tags.settle([5, 6]), None);
        assert_eq!(tags.tell([5]), [5]);
        assert_eq!(tags.tell([5]), [] as [u64; 0], "never twice");
        assert_eq!(tags.settle([4]), Some(Run { last: 6, count: 2 }), "5 is told already");
        assert_eq!(tags.oldest(), 7);
    }

    #[test]
    fn one_that_stays_unsettled_takes_no_memory_for_the_others() {
        let mut tags = Tags::default();
        for tag in 2..10_000 {
            assert_eq!(tags.settle([tag]), None);
            assert_eq!(tags.tell([tag]), [tag]);
        }
        assert_eq!((tags.told.len(), tags.settled.len()), (1, 0));
        assert_eq!(tags.settle([1]), Some(Run { last: 1, count: 1 }));
        assert_eq!(tags.oldest(), 10_000);
    }

    /// The broker's side: what it still waits for, and what it would close the channel for.
    #[derive(Default)]
    struct Broker(BTreeSet<u64>);

    impl Broker {
        fn ack(&mut self, tag: u64) {
            assert!(self.0.remove(&tag), "unknown delivery tag {tag}");
        }

        fn ack_up_to(&mut self, run: &Run) {
            assert!(self.0.contains(&run.last), "unknown delivery tag {}", run.last);
            let rest = self.0.split_off(&(run.last + 1));
            assert_eq!(std::mem::replace(&mut self.0, rest).len(), run.count);
        }
    }

    proptest! {
        #[test]
        fn every_settled_tag_is_told_once_and_no_other(
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
                if let Some(run) = tags.settle(batch.iter().copied()) {
                    broker.ack_up_to(&run);
                }
                waiting.extend(batch);
                if gives_up {
                    tags.tell(waiting.drain(..)).into_iter().for_each(|tag| broker.ack(tag));
                }
                prop_assert!(broker.0.is_disjoint(&(1..tags.oldest()).collect()));
                prop_assert!((1..=60).all(|tag| tags.is_told(tag) != broker.0.contains(&tag)));
            }
            tags.tell(waiting).into_iter().for_each(|tag| broker.ack(tag));
            prop_assert_eq!(broker.0, (1..=60).filter(|tag| !settled.contains(tag)).collect::<BTreeSet<_>>());
        }
    }
}
