//! Turns what SQS says into one verdict per entry. Pure.
//!
//! Refuses to guess: a code it does not know is retried, because a message that is sent twice is found again and a
//! message that is dropped is not.

use aws_sdk_sqs::{operation::send_message_batch::SendMessageBatchOutput, types::BatchResultErrorEntry};

use crate::{entry::Reason, error::Stop};

/// What became of one entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// SQS has it: acknowledge.
    Accepted,
    /// It may be accepted later; the text says why not now. The flag tells whether SQS answered at all.
    Retry {
        /// Why not now.
        cause: String,
        /// Whether SQS took the request and judged its entries.
        answered: bool,
    },
    /// SQS will never accept this entry.
    Poison(Reason),
    /// SQS will never accept any entry.
    Stop(Stop),
}

/// What a refused request says about its entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// Nothing: try again later.
    Transient,
    /// One of them, nobody knows which, can never be accepted.
    Content,
    /// None of them, nor any other, will be accepted.
    Stop,
}

impl Fault {
    /// The verdict for the only entry of a request, or for all when the fault is not one of content.
    pub(super) fn verdict(self, refusal: Stop) -> Verdict {
        match self {
            Self::Transient => {
                Verdict::Retry { cause: format!("{}: {}", refusal.code, refusal.message), answered: false }
            }
            Self::Content => Verdict::Poison(Reason::Rejected(refusal.code)),
            Self::Stop => Verdict::Stop(refusal),
        }
    }
}

/// One verdict per entry of a request that SQS took. Ids are the positions of the entries.
pub(super) fn verdicts(entries: usize, output: &SendMessageBatchOutput) -> Vec<Verdict> {
    // An entry that the answer does not mention was not accepted as far as anybody knows.
    let unmentioned = Verdict::Retry { cause: "not in the answer".to_owned(), answered: true };
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
    let code = failed.code();
    match classify(None, Some(code)) {
        Fault::Stop => {
            Verdict::Stop(Stop { code: code.to_owned(), message: failed.message().unwrap_or_default().to_owned() })
        }
        // Being throttled is never the message's fault, whatever the flag says.
        _ if failed.sender_fault() && !is_throttle(code) => Verdict::Poison(Reason::Rejected(code.to_owned())),
        _ => Verdict::Retry { cause: code.to_owned(), answered: true },
    }
}

/// What a status and an error code mean. SQS has two spellings for many codes, by protocol.
pub(super) fn classify(status: Option<u16>, code: Option<&str>) -> Fault {
    let code = short(code.unwrap_or_default());
    if is_throttle(code) || status.is_some_and(|status| status >= 500) {
        return Fault::Transient;
    }
    if is_denied(code) || code.to_ascii_lowercase().starts_with("kms") {
        return Fault::Stop;
    }
    match code {
        "QueueDoesNotExist" | "NonExistentQueue" | "InvalidAddress" | "InvalidSecurity"
        | "UnsupportedOperation" | "OptInRequired" | "InvalidClientTokenId"
        | "UnrecognizedClientException" | "SignatureDoesNotMatch" | "InvalidSignatureException"
        | "MissingAuthenticationToken" | "MissingAuthenticationTokenException"
        // A FIFO queue asks for a group, and our own requests are complete: both are set up wrongly.
        | "MissingParameter" | "MissingRequiredParameterException" | "EmptyBatchRequest"
        | "BatchEntryIdsNotDistinct" | "TooManyEntriesInBatchRequest" | "InvalidBatchEntryId" => Fault::Stop,
        "InvalidMessageContents" | "BatchRequestTooLong" | "InvalidParameterValue"
        | "InvalidParameterValueException" | "InvalidAttributeValue" | "SerializationException"
        | "MessageTooLong" => Fault::Content,
        _ if status == Some(413) => Fault::Content,
        _ => Fault::Transient,
    }
}

/// Whether a code says that the caller has no right to do this.
pub(super) fn is_denied(code: &str) -> bool {
    matches!(short(code), "AccessDenied" | "AccessDeniedException" | "NotAuthorized" | "AuthorizationError")
}

fn is_throttle(code: &str) -> bool {
    let code = short(code);
    code.contains("Throttl") || matches!(code, "OverLimit" | "RequestLimitExceeded" | "TooManyRequestsException")
}

fn short(code: &str) -> &str {
    code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_sdk_sqs::types::SendMessageBatchResultEntry;

    #[test]
    fn refused_requests() {
        use Fault::{Content, Stop, Transient};
        for (status, code, want) in [
            (None, None, Transient),
            (Some(500), Some("InternalFailure"), Transient),
            (Some(503), Some("ServiceUnavailable"), Transient),
            (Some(503), Some("AccessDenied"), Transient),
            (Some(400), Some("RequestThrottled"), Transient),
            (Some(400), Some("ThrottlingException"), Transient),
            (Some(403), Some("RequestThrottled"), Transient),
            (Some(403), Some("ExpiredToken"), Transient),
            (Some(400), Some("KMS.ThrottlingException"), Transient),
            (Some(400), Some("SomethingNew"), Transient),
            (Some(400), None, Transient),
            (Some(200), None, Transient),
            (Some(400), Some("QueueDoesNotExist"), Stop),
            (Some(400), Some("AWS.SimpleQueueService.NonExistentQueue"), Stop),
            (Some(403), Some("AccessDenied"), Stop),
            (Some(400), Some("AccessDeniedException"), Stop),
            (Some(403), Some("InvalidClientTokenId"), Stop),
            (Some(400), Some("KMS.DisabledException"), Stop),
            (Some(400), Some("KmsAccessDenied"), Stop),
            (Some(400), Some("MissingParameter"), Stop),
            (Some(400), Some("InvalidMessageContents"), Content),
            (Some(400), Some("AWS.SimpleQueueService.BatchRequestTooLong"), Content),
            (Some(413), None, Content),
        ] {
            assert_eq!(classify(status, code), want, "{status:?} {code:?}");
        }
    }

    fn accepted(id: &str) -> SendMessageBatchResultEntry {
        let entry = SendMessageBatchResultEntry::builder().id(id).message_id("m").md5_of_message_body("d");
        entry.build().unwrap()
    }

    fn failed(id: &str, sender_fault: bool, code: &str) -> BatchResultErrorEntry {
        let entry = BatchResultErrorEntry::builder().id(id).sender_fault(sender_fault).code(code);
        entry.build().unwrap()
    }

    fn answer(good: Vec<SendMessageBatchResultEntry>, bad: Vec<BatchResultErrorEntry>) -> SendMessageBatchOutput {
        let output = SendMessageBatchOutput::builder().set_successful(Some(good)).set_failed(Some(bad));
        output.build().unwrap()
    }

    #[test]
    fn one_verdict_per_entry() {
        let retry = |cause: &str| Verdict::Retry { cause: cause.to_owned(), answered: true };
        let output = answer(
            vec![accepted("0"), accepted("3")],
            vec![
                failed("1", true, "InvalidMessageContents"),
                failed("2", false, "InternalError"),
                failed("4", true, "RequestThrottled"),
                failed("5", true, "AccessDenied"),
            ],
        );
        assert_eq!(
            verdicts(7, &output),
            vec![
                Verdict::Accepted,
                Verdict::Poison(Reason::Rejected("InvalidMessageContents".to_owned())),
                retry("InternalError"),
                Verdict::Accepted,
                retry("RequestThrottled"),
                Verdict::Stop(Stop { code: "AccessDenied".to_owned(), message: String::new() }),
                retry("not in the answer"),
            ]
        );
    }

    #[test]
    fn strange_answers_lose_nothing() {
        // Ids that nobody sent are no verdict on anything.
        let strange = answer(vec![accepted("9"), accepted("x")], vec![failed("-1", true, "c")]);
        assert!(matches!(&verdicts(1, &strange)[..], [Verdict::Retry { .. }]));
        assert_eq!(verdicts(0, &strange), vec![]);
        // Accepted and failed at once: it was accepted, and a second copy helps nobody.
        let both = answer(vec![accepted("0")], vec![failed("0", false, "c")]);
        assert_eq!(verdicts(1, &both), vec![Verdict::Accepted]);
    }
}
