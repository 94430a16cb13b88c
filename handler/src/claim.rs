//! Two deliveries of one task at once paint one picture: the first puts an object with `If-None-Match: *`, and the second waits
//! until that object is gone.
//!
//! A claim is a lease. Its holder renews it; one that was not renewed for that long belongs to a process that has died, and is
//! taken over with `If-Match`, so that only one of several waiting ones gets it. Refuses to be needed: where the bucket does not
//! take such objects, tasks are painted without claims, and a warning says so once.

use aws_sdk_s3::{
    Client,
    error::{DisplayErrorContext, SdkError},
    operation::{head_object::HeadObjectError, put_object::PutObjectError},
    primitives::DateTime,
};
use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, SystemTime},
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use uuid::Uuid;

/// Between two looks at a claim that somebody else holds.
const POLL: Duration = Duration::from_secs(1);
/// How far two machines' clocks may be apart before a claim's age is misjudged.
const SKEW: Duration = Duration::from_secs(30);

/// Where claims are kept.
#[derive(Debug, Clone)]
pub struct Claims {
    s3: Client,
    bucket: String,
    lease: Duration,
    off: Arc<AtomicBool>,
}

/// The right to paint the pictures of one generation. It runs out by itself when it is dropped.
#[derive(Debug)]
#[must_use = "a claim that is dropped keeps others waiting until it runs out"]
pub struct Claim(Option<Held>);

#[derive(Debug)]
struct Held {
    claims: Claims,
    key: String,
    lost: Arc<AtomicBool>,
    renewal: JoinHandle<()>,
}

/// What S3 says to a conditional write.
enum Put {
    /// Written; the object has this entity tag.
    Done(String),
    /// The condition does not hold.
    Refused,
    /// This bucket takes no claims from us.
    Impossible(String),
    /// Nobody knows.
    Unknown(String),
}

impl Claims {
    /// Claims in `bucket`, each good for `lease` after it was last renewed.
    pub fn new(s3: Client, bucket: String, lease: Duration) -> Self {
        Self { s3, bucket, lease, off: Arc::default() }
    }

    /// Takes the claim on a generation. Waits for as long as another delivery holds it.
    ///
    /// # Errors
    /// S3 does not answer, in its words.
    pub async fn take(&self, generation_id: i64) -> Result<Claim, String> {
        let key = format!("claims/gen_{generation_id}");
        let mut seen: Option<(String, Instant)> = None;
        let mut condition = None;
        loop {
            if self.off.load(Ordering::Relaxed) {
                return Ok(Claim(None));
            }
            match self.put(&key, condition.take().as_deref(), 0).await {
                Put::Done(tag) => return Ok(Claim(Some(self.hold(key, tag)))),
                Put::Refused => {}
                Put::Unknown(error) => return Err(error),
                Put::Impossible(error) => {
                    self.off.store(true, Ordering::Relaxed);
                    tracing::warn!(error, "no claims: a task that is delivered twice at once may be painted twice");
                    continue;
                }
            }
            let Some((tag, modified)) = self.look(&key).await? else { continue };
            let since = seen.take().filter(|(known, _)| *known == tag).map_or_else(Instant::now, |(_, since)| since);
            if since.elapsed() >= self.lease || age(modified) >= self.lease + SKEW {
                tracing::info!("the claim's holder has died: taking it over");
                condition = Some(tag);
                continue;
            }
            if seen.is_none() {
                tracing::info!("another delivery of this task is being worked on: waiting for it");
            }
            seen = Some((tag, since));
            sleep(POLL.min(self.lease / 4)).await;
        }
    }

    fn hold(&self, key: String, mut tag: String) -> Held {
        let (claims, name, lost) = (self.clone(), key.clone(), Arc::new(AtomicBool::new(false)));
        let flag = lost.clone();
        let count = AtomicU64::new(0);
        let renewal = tokio::spawn(async move {
            loop {
                sleep(claims.lease / 3).await;
                match claims.put(&name, Some(&tag), count.fetch_add(1, Ordering::Relaxed) + 1).await {
                    Put::Done(renewed) => tag = renewed,
                    Put::Refused => {
                        tracing::warn!("the claim was taken over: this process was too slow to renew it");
                        return flag.store(true, Ordering::Relaxed);
                    }
                    Put::Impossible(error) | Put::Unknown(error) => tracing::warn!(error, "the claim was not renewed"),
                }
            }
        });
        Held { claims: self.clone(), key, lost, renewal }
    }

    /// Writes the claim if there is none, or, given an entity tag, if it is still that one. Each write has another content and so
    /// another tag.
    async fn put(&self, key: &str, tag: Option<&str>, count: u64) -> Put {
        let body = format!("{} {count}\n", Uuid::new_v4());
        let request = self.s3.put_object().bucket(&self.bucket).key(key).body(body.into_bytes().into());
        let request = match tag {
            None => request.if_none_match("*"),
            Some(tag) => request.if_match(tag),
        };
        match request.send().await {
            Ok(done) => Put::Done(done.e_tag.unwrap_or_default()),
            Err(error) => refused(&error),
        }
    }

    /// Entity tag and time of the last write; `None` if nobody holds it.
    async fn look(&self, key: &str) -> Result<Option<(String, Option<DateTime>)>, String> {
        match self.s3.head_object().bucket(&self.bucket).key(key).send().await {
            Ok(head) => Ok(Some((head.e_tag.unwrap_or_default(), head.last_modified))),
            Err(SdkError::ServiceError(error)) if matches!(error.err(), HeadObjectError::NotFound(_)) => Ok(None),
            Err(error) => Err(DisplayErrorContext(&error).to_string()),
        }
    }
}

impl Claim {
    /// Lets go, so that another delivery need not wait.
    pub async fn release(mut self) {
        let Some(held) = self.0.take() else { return };
        held.renewal.abort();
        if held.lost.load(Ordering::Relaxed) {
            return;
        }
        let Claims { s3, bucket, .. } = &held.claims;
        if let Err(error) = s3.delete_object().bucket(bucket).key(&held.key).send().await {
            tracing::warn!(error = %DisplayErrorContext(&error), "the claim was not deleted, it will run out");
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

fn refused(error: &SdkError<PutObjectError>) -> Put {
    let status = error.raw_response().map(|answer| answer.status().as_u16());
    let words = DisplayErrorContext(error).to_string();
    match status {
        // 404: what was to be taken over has just been let go of. 409: two such writes at once.
        Some(404 | 409 | 412) if !words.contains("NoSuchBucket") => Put::Refused,
        Some(400 | 403 | 404 | 405 | 501) => Put::Impossible(words),
        _ => Put::Unknown(words),
    }
}

fn age(modified: Option<DateTime>) -> Duration {
    let written = modified.and_then(|time| SystemTime::try_from(time).ok());
    written.and_then(|time| SystemTime::now().duration_since(time).ok()).unwrap_or_default()
}

#[cfg(test)]
mod tests;
