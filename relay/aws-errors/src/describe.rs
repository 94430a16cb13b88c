//! An error in a code and a sentence of ours. Nothing that a service said is repeated but its code.

use crate::{Class, bucket_region, classify, classify_entry, is_throttle, status};
use aws_credential_types::provider::error::CredentialsError;
use aws_smithy_runtime_api::client::{orchestrator::HttpResponse, result::SdkError};
use aws_smithy_types::error::metadata::ProvideErrorMetadata;
use service::{causes, chain};
use std::error::Error;

/// Longest code that is repeated.
const MAX_CODE: usize = 64;

/// What went wrong, in one line for a log, a webhook or a person.
pub fn describe<E>(error: &SdkError<E, HttpResponse>) -> String
where
    E: ProvideErrorMetadata + Error + 'static,
{
    match error {
        SdkError::ServiceError(_) => answered(error),
        SdkError::ResponseError(_) => match status(error) {
            Some(status) => format!("an answer with status {status} that could not be read"),
            None => "an answer that could not be read".into(),
        },
        SdkError::TimeoutError(_) => "no answer in time".into(),
        // The client's own words. No service had a part in them, but where credentials come from.
        error => no_credentials(error).map_or_else(|| causes(error), str::to_owned),
    }
}

/// What SQS says of one entry of a batch, in a code and a sentence of ours.
pub fn describe_entry(code: &str, message: Option<&str>, sender_fault: bool) -> String {
    let class = classify_entry(code, message, sender_fault);
    match Some(code).filter(|code| is_code(code)) {
        Some(code) => format!("{code}: {}", sentence(class, code)),
        None => format!("no code: {}", sentence(class, "")),
    }
}

fn answered<E: ProvideErrorMetadata>(error: &SdkError<E, HttpResponse>) -> String {
    let (status, region) = (status(error), bucket_region(error));
    let code = error.code().filter(|code| is_code(code));
    let class = classify(status, error.code(), error.message());
    let sentence = match (class, region) {
        (Class::OtherRegion, Some(region)) => format!("the bucket lies in {region}: set AWS_REGION={region}"),
        (Class::Unclear, Some(region)) => format!("refused without a reason; the bucket lies in {region}"),
        _ => sentence(class, code.unwrap_or_default()).into(),
    };
    let status = status.map(|status| status.to_string()).unwrap_or_default();
    match code {
        Some(code) => format!("{code} ({status}): {sentence}"),
        None => format!("status {status}: {sentence}"),
    }
}

fn sentence(class: Class, code: &str) -> &'static str {
    match (class, code) {
        (_, code) if is_throttle(code) => "asked too often; it passes",
        (_, "ExpiredToken" | "ExpiredTokenException" | "TokenRefreshRequired") => {
            "the credentials have expired and must be renewed"
        }
        (_, "RequestTimeTooSkewed" | "RequestExpired") => "this machine's clock is off",
        (Class::Transient, "InvalidSignatureException" | "SignatureDoesNotMatch") => "this machine's clock is off",
        (Class::Setup, "InvalidSignatureException" | "SignatureDoesNotMatch") => "the secret key is wrong",
        (Class::Setup, "InvalidAccessKeyId" | "InvalidClientTokenId" | "UnrecognizedClientException") => {
            "the access key is not known"
        }
        (Class::Setup, code) if code.to_ascii_lowercase().starts_with("kms") => "the KMS key cannot be used as it is",
        (Class::Denied, code) if code.to_ascii_lowercase().starts_with("kms") => "no permission to use the KMS key",
        (Class::NoObject, "InvalidObjectState") => "the object is archived and must be restored first",
        (Class::Transient, _) => "the service failed for the moment",
        (Class::Setup, _) => "the account or its setup must be corrected",
        (Class::Denied, _) => "no permission",
        (Class::NoContainer, _) => "there is no such bucket or queue",
        (Class::OtherRegion, _) => "the bucket lies in another region: correct AWS_REGION",
        (Class::NoObject, _) => "there is no such object",
        (Class::Condition, _) => "the object has changed",
        (Class::Conflict, _) => "another request was in the way",
        (Class::Content, _) => "the request's content is not accepted",
        (Class::Unsupported, _) => "the service does not support this request",
        (Class::Unclear, _) => "refused without a reason",
    }
}

/// A code is a word; anything else may be what it should not be.
fn is_code(code: &str) -> bool {
    (1..=MAX_CODE).contains(&code.len())
        && code.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-'))
}

fn no_credentials(error: &(dyn Error + 'static)) -> Option<&'static str> {
    chain(error).find_map(|error| error.downcast_ref::<CredentialsError>()).map(credentials)
}

/// Why there are no credentials, in a sentence of ours.
pub fn credentials(error: &CredentialsError) -> &'static str {
    match error {
        CredentialsError::CredentialsNotLoaded(_) => "no credentials: none of the usual places has any",
        CredentialsError::ProviderTimedOut(_) => "no credentials: where they come from did not answer in time",
        CredentialsError::InvalidConfiguration(_) => "no credentials: their configuration is wrong",
        CredentialsError::ProviderError(_) => "no credentials: where they come from refused them",
        _ => "no credentials",
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use aws_smithy_runtime_api::{client::result::ConnectorError, http::StatusCode};
    use aws_smithy_types::{body::SdkBody, error::ErrorMetadata};

    const SECRET: &str = "zebrafinch";

    #[derive(Debug)]
    struct Said(ErrorMetadata);

    impl std::fmt::Display for Said {
        fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            formatter.write_str(SECRET)
        }
    }

    impl Error for Said {}

    impl ProvideErrorMetadata for Said {
        fn meta(&self) -> &ErrorMetadata {
            &self.0
        }
    }

    fn answer(status: u16, region: Option<&'static str>) -> HttpResponse {
        let body = SdkBody::from(format!("<Error><Token-0>{SECRET}</Token-0></Error>"));
        let mut answer = HttpResponse::new(StatusCode::try_from(status).unwrap(), body);
        if let Some(region) = region {
            answer.headers_mut().insert("x-amz-bucket-region", region);
        }
        answer
    }

    fn said(status: u16, code: &str, region: Option<&'static str>) -> String {
        let meta = ErrorMetadata::builder().code(code).message(SECRET).build();
        describe(&SdkError::service_error(Said(meta), answer(status, region)))
    }

    #[test]
    fn a_code_and_a_sentence_and_nothing_that_was_said() {
        for (status, code, region, want) in [
            (403, "AccessDenied", None, "AccessDenied (403): no permission"),
            (400, "ExpiredToken", None, "ExpiredToken (400): the credentials have expired and must be renewed"),
            (503, "SlowDown", None, "SlowDown (503): asked too often; it passes"),
            (400, "SomethingNew", None, "SomethingNew (400): the service failed for the moment"),
            (403, "", None, "status 403: refused without a reason"),
            (418, SECRET.repeat(9).as_str(), None, "status 418: the service failed for the moment"),
            (418, "<Token-0>zebrafinch</Token-0>", None, "status 418: the service failed for the moment"),
            (
                301,
                "PermanentRedirect",
                Some("eu-west-1"),
                "PermanentRedirect (301): the bucket lies in eu-west-1: set AWS_REGION=eu-west-1",
            ),
            (400, "", Some("eu-west-1"), "status 400: refused without a reason; the bucket lies in eu-west-1"),
            (400, "", Some("Zebra finch"), "status 400: refused without a reason"),
        ] {
            assert_eq!(said(status, code, region), want);
        }
    }

    #[test]
    fn an_entry_is_told_of_without_the_services_words() {
        for (code, sender_fault, want) in [
            ("InvalidMessageContents", true, "InvalidMessageContents: the request's content is not accepted"),
            ("KMS.DisabledException", false, "KMS.DisabledException: the KMS key cannot be used as it is"),
            ("RequestThrottled", true, "RequestThrottled: asked too often; it passes"),
            ("zebra finch", true, "no code: the request's content is not accepted"),
        ] {
            assert_eq!(describe_entry(code, Some(SECRET), sender_fault), want);
        }
    }

    #[test]
    fn a_request_that_got_no_answer_says_why() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error: SdkError<Said, HttpResponse> = SdkError::dispatch_failure(ConnectorError::io(refused.into()));
        assert!(describe(&error).contains("refused"), "{}", describe(&error));
        let source = CredentialsError::provider_error(SECRET);
        let error: SdkError<Said, HttpResponse> =
            SdkError::dispatch_failure(ConnectorError::other(source.into(), None));
        assert_eq!(describe(&error), "no credentials: where they come from refused them");
        let error: SdkError<Said, HttpResponse> = SdkError::response_error(SECRET, answer(200, None));
        assert_eq!(describe(&error), "an answer with status 200 that could not be read");
        assert_eq!(describe(&SdkError::<Said, HttpResponse>::timeout_error(SECRET)), "no answer in time");
    }
}
