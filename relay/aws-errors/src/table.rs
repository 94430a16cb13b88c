//! The table from status, code and message to class. Pure.
//!
//! Codes are those of the documents "Error responses" of Amazon S3, "Common errors" and `SendMessageBatch` of Amazon SQS, and the
//! exceptions of AWS KMS as both repeat them.

/// What an error means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// Temporary: an outage, throttling, a wrong clock, credentials that are being renewed, a lost connection. Also
    /// every unknown code: a retry does no harm, and what is dropped is lost.
    Transient,
    /// A person must correct something: a disabled KMS key, wrong credentials.
    Setup,
    /// The caller has no permission. S3 also says so about a missing object if the caller may not list the bucket.
    Denied,
    /// There is no such bucket or queue.
    NoContainer,
    /// The bucket is in another region than the one that was asked.
    OtherRegion,
    /// The object or this version of it does not exist, or is archived and cannot be read.
    NoObject,
    /// The condition of the request does not hold.
    Condition,
    /// Two requests collided: retry at once.
    Conflict,
    /// The content of the request will never be accepted.
    Content,
    /// The service does not support such requests.
    Unsupported,
    /// An answer without a code, as to every `HEAD`, with a status that can be about the object or the caller. A
    /// request whose answer has a body says more.
    Unclear,
}

/// The class for a status, an error code and a message. The message is only searched for AWS' text about a wrong clock.
pub fn classify(status: Option<u16>, code: Option<&str>, message: Option<&str>) -> Class {
    let code = short(code.unwrap_or_default());
    if is_throttle(code) || status.is_some_and(|status| status >= 500 && status != 501) {
        return Class::Transient;
    }
    by_code(code, message.unwrap_or_default()).unwrap_or_else(|| by_status(status, code))
}

/// The class for one entry of a batch. A known code wins over the flag, which SQS also sets for throttling and KMS
/// errors. For an unknown code the flag says whether the entry is at fault.
pub fn classify_entry(code: &str, message: Option<&str>, sender_fault: bool) -> Class {
    let (code, message) = (short(code), message.unwrap_or_default());
    match by_code(code, message) {
        _ if is_throttle(code) => Class::Transient,
        Some(class) => class,
        None if sender_fault => Class::Content,
        None => Class::Transient,
    }
}

fn by_code(code: &str, message: &str) -> Option<Class> {
    Some(match code {
        "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired" | "RequestExpired" | "RequestTimeout"
        | "RequestTimeTooSkewed" | "RequestTimeoutException" | "InternalError" | "InternalFailure" | "ServiceUnavailable"
        | "SlowDown" | "Busy"
        // The connection broke while the body was on its way.
        | "IncompleteBody" | "BadDigest" | "XAmzContentSHA256Mismatch" | "XAmzContentChecksumMismatch"
        // KMS errors that S3 and SQS pass on.
        | "KMS.DependencyTimeoutException" | "KMS.KMSInternalException" | "KMS.KeyUnavailableException"
        | "DependencyTimeoutException" | "KMSInternalException" | "KeyUnavailableException" => Class::Transient,
        // The same code stands for a wrong secret and a wrong clock.
        "SignatureDoesNotMatch" | "InvalidSignatureException" => {
            if is_about_time(message) { Class::Transient } else { Class::Setup }
        }
        "AccessDenied" | "AccessDeniedException" | "AllAccessDisabled" | "AccountProblem" | "NotAuthorized"
        | "AuthorizationError" | "UnauthorizedAccess" | "KMS.AccessDeniedException" | "KmsAccessDenied" => Class::Denied,
        "InvalidAccessKeyId" | "InvalidClientTokenId" | "UnrecognizedClientException" | "InvalidToken" | "InvalidSecurity"
        | "OptInRequired" | "NotSignedUp" | "MissingAuthenticationToken" | "MissingAuthenticationTokenException"
        | "InvalidAddress" | "UnsupportedOperation"
        // Requests are complete except for a group, which a FIFO queue needs: queue and configuration do not match.
        | "MissingParameter" | "MissingRequiredParameterException" | "EmptyBatchRequest" | "BatchEntryIdsNotDistinct"
        | "TooManyEntriesInBatchRequest" | "InvalidBatchEntryId"
        | "KMS.DisabledException" | "KMS.InvalidStateException" | "KMS.KMSInvalidStateException" | "KMS.NotFoundException"
        | "KMS.OptInRequired" | "KMS.InvalidKeyUsageException" | "KMS.IncorrectKeyException" | "KMSInvalidStateException"
        | "InvalidKeyUsageException" | "DisabledException" | "KmsDisabled" | "KmsInvalidKeyUsage" | "KmsInvalidState"
        | "KmsNotFound" | "KmsOptInRequired" => Class::Setup,
        "NoSuchBucket" | "QueueDoesNotExist" | "NonExistentQueue" => Class::NoContainer,
        "PermanentRedirect" | "TemporaryRedirect" | "Redirect" | "AuthorizationHeaderMalformed"
        | "IllegalLocationConstraintException" => Class::OtherRegion,
        "NoSuchKey" | "NoSuchVersion" | "InvalidObjectState" | "NotFound" => Class::NoObject,
        "PreconditionFailed" => Class::Condition,
        "ConditionalRequestConflict" | "OperationAborted" => Class::Conflict,
        "EntityTooLarge" | "InvalidMessageContents" | "BatchRequestTooLong" | "InvalidParameterValue"
        | "InvalidParameterValueException" | "InvalidAttributeValue" | "SerializationException" | "MessageTooLong"
        | "ReceiptHandleIsInvalid" | "InvalidIdFormat" => Class::Content,
        "NotImplemented" | "MethodNotAllowed" => Class::Unsupported,
        _ => return None,
    })
}

/// For answers without a known code.
fn by_status(status: Option<u16>, code: &str) -> Class {
    match status {
        Some(301 | 307) => Class::OtherRegion,
        Some(404) => Class::NoObject,
        Some(409) => Class::Conflict,
        Some(412) => Class::Condition,
        Some(405 | 501) => Class::Unsupported,
        Some(400 | 401 | 403) if matches!(code, "" | "Forbidden" | "BadRequest" | "Bad Request") => Class::Unclear,
        _ => Class::Transient,
    }
}

/// Whether a code means throttling. SQS marks such entries as the sender's fault.
pub fn is_throttle(code: &str) -> bool {
    let code = short(code);
    let known = ["OverLimit", "RequestLimitExceeded", "TooManyRequestsException", "SlowDown", "LimitExceededException"];
    code.contains("Throttl") || known.contains(&code)
}

/// "Signature expired: …", "Signature not yet current: …", in Signature Version 4 of all services.
fn is_about_time(message: &str) -> bool {
    ["Signature expired", "Signature not yet current"].iter().any(|start| message.starts_with(start))
}

/// SQS spells many codes in two ways, depending on the protocol.
fn short(code: &str) -> &str {
    code.strip_prefix("AWS.SimpleQueueService.").unwrap_or(code)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Class::{
        Condition, Conflict, Content, Denied, NoContainer, NoObject, OtherRegion, Setup, Transient, Unclear,
        Unsupported,
    };

    #[test]
    fn what_a_code_means() {
        for (status, code, class) in [
            // Not the task's fault, whatever the status.
            (400, "ExpiredToken", Transient),
            (400, "RequestTimeout", Transient),
            (403, "RequestTimeTooSkewed", Transient),
            (503, "SlowDown", Transient),
            (503, "AccessDenied", Transient),
            (400, "RequestThrottled", Transient),
            (403, "RequestThrottled", Transient),
            (400, "KMS.ThrottlingException", Transient),
            (400, "KmsThrottled", Transient),
            (400, "KMS.DependencyTimeoutException", Transient),
            (400, "KMS.KMSInternalException", Transient),
            (400, "KMS.KeyUnavailableException", Transient),
            (400, "KMS.SomethingNew", Transient),
            (400, "SomethingNew", Transient),
            (403, "InvalidAccessKeyId", Setup),
            (403, "SignatureDoesNotMatch", Setup),
            (400, "KMS.DisabledException", Setup),
            (400, "KmsDisabled", Setup),
            (400, "KMSInvalidStateException", Setup),
            (400, "DependencyTimeoutException", Transient),
            (400, "KMSInternalException", Transient),
            (400, "KeyUnavailableException", Transient),
            (400, "MissingParameter", Setup),
            (400, "AWS.SimpleQueueService.EmptyBatchRequest", Setup),
            (403, "AccessDenied", Denied),
            (400, "KmsAccessDenied", Denied),
            (404, "NoSuchBucket", NoContainer),
            (400, "AWS.SimpleQueueService.NonExistentQueue", NoContainer),
            (301, "PermanentRedirect", OtherRegion),
            (400, "AuthorizationHeaderMalformed", OtherRegion),
            (404, "NoSuchKey", NoObject),
            (404, "NoSuchVersion", NoObject),
            (403, "InvalidObjectState", NoObject),
            (412, "PreconditionFailed", Condition),
            (409, "ConditionalRequestConflict", Conflict),
            (400, "AWS.SimpleQueueService.BatchRequestTooLong", Content),
            (501, "NotImplemented", Unsupported),
            (405, "MethodNotAllowed", Unsupported),
        ] {
            assert_eq!(classify(Some(status), Some(code), None), class, "{status} {code}");
        }
    }

    #[test]
    fn what_an_entry_of_a_batch_means() {
        for (code, sender_fault, class) in [
            ("RequestThrottled", true, Transient),
            ("AWS.SimpleQueueService.RequestThrottled", true, Transient),
            ("KMS.ThrottlingException", true, Transient),
            ("KMS.DependencyTimeoutException", true, Transient),
            ("InternalError", true, Transient),
            ("InternalError", false, Transient),
            ("SomethingNew", false, Transient),
            ("SomethingNew", true, Content),
            ("ReceiptHandleIsInvalid", true, Content),
            ("AWS.SimpleQueueService.ReceiptHandleIsInvalid", false, Content),
            ("InvalidMessageContents", true, Content),
            ("AccessDenied", true, Denied),
            ("KMS.DisabledException", false, Setup),
        ] {
            assert_eq!(classify_entry(code, None, sender_fault), class, "{code} {sender_fault}");
        }
    }

    #[test]
    fn what_an_answer_without_a_code_means() {
        for (status, class) in [
            (None, Transient),
            (Some(200), Transient),
            (Some(301), OtherRegion),
            (Some(400), Unclear),
            (Some(403), Unclear),
            (Some(404), NoObject),
            (Some(409), Conflict),
            (Some(412), Condition),
            (Some(413), Transient),
            (Some(500), Transient),
            (Some(501), Unsupported),
            (Some(503), Transient),
        ] {
            assert_eq!(classify(status, None, None), class, "{status:?}");
            assert_eq!(classify(status, Some(""), Some("AccessDenied")), class, "{status:?}: a message is no code");
        }
    }

    #[test]
    fn a_wrong_clock_is_temporary_and_a_wrong_secret_is_not() {
        for code in ["InvalidSignatureException", "SignatureDoesNotMatch"] {
            let class = |message| classify(Some(403), Some(code), Some(message));
            assert_eq!(class("Signature expired: 20260101T000000Z is now earlier than 20260101T000500Z"), Transient);
            assert_eq!(class("Signature not yet current: 20260101T001000Z is still later than"), Transient);
            assert_eq!(class("The request signature we calculated does not match"), Setup);
        }
    }
}
