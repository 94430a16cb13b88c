//! How long to wait before a retry: exponential with jitter, for any number of attempts.

use std::time::Duration;

use backon::{BackoffBuilder, ExponentialBuilder};

/// The shortest wait; jitter at most doubles it.
const MIN_DELAY: Duration = Duration::from_millis(100);
/// The longest wait before jitter.
const MAX_DELAY: Duration = Duration::from_secs(10);
/// From this attempt on the wait is `MAX_DELAY`.
const LAST_STEP: u32 = 8;

/// The wait after so many failures in a row, counted from 0.
pub(crate) type Backoff = fn(u32) -> Duration;

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
