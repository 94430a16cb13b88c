//! How often and after how long the hub is asked again: after the time that it names, else after growing waits.

use super::error::HubError;
use backon::{BackoffBuilder, ExponentialBackoff, ExponentialBuilder};
use reqwest::{StatusCode, header::HeaderMap};
use service::retry_after;
use std::time::{Duration, SystemTime};

/// Tries after the first one.
pub(in super::super) const RETRIES: usize = 5;
/// Wait before the first of them.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// The longest wait that nobody asked for.
const LONGEST_DELAY: Duration = Duration::from_secs(8);
/// The longest wait that a server may ask for. The hub counts requests in windows of five minutes.
const LONGEST_ASKED: Duration = Duration::from_secs(330);

/// The tries that are left.
pub(in super::super) struct Retries<'a> {
    delays: ExponentialBackoff,
    /// Gets a line for each wait.
    report: &'a dyn Fn(&str),
}

impl<'a> Retries<'a> {
    pub(in super::super) fn new(report: &'a dyn Fn(&str)) -> Self {
        let delays = ExponentialBuilder::default().with_min_delay(FIRST_DELAY).with_max_delay(LONGEST_DELAY);
        Self { delays: delays.with_max_times(RETRIES).build(), report }
    }

    /// Waits before another try, and reports that.
    ///
    /// # Errors
    /// The error, if another try does not help, none is left, or the server asks for too long a wait.
    pub(in super::super) async fn wait(&mut self, error: HubError) -> Result<(), HubError> {
        let (delay, reason) = self.next(error)?;
        (self.report)(&format!("{reason}; again in {:.1} s", delay.as_secs_f32()));
        tokio::time::sleep(delay).await;
        Ok(())
    }

    /// The wait before the next try, and why it is needed.
    fn next(&mut self, error: HubError) -> Result<(Duration, String), HubError> {
        let HubError::Temporary { reason, wait: asked } = error else { return Err(error) };
        if let Some(asked) = asked.filter(|asked| *asked > LONGEST_ASKED) {
            let seconds = asked.as_secs();
            return Err(HubError::Final(format!("{reason}, and asks to wait {seconds} s: try again then")));
        }
        match self.delays.next() {
            Some(delay) => Ok((delay.max(asked.unwrap_or_default()), reason)),
            None => Err(HubError::Final(format!("{reason}, also the {RETRIES} times after it"))),
        }
    }
}

/// How long a server asks to wait, by `Retry-After` or by the hub's `RateLimit: "api";r=0;t=55`: no request is left, 55 seconds to go.
pub(super) fn asked_wait(status: StatusCode, headers: &HeaderMap, now: SystemTime) -> Option<Duration> {
    let limits = headers.get_all("ratelimit").into_iter().filter_map(|value| value.to_str().ok());
    // The hub sends it with every answer: it says something only if nothing is left.
    let limits = limits.flat_map(|text| text.split(',')).filter(|_| status == StatusCode::TOO_MANY_REQUESTS);
    let left = limits.filter_map(|limit| {
        let number = |name: &str| {
            let mut parts = limit.split(';').filter_map(|part| part.trim().split_once('='));
            parts.find(|(found, _)| found.trim() == name)?.1.trim().parse::<u64>().ok()
        };
        // A second more, because the hub rounds.
        (number("r")? == 0).then_some(Duration::from_secs(number("t")?.saturating_add(1)))
    });
    left.chain(retry_after(status, headers, now)).max()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_wait_is_the_longest_that_is_asked_for() {
        let wait = |status: u16, lines: &[(&'static str, &str)]| {
            let mut headers = HeaderMap::new();
            for (name, value) in lines {
                headers.append(*name, value.parse().unwrap());
            }
            asked_wait(StatusCode::from_u16(status).unwrap(), &headers, SystemTime::now()).map(|wait| wait.as_secs())
        };
        let policy = ("ratelimit-policy", "\"fixed window\";\"api\";q=500;w=300");
        for (lines, expected) in [
            (&[][..], None),
            (&[("ratelimit", "\"api\";r=0;t=55"), policy][..], Some(56)),
            (&[("ratelimit", "\"api\" ; r = 0 ; t = 55")], Some(56)),
            (&[("ratelimit", "\"api\";r=17;t=55"), policy], None),
            (&[("ratelimit", "\"pages\";r=9;t=300, \"api\";r=0;t=7")], Some(8)),
            (&[("ratelimit", "\"pages\";r=0;t=30"), ("ratelimit", "\"api\";r=0;t=7")], Some(31)),
            (&[("ratelimit", "\"api\";r=0;t=5"), ("retry-after", "20")], Some(20)),
            (&[("ratelimit", "\"api\";r=0;t=18446744073709551615")], Some(u64::MAX)),
            (&[("ratelimit", "\"api\";r=0"), ("ratelimit", "r=0;t=x"), ("ratelimit", "")], None),
        ] {
            assert_eq!(wait(429, lines), expected, "{lines:?}");
        }
        assert_eq!(wait(503, &[("ratelimit", "\"api\";r=0;t=55"), ("retry-after", "3")]), Some(3));
        assert_eq!(wait(502, &[("retry-after", "3")]), None);
    }

    #[test]
    fn the_tries_end_and_no_wait_is_endless() {
        let report = |_: &str| {};
        let mut retries = Retries::new(&report);
        let busy = |seconds: Option<u64>| HubError::Temporary {
            reason: "x: the hub answered 429".into(),
            wait: seconds.map(Duration::from_secs),
        };
        let waits =
            [None, Some(55), None, None, Some(330)].map(|asked| retries.next(busy(asked)).unwrap().0.as_millis());
        assert_eq!(waits, [500, 55_000, 2000, 4000, 330_000]);
        let error = retries.next(busy(None)).unwrap_err();
        assert_eq!(error.to_string(), "x: the hub answered 429, also the 5 times after it");
        let error = Retries::new(&report).next(busy(Some(331))).unwrap_err();
        assert_eq!(error.to_string(), "x: the hub answered 429, and asks to wait 331 s: try again then");
        let error = Retries::new(&report).next(HubError::Final("no".into())).unwrap_err();
        assert_eq!(error.to_string(), "no");
    }
}
