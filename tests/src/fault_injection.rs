//! Fault injection for HTTP services: a share of the requests is refused, loses its answer or stalls. The service asks for a fault
//! once for each request.

use crate::{connection::Connection, random::Random};
use axum::response::Response;
use std::{
    fmt,
    sync::{Mutex, PoisonError},
    time::Duration,
};
use tokio::time::sleep;

/// Shorter than any client here waits, so that the answer still counts.
const STALL_MS: (u64, u64) = (1_000, 4_000);
/// Longer than the leases and visibility timeouts here: such an answer is too late, even for a client that still waits.
const LATE_MS: u64 = 6_000;

/// The fault of one request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RequestFault {
    /// It is not carried out: server error or throttling.
    Refuse(Extent),
    /// It is carried out, and the client gets no answer in time.
    LostAnswer(Loss),
    /// It is carried out, and answered after this time.
    Stall(Duration),
}

/// How much of a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    /// All of it.
    Whole,
    /// Some entries of a batch. Other requests are refused as a whole.
    Entries,
}

/// How an answer is lost.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Loss {
    /// The client gets 500.
    ServerError,
    /// The connection is reset.
    Reset,
    /// It comes after this time.
    Late(Duration),
}

/// The number of faults by kind.
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

/// The faults of one service.
#[derive(Debug)]
pub struct FaultInjector {
    drawn: Mutex<(Random, Counts)>,
    share: f64,
    latest_ms: u64,
}

impl FaultInjector {
    /// Faults for a share of the requests; the same seed and stream give the same sequence. Late answers take `latest` at most.
    pub fn new(seed: u64, stream: u64, share: f64, latest: Duration) -> Self {
        let drawn = Mutex::new((Random::new(seed, stream), Counts::default()));
        Self { drawn, share, latest_ms: (latest.as_millis() as u64).max(LATE_MS) }
    }

    /// The fault of the next request, if it has one.
    pub fn next(&self) -> Option<RequestFault> {
        let mut drawn = self.drawn.lock().unwrap_or_else(PoisonError::into_inner);
        let (random, counts) = &mut *drawn;
        if !random.hits(self.share) {
            return None;
        }
        let stall = random.millis(STALL_MS.0, STALL_MS.1);
        let late = random.millis(LATE_MS, self.latest_ms);
        let fault = random.choose(&[
            RequestFault::Refuse(Extent::Whole),
            RequestFault::Refuse(Extent::Entries),
            RequestFault::LostAnswer(Loss::ServerError),
            RequestFault::LostAnswer(Loss::Reset),
            RequestFault::LostAnswer(Loss::Late(late)),
            RequestFault::Stall(stall),
        ]);
        *counts.of(fault) += 1;
        Some(fault)
    }

    /// The faults so far.
    pub fn counts(&self) -> Counts {
        self.drawn.lock().unwrap_or_else(PoisonError::into_inner).1
    }
}

impl Loss {
    /// Loses the answer to a request that came on `connection`.
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

    fn of(&mut self, fault: RequestFault) -> &mut u64 {
        match fault {
            RequestFault::Refuse(_) => &mut self.refused,
            RequestFault::LostAnswer(Loss::ServerError) => &mut self.server_errors,
            RequestFault::LostAnswer(Loss::Reset) => &mut self.resets,
            RequestFault::LostAnswer(Loss::Late(_)) => &mut self.late,
            RequestFault::Stall(_) => &mut self.stalled,
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
    fn a_seed_repeats_its_faults_and_counts_them() {
        let draw = |seed| {
            let injector = FaultInjector::new(seed, 1, 0.5, LATEST);
            let drawn: Vec<_> = (0..100).map(|_| injector.next()).collect();
            let Counts { refused, server_errors, resets, late, stalled } = injector.counts();
            let all = [refused, server_errors, resets, late, stalled];
            assert_eq!(all.iter().sum::<u64>(), drawn.iter().flatten().count() as u64);
            assert!(all.iter().all(|&count| count > 0), "{all:?}");
            drawn
        };
        assert_eq!(draw(1), draw(1));
        assert_ne!(draw(1), draw(2));
    }

    #[test]
    fn late_answers_come_after_every_lease_and_before_the_latest() {
        let injector = FaultInjector::new(1, 1, 1.0, LATEST);
        let lates: Vec<_> = std::iter::repeat_with(|| injector.next())
            .take(200)
            .filter_map(|fault| match fault {
                Some(RequestFault::LostAnswer(Loss::Late(late))) => Some(late),
                _ => None,
            })
            .collect();
        assert!(lates.iter().all(|late| (Duration::from_millis(LATE_MS)..=LATEST).contains(late)), "{lates:?}");
        assert!(lates.len() > 10, "{}", lates.len());
    }
}
