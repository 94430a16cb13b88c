//! The faults that the stand-in can inject. Which request meets one follows from the number of requests and from a seed, so that a
//! run can be repeated.

use super::wire::Refusal;
use crate::{fault_injection::Loss, random::Random};
use std::cell::{Cell, RefCell};

/// Longer than the relay waits for an answer.
const LATE_MS: (u64, u64) = (11_000, 14_000);
/// The random stream for lost answers.
const LOSSES: u64 = 4;

/// A fault, and the number of requests so far.
#[derive(Debug, Clone)]
pub struct SqsFault {
    kind: Kind,
    asked: Cell<u64>,
}

#[derive(Debug, Clone)]
enum Kind {
    Throttle,
    Internal,
    Partial,
    ThrottledEntries,
    LostAnswers(RefCell<Random>),
    SenderFault(String),
}

impl SqsFault {
    /// Every request is throttled.
    pub fn throttle() -> Self {
        Kind::Throttle.into()
    }

    /// Every request fails with 500.
    pub fn internal() -> Self {
        Kind::Internal.into()
    }

    /// Every second entry of a batch fails with an internal error.
    pub fn partial() -> Self {
        Kind::Partial.into()
    }

    /// Every second entry of a batch is throttled, with `SenderFault` true.
    pub fn throttled_entries() -> Self {
        Kind::ThrottledEntries.into()
    }

    /// The answer to every second request is lost after it was carried out: a 500, a reset, or too late.
    pub fn lost_answers(seed: u64) -> Self {
        Kind::LostAnswers(RefCell::new(Random::new(seed, LOSSES))).into()
    }

    /// Entries whose body contains `mark` are rejected.
    pub fn sender_fault(mark: &str) -> Self {
        Kind::SenderFault(mark.to_string()).into()
    }

    /// The answer to a send request that is not carried out.
    pub(crate) fn answer(&self) -> Option<axum::response::Response> {
        self.refusal().map(Refusal::into_response)
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        match self.kind {
            // Two names are seen in the wild.
            Kind::Throttle if self.every_second() => Some(Refusal::throttled()),
            Kind::Throttle => Some(Refusal::sender("ThrottlingException", "Rate exceeded")),
            Kind::Internal if self.every_second() => {
                Some(Refusal { status: 503, code: "ServiceUnavailable", ..Refusal::internal("try again later") })
            }
            Kind::Internal => Some(Refusal::internal("We encountered an internal error. Please try again.")),
            _ => None,
        }
    }

    pub(super) fn of_entry(&self, body: &str) -> Option<Refusal> {
        match &self.kind {
            Kind::Partial if self.every_second() => Some(Refusal::internal("this entry not now")),
            Kind::ThrottledEntries if self.every_second() => Some(Refusal::throttled()),
            Kind::SenderFault(mark) if body.contains(mark.as_str()) => {
                Some(Refusal::sender("InvalidMessageContents", "this entry never"))
            }
            _ => None,
        }
    }

    /// How the answer to the next request is lost, if it is.
    pub(super) fn loss(&self) -> Option<Loss> {
        let Kind::LostAnswers(random) = &self.kind else { return None };
        let mut random = random.borrow_mut();
        let late = random.millis(LATE_MS.0, LATE_MS.1);
        self.every_second().then(|| random.choose(&[Loss::ServerError, Loss::Reset, Loss::Late(late)]))
    }

    fn every_second(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.asked.get() % 2 == 1
    }
}

impl From<Kind> for SqsFault {
    fn from(kind: Kind) -> Self {
        Self { kind, asked: Cell::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Four requests with one entry each: the codes of request and entry, and whether the answer is lost.
    fn four(fault: &SqsFault, body: &str) -> [(&'static str, &'static str, bool); 4] {
        let code = |refusal: Option<Refusal>| refusal.map_or("", |refusal| refusal.code);
        [(); 4].map(|()| (code(fault.refusal()), code(fault.of_entry(body)), fault.loss().is_some()))
    }

    #[test]
    fn each_fault_hits_its_requests_or_entries_and_nothing_else() {
        let good = ("", "", false);
        let (throttled, slow) = (("RequestThrottled", "", false), ("ThrottlingException", "", false));
        assert_eq!(four(&SqsFault::throttle(), "x"), [throttled, slow, throttled, slow]);
        let (unavailable, internal) = (("ServiceUnavailable", "", false), ("InternalFailure", "", false));
        assert_eq!(four(&SqsFault::internal(), "x"), [unavailable, internal, unavailable, internal]);
        let failed = ("", "InternalFailure", false);
        assert_eq!(four(&SqsFault::partial(), "x"), [failed, good, failed, good]);
        assert_eq!(four(&SqsFault::lost_answers(1), "x"), [("", "", true), good, ("", "", true), good]);
        let throttled = ("", "RequestThrottled", false);
        assert_eq!(four(&SqsFault::throttled_entries(), "x"), [throttled, good, throttled, good]);
        let refused = ("", "InvalidMessageContents", false);
        assert_eq!(four(&SqsFault::sender_fault("mark"), "a mark"), [refused; 4]);
        assert_eq!(four(&SqsFault::sender_fault("mark"), "x"), [good; 4]);
    }

    #[test]
    fn answers_are_lost_in_every_way_and_a_seed_repeats_which() {
        let losses = |seed| {
            let fault = SqsFault::lost_answers(seed);
            (0..40).map(|_| fault.loss()).collect::<Vec<_>>()
        };
        let one = losses(1);
        assert_eq!(one, losses(1));
        assert_ne!(one, losses(2));
        assert!(one.contains(&Some(Loss::ServerError)) && one.contains(&Some(Loss::Reset)), "{one:?}");
        let is_late =
            |loss: &Option<Loss>| matches!(loss, Some(Loss::Late(late)) if late.as_millis() as u64 >= LATE_MS.0);
        assert!(one.iter().any(is_late), "{one:?}");
    }

    #[test]
    fn sender_faults_and_throttles_have_sender_fault_true() {
        let of_entry = |fault: SqsFault| fault.of_entry("mark").map(|refusal| refusal.sender_fault);
        assert_eq!(
            (of_entry(SqsFault::sender_fault("mark")), of_entry(SqsFault::partial())),
            (Some(true), Some(false))
        );
        assert_eq!(of_entry(SqsFault::throttled_entries()), Some(true));
        let status = |fault: SqsFault| fault.refusal().map(|refusal| refusal.status);
        assert_eq!((status(SqsFault::throttle()), status(SqsFault::internal())), (Some(400), Some(503)));
    }
}
