//! Why an entry is retried: one of a few labels for metrics, and a line in our own words for the log. Neither repeats
//! what a service said: the label would have unlimited values.

use aws_errors::is_throttle;

pub(crate) const THROTTLED: &str = "throttled";
pub(crate) const SERVER_ERROR: &str = "server-error";
pub(crate) const TIMEOUT: &str = "timeout";
pub(crate) const UNREACHABLE: &str = "unreachable";
pub(crate) const UNREADABLE: &str = "unreadable-answer";
pub(crate) const UNMENTIONED: &str = "not-in-answer";
pub(crate) const CREDENTIALS: &str = "credentials";
pub(crate) const KMS: &str = "kms";
pub(crate) const PAYLOAD_BUCKET: &str = "payload-bucket";
pub(crate) const REQUEST_TOO_LARGE: &str = "request-too-large";
pub(crate) const OTHER: &str = "other";

/// All of them.
pub(super) const CAUSES: [&str; 11] = [
    THROTTLED,
    SERVER_ERROR,
    TIMEOUT,
    UNREACHABLE,
    UNREADABLE,
    UNMENTIONED,
    CREDENTIALS,
    KMS,
    PAYLOAD_BUCKET,
    REQUEST_TOO_LARGE,
    OTHER,
];

/// Why an entry was not accepted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RetryCause {
    /// For metrics.
    pub(crate) label: &'static str,
    /// For the log.
    pub(crate) text: String,
}

impl RetryCause {
    pub(crate) fn new(label: &'static str, text: impl Into<String>) -> Self {
        Self { label, text: text.into() }
    }
}

/// The label for an answer's status and error code.
pub(crate) fn label(status: Option<u16>, code: &str) -> &'static str {
    let code = code.rsplit('.').next().unwrap_or_default();
    let is_kms = code.to_ascii_lowercase().starts_with("kms") || code == "KeyUnavailableException";
    match code {
        code if is_throttle(code) => THROTTLED,
        _ if is_kms => KMS,
        code if code.contains("Timeout") || code.contains("TimedOut") => TIMEOUT,
        code if code.starts_with("Internal") || code.starts_with("Service") => SERVER_ERROR,
        code if ["Token", "Credential", "Signature", "Skewed"].iter().any(|part| code.contains(part)) => CREDENTIALS,
        _ if status.is_some_and(|status| status >= 500) => SERVER_ERROR,
        _ => OTHER,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_code_has_one_of_the_labels() {
        for (status, code, want) in [
            (400, "RequestThrottled", THROTTLED),
            (400, "ThrottlingException", THROTTLED),
            (400, "KMS.ThrottlingException", THROTTLED),
            (400, "AWS.SimpleQueueService.OverLimit", THROTTLED),
            (200, "InternalError", SERVER_ERROR),
            (500, "InternalFailure", SERVER_ERROR),
            (503, "ServiceUnavailable", SERVER_ERROR),
            (502, "", SERVER_ERROR),
            (400, "RequestTimeout", TIMEOUT),
            (400, "KMS.DependencyTimeoutException", TIMEOUT),
            (400, "KMSInternalException", KMS),
            (400, "KMS.KeyUnavailableException", KMS),
            (403, "ExpiredToken", CREDENTIALS),
            (403, "InvalidSignatureException", CREDENTIALS),
            (400, "SomethingNew", OTHER),
            (400, "", OTHER),
            (400, "\0\u{fffd}{}\"\n", OTHER),
        ] {
            assert_eq!(label(Some(status), code), want, "{status} {code:?}");
            assert!(CAUSES.contains(&want));
        }
    }
}
