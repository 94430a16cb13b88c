//! How long to wait before trying again: exponential, jittered, without an end.
//!
//! Refuses to give up; whoever waits decides when it is enough.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// Shortest wait; the jitter adds up to as much again.
const MIN_DELAY: Duration = Duration::from_millis(100);
/// Longest wait before jitter.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// From this attempt on the wait has reached its longest.
const LAST_STEP: u32 = 8;

/// The wait after the `attempt`-th failure in a row, counted from 0.
pub(crate) fn delay(attempt: u32) -> Duration {
    ExponentialBuilder::new()
        .with_jitter()
        .with_factor(2.0)
        .with_min_delay(MIN_DELAY)
        .with_max_delay(MAX_DELAY)
        .without_max_times()
        .build()
        .nth(attempt.min(LAST_STEP) as usize)
        .unwrap_or(MAX_DELAY)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn grows_is_jittered_and_is_bounded() {
        for (attempt, least) in [(0, 100), (1, 200), (4, 1_600), (8, 10_000), (u32::MAX, 10_000)] {
            let least = Duration::from_millis(least);
            let got = delay(attempt);
            assert!((least..=least * 2).contains(&got), "attempt {attempt}: {got:?}");
        }
        let distinct: std::collections::HashSet<_> = (0..20).map(|_| delay(3)).collect();
        assert!(distinct.len() > 1, "no jitter");
    }
}
