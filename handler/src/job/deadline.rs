//! When an invocation ends. Every wait of a task ends early enough for the invocation to be answered in time.

use std::{
    fmt,
    future::Future,
    time::{Duration, Instant},
};
use tokio::time::timeout_at;

/// Time left when work on tasks stops: to release their claims and to notify backends on the last receive.
const WORK_MARGIN: Duration = Duration::from_secs(2);
/// Time left when notifying stops: to set when messages are visible again.
const NOTIFY_MARGIN: Duration = Duration::from_secs(1);
/// Time left when that stops: to answer.
const ANSWER_MARGIN: Duration = Duration::from_millis(400);

/// When the invocation that delivered a message ends; a worker's messages have no such limit. An event is answered as a whole, so none
/// of its tasks may wait longer for S3, a claim, the batcher or a backend.
#[derive(Debug, Clone, Copy, Default)]
pub struct Deadline(Option<Instant>);

/// The invocation ends too soon.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OutOfTime {
    left: Duration,
}

impl Deadline {
    /// No limit.
    pub const NONE: Self = Self(None);

    /// The invocation ends at `end`.
    pub fn at(end: Instant) -> Self {
        Self(Some(end))
    }

    /// When the invocation ends.
    pub(super) fn end(self) -> Option<Instant> {
        self.0
    }

    /// When the work on a task must be done.
    pub(super) fn work_end(self) -> Option<Instant> {
        self.before(WORK_MARGIN)
    }

    /// The error, with the time that is left now.
    pub(super) fn out_of_time(self) -> OutOfTime {
        let left = self.0.map(|end| end.saturating_duration_since(Instant::now()));
        OutOfTime { left: left.unwrap_or_default() }
    }

    /// Waits for work on a task.
    pub(super) async fn work<T>(self, work: impl Future<Output = T>) -> Result<T, OutOfTime> {
        self.until(WORK_MARGIN, work).await
    }

    /// Waits for a webhook, or for a claim's release, after the work has stopped.
    pub(super) async fn notify<T>(self, notifying: impl Future<Output = T>) -> Result<T, OutOfTime> {
        self.until(NOTIFY_MARGIN, notifying).await
    }

    /// Waits for the last thing before the answer.
    ///
    /// # Errors
    /// The invocation is about to end.
    pub async fn settle<T>(self, settling: impl Future<Output = T>) -> Result<T, OutOfTime> {
        self.until(ANSWER_MARGIN, settling).await
    }

    async fn until<T>(self, margin: Duration, work: impl Future<Output = T>) -> Result<T, OutOfTime> {
        match self.before(margin) {
            None => Ok(work.await),
            Some(latest) => timeout_at(latest.into(), work).await.map_err(|_| self.out_of_time()),
        }
    }

    fn before(self, margin: Duration) -> Option<Instant> {
        let end = self.0?;
        // It underflows only for an end near the clock's zero, which is in the past.
        Some(end.checked_sub(margin).unwrap_or_else(Instant::now))
    }
}

impl fmt::Display for OutOfTime {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let millis = self.left.as_millis();
        write!(formatter, "the invocation ends in {millis} ms, too soon for what is left to do")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::{pending, ready};

    #[test]
    fn each_wait_ends_in_time_for_what_comes_after_it() {
        let end = Instant::now() + Duration::from_secs(60);
        let deadline = Deadline::at(end);
        let ends = [WORK_MARGIN, NOTIFY_MARGIN, ANSWER_MARGIN].map(|margin| deadline.before(margin));
        assert!(ends.is_sorted() && ends.iter().all(|latest| latest.is_some_and(|latest| latest < end)), "{ends:?}");
        assert_eq!(deadline.work_end(), ends[0]);
    }

    #[tokio::test]
    async fn a_wait_beyond_the_end_is_broken_off_and_one_that_is_ready_is_done() {
        let over = Deadline::at(Instant::now());
        assert!(over.work(pending::<()>()).await.is_err());
        assert!(over.notify(pending::<()>()).await.is_err());
        assert!(over.settle(pending::<()>()).await.is_err());
        assert_eq!(over.settle(ready(1)).await, Ok(1));
        assert_eq!(over.out_of_time().left, Duration::ZERO);
        assert_eq!(Deadline::NONE.work(ready(1)).await, Ok(1));
    }
}
