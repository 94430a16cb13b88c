//! What a share of the requests to an HTTP service meets with: a refusal, an answer that is lost, or a long wait for it.
//!
//! It does not know the service: whoever serves asks once for each request, and does what it is told.

use crate::{chance::Chance, connection::Connection};
use axum::response::Response;
use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::sleep;

/// Shorter than any client here waits, so that the answer still counts.
const STALL_MS: (u64, u64) = (1_000, 4_000);
/// Longer than the leases and the visibility timeouts here: an answer after that comes too late, even for a client that waits on.
const LATE_MS: u64 = 6_000;

/// What a request meets with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mishap {
    /// It is not taken: the service is broken, or asks for fewer requests.
    Refusal(Extent),
    /// It is carried out, and nobody hears of it in time.
    LostAnswer(Loss),
    /// It is carried out, and answered after so long.
    Stall(Duration),
}

/// How much of a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// The whole.
    Whole,
    /// Some entries of a batch; what is no batch is refused whole.
    Entries,
}

/// How an answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The client is told 500.
    ServerError,
    /// The connection is reset.
    Reset,
    /// It comes after so long.
    Late(Duration),
}

/// How often a service met with what.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counts {
    /// Refused, whole or in part.
    pub refused: u64,
    /// Carried out and answered 500.
    pub server_errors: u64,
    /// Carried out, and the connection was reset.
    pub resets: u64,
    /// Carried out and answered too late.
    pub late: u64,
    /// Carried out and answered late, but in time.
    pub stalled: u64,
}

/// The mishaps of one service.
#[derive(Debug)]
pub struct Mishaps {
    drawn: Mutex<(Chance, Counts)>,
    share: f64,
    latest_ms: u64,
}

impl Mishaps {
    /// Mishaps for a share of the requests; the same seed and stream give the same sequence. An answer that comes too late takes no
    /// longer than `latest`.
    pub fn new(seed: u64, stream: u64, share: f64, latest: Duration) -> Self {
        let drawn = Mutex::new((Chance::new(seed, stream), Counts::default()));
        Self { drawn, share, latest_ms: (latest.as_millis() as u64).max(LATE_MS) }
    }

    /// What the next request meets with.
    pub fn next(&self) -> Option<Mishap> {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let (chance, counts) = &mut *drawn;
        if !chance.hits(self.share) {
            return None;
        }
        let stall = chance.millis(STALL_MS.0, STALL_MS.1);
        let late = chance.millis(LATE_MS, self.latest_ms);
        let mishap = chance.of(&[
            Mishap::Refusal(Extent::Whole),
            Mishap::Refusal(Extent::Entries),
            Mishap::LostAnswer(Loss::ServerError),
            Mishap::LostAnswer(Loss::Reset),
            Mishap::LostAnswer(Loss::Late(late)),
            Mishap::Stall(stall),
        ]);
        *counts.of(mishap) += 1;
        Some(mishap)
    }

    /// How many there were so far.
    pub fn counts(&self) -> Counts {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl Loss {
    /// Does this to the answer of a request that came on `connection`.
    pub(crate) async fn lose(self, connection: &Connection, server_error: Response, answer: Response) -> Response {
        match self {
            Self::ServerError => return server_error,
            Self::Reset => connection.reset(),
            Self::Late(late) => sleep(late).await,
        }
        answer
    }
}

impl Counts {
    /// All answers that were lost.
    pub fn lost_answers(&self) -> u64 {
        self.server_errors + self.resets + self.late
    }

    fn of(&mut self, mishap: Mishap) -> &mut u64 {
        match mishap {
            Mishap::Refusal(_) => &mut self.refused,
            Mishap::LostAnswer(Loss::ServerError) => &mut self.server_errors,
            Mishap::LostAnswer(Loss::Reset) => &mut self.resets,
            Mishap::LostAnswer(Loss::Late(_)) => &mut self.late,
            Mishap::Stall(_) => &mut self.stalled,
        }
    }
}

impl fmt::Display for Counts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { refused, server_errors, resets, late, stalled } = self;
        write!(f, "refused {refused}, lost {} ", self.lost_answers())?;
        write!(f, "(500 {server_errors}, reset {resets}, late {late}), stalled {stalled}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LATEST: Duration = Duration::from_secs(9);

    #[test]
    fn a_seed_repeats_its_mishaps_and_counts_them() {
        let draw = |seed| {
            let mishaps = Mishaps::new(seed, 1, 0.5, LATEST);
            let drawn: Vec<_> = (0..100).map(|_| mishaps.next()).collect();
            let Counts { refused, server_errors, resets, late, stalled } = mishaps.counts();
            let all = [refused, server_errors, resets, late, stalled];
            assert_eq!(all.iter().sum::<u64>(), drawn.iter().flatten().count() as u64);
            assert!(all.iter().all(|&count| count > 0), "{all:?}");
            drawn
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn what_comes_too_late_comes_after_every_lease_and_no_later_than_it_may() {
        let mishaps = Mishaps::new(1, 1, 1.0, LATEST);
        let lates: Vec<_> = std::iter::repeat_with(|| mishaps.next())
            .take(200)
            .filter_map(|mishap| match mishap {
                Some(Mishap::LostAnswer(Loss::Late(late))) => Some(late),
                _ => None,
            })
            .collect();
        assert!(lates.iter().all(|late| (Duration::from_millis(LATE_MS)..=LATEST).contains(late)), "{lates:?}");
        assert!(lates.len() > 10, "{}", lates.len());
    }
}
