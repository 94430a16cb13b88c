//! Claims: a task that is delivered twice at once is painted once. The first delivery puts an object into the bucket with
//! `If-None-Match: *`; the second waits until that object is gone.
//!
//! A claim is a lease, and its holder renews it. One that was not renewed for the length of the lease belongs to a dead process. It is
//! taken over with `If-Match`, so that only one of several waiting processes gets it. The object names its owner: if the answer to a
//! write is lost, the client's retry finds the object there, and only the owner tells whether it is our own.
//!
//! In a bucket without conditional writes there are no claims. In one that we may not write to, there are none for the length of a lease.

mod object;

use crate::storage::S3Client;
use aws_config::timeout::TimeoutConfig;
use object::{ClaimBody, ClaimBucket, Condition, DeleteResult, Inspected, WriteResult};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use uuid::Uuid;

/// Between two inspections of another process's claim.
const POLL_INTERVAL: Duration = Duration::from_secs(1);
/// `Date` and `Last-Modified` have whole seconds, and come from many clocks.
const CLOCK_SKEW: Duration = Duration::from_secs(5);
/// A shorter timeout would break off good answers; a short lease may force one.
const MIN_ATTEMPT: Duration = Duration::from_secs(2);
/// Attempts to delete a claim that changes meanwhile.
const DELETE_TRIES: usize = 3;

/// Where claims are kept.
#[derive(Debug, Clone)]
pub struct Claims {
    bucket: ClaimBucket,
    lease: Duration,
    disabled: Arc<Mutex<Disabled>>,
}

/// Whether tasks are painted without claims.
#[derive(Debug, Default, Clone, Copy)]
enum Disabled {
    #[default]
    No,
    Until(Instant),
    Forever,
}

/// The right to paint the pictures of one task. If it is dropped without a release, it expires.
#[derive(Debug)]
#[must_use = "a claim that is dropped keeps others waiting until it runs out"]
pub struct Claim(Option<HeldClaim>);

#[derive(Debug)]
struct HeldClaim {
    holder: Holder,
    renewal: JoinHandle<()>,
}

/// Renews and deletes a claim.
#[derive(Debug, Clone)]
struct Holder {
    claims: Claims,
    key: String,
    owner: Uuid,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone)]
struct State {
    /// The ETag of the last known write.
    tag: String,
    count: u64,
    /// When the last successful write was begun.
    renewed: Instant,
    /// Whether another process has taken it over.
    is_lost: bool,
}

impl Claims {
    /// Claims in `bucket`, each valid for `lease` after its last renewal.
    pub(crate) fn new(s3: &S3Client, bucket: String, lease: Duration) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(attempt(lease))
            .read_timeout(attempt(lease))
            .operation_attempt_timeout(attempt(lease))
            .operation_timeout(operation(lease))
            .build();
        let bucket = ClaimBucket { s3: s3.with(|config| config.timeout_config(timeouts)), bucket };
        Self { bucket, lease, disabled: Arc::default() }
    }

    /// Acquires the claim on a task. Waits while another delivery holds it.
    ///
    /// # Errors
    /// S3 does not answer, or fails temporarily: its code, and a sentence.
    pub async fn acquire(&self, generation_id: i64) -> Result<Claim, String> {
        if self.is_disabled() {
            return Ok(Claim(None));
        }
        let (key, owner) = (format!("claims/gen_{generation_id}"), Uuid::new_v4());
        let (mut condition, mut count) = (Condition::Absent, 0);
        let mut seen: Option<(String, Instant)> = None;
        let mut absent_since: Option<Instant> = None;
        let mut is_logged = false;
        loop {
            let asked = Instant::now();
            count += 1;
            let (now, unknown) = match self.bucket.write(&key, ClaimBody { owner, count }, &condition).await {
                WriteResult::Done(tag) => return Ok(self.hold(key, ClaimBody { owner, count }, tag, asked)),
                WriteResult::Forbidden(error) => return Ok(self.disable(&error, Disabled::Until(asked + self.lease))),
                WriteResult::Unsupported(error) => return Ok(self.disable(&error, Disabled::Forever)),
                WriteResult::Refused(now) => (now, None),
                WriteResult::Conflict(_) => (None, None),
                WriteResult::Unknown(error) => (None, Some(error)),
            };
            condition = Condition::Absent;
            let (tag, modified) = match (self.bucket.inspect(&key).await, unknown) {
                // It is ours: the answer to our write was lost.
                (Ok(Inspected::Held { tag, body: Some(body), .. }), _) if body.owner == owner => {
                    return Ok(self.hold(key, ClaimBody { owner, count }, tag, asked));
                }
                (Ok(Inspected::Held { tag, modified, .. }), _) => (tag, modified),
                (_, Some(error)) | (Err(error), None) => return Err(error),
                // It has just been released, or a concurrent write got in the way.
                (Ok(Inspected::Absent(why)), None) => {
                    let since = *absent_since.get_or_insert(asked);
                    if since.elapsed() >= self.lease {
                        return Err(format!("it can neither be written nor be seen: {why}"));
                    }
                    if since < asked {
                        sleep(self.poll()).await;
                    }
                    continue;
                }
            };
            absent_since = None;
            let since = seen.take().filter(|(known, _)| *known == tag).map_or_else(Instant::now, |(_, since)| since);
            let age = now.zip(modified).and_then(|(now, modified)| now.duration_since(modified).ok());
            if since.elapsed() >= self.lease || age.is_some_and(|age| age >= self.lease + CLOCK_SKEW) {
                tracing::info!("the claim's holder has died: taking it over");
                condition = Condition::Unchanged(tag);
                continue;
            }
            if !std::mem::replace(&mut is_logged, true) {
                tracing::info!("another delivery of this task is being worked on: waiting for it");
            }
            seen = Some((tag, since));
            sleep(self.poll()).await;
        }
    }

    fn poll(&self) -> Duration {
        POLL_INTERVAL.min(self.lease / 4)
    }

    fn is_disabled(&self) -> bool {
        match *self.disabled.lock().unwrap_or_else(PoisonError::into_inner) {
            Disabled::No => false,
            Disabled::Until(time) => Instant::now() < time,
            Disabled::Forever => true,
        }
    }

    /// Goes on without claims.
    fn disable(&self, error: &str, disabled: Disabled) -> Claim {
        let again_in_s = matches!(disabled, Disabled::Until(_)).then_some(self.lease.as_secs());
        tracing::warn!(error, again_in_s, "no claims: a task that is delivered twice at once may be painted twice");
        *self.disabled.lock().unwrap_or_else(PoisonError::into_inner) = disabled;
        Claim(None)
    }

    fn hold(&self, key: String, body: ClaimBody, tag: String, renewed: Instant) -> Claim {
        let state = State { tag, count: body.count, renewed, is_lost: false };
        let holder = Holder { claims: self.clone(), key, owner: body.owner, state: Arc::new(Mutex::new(state)) };
        let renewing = holder.clone();
        Claim(Some(HeldClaim { holder, renewal: tokio::spawn(async move { renewing.renew().await }) }))
    }
}

impl Holder {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the claim until another process takes it over.
    async fn renew(&self) {
        let Claims { bucket, lease, .. } = &self.claims;
        let (mut wait, mut is_gone) = (*lease / 3, false);
        loop {
            sleep(wait).await;
            let asked = Instant::now();
            let (tag, count) = {
                let mut state = self.state();
                state.count += 1;
                (state.tag.clone(), state.count)
            };
            let condition = if is_gone { Condition::Absent } else { Condition::Unchanged(tag) };
            wait = *lease / 12;
            is_gone = false;
            let unknown = match bucket.write(&self.key, ClaimBody { owner: self.owner, count }, &condition).await {
                WriteResult::Done(tag) => {
                    wait = *lease / 3;
                    self.renewed(tag, asked);
                    continue;
                }
                WriteResult::Refused(_) => None,
                WriteResult::Conflict(error)
                | WriteResult::Unknown(error)
                | WriteResult::Forbidden(error)
                | WriteResult::Unsupported(error) => Some(error),
            };
            let error = match bucket.inspect(&self.key).await {
                // The answer to this write was lost.
                Ok(Inspected::Held { tag, body: Some(body), .. })
                    if body == (ClaimBody { owner: self.owner, count }) =>
                {
                    wait = *lease / 3;
                    self.renewed(tag, asked);
                    continue;
                }
                // An earlier write arrived late.
                Ok(Inspected::Held { tag, body: Some(body), .. }) if body.owner == self.owner => {
                    self.state().tag = tag;
                    unknown
                }
                Ok(Inspected::Held { .. }) => {
                    tracing::warn!("the claim was taken over: this process was too slow to renew it");
                    self.state().is_lost = true;
                    return;
                }
                Ok(Inspected::Absent(why)) => {
                    is_gone = unknown.is_none();
                    Some(unknown.unwrap_or(why))
                }
                Err(error) => Some(error),
            };
            if let Some(error) = error {
                tracing::warn!(error, "the claim was not renewed");
            }
        }
    }

    fn renewed(&self, tag: String, asked: Instant) {
        let mut state = self.state();
        (state.tag, state.renewed) = (tag, asked);
    }

    async fn delete(&self) {
        let Claims { bucket, lease, .. } = &self.claims;
        let State { tag, renewed, is_lost, .. } = self.state().clone();
        if is_lost {
            return;
        }
        // Not every bucket honours `If-Match` of a deletion. Within the lease the claim can only be ours; after it, inspect first.
        let mut known = (renewed.elapsed() < *lease).then_some(tag);
        let mut reason = String::new();
        for _ in 0..DELETE_TRIES {
            let tag = match known.take() {
                Some(tag) => tag,
                None => match bucket.inspect(&self.key).await {
                    Ok(Inspected::Held { tag, body: Some(body), .. }) if body.owner == self.owner => tag,
                    // Another process holds it, or it is gone.
                    Ok(_) => return,
                    Err(error) => {
                        reason = error;
                        break;
                    }
                },
            };
            let mut deleted = bucket.delete(&self.key, Some(&tag)).await;
            if matches!(deleted, DeleteResult::Unsupported) {
                deleted = bucket.delete(&self.key, None).await;
            }
            match deleted {
                DeleteResult::Done => return,
                DeleteResult::Unknown(error) => reason = error,
                DeleteResult::Unsupported => break,
            }
        }
        tracing::warn!(error = reason, "the claim was not deleted, it will run out");
    }
}

impl Claim {
    /// Deletes the claim, so that another delivery need not wait.
    pub async fn release(mut self) {
        let Some(held) = self.0.take() else { return };
        held.renewal.abort();
        held.holder.delete().await;
    }
}

impl Drop for HeldClaim {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// The timeout of one attempt of a request.
fn attempt(lease: Duration) -> Duration {
    (lease / 6).max(MIN_ATTEMPT.min(lease / 3))
}

/// The timeout of a request with its retries: a renewal begins after a third of the lease.
fn operation(lease: Duration) -> Duration {
    (attempt(lease) * 2).min(lease * 3 / 5)
}

#[cfg(test)]
mod tests;
