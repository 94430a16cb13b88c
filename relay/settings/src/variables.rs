//! Environment variables that libraries read themselves. Some panic at a bad value, some silently use another one, so
//! they are checked first.

use crate::{BadVariable, options};
use aws_smithy_types::retry::RetryMode;
use std::{env, ffi::OsStr};
use url::Url;

/// Which variables a process reads besides its own options.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reads {
    /// For logs, certificates and proxies.
    Common,
    /// Also for AWS and traces.
    Services,
}

/// What a value must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shape {
    /// No whitespace around it and no control characters.
    Text,
    /// Fit for a header of a request.
    Key,
    /// Fit for a part of a host name.
    Region,
    Url,
    /// A number from 1.
    Count,
    RetryMode,
}

use Shape::{Count, Key, Region, Text, Url as Address};

/// Without NO_PROXY: its list may contain spaces, which its reader trims.
const COMMON: [&str; 9] = [
    "RUST_LOG",
    "SSL_CERT_FILE",
    "SSL_CERT_DIR",
    "HTTPS_PROXY",
    "https_proxy",
    "HTTP_PROXY",
    "http_proxy",
    "ALL_PROXY",
    "all_proxy",
];

/// The variables of the AWS SDK for Rust, as documented.
const AWS: [(&str, Shape); 46] = [
    ("AWS_ACCESS_KEY_ID", Key),
    ("AWS_SECRET_ACCESS_KEY", Key),
    ("AWS_SESSION_TOKEN", Key),
    ("AWS_REGION", Region),
    ("AWS_DEFAULT_REGION", Region),
    ("AWS_ENDPOINT_URL", Address),
    ("AWS_ENDPOINT_URL_S3", Address),
    ("AWS_ENDPOINT_URL_SQS", Address),
    ("AWS_ENDPOINT_URL_SECRETS_MANAGER", Address),
    ("AWS_ENDPOINT_URL_STS", Address),
    ("AWS_ENDPOINT_URL_SSO", Address),
    ("AWS_ENDPOINT_URL_SSO_OIDC", Address),
    ("AWS_ENDPOINT_URL_SIGNIN", Address),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT", Address),
    ("AWS_CONTAINER_CREDENTIALS_FULL_URI", Address),
    ("AWS_MAX_ATTEMPTS", Count),
    ("AWS_RETRY_MODE", Shape::RetryMode),
    ("AWS_CA_BUNDLE", Text),
    ("AWS_PROFILE", Text),
    ("AWS_CONFIG_FILE", Text),
    ("AWS_SHARED_CREDENTIALS_FILE", Text),
    ("AWS_LOGIN_CACHE_DIRECTORY", Text),
    ("AWS_ROLE_ARN", Text),
    ("AWS_ROLE_SESSION_NAME", Text),
    ("AWS_WEB_IDENTITY_TOKEN_FILE", Text),
    ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", Text),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN", Text),
    ("AWS_CONTAINER_AUTHORIZATION_TOKEN_FILE", Text),
    ("AWS_EC2_METADATA_DISABLED", Text),
    ("AWS_EC2_METADATA_SERVICE_ENDPOINT_MODE", Text),
    ("AWS_ACCOUNT_ID", Text),
    ("AWS_ACCOUNT_ID_ENDPOINT_MODE", Text),
    ("AWS_AUTH_SCHEME_PREFERENCE", Text),
    ("AWS_SIGV4A_SIGNING_REGION_SET", Text),
    ("AWS_USE_FIPS_ENDPOINT", Text),
    ("AWS_USE_DUALSTACK_ENDPOINT", Text),
    ("AWS_IGNORE_CONFIGURED_ENDPOINT_URLS", Text),
    ("AWS_REQUEST_CHECKSUM_CALCULATION", Text),
    ("AWS_RESPONSE_CHECKSUM_VALIDATION", Text),
    ("AWS_DISABLE_REQUEST_COMPRESSION", Text),
    ("AWS_REQUEST_MIN_COMPRESSION_SIZE_BYTES", Text),
    ("AWS_DISABLE_CLOCK_SKEW_CORRECTION", Text),
    ("AWS_S3_DISABLE_EXPRESS_SESSION_AUTH", Text),
    ("AWS_NEW_RETRIES_2026", Text),
    ("AWS_SDK_UA_APP_ID", Text),
    ("AWS_EXECUTION_ENV", Text),
];

/// The variables of OpenTelemetry's exporter.
const TRACES: [&str; 19] = [
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
    "OTEL_EXPORTER_OTLP_HEADERS",
    "OTEL_EXPORTER_OTLP_TRACES_HEADERS",
    "OTEL_EXPORTER_OTLP_TIMEOUT",
    "OTEL_EXPORTER_OTLP_TRACES_TIMEOUT",
    "OTEL_EXPORTER_OTLP_PROTOCOL",
    "OTEL_EXPORTER_OTLP_TRACES_PROTOCOL",
    "OTEL_EXPORTER_OTLP_COMPRESSION",
    "OTEL_EXPORTER_OTLP_TRACES_COMPRESSION",
    "OTEL_SERVICE_NAME",
    "OTEL_RESOURCE_ATTRIBUTES",
    "OTEL_TRACES_SAMPLER",
    "OTEL_TRACES_SAMPLER_ARG",
    "OTEL_BSP_SCHEDULE_DELAY",
    "OTEL_BSP_MAX_QUEUE_SIZE",
    "OTEL_BSP_MAX_EXPORT_BATCH_SIZE",
    "OTEL_BSP_EXPORT_TIMEOUT",
    "OTEL_BSP_MAX_CONCURRENT_EXPORTS",
];

/// Checks the variables that libraries read.
///
/// # Errors The first variable with a value that cannot be used.
pub fn check_variables(reads: Reads) -> Result<(), BadVariable> {
    check(reads, |name| env::var_os(name))
}

fn check(reads: Reads, value: impl Fn(&str) -> Option<std::ffi::OsString>) -> Result<(), BadVariable> {
    let common = COMMON.map(|name| (name, Text));
    let services = AWS.into_iter().chain(TRACES.map(|name| (name, Text)));
    let read = common.into_iter().chain(services.filter(|_| reads == Reads::Services));
    for (name, shape) in read {
        // An empty variable counts as not set.
        let Some(value) = value(name).filter(|value| !value.is_empty()) else { continue };
        if let Some(problem) = problem(shape, &value) {
            return Err(BadVariable { name, problem });
        }
    }
    Ok(())
}

fn problem(shape: Shape, value: &OsStr) -> Option<String> {
    if let Some(problem) = options::whitespace_problem(value) {
        return Some(problem);
    }
    let Some(text) = value.to_str() else { return Some("is not UTF-8".into()) };
    if text.chars().any(char::is_control) {
        return Some("has a line break or another control character in it".into());
    }
    let (fits, wanted) = match shape {
        Text => (true, ""),
        Key => (text.bytes().all(|byte| byte.is_ascii_graphic()), "must be visible ASCII characters"),
        Region => (
            (1..=63).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-'),
            "must be a region's name, as eu-central-1 is",
        ),
        Address => (
            Url::parse(text).is_ok_and(|url| matches!(url.scheme(), "http" | "https") && url.has_host()),
            "must be an http or https URL",
        ),
        Count => (text.parse::<u32>().is_ok_and(|count| count > 0), "must be an integer from 1"),
        Shape::RetryMode => (text.parse::<RetryMode>().is_ok(), "must be standard or adaptive"),
    };
    (!fits).then(|| wanted.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reported(name: &str, value: &str) -> Option<String> {
        let value = |asked: &str| (asked == name).then(|| value.into());
        check(Reads::Services, value).err().map(|error| error.to_string())
    }

    #[test]
    fn whitespace_at_an_end_is_refused_by_the_variables_name() {
        let all = COMMON.into_iter().chain(AWS.map(|(name, _)| name)).chain(TRACES);
        for name in all {
            for value in ["1\n", "1 ", " 1", "\t"] {
                let text = reported(name, value).unwrap_or_default();
                assert!(
                    text.starts_with(&format!("{name}: ")) && text.contains("take that away"),
                    "{name} {value:?}: {text}"
                );
            }
            assert_eq!(reported(name, ""), None, "{name}");
        }
    }

    #[test]
    fn a_value_that_a_library_could_not_use_is_refused_and_not_shown() {
        for (name, good, bad) in [
            ("AWS_ACCESS_KEY_ID", "AKIAIOSFODNN7EXAMPLE", "AKIA\nhidden"),
            ("AWS_SECRET_ACCESS_KEY", "wJalrXUtnFEMI/K7MDENG+bPxRfi=", "hidden secret"),
            ("AWS_SESSION_TOKEN", "IQoJb3JpZ2luX2VjEA==", "hidden\u{e4}"),
            ("AWS_REGION", "eu-central-1", "hidden central"),
            ("AWS_DEFAULT_REGION", "us-gov-west-1", "https://hidden"),
            ("AWS_ENDPOINT_URL", "http://minio:9000", "hidden:9000"),
            ("AWS_ENDPOINT_URL_S3", "https://s3.example.org/base", "hidden"),
            ("AWS_MAX_ATTEMPTS", "3", "0"),
            ("AWS_MAX_ATTEMPTS", "3", "hidden"),
            ("AWS_RETRY_MODE", "adaptive", "legacy"),
            ("AWS_PROFILE", "my profile", "hidden\nprofile"),
            ("HTTPS_PROXY", "proxy:3128", "http://hidden\n:1"),
        ] {
            assert_eq!(reported(name, good), None, "{name}");
            let text = reported(name, bad).unwrap_or_default();
            assert!(text.starts_with(&format!("{name}: ")) && !text.contains("hidden"), "{name}: {text}");
        }
    }

    #[test]
    fn variables_that_are_not_read_are_not_checked() {
        let value = |name: &str| (name == "AWS_ACCESS_KEY_ID").then(|| "AKIA\n".into());
        assert_eq!(check(Reads::Common, value), Ok(()));
    }
}
