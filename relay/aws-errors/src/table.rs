//! The table itself: status, code and message to class. Pure.
//!
//! Codes are those of the documents "Error responses" of Amazon S3, "Common errors" and `SendMessageBatch` of Amazon SQS, and the
//! exceptions of AWS KMS as both repeat them.

/// What an error means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Class {
    /// It passes by itself: an outage, a throttle, a clock that is off, credentials that are being renewed, a connection that was lost.
    /// Also every code that is not known here: what is tried again can be found again, what is dropped cannot.
    Transient,
    /// A person must set something right: a key of KMS that is disabled, credentials that are wrong.
    Setup,
    /// The caller has no right. S3 says so of an object that is not there, too, to those who may not list.
    Denied,
    /// There is no such bucket or queue.
    NoContainer,
    /// The bucket lies in another region than the one that was asked.
    OtherRegion,
    /// The object, or this version of it, is not there or cannot be read where it lies (an archive).
    NoObject,
    /// The condition of the request does not hold.
    Condition,
    /// Two requests were in each other's way: ask again at once.
    Conflict,
    /// What the request holds will never be accepted.
    Content,
    /// The service does not know such requests.
    Unsupported,
    /// An answer without a code, as every one to `HEAD` is, with a status that can mean either the object or the caller. A request
    /// whose answer has a body tells more.
    Unclear,
}

/// What a status, an error code and a message mean. Of the message only AWS' own wording of a clock that is off is looked for.
pub fn classify(status: Option<u16>, code: Option<&str>, message: Option<&str>) -> Class {
    let code = short(code.unwrap_or_default());
    if is_throttle(code) || status.is_some_and(|status| status >= 500 && status != 501) {
        return Class::Transient;
    }
    by_code(code, message.unwrap_or_default()).unwrap_or_else(|| by_status(status, code))
}

/// What SQS says of one entry of a batch. Where the code is not known, its flag decides: the sender is at fault, and so the entry. A code
/// that is known wins over the flag, which stands on throttles and faults of KMS as well.
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
        // KMS behind S3 and SQS.
        | "KMS.DependencyTimeoutException" | "KMS.KMSInternalException" | "KMS.KeyUnavailableException"
        | "DependencyTimeoutException" | "KMSInternalException" | "KeyUnavailableException" => Class::Transient,
        // One code for a secret that is wrong and for a clock that is off.
        "SignatureDoesNotMatch" | "InvalidSignatureException" => {
            if is_about_time(message) { Class::Transient } else { Class::Setup }
        }
        "AccessDenied" | "AccessDeniedException" | "AllAccessDisabled" | "AccountProblem" | "NotAuthorized"
        | "AuthorizationError" | "UnauthorizedAccess" | "KMS.AccessDeniedException" | "KmsAccessDenied" => Class::Denied,
        "InvalidAccessKeyId" | "InvalidClientTokenId" | "UnrecognizedClientException" | "InvalidToken" | "InvalidSecurity"
        | "OptInRequired" | "NotSignedUp" | "MissingAuthenticationToken" | "MissingAuthenticationTokenException"
        | "InvalidAddress" | "UnsupportedOperation"
        // A FIFO queue asks for a group, and requests are complete otherwise: queue and caller do not fit.
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

/// For answers whose code says nothing.
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

/// Whether a code says that the caller asks too often. SQS marks such entries as the sender's fault.
pub fn is_throttle(code: &str) -> bool {
    let code = short(code);
    let known = ["OverLimit", "RequestLimitExceeded", "TooManyRequestsException", "SlowDown", "LimitExceededException"];
    code.contains("Throttl") || known.contains(&code)
}

/// "Signature expired: …", "Signature not yet current: …", in Signature Version 4 of all services.
fn is_about_time(message: &str) -> bool {
    ["Signature expired", "Signature not yet current"].iter().any(|start| message.starts_with(start))
}

/// SQS has two spellings for many codes, by protocol.
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
    fn a_clock_that_is_off_passes_and_a_wrong_secret_does_not() {
        for code in ["InvalidSignatureException", "SignatureDoesNotMatch"] {
            let class = |message| classify(Some(403), Some(code), Some(message));
            assert_eq!(class("Signature expired: 20260101T000000Z is now earlier than 20260101T000500Z"), Transient);
            assert_eq!(class("Signature not yet current: 20260101T001000Z is still later than"), Transient);
            assert_eq!(class("The request signature we calculated does not match"), Setup);
        }
    }
}
