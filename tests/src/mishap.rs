//! What a share of the requests to an HTTP service meets with: a refusal, a lost answer, or a long wait for it.
//!
//! Refuses to know the service: whoever serves asks once for each request, and does what it is told.

use crate::chance::Chance;
use std::{
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

/// Shorter than any client here waits, so that the answer still counts.
const STALL_MS: (u64, u64) = (1_000, 4_000);

/// What a request meets with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// It is not taken: the service is broken.
    Refusal,
    /// It is taken, and answered as if it were not.
    LostAnswer,
    /// It is taken, and answered after so long.
    Stall(Duration),
}

/// The mishaps of one service.
#[derive(Debug)]
pub struct Mishaps {
    chance: Mutex<Chance>,
    share: f64,
    count: AtomicU64,
}

impl Mishaps {
    /// Mishaps for a share of the requests; the same seed and stream give the same sequence.
    pub fn new(seed: u64, stream: u64, share: f64) -> Self {
        Self { chance: Mutex::new(Chance::new(seed, stream)), share, count: AtomicU64::new(0) }
    }

    /// What the next request meets with.
    pub fn next(&self) -> Option<Mishap> {
        let mut chance = self.chance.lock().unwrap_or_else(PoisonError::into_inner);
        if !chance.hits(self.share) {
            return None;
        }
        self.count.fetch_add(1, Ordering::Relaxed);
        let stall = chance.millis(STALL_MS.0, STALL_MS.1);
        Some(chance.of(&[Mishap::Refusal, Mishap::LostAnswer, Mishap::Stall(stall)]))
    }

    /// How many there were so far.
    pub fn count(&self) -> u64 {
        self.count.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_seed_repeats_its_mishaps_and_counts_them() {
        let draw = |seed| {
            let mishaps = Mishaps::new(seed, 1, 0.5);
            let drawn: Vec<_> = (0..50).map(|_| mishaps.next()).collect();
            assert_eq!(mishaps.count(), drawn.iter().flatten().count() as u64);
            drawn
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
        assert!(draw(1).contains(&Some(Mishap::Refusal)));
    }
}
