//! How long a backend asks not to be called: `Retry-After` of its answer, in seconds or as a date.

use reqwest::{
    StatusCode,
    header::{DATE, HeaderMap, HeaderName, RETRY_AFTER},
};
use std::time::{Duration, SystemTime};

/// What an answer asks for. Only 429 and 503 ask for it in so many words, and a date that has passed asks for nothing.
pub(super) fn asked_for(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    if !matches!(status, StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        return None;
    }
    let text = headers.get(RETRY_AFTER)?.to_str().ok()?.trim();
    let wait = if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) {
        // More digits than fit are as good as for ever.
        Duration::from_secs(text.parse().unwrap_or(u64::MAX))
    } else {
        // The backend's clock said when to come, so it also says what time it is.
        let asked = httpdate::parse_http_date(text).ok()?;
        asked.duration_since(date(headers, DATE).unwrap_or(now)).ok()?
    };
    (!wait.is_zero()).then_some(wait)
}

fn date(headers: &HeaderMap, name: HeaderName) -> Option<SystemTime> {
    httpdate::parse_http_date(headers.get(name)?.to_str().ok()?).ok()
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
            asked_for(StatusCode::from_u16(status).unwrap(), &headers, now)
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
        // A backend whose clock is an hour ahead of ours.
        let ahead = asked(503, "Sun, 06 Nov 1994 09:49:57 GMT", Some("Sun, 06 Nov 1994 09:49:37 GMT"));
        assert_eq!(ahead, seconds(20));
        assert_eq!(asked_for(StatusCode::TOO_MANY_REQUESTS, &HeaderMap::new(), now), None);
    }
}
