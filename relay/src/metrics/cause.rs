//! Why an entry is sent again, as one of a few words.
//!
//! Refuses to pass on what SQS said: a label with that in it would have values without end.

pub(super) const THROTTLED: &str = "throttled";
pub(super) const SERVER_ERROR: &str = "server-error";
pub(super) const TIMEOUT: &str = "timeout";
pub(super) const UNREACHABLE: &str = "unreachable";
pub(super) const UNREADABLE: &str = "unreadable-answer";
pub(super) const UNMENTIONED: &str = "not-in-answer";
pub(super) const CREDENTIALS: &str = "credentials";
pub(super) const OTHER: &str = "other";

/// All of them.
pub(super) const CAUSES: [&str; 8] =
    [THROTTLED, SERVER_ERROR, TIMEOUT, UNREACHABLE, UNREADABLE, UNMENTIONED, CREDENTIALS, OTHER];

/// The word for the text of a verdict, which is an error code, mostly with a colon and a message behind it.
pub(super) fn of(text: &str) -> &'static str {
    let code = text.split(':').next().unwrap_or_default();
    let code = code.rsplit('.').next().unwrap_or_default();
    match code {
        "not in the answer" => UNMENTIONED,
        "Unreachable" => UNREACHABLE,
        "UnreadableAnswer" => UNREADABLE,
        "OverLimit" | "RequestLimitExceeded" | "TooManyRequestsException" => THROTTLED,
        "ServiceUnavailable" | "ServiceFailure" | "ServiceUnavailableException" => SERVER_ERROR,
        code if code.contains("Throttl") => THROTTLED,
        code if code.contains("Timeout") || code.contains("TimedOut") => TIMEOUT,
        code if code.starts_with("Internal") => SERVER_ERROR,
        code if code.contains("Token") || code.contains("Credential") => CREDENTIALS,
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_text_has_one_of_a_few_words() {
        for (text, want) in [
            ("RequestThrottled", THROTTLED),
            ("ThrottlingException: Rate exceeded", THROTTLED),
            ("KMS.ThrottlingException: slow down", THROTTLED),
            ("AWS.SimpleQueueService.OverLimit", THROTTLED),
            ("InternalError", SERVER_ERROR),
            ("InternalFailure: oops: again", SERVER_ERROR),
            ("ServiceUnavailable: later", SERVER_ERROR),
            ("Timeout: operation timeout", TIMEOUT),
            ("RequestTimeout", TIMEOUT),
            ("Unreachable: dispatch failure: Throttled", UNREACHABLE),
            ("UnreadableAnswer: service error", UNREADABLE),
            ("not in the answer", UNMENTIONED),
            ("ExpiredToken: The security token is expired", CREDENTIALS),
            ("SomethingNew: Timeout", OTHER),
            ("", OTHER),
            ("\0\u{fffd}{}\"\n", OTHER),
        ] {
            assert_eq!(of(text), want, "{text:?}");
            assert!(CAUSES.contains(&of(text)));
        }
    }
}
