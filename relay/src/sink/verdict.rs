//! Turns SQS' answers into one verdict per entry. Pure. The crate `aws-errors` says what an error code means, this
//! module what follows from it.
//!
//! An unknown code is retried: a duplicate can be recognized, a dropped message cannot be recovered.

use aws_errors::{Class, classify_entry, describe_entry};
use aws_sdk_sqs::{operation::send_message_batch::SendMessageBatchOutput, types::BatchResultErrorEntry};

use crate::{
    entry::{Entry, MAX_BYTES, PoisonReason},
    error::Stop,
    metrics::{
        RetryCause,
        cause::{self, REQUEST_TOO_LARGE, UNMENTIONED},
    },
};

/// "Content Too Large" in RFC 9110. It comes from a proxy: SQS answers 400 with a code.
const CONTENT_TOO_LARGE: u16 = 413;
/// A body over this size goes to S3 if a proxy refuses it.
const WORTH_AN_OBJECT: usize = 16 * 1024;

/// The result for one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// SQS accepted it.
    Accepted,
    /// It may be accepted later.
    Retry {
        /// Why not now.
        cause: RetryCause,
        /// Whether SQS answered with a result for each entry; `None` if no request was made.
        answered: Option<bool>,
    },
    /// SQS will never accept this entry as it is.
    Poison(PoisonReason),
    /// SQS will never accept any entry.
    Stop(Stop),
}

/// What follows from a failed request for its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum RequestErrorKind {
    /// A temporary error: retry later.
    Transient,
    /// One of them can never be accepted, and it is not known which.
    Content,
    /// A proxy in front of SQS takes no request of this size.
    TooLarge,
    /// None of them, nor any other, will be accepted.
    Stop,
}

/// A failed request.
#[derive(Debug, Clone)]
pub(super) struct RequestError {
    pub(super) kind: RequestErrorKind,
    pub(super) cause: RetryCause,
}

impl RequestError {
    /// The verdict for each entry of the request; for a content or size error it must be the only one. `bucket`:
    /// whether there is a payload bucket.
    pub(super) fn verdict(&self, entry: &Entry, bucket: bool) -> Verdict {
        let Self { kind, cause } = self.clone();
        match kind {
            RequestErrorKind::Transient => Verdict::Retry { cause, answered: Some(false) },
            RequestErrorKind::Content => Verdict::Poison(PoisonReason::Rejected(cause.text)),
            RequestErrorKind::TooLarge if may_be_too_large(entry, bucket) => {
                Verdict::Poison(PoisonReason::TooLargeForProxy(entry.size()))
            }
            RequestErrorKind::TooLarge => {
                let text = format!("{}; something between the relay and SQS takes no such request", cause.text);
                Verdict::Retry { cause: RetryCause::new(REQUEST_TOO_LARGE, text), answered: Some(false) }
            }
            RequestErrorKind::Stop => Verdict::Stop(Stop::of_sqs(cause.text)),
        }
    }
}

/// Whether its size can be the reason. A proxy that refuses small requests too is misconfigured, and that is no
/// message's fault.
fn may_be_too_large(entry: &Entry, bucket: bool) -> bool {
    let least = if bucket { WORTH_AN_OBJECT } else { MAX_BYTES / 2 };
    entry.payload().is_none() && entry.size() > least
}

/// One verdict per entry of a request that SQS answered. The ids are the positions of the entries.
pub(super) fn verdicts(entries: usize, output: &SendMessageBatchOutput) -> Vec<Verdict> {
    // An entry that the answer does not mention may not have been accepted.
    let unmentioned = Verdict::Retry { cause: RetryCause::new(UNMENTIONED, "not in the answer"), answered: Some(true) };
    let mut all = vec![unmentioned; entries];
    for failed in output.failed() {
        if let Some(slot) = failed.id().parse().ok().and_then(|id: usize| all.get_mut(id)) {
            *slot = judge(failed);
        }
    }
    for accepted in output.successful() {
        if let Some(slot) = accepted.id().parse().ok().and_then(|id: usize| all.get_mut(id)) {
            *slot = Verdict::Accepted;
        }
    }
    all
}

fn judge(failed: &BatchResultErrorEntry) -> Verdict {
    let (code, message, sender_fault) = (failed.code(), failed.message(), failed.sender_fault());
    let text = describe_entry(code, message, sender_fault);
    match error_kind(classify_entry(code, message, sender_fault), None) {
        RequestErrorKind::Stop => Verdict::Stop(Stop::of_sqs(text)),
        RequestErrorKind::Content => Verdict::Poison(PoisonReason::Rejected(text)),
        RequestErrorKind::Transient | RequestErrorKind::TooLarge => {
            Verdict::Retry { cause: RetryCause::new(cause::label(None, code), text), answered: Some(true) }
        }
    }
}

/// What the relay does about an error of this class.
pub(super) fn error_kind(class: Class, status: Option<u16>) -> RequestErrorKind {
    match class {
        Class::Setup | Class::Denied | Class::NoContainer => RequestErrorKind::Stop,
        Class::Content => RequestErrorKind::Content,
        Class::Transient if status == Some(CONTENT_TOO_LARGE) => RequestErrorKind::TooLarge,
        Class::Transient
        | Class::OtherRegion
        | Class::NoObject
        | Class::Condition
        | Class::Conflict
        | Class::Unsupported
        | Class::Unclear => RequestErrorKind::Transient,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_errors::classify;
    use aws_sdk_sqs::types::SendMessageBatchResultEntry;

    const SECRET: &str = "zebrafinch";

    #[test]
    fn refused_requests() {
        use RequestErrorKind::{Content, Stop, TooLarge, Transient};
        let expired = "Signature expired: 20260101T000000Z is now earlier than 20260101T000500Z";
        for (status, code, message, want) in [
            (None, None, "", Transient),
            (Some(503), Some("AccessDenied"), "", Transient),
            (Some(400), Some("RequestThrottled"), "", Transient),
            (Some(403), Some("ExpiredToken"), "", Transient),
            (Some(403), Some("InvalidSignatureException"), expired, Transient),
            (Some(403), Some("InvalidSignatureException"), "The request signature we calculated", Stop),
            (Some(400), Some("KMS.DependencyTimeoutException"), "", Transient),
            (Some(400), Some("KMSInternalException"), "", Transient),
            (Some(400), Some("KeyUnavailableException"), "", Transient),
            (Some(400), Some("KmsThrottled"), "", Transient),
            (Some(400), Some("KmsSomethingNew"), "", Transient),
            (Some(400), Some("SomethingNew"), "", Transient),
            (Some(403), None, "", Transient),
            (Some(404), None, "", Transient),
            (Some(400), Some("AWS.SimpleQueueService.NonExistentQueue"), "", Stop),
            (Some(403), Some("AccessDenied"), "", Stop),
            (Some(403), Some("InvalidClientTokenId"), "", Stop),
            (Some(400), Some("KMS.DisabledException"), "", Stop),
            (Some(400), Some("KmsAccessDenied"), "", Stop),
            (Some(400), Some("MissingParameter"), "", Stop),
            (Some(400), Some("InvalidMessageContents"), "", Content),
            (Some(400), Some("AWS.SimpleQueueService.BatchRequestTooLong"), "", Content),
            (Some(413), None, "", TooLarge),
        ] {
            assert_eq!(
                error_kind(classify(status, code, Some(message)), status),
                want,
                "{status:?} {code:?} {message}"
            );
        }
    }

    #[test]
    fn a_413_of_a_proxy_makes_only_a_large_message_poison() {
        let error = RequestError { kind: RequestErrorKind::TooLarge, cause: RetryCause::new("other", "status 413") };
        for (bytes, bucket, at_fault) in [
            (100, false, false),
            (MAX_BYTES / 2, false, false),
            (MAX_BYTES / 2 + 1, false, true),
            (WORTH_AN_OBJECT, true, false),
            (WORTH_AN_OBJECT + 1, true, true),
        ] {
            let entry = Entry::new(vec![b'x'; bytes], MAX_BYTES).unwrap();
            let verdict = error.verdict(&entry, bucket);
            assert_eq!(verdict == Verdict::Poison(PoisonReason::TooLargeForProxy(bytes)), at_fault, "{bytes} {bucket}");
            let retried = matches!(&verdict, Verdict::Retry { cause, .. } if cause.label == REQUEST_TOO_LARGE);
            assert_eq!(retried, !at_fault, "{verdict:?}");
        }
    }

    fn accepted(id: &str) -> SendMessageBatchResultEntry {
        let entry = SendMessageBatchResultEntry::builder().id(id).message_id("m").md5_of_message_body("d");
        entry.build().unwrap()
    }

    fn failed(id: &str, sender_fault: bool, code: &str) -> BatchResultErrorEntry {
        let entry = BatchResultErrorEntry::builder().id(id).sender_fault(sender_fault).code(code).message(SECRET);
        entry.build().unwrap()
    }

    fn answer(good: Vec<SendMessageBatchResultEntry>, bad: Vec<BatchResultErrorEntry>) -> SendMessageBatchOutput {
        let output = SendMessageBatchOutput::builder().set_successful(Some(good)).set_failed(Some(bad));
        output.build().unwrap()
    }

    #[test]
    fn one_verdict_per_entry() {
        let retry = |word: &'static str, text: &str| Verdict::Retry {
            cause: RetryCause::new(word, text),
            answered: Some(true),
        };
        let output = answer(
            vec![accepted("0"), accepted("3")],
            vec![
                failed("1", true, "InvalidMessageContents"),
                failed("2", false, "InternalError"),
                failed("4", true, "RequestThrottled"),
                failed("5", true, "AccessDenied"),
                failed("7", true, "KMS.DependencyTimeoutException"),
            ],
        );
        let content = "InvalidMessageContents: the request's content is not accepted";
        let verdicts = verdicts(8, &output);
        assert_eq!(
            verdicts,
            vec![
                Verdict::Accepted,
                Verdict::Poison(PoisonReason::Rejected(content.to_owned())),
                retry("server-error", "InternalError: the service failed for the moment"),
                Verdict::Accepted,
                retry("throttled", "RequestThrottled: asked too often; it passes"),
                Verdict::Stop(Stop::of_sqs("AccessDenied: no permission")),
                retry("not-in-answer", "not in the answer"),
                retry("timeout", "KMS.DependencyTimeoutException: the service failed for the moment"),
            ]
        );
        assert!(!format!("{verdicts:?}").contains(SECRET));
    }

    #[test]
    fn strange_answers_lose_nothing() {
        // Unknown ids count for no entry.
        let strange = answer(vec![accepted("9"), accepted("x")], vec![failed("-1", true, "c")]);
        assert!(matches!(&verdicts(1, &strange)[..], [Verdict::Retry { .. }]));
        assert_eq!(verdicts(0, &strange), vec![]);
        // Accepted and failed at once counts as accepted: a second copy helps nobody.
        let both = answer(vec![accepted("0")], vec![failed("0", false, "c")]);
        assert_eq!(verdicts(1, &both), vec![Verdict::Accepted]);
    }
}
