//! Tasks that the backend cancels by their id. A cancel message becomes a marker in the pictures' bucket, `cancelled/gen_{id}`, where every
//! process sees it, also those that get the task later. A task is not painted while there is a marker of its id. The relay makes markers,
//! too, of messages of a queue of their own; key and content are those of the crate `cancellation`.

use crate::storage::{S3Client, beginning};
use aws_errors::{Class, class, describe};
use aws_sdk_s3::primitives::ByteStream;
use cancellation::{MARKER_BYTES, is_expired, key, marker};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};
use tokio::{sync::mpsc, time::timeout};
use tokio_util::task::AbortOnDropHandle;
use tracing::{Instrument, warn};

/// The longest that one look for a marker may take: an S3 that does not answer must not keep a task from being painted.
const LOOK_TIMEOUT: Duration = Duration::from_secs(5);

/// Where cancelled tasks are noted.
#[derive(Debug, Clone)]
pub struct Cancellations {
    s3: S3Client,
    bucket: String,
    lifetime: Duration,
    look_timeout: Duration,
}

impl Cancellations {
    /// Markers in `bucket`, each valid for `lifetime`.
    pub(crate) fn new(s3: &S3Client, bucket: String, lifetime: Duration) -> Self {
        Self { s3: s3.clone(), bucket, lifetime, look_timeout: LOOK_TIMEOUT }
    }

    /// Notes that a task is cancelled. Once more only prolongs it.
    ///
    /// # Errors
    /// S3 does not take the marker: its code, and a sentence.
    pub async fn note(&self, generation_id: i64) -> Result<(), String> {
        let (bucket, key) = (&self.bucket, key(generation_id));
        let put = self.s3.ask(bucket, |s3| {
            let body = ByteStream::from(marker(self.lifetime).into_bytes());
            s3.put_object().bucket(bucket).key(&key).body(body).send()
        });
        put.await.map(drop).map_err(|error| format!("s3://{bucket}/{key}: {}", describe(&error)))
    }

    /// Whether a task is cancelled. No if S3 does not say so within 5 s: a task is painted rather than lost.
    pub async fn is_noted(&self, generation_id: i64) -> bool {
        let look = timeout(self.look_timeout, self.inspect(generation_id)).await;
        let answer = look.unwrap_or_else(|_| Err(format!("S3 did not answer for {:?}", self.look_timeout)));
        answer.unwrap_or_else(|error| {
            warn!(error, "whether the task is cancelled is not known: it goes on");
            false
        })
    }

    async fn inspect(&self, generation_id: i64) -> Result<bool, String> {
        let (bucket, key) = (&self.bucket, key(generation_id));
        // Not HEAD: its answer has no error code.
        let mut object = match self.s3.ask(bucket, |s3| s3.get_object().bucket(bucket).key(&key).send()).await {
            Ok(object) => object,
            Err(error) => {
                return match class(&error) {
                    // Without s3:ListBucket, S3 also denies access to objects that do not exist.
                    Class::NoObject | Class::Denied => Ok(false),
                    _ => Err(describe(&error)),
                };
            }
        };
        let bytes = beginning(&mut object.body, MARKER_BYTES).await?;
        let expired = is_expired(&bytes).ok_or_else(|| format!("s3://{bucket}/{key} is no marker of ours"))?;
        Ok(!expired)
    }

    /// Starts to look for a marker each time it is asked to, beside the painting.
    pub(super) fn watch(&self, generation_id: i64) -> CancelWatch {
        let (looks, mut asked) = mpsc::unbounded_channel::<()>();
        let (cancellations, flag) = (self.clone(), Arc::new(AtomicBool::new(false)));
        let found = flag.clone();
        let looking = async move {
            while asked.recv().await.is_some() {
                if cancellations.is_noted(generation_id).await {
                    found.store(true, Ordering::Relaxed);
                    return;
                }
            }
        };
        let looking = AbortOnDropHandle::new(tokio::spawn(looking.in_current_span()));
        CancelWatch { looks, flag, _looking: looking }
    }
}

/// Looks for the marker of one task while it is painted. Asking never blocks and never fails.
pub(super) struct CancelWatch {
    looks: mpsc::UnboundedSender<()>,
    flag: Arc<AtomicBool>,
    /// Ends with the task.
    _looking: AbortOnDropHandle<()>,
}

impl CancelWatch {
    /// A function that asks for a look, from any thread.
    pub(super) fn look(&self) -> impl Fn() + Send + use<> {
        let looks = self.looks.clone();
        move || {
            // Fails once a marker was found, when no look is needed any more.
            let _ = looks.send(());
        }
    }

    /// A function that says, from any thread, whether a marker was found.
    pub(super) fn is_cancelled(&self) -> impl Fn() -> bool + Send + use<> {
        let flag = self.flag.clone();
        move || flag.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::storage::fake_s3::{FakeBucket, RequestFault, SECRET};

    const DAY: Duration = Duration::from_secs(86_400);

    fn cancellations(bucket: &FakeBucket, lifetime: Duration) -> Cancellations {
        Cancellations::new(&S3Client::new(bucket.client()), "pictures".into(), lifetime)
    }

    #[tokio::test]
    async fn a_task_is_cancelled_from_the_message_on_until_the_marker_expires() {
        let bucket = FakeBucket::start().await;
        let markers = cancellations(&bucket, DAY);
        assert!(!markers.is_noted(7).await);
        markers.note(7).await.unwrap();
        markers.note(7).await.unwrap();
        assert!(markers.is_noted(7).await && !markers.is_noted(8).await && !markers.is_noted(77).await);
        let day = cancellation::expiry(marker(DAY).as_bytes()).unwrap();
        let expires = cancellation::expiry(bucket.body("cancelled/gen_7").unwrap().as_bytes()).unwrap();
        assert!((day - 400..=day).contains(&expires), "{expires}");
        bucket.put("cancelled/gen_7", &marker(Duration::ZERO));
        assert!(!markers.is_noted(7).await, "an old marker holds for ever");
        cancellations(&bucket, DAY).note(7).await.unwrap();
        assert!(markers.is_noted(7).await, "an old marker stands in the way of a new one");
    }

    #[tokio::test]
    async fn what_s3_does_not_say_cancels_nothing_and_is_looked_for_again() {
        let bucket = FakeBucket::start().await;
        let markers = cancellations(&bucket, DAY);
        markers.note(7).await.unwrap();
        for (status, code) in [(403, "AccessDenied"), (400, "ExpiredToken"), (404, "NoSuchBucket")] {
            bucket.fail("GET", "gen_7", RequestFault::Refused(status, code), 1);
            assert!(!markers.is_noted(7).await, "{code}");
        }
        assert!(markers.is_noted(7).await);
        for body in ["", "7", "expires", "expires never\n", &"expires 1".repeat(50)] {
            bucket.put("cancelled/gen_7", body);
            assert!(!markers.is_noted(7).await, "{body}");
        }
        bucket.fail("PUT", "gen_7", RequestFault::Refused(403, "AccessDenied"), 1);
        let error = markers.note(7).await.unwrap_err();
        assert!(
            error.contains("cancelled/gen_7") && error.contains("AccessDenied") && !error.contains(SECRET),
            "{error}"
        );
    }

    #[tokio::test]
    async fn an_s3_that_does_not_answer_keeps_no_task_waiting() {
        let bucket = FakeBucket::start().await;
        let markers = Cancellations { look_timeout: Duration::from_millis(50), ..cancellations(&bucket, DAY) };
        markers.note(7).await.unwrap();
        bucket.fail("GET", "gen_7", RequestFault::Late(Duration::from_secs(600)), 1);
        assert!(!markers.is_noted(7).await);
        assert!(markers.is_noted(7).await, "it is not asked again");
    }

    #[tokio::test]
    async fn a_marker_is_seen_by_the_look_after_it_and_not_before() {
        let bucket = FakeBucket::start().await;
        let markers = cancellations(&bucket, DAY);
        let watch = markers.watch(7);
        let (look, is_cancelled) = (watch.look(), watch.is_cancelled());
        look();
        while bucket.requests().is_empty() {
            tokio::task::yield_now().await;
        }
        assert!(!is_cancelled());
        markers.note(7).await.unwrap();
        look();
        while !is_cancelled() {
            tokio::task::yield_now().await;
        }
        look();
    }
}
