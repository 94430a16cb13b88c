//! HTTP clients, and how long a server asks them to wait.

use reqwest::{
    Client, ClientBuilder, StatusCode,
    header::{DATE, HeaderMap, RETRY_AFTER},
};
use rustls::crypto::ring;
use std::time::{Duration, SystemTime};

/// A new HTTP client's settings. Its TLS is ring's, which reqwest has to be told once per process.
pub fn http_client() -> ClientBuilder {
    // Only the first call installs it; the others find it there.
    let _ = ring::default_provider().install_default();
    #[expect(clippy::disallowed_methods, reason = "the one place that makes clients")]
    Client::builder()
}

/// How long a server asks not to be called, by Retry-After in seconds or as a date. Counts only with status 429 and 503; a date that has
/// passed counts as none.
pub fn retry_after(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // A number that does not fit means for ever.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        // The date is by the server's clock, so compare it with the time that the server reports.
        let asked = httpdate::parse_http_date(text).ok()?;
        let sent = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
        asked.duration_since(sent.unwrap_or(now)).ok()?
    };
    (!wait.is_zero()).then_some(wait)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_understood_and_all_else_is_ignored() {
        let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
        let asked = |status: u16, said: &str, date: Option<&str>| {
            let mut headers = HeaderMap::new();
            headers.insert(RETRY_AFTER, said.parse().unwrap());
            date.map(|date| headers.insert(DATE, date.parse().unwrap()));
            retry_after(StatusCode::from_u16(status).unwrap(), &headers, now)
        };
        let seconds = |count| Some(Duration::from_secs(count));
        for (said, wait) in [
            ("120", seconds(120)),
            (" 7 ", seconds(7)),
            ("99999999999999999999999", seconds(u64::MAX)),
            ("Sun, 06 Nov 1994 08:50:37 GMT", seconds(60)),
            ("Sunday, 06-Nov-94 08:50:37 GMT", seconds(60)),
            ("Sun Nov  6 08:50:37 1994", seconds(60)),
            ("Sun, 06 Nov 1994 08:49:37 GMT", None),
            ("Sat, 05 Nov 1994 08:49:37 GMT", None),
            ("0", None),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            for status in [429, 503] {
                assert_eq!(asked(status, said, None), wait, "{status} {said}");
            }
            assert_eq!(asked(500, said, None), None, "{said}");
        }
        // The server's clock is an hour ahead of ours.
        let ahead = asked(503, "Sun, 06 Nov 1994 09:49:57 GMT", Some("Sun, 06 Nov 1994 09:49:37 GMT"));
        assert_eq!(ahead, seconds(20));
        assert_eq!(retry_after(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new(), now), None);
    }
}
