//! How the stand-in misbehaves on purpose.
//!
//! Refuses chance: what happens follows from how often it was asked, so that a run can be repeated.

use super::wire::Refusal;
use std::cell::Cell;

/// A trouble, and how often it was asked for.
#[derive(Debug, Clone)]
pub struct Trouble {
    kind: Kind,
    asked: Cell<u64>,
}

#[derive(Debug, Clone)]
enum Kind {
    Throttle,
    Internal,
    Partial,
    LostResponse,
    SenderFault(String),
}

impl Trouble {
    /// Every request is throttled.
    pub fn throttle() -> Self {
        Kind::Throttle.into()
    }

    /// Every request fails with 500.
    pub fn internal() -> Self {
        Kind::Internal.into()
    }

    /// Every second entry of a batch is not accepted now.
    pub fn partial() -> Self {
        Kind::Partial.into()
    }

    /// Every second request is taken, and its answer is lost with the connection.
    pub fn lost_response() -> Self {
        Kind::LostResponse.into()
    }

    /// Entries whose body holds `mark` are never accepted.
    pub fn sender_fault(mark: &str) -> Self {
        Kind::SenderFault(mark.to_string()).into()
    }

    /// What a request to send is answered instead of being taken.
    pub(crate) fn answer(&self) -> Option<axum::response::Response> {
        self.refusal().map(Refusal::into_response)
    }

    pub(super) fn refusal(&self) -> Option<Refusal> {
        match self.kind {
            // Two names are seen in the wild.
            Kind::Throttle if self.every_second() => {
                Some(Refusal::sender("RequestThrottled", "The request was denied."))
            }
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
            Kind::SenderFault(mark) if body.contains(mark.as_str()) => {
                Some(Refusal::sender("InvalidMessageContents", "this entry never"))
            }
            _ => None,
        }
    }

    pub(super) fn loses_response(&self) -> bool {
        matches!(self.kind, Kind::LostResponse) && self.every_second()
    }

    fn every_second(&self) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.asked.get() % 2 == 1
    }
}

impl From<Kind> for Trouble {
    fn from(kind: Kind) -> Self {
        Self { kind, asked: Cell::new(0) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The codes of four requests, each with one entry, and whether its response is lost.
    fn four(trouble: &Trouble, body: &str) -> [(&'static str, &'static str, bool); 4] {
        let code = |refusal: Option<Refusal>| refusal.map_or("", |refusal| refusal.code);
        [(); 4].map(|()| (code(trouble.refusal()), code(trouble.of_entry(body)), trouble.loses_response()))
    }

    #[test]
    fn each_trouble_hits_what_it_says_and_nothing_else() {
        let good = ("", "", false);
        let (throttled, slow) = (("RequestThrottled", "", false), ("ThrottlingException", "", false));
        assert_eq!(four(&Trouble::throttle(), "x"), [throttled, slow, throttled, slow]);
        let (unavailable, internal) = (("ServiceUnavailable", "", false), ("InternalFailure", "", false));
        assert_eq!(four(&Trouble::internal(), "x"), [unavailable, internal, unavailable, internal]);
        let failed = ("", "InternalFailure", false);
        assert_eq!(four(&Trouble::partial(), "x"), [failed, good, failed, good]);
        assert_eq!(four(&Trouble::lost_response(), "x"), [("", "", true), good, ("", "", true), good]);
        let refused = ("", "InvalidMessageContents", false);
        assert_eq!(four(&Trouble::sender_fault("mark"), "a mark"), [refused; 4]);
        assert_eq!(four(&Trouble::sender_fault("mark"), "x"), [good; 4]);
    }

    #[test]
    fn only_a_sender_fault_says_that_it_is_the_senders() {
        let of_entry = |trouble: Trouble| trouble.of_entry("mark").map(|refusal| refusal.sender_fault);
        assert_eq!((of_entry(Trouble::sender_fault("mark")), of_entry(Trouble::partial())), (Some(true), Some(false)));
        let status = |trouble: Trouble| trouble.refusal().map(|refusal| refusal.status);
        assert_eq!((status(Trouble::throttle()), status(Trouble::internal())), (Some(400), Some(503)));
    }
}
