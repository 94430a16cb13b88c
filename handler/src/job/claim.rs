//! Two deliveries of one task at once paint one picture: the first puts an object with `If-None-Match: *`, and the second waits
//! until that object is gone.
//!
//! A claim is a lease. Its holder renews it; one that was not renewed for that long belongs to a process that has died, and is
//! taken over with `If-Match`, so that only one of several waiting ones gets it. The object names its owner: when the answer to a write
//! is lost, the next try of the same write meets with what the first one wrote, and only the owner's name tells that from somebody else's.
//! A bucket that knows no conditional writes has no claims; one that we may not write them to has none for the length of a lease.

mod object;

use crate::storage::S3Client;
use aws_config::timeout::TimeoutConfig;
use object::{Condition, Deleted, Look, Mark, Objects, Written};
use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};
use tokio::{
    task::JoinHandle,
    time::{Instant, sleep},
};
use uuid::Uuid;

/// Between two looks at a claim that somebody else holds.
const POLL: Duration = Duration::from_secs(1);
/// `Date` and `Last-Modified` have whole seconds, and S3 has many clocks.
const SKEW: Duration = Duration::from_secs(5);
/// A shorter try would break off answers that are on their way, unless the lease leaves no time.
const MOST_HASTE: Duration = Duration::from_secs(2);
/// How often a claim is deleted that changes meanwhile.
const DELETIONS: usize = 3;

/// Where claims are kept.
#[derive(Debug, Clone)]
pub struct Claims {
    objects: Objects,
    lease: Duration,
    off: Arc<Mutex<Off>>,
}

/// Whether tasks are painted without claims.
#[derive(Debug, Default, Clone, Copy)]
enum Off {
    #[default]
    No,
    Until(Instant),
    ForGood,
}

/// The right to paint the pictures of one generation. It runs out by itself when it is dropped.
#[derive(Debug)]
#[must_use = "a claim that is dropped keeps others waiting until it runs out"]
pub struct Claim(Option<Held>);

#[derive(Debug)]
struct Held {
    own: Own,
    renewal: JoinHandle<()>,
}

/// A claim as its holder knows it.
#[derive(Debug, Clone)]
struct Own {
    claims: Claims,
    key: String,
    owner: Uuid,
    state: Arc<Mutex<State>>,
}

#[derive(Debug, Clone)]
struct State {
    /// The entity tag of the last write that is known.
    tag: String,
    count: u64,
    /// When the last write was begun that is known to be done.
    renewed: Instant,
    /// It is somebody else's.
    is_lost: bool,
}

impl Claims {
    /// Claims in `bucket`, each good for `lease` after it was last renewed.
    pub(crate) fn new(s3: &S3Client, bucket: String, lease: Duration) -> Self {
        let timeouts = TimeoutConfig::builder()
            .connect_timeout(attempt(lease))
            .read_timeout(attempt(lease))
            .operation_attempt_timeout(attempt(lease))
            .operation_timeout(operation(lease))
            .build();
        let objects = Objects { s3: s3.with(|config| config.timeout_config(timeouts)), bucket };
        Self { objects, lease, off: Arc::default() }
    }

    /// Takes the claim on a generation. Waits for as long as another delivery holds it.
    ///
    /// # Errors
    /// S3 does not answer, or refuses for now: its code, and a sentence.
    pub async fn take(&self, generation_id: i64) -> Result<Claim, String> {
        if self.is_off() {
            return Ok(Claim(None));
        }
        let (key, owner) = (format!("claims/gen_{generation_id}"), Uuid::new_v4());
        let (mut condition, mut count) = (Condition::Absent, 0);
        let mut seen: Option<(String, Instant)> = None;
        let mut nothing_since: Option<Instant> = None;
        let mut is_told = false;
        loop {
            let asked = Instant::now();
            count += 1;
            let (now, unknown) = match self.objects.write(&key, Mark { owner, count }, &condition).await {
                Written::Done(tag) => return Ok(self.hold(key, Mark { owner, count }, tag, asked)),
                Written::Forbidden(error) => return Ok(self.without(&error, Off::Until(asked + self.lease))),
                Written::Unsupported(error) => return Ok(self.without(&error, Off::ForGood)),
                Written::Refused(now) => (now, None),
                Written::Conflict(_) => (None, None),
                Written::Unknown(error) => (None, Some(error)),
            };
            condition = Condition::Absent;
            let (tag, modified) = match (self.objects.look(&key).await, unknown) {
                // The answer to our own write was lost.
                (Ok(Look::Held { tag, mark: Some(mark), .. }), _) if mark.owner == owner => {
                    return Ok(self.hold(key, Mark { owner, count }, tag, asked));
                }
                (Ok(Look::Held { tag, modified, .. }), _) => (tag, modified),
                (_, Some(error)) | (Err(error), None) => return Err(error),
                // It was let go of just now, or another write was in the way.
                (Ok(Look::Nothing(why)), None) => {
                    let since = *nothing_since.get_or_insert(asked);
                    if since.elapsed() >= self.lease {
                        return Err(format!("it can neither be written nor be seen: {why}"));
                    }
                    if since < asked {
                        sleep(self.poll()).await;
                    }
                    continue;
                }
            };
            nothing_since = None;
            let since = seen.take().filter(|(known, _)| *known == tag).map_or_else(Instant::now, |(_, since)| since);
            let age = now.zip(modified).and_then(|(now, modified)| now.duration_since(modified).ok());
            if since.elapsed() >= self.lease || age.is_some_and(|age| age >= self.lease + SKEW) {
                tracing::info!("the claim's holder has died: taking it over");
                condition = Condition::Unchanged(tag);
                continue;
            }
            if !std::mem::replace(&mut is_told, true) {
                tracing::info!("another delivery of this task is being worked on: waiting for it");
            }
            seen = Some((tag, since));
            sleep(self.poll()).await;
        }
    }

    fn poll(&self) -> Duration {
        POLL.min(self.lease / 4)
    }

    fn is_off(&self) -> bool {
        match *self.off.lock().unwrap_or_else(PoisonError::into_inner) {
            Off::No => false,
            Off::Until(time) => Instant::now() < time,
            Off::ForGood => true,
        }
    }

    /// No claim, now and for as long as said.
    fn without(&self, error: &str, off: Off) -> Claim {
        let again_in_s = matches!(off, Off::Until(_)).then_some(self.lease.as_secs());
        tracing::warn!(error, again_in_s, "no claims: a task that is delivered twice at once may be painted twice");
        *self.off.lock().unwrap_or_else(PoisonError::into_inner) = off;
        Claim(None)
    }

    fn hold(&self, key: String, mark: Mark, tag: String, renewed: Instant) -> Claim {
        let state = State { tag, count: mark.count, renewed, is_lost: false };
        let own = Own { claims: self.clone(), key, owner: mark.owner, state: Arc::new(Mutex::new(state)) };
        let renewing = own.clone();
        Claim(Some(Held { own, renewal: tokio::spawn(async move { renewing.renew().await }) }))
    }
}

impl Own {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Renews the claim until it is somebody else's.
    async fn renew(&self) {
        let Claims { objects, lease, .. } = &self.claims;
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
            let unknown = match objects.write(&self.key, Mark { owner: self.owner, count }, &condition).await {
                Written::Done(tag) => {
                    wait = *lease / 3;
                    self.renewed(tag, asked);
                    continue;
                }
                Written::Refused(_) => None,
                Written::Conflict(error)
                | Written::Unknown(error)
                | Written::Forbidden(error)
                | Written::Unsupported(error) => Some(error),
            };
            let error = match objects.look(&self.key).await {
                // The answer to this write was lost.
                Ok(Look::Held { tag, mark: Some(mark), .. }) if mark == (Mark { owner: self.owner, count }) => {
                    wait = *lease / 3;
                    self.renewed(tag, asked);
                    continue;
                }
                // An earlier one came late.
                Ok(Look::Held { tag, mark: Some(mark), .. }) if mark.owner == self.owner => {
                    self.state().tag = tag;
                    unknown
                }
                Ok(Look::Held { .. }) => {
                    tracing::warn!("the claim was taken over: this process was too slow to renew it");
                    self.state().is_lost = true;
                    return;
                }
                Ok(Look::Nothing(why)) => {
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
        let Claims { objects, lease, .. } = &self.claims;
        let State { tag, renewed, is_lost, .. } = self.state().clone();
        if is_lost {
            return;
        }
        // Not every bucket heeds the condition. Within the lease nobody else's claim can lie there.
        let mut known = (renewed.elapsed() < *lease).then_some(tag);
        let mut reason = String::new();
        for _ in 0..DELETIONS {
            let tag = match known.take() {
                Some(tag) => tag,
                None => match objects.look(&self.key).await {
                    Ok(Look::Held { tag, mark: Some(mark), .. }) if mark.owner == self.owner => tag,
                    // It has a successor, or is gone.
                    Ok(_) => return,
                    Err(error) => {
                        reason = error;
                        break;
                    }
                },
            };
            let mut deleted = objects.delete(&self.key, Some(&tag)).await;
            if matches!(deleted, Deleted::Unsupported) {
                deleted = objects.delete(&self.key, None).await;
            }
            match deleted {
                Deleted::Done => return,
                Deleted::Unknown(error) => reason = error,
                Deleted::Unsupported => break,
            }
        }
        tracing::warn!(error = reason, "the claim was not deleted, it will run out");
    }
}

impl Claim {
    /// Lets go, so that another delivery need not wait.
    pub async fn release(mut self) {
        let Some(held) = self.0.take() else { return };
        held.renewal.abort();
        held.own.delete().await;
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.renewal.abort();
    }
}

/// How long one try of a request may take.
fn attempt(lease: Duration) -> Duration {
    (lease / 6).max(MOST_HASTE.min(lease / 3))
}

/// How long a request may take with all its tries: a renewal begins after a third of the lease.
fn operation(lease: Duration) -> Duration {
    (attempt(lease) * 2).min(lease * 3 / 5)
}

#[cfg(test)]
mod tests;
