//! How long messages are on their way when they come at a steady pace, far below what the bridge can move.
//!
//! Refuses to count the start: the first messages, which open connections, are not timed.

use super::{publisher::Publishing, script::Stage, tally::Tally};
use crate::wait;
use anyhow::{Context, Result, ensure};
use lapin::Confirmation;
use std::{ops::Range, time::Duration};
use tokio::{task::JoinSet, time::interval};

const WARM_UP: u64 = 200;

/// From the publishing of a message to its acceptance by SQS.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Delay {
    /// Of the message in the middle.
    pub p50: Duration,
    /// One in a hundred takes longer.
    pub p99: Duration,
    /// Of the slowest.
    pub max: Duration,
}

impl Delay {
    /// Of all times; `None` when there are none.
    pub(super) fn of(mut all: Vec<Duration>) -> Option<Self> {
        all.sort_unstable();
        let at = |percent: usize| all.get((all.len() * percent).div_ceil(100).saturating_sub(1)).copied();
        Some(Self { p50: at(50)?, p99: at(99)?, max: at(100)? })
    }
}

impl Stage<'_> {
    /// Publishes `rate` messages a second and waits until all is settled.
    pub(super) async fn pace(&self, rate: u32) -> Result<Delay> {
        let all = self.options.messages;
        ensure!(all > WARM_UP, "--messages must be over {WARM_UP}, the first of which are not timed");
        self.publishing.run(&self.tally, 0..WARM_UP, Duration::ZERO).await;
        self.settled(WARM_UP).await?;
        self.tally.start_clock();
        let within = Duration::from_secs((all - WARM_UP) / u64::from(rate)) + self.options.patience();
        wait::at_most("end of publishing", within, self.publishing.steady(&self.tally, WARM_UP..all, rate)).await??;
        self.settled(all).await?;
        self.end().await?;
        Delay::of(self.tally.delays()).context("nothing was timed")
    }
}

impl Publishing {
    /// Publishes `rate` messages a second; a confirmation holds up nothing but the end.
    async fn steady(&self, tally: &Tally, numbers: Range<u64>, rate: u32) -> Result<()> {
        let (_connection, channel) = self.connect().await?;
        let mut ticks = interval(Duration::from_secs(1) / rate);
        let mut waiting = JoinSet::new();
        for number in numbers {
            ticks.tick().await;
            let confirmation = self.publish(tally, &channel, number).await?;
            waiting.spawn(async move { (number, confirmation.await) });
        }
        while let Some(done) = waiting.join_next().await {
            let (number, confirmation) = done?;
            ensure!(matches!(confirmation?, Confirmation::Ack(None)), "a message was not confirmed");
            tally.confirm(number);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_those_of_the_nearest_rank() {
        let millis = Duration::from_millis;
        let of = |last: u64| Delay::of((1..=last).rev().map(millis).collect());
        for (last, p50, p99) in [(1, 1, 1), (2, 1, 2), (100, 50, 99), (101, 51, 100), (200, 100, 198)] {
            assert_eq!(of(last), Some(Delay { p50: millis(p50), p99: millis(p99), max: millis(last) }));
        }
        assert_eq!(of(0), None);
    }
}
