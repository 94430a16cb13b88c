//! Keeps the order inside each FIFO group: at most one item of a group is out, and the next leaves only when that one
//! is settled.
//!
//! SQS may refuse an entry of a batch and take a later one of the same group. So a batch must not hold two items of a
//! group, and a retry must go before later items. Both follow from one rule: an item that leaves holds its lane until
//! it is settled. Items without a lane pass through.
//!
//! Pure, like the [`Batcher`] behind it. Nothing is dropped, copied or reordered. No call takes longer when more items
//! wait.

use std::{
    collections::{HashMap, VecDeque},
    time::Duration,
};

use tokio::time::Instant;

use crate::batch::{BatchItem, Batcher};

/// Items that wait for their lane, and the batch that is being filled.
#[derive(Debug)]
pub struct Lanes<T> {
    batcher: Batcher<T>,
    /// The lanes that have an item out, with the waiting items of each and when these came.
    waiting: HashMap<String, VecDeque<(T, Instant)>>,
    /// How many items wait in all lanes together.
    count: usize,
}

impl<T: BatchItem> Lanes<T> {
    /// Empty lanes.
    pub fn new(linger: Duration) -> Self {
        Self { batcher: Batcher::new(linger), waiting: HashMap::new(), count: 0 }
    }

    /// Adds a new item. Returns a batch if one is ready now.
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

    /// Adds an item that must be sent again. It still holds its lane, so it goes before all others of it.
    pub fn retry(&mut self, item: T, now: Instant) -> Option<Vec<T>> {
        self.batcher.push(item, now)
    }

    /// Call this when the item of this lane that was out is settled. Lets the next one out, whose linger time counts
    /// from when it came.
    pub fn settle(&mut self, lane: &str) -> Option<Vec<T>> {
        let queue = self.waiting.get_mut(lane)?;
        let Some((item, since)) = queue.pop_front() else {
            self.waiting.remove(lane);
            return None;
        };
        self.count -= 1;
        self.batcher.push(item, since)
    }

    /// Returns what may be sent, full or not.
    pub fn flush(&mut self) -> Option<Vec<T>> {
        self.batcher.flush()
    }

    /// Drops everything.
    pub fn clear(&mut self) {
        self.batcher.flush();
        self.waiting.clear();
        self.count = 0;
    }

    /// When the linger time of the oldest item that may be sent is over; `None` if there is none.
    pub fn deadline(&self) -> Option<Instant> {
        self.batcher.deadline()
    }

    /// Whether no item waits. Those that are out do not count.
    pub fn is_empty(&self) -> bool {
        self.deadline().is_none() && self.count == 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{batch::MAX_ENTRIES, entry::MAX_BYTES};
    use proptest::prelude::*;
    use std::collections::{BTreeMap, BTreeSet};

    const LINGER: Duration = Duration::from_millis(20);

    /// A lane, the position in the order of arrival, a size.
    #[derive(Debug, Clone, PartialEq, Eq)]
    struct Item(Option<String>, usize, usize);

    impl BatchItem for Item {
        fn size(&self) -> usize {
            self.2
        }

        fn lane(&self) -> Option<&str> {
            self.0.as_deref()
        }
    }

    fn item(lane: &str, number: usize) -> Item {
        Item(Some(lane.to_owned()), number, 1)
    }

    fn numbers(batch: Option<Vec<Item>>) -> Vec<usize> {
        batch.into_iter().flatten().map(|item| item.1).collect()
    }

    #[test]
    fn one_of_a_lane_is_out_until_it_is_settled() {
        let (mut lanes, now) = (Lanes::new(LINGER), Instant::now());
        for (number, lane) in ["a", "a", "b", "a"].iter().enumerate() {
            assert_eq!(lanes.push(item(lane, number), now), None);
        }
        assert_eq!(numbers(lanes.flush()), [0, 2]);
        assert_eq!((lanes.deadline(), lanes.is_empty()), (None, false), "the others wait for a verdict, not for time");
        assert_eq!(lanes.settle("b"), None);
        assert_eq!(lanes.flush(), None);
        // A retry goes before later items, and without them.
        lanes.retry(item("a", 0), now);
        assert_eq!(numbers(lanes.flush()), [0]);
        for want in [1, 3] {
            lanes.settle("a");
            assert_eq!(numbers(lanes.flush()), [want]);
        }
        lanes.settle("a");
        assert!(lanes.is_empty() && lanes.waiting.is_empty(), "an unused lane is forgotten");
        assert_eq!(lanes.settle("unused"), None);
    }

    #[test]
    fn what_has_waited_for_its_turn_does_not_linger_again() {
        let (mut lanes, start) = (Lanes::new(LINGER), Instant::now());
        lanes.push(item("a", 0), start);
        lanes.push(item("a", 1), start + LINGER / 4);
        lanes.push(item("b", 2), start + LINGER / 2);
        lanes.flush();
        lanes.push(item("c", 3), start + LINGER * 5);
        lanes.settle("a");
        assert_eq!(lanes.deadline(), Some(start + LINGER / 4 + LINGER));
        assert_eq!(numbers(lanes.flush()), [3, 1]);
    }

    #[test]
    fn a_settled_batch_lets_a_whole_batch_out() {
        let (mut lanes, now) = (Lanes::new(LINGER), Instant::now());
        let lane = |number: usize| format!("lane-{}", number % MAX_ENTRIES);
        let batches: Vec<_> = (0..30).filter_map(|number| lanes.push(item(&lane(number), number), now)).collect();
        assert_eq!(batches.concat().len(), MAX_ENTRIES);
        for from in [10, 20] {
            let batches: Vec<_> = (0..MAX_ENTRIES).filter_map(|number| lanes.settle(&lane(number))).collect();
            assert_eq!(numbers(Some(batches.concat())), (from..from + 10).collect::<Vec<_>>());
        }
    }

    /// One event of the model.
    #[derive(Debug, Clone)]
    enum Event {
        /// A new item, of one of a few lanes or of none.
        Arrive { lane: Option<u8>, size: usize },
        /// A batch in flight is answered: which one, and a bit for each entry that must be sent again.
        Verdict { batch: usize, again: u16 },
        /// Waiting retries are sent.
        Rested,
        /// The linger time is over.
        Linger,
    }

    fn events() -> impl Strategy<Value = Vec<Event>> {
        let lane = prop_oneof![3 => (0u8..12).prop_map(Some), 1 => Just(None)];
        let size = prop_oneof![4 => 0..64usize, 1 => 0..=MAX_BYTES, 1 => Just(MAX_BYTES)];
        let event = prop_oneof![
            5 => (lane, size).prop_map(|(lane, size)| Event::Arrive { lane, size }),
            2 => (any::<usize>(), any::<u16>()).prop_map(|(batch, again)| Event::Verdict { batch, again }),
            1 => Just(Event::Rested),
            2 => Just(Event::Linger),
        ];
        prop::collection::vec(event, 0..300)
    }

    /// A model of the flow and SQS: batches in flight, waiting retries, and what was accepted in which order.
    struct World {
        lanes: Lanes<Item>,
        now: Instant,
        out: Vec<Vec<Item>>,
        resting: Vec<Item>,
        accepted: Vec<Item>,
    }

    impl World {
        fn send(&mut self, batch: Option<Vec<Item>>) -> Result<(), TestCaseError> {
            let Some(batch) = batch else { return Ok(()) };
            prop_assert!((1..=MAX_ENTRIES).contains(&batch.len()));
            prop_assert!(batch.iter().map(BatchItem::size).sum::<usize>() <= MAX_BYTES);
            self.out.push(batch);
            let lanes: Vec<&str> = self.out.iter().flatten().chain(&self.resting).filter_map(Item::lane).collect();
            let distinct: BTreeSet<&str> = lanes.iter().copied().collect();
            prop_assert_eq!(lanes.len(), distinct.len(), "two of a lane are out");
            Ok(())
        }

        fn verdict(&mut self, batch: usize, again: u16) -> Result<(), TestCaseError> {
            if self.out.is_empty() {
                return Ok(());
            }
            let batch = self.out.swap_remove(batch % self.out.len());
            let mut lanes = vec![];
            for (index, item) in batch.into_iter().enumerate() {
                if again >> index & 1 == 1 {
                    self.resting.push(item);
                } else {
                    lanes.extend(item.0.clone());
                    self.accepted.push(item);
                }
            }
            for lane in lanes {
                let batch = self.lanes.settle(&lane);
                self.send(batch)?;
            }
            Ok(())
        }

        fn rested(&mut self) -> Result<(), TestCaseError> {
            while !self.resting.is_empty() {
                let item = self.resting.remove(0);
                let batch = self.lanes.retry(item, self.now);
                self.send(batch)?;
            }
            Ok(())
        }

        fn linger(&mut self) -> Result<(), TestCaseError> {
            let Some(deadline) = self.lanes.deadline() else { return Ok(()) };
            prop_assert!(deadline <= self.now + LINGER, "no item waits longer than the linger time");
            self.now = self.now.max(deadline);
            let batch = self.lanes.flush();
            prop_assert!(batch.is_some(), "a deadline means that something may be sent");
            self.send(batch)
        }
    }

    /// The numbers of each lane, in order. Items without a lane have no order.
    fn by_lane(items: &[Item]) -> BTreeMap<Option<String>, Vec<usize>> {
        let mut lanes: BTreeMap<Option<String>, Vec<usize>> = BTreeMap::new();
        for item in items {
            lanes.entry(item.0.clone()).or_default().push(item.1);
        }
        lanes.entry(None).or_default().sort_unstable();
        lanes
    }

    proptest! {
        #[test]
        fn order_is_kept_and_nothing_is_dropped_doubled_or_stuck(events in events()) {
            let now = Instant::now();
            let mut world = World { lanes: Lanes::new(LINGER), now, out: vec![], resting: vec![], accepted: vec![] };
            let mut arrived = vec![];
            for event in events {
                world.now += Duration::from_millis(1);
                match event {
                    Event::Arrive { lane, size } => {
                        let item = Item(lane.map(|lane| lane.to_string()), arrived.len(), size);
                        arrived.push(item.clone());
                        let batch = world.lanes.push(item, world.now);
                        world.send(batch)?;
                    }
                    Event::Verdict { batch, again } => world.verdict(batch, again)?,
                    Event::Rested => world.rested()?,
                    Event::Linger => world.linger()?,
                }
            }
            // No new items, and SQS accepts everything: all must be sent.
            for _ in 0..=arrived.len() {
                world.rested()?;
                world.linger()?;
                while !world.out.is_empty() {
                    world.verdict(0, 0)?;
                }
            }
            prop_assert!(world.lanes.is_empty() && world.lanes.waiting.is_empty());
            prop_assert_eq!(by_lane(&world.accepted), by_lane(&arrived));
        }
    }

    #[test]
    fn a_full_prefetch_goes_through_whatever_its_lanes() {
        const PREFETCH: usize = 65_535;
        for lanes_in_use in [1, 1_000, PREFETCH] {
            let (mut lanes, now) = (Lanes::new(LINGER), Instant::now());
            let mut out = VecDeque::new();
            for number in 0..PREFETCH {
                out.extend(lanes.push(item(&(number % lanes_in_use).to_string(), number), now));
            }
            let mut settled = 0;
            loop {
                out.extend(lanes.flush());
                let Some(batch) = out.pop_front() else { break };
                settled += batch.len();
                for item in batch {
                    out.extend(item.lane().and_then(|lane| lanes.settle(lane)));
                }
            }
            assert_eq!(settled, PREFETCH);
        }
    }
}
