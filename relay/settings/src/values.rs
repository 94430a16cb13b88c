//! Parsers for the values of options: addresses, names of buckets and URLs of queues. They check the form only.

use std::net::{Ipv4Addr, SocketAddr};
use url::Url;

/// Shortest and longest name of a bucket.
pub const BUCKET_LENGTH: (usize, usize) = (3, 63);

/// Parses an address to listen on. A host name is not accepted: it may stand for several addresses.
///
/// # Errors
/// The text is none; the error says what it must be.
pub fn socket(text: &str) -> Result<SocketAddr, String> {
    text.parse().map_err(|_| "must be an IP address and a port, as in 0.0.0.0:8080".into())
}

/// Parses a complete URL.
///
/// # Errors
/// The text is none; the error says what it must be.
pub fn web_url(text: &str) -> Result<Url, String> {
    Url::parse(text).map_err(|error| format!("must be a whole address, as https://example.org is: {error}"))
}

/// Whether S3 allows this as the name of a bucket: 3 to 63 of a-z, 0-9, dots and hyphens, and no IP address.
pub fn is_bucket(name: &str) -> bool {
    let plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let ends = name.bytes().next().is_some_and(plain) && name.bytes().next_back().is_some_and(plain);
    let inside = name.bytes().all(|byte| plain(byte) || byte == b'-' || byte == b'.');
    (BUCKET_LENGTH.0..=BUCKET_LENGTH.1).contains(&name.len())
        && ends
        && inside
        && !name.contains("..")
        && name.parse::<Ipv4Addr>().is_err()
}

/// Parses the name of a bucket.
///
/// # Errors S3 does not allow this name.
pub fn bucket(text: &str) -> Result<String, String> {
    let (least, most) = BUCKET_LENGTH;
    is_bucket(text).then(|| text.to_owned()).ok_or_else(|| {
        format!("must be a bucket's name alone, of {least} to {most} characters a-z, 0-9, dots and hyphens, as my-pictures is")
    })
}

/// Parses the URL of a queue. The SDK needs the complete URL: a name or an ARN would not work. The end says whether the
/// queue is FIFO, so nothing may follow the name.
///
/// # Errors It is no URL of a queue.
pub fn queue_url(text: &str) -> Result<String, String> {
    let wanted = || "must be an http or https URL that ends with the queue's name, as SQS names the queue".to_owned();
    // URL parsers drop tabs and line breaks, and trim spaces.
    let is_plain = !text.chars().any(|character| character.is_whitespace() || character.is_control());
    let url = Url::parse(text).ok().filter(|_| is_plain).ok_or_else(wanted)?;
    let is_queue = matches!(url.scheme(), "http" | "https")
        && url.has_host()
        && url.query().is_none()
        && url.fragment().is_none()
        && !url.path().ends_with('/');
    is_queue.then(|| text.to_owned()).ok_or_else(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_says_what_an_address_must_be() {
        assert!(socket("[::1]:8080").is_ok() && web_url("https://example.org/pictures").is_ok());
        assert!(socket("localhost:8080").is_err_and(|error| error.contains("0.0.0.0:8080")));
        assert!(web_url("example.org").is_err_and(|error| error.contains("https://")));
    }

    #[test]
    fn buckets_follow_the_rules_of_s3() {
        for name in ["abc", "a-b.c", "0a0", "stylelicense-models", &"a".repeat(63)] {
            assert_eq!(bucket(name).as_deref(), Ok(name));
        }
        for name in [
            "",
            "ab",
            "Abc",
            "a_b",
            "-abc",
            "abc-",
            ".abc",
            "a..b",
            "10.0.0.7",
            "a/b",
            "ä-b",
            "a b",
            "pics\n",
            " pics",
            "s3://pics",
            "pics/",
            "arn:aws:s3:::pics",
            &"a".repeat(64),
        ] {
            assert!(bucket(name).is_err_and(|error| error.contains("bucket's name")), "{name:?}");
        }
    }

    #[test]
    fn a_queue_has_an_http_address_that_ends_with_its_name() {
        for text in ["https://sqs.eu-central-1.amazonaws.com/1/tasks", "http://127.0.0.1:1/q", "http://h/1/tasks.fifo"]
        {
            assert_eq!(queue_url(text).as_deref(), Ok(text));
        }
        for text in [
            "",
            "tasks",
            "arn:aws:sqs:eu-central-1:1:tasks",
            "s3://bucket/key",
            "ftp://h/q",
            "http://h/q.fifo\n",
            "http://h/q.fifo ",
            " http://h/q",
            "http://h/q\n.fifo",
            "http://h/q.fifo/",
            "http://h/q.fifo?a=b",
            "http://h/q.fifo#a",
            "http://h",
        ] {
            assert!(queue_url(text).is_err_and(|error| error.contains("http")), "{text:?}");
        }
    }
}
