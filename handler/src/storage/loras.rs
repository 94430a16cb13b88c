//! LoRAs and textual inversions that are ready to apply: the last few stay parsed in memory, their files on the volume.
//!
//! Concurrent tasks with the same file parse it once. A cached file that does not parse is downloaded again. A downloaded file that does
//! not parse is the task's fault.

use super::StoreError;
use crate::{
    observe::{CacheMetrics, report::Found},
    storage::cache::{Body, Cache, Content, ObjectLocation, ObjectSource, SourceError, Version},
};
use diffusion::{
    lora::{Lora, LoraError},
    prompt::inversion::{InversionError, TextualInversion},
};
use std::{
    error::Error,
    io::{self, Cursor, Read, Seek},
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tokio::sync::OnceCell;

/// How often a file may be replaced while it is read.
const MAX_CHANGES: usize = 3;

/// A kind of file that a task names.
pub(super) trait TaskFile: Sized + Send + Sync + 'static {
    /// Why its content cannot be used.
    type Fault: Error + Send + 'static;
    /// The field of a task that names it.
    const FIELD: &'static str;
    /// What it is, for errors and logs.
    const NAME: &'static str;
    /// How many stay parsed in memory.
    const MAX_PARSED: usize;

    fn parse(source: &mut (impl Read + Seek), sha256: [u8; 32]) -> Result<Self, Self::Fault>;
    /// Whether the content is at fault, and no device.
    fn is_permanent(fault: &Self::Fault) -> bool;
    fn broke_off(error: tokio::task::JoinError) -> Self::Fault;
}

impl TaskFile for Lora {
    type Fault = LoraError;
    const FIELD: &'static str = "`lora_model_url`";
    const NAME: &'static str = "LoRA";
    const MAX_PARSED: usize = 4;

    fn parse(source: &mut (impl Read + Seek), sha256: [u8; 32]) -> Result<Self, LoraError> {
        Self::read_hashed(source, sha256)
    }

    fn is_permanent(fault: &LoraError) -> bool {
        fault.is_permanent()
    }

    fn broke_off(error: tokio::task::JoinError) -> LoraError {
        LoraError::Device(candle_core::Error::msg(error))
    }
}

impl TaskFile for TextualInversion {
    type Fault = InversionError;
    const FIELD: &'static str = "`textual_inversions`";
    const NAME: &'static str = "textual inversion";
    const MAX_PARSED: usize = 16;

    fn parse(source: &mut (impl Read + Seek), sha256: [u8; 32]) -> Result<Self, InversionError> {
        Self::read_hashed(source, sha256)
    }

    fn is_permanent(fault: &InversionError) -> bool {
        fault.is_permanent()
    }

    fn broke_off(error: tokio::task::JoinError) -> InversionError {
        InversionError::File(io::Error::other(error))
    }
}

/// A file that is parsed or being loaded.
type Cell<T> = Arc<OnceCell<Arc<T>>>;
/// Files in memory, the most recently used last.
type Parsed<T> = Vec<((ObjectLocation, Version), Cell<T>)>;

/// The files of one kind in one storage.
pub(super) struct ParsedCache<S, T> {
    cache: Cache<S>,
    max_bytes: u64,
    parsed: Mutex<Parsed<T>>,
}

impl<S: ObjectSource, T: TaskFile> ParsedCache<S, T> {
    pub(super) fn new(cache: Cache<S>, max_bytes: u64) -> Self {
        Self { cache, max_bytes, parsed: Mutex::default() }
    }

    /// Counters of the file cache.
    pub(super) fn cache_metrics(&self) -> &CacheMetrics {
        self.cache.metrics()
    }

    /// The file in its current version, and where it was found. Errors as of [`super::Store::lora`].
    pub(super) async fn get(&self, bucket: &str, key: &str) -> Result<(Arc<T>, Found), StoreError> {
        let (name, field) = (T::NAME, T::FIELD);
        let location = ObjectLocation { bucket: bucket.to_string(), key: key.to_string() };
        let mut changed = None;
        for _ in 0..MAX_CHANGES {
            let version = self.cache.source().version(&location).await?;
            if changed.as_ref() == Some(&version) {
                let reason = "the storage says that another version lies there than the one that it names itself: its ETag \
                              does not come through, look for a proxy";
                return Err(StoreError::Transient(format!("{name} s3://{bucket}/{key}: {reason}")));
            }
            if version.length > self.max_bytes {
                let (length, limit) = (version.length, self.max_bytes);
                let reason = format!("{field} s3://{bucket}/{key} has {length} bytes, the limit is {limit}");
                return Err(StoreError::Permanent(reason));
            }
            let cell = self.cell(&location, &version);
            let mut found = Found::Memory;
            match cell.get_or_try_init(|| self.load(&location, &version, &mut found)).await {
                Ok(file) => return Ok((file.clone(), found)),
                Err(LoadError::Source(SourceError::Changed)) => {
                    tracing::info!("the {name} was replaced while it was read");
                    changed = Some(version);
                }
                Err(LoadError::Source(error)) => return Err(error.into()),
                Err(LoadError::Content(error)) => {
                    let reason = format!("{field} s3://{bucket}/{key}: {error}");
                    let permanent = T::is_permanent(&error);
                    return Err(if permanent { StoreError::Permanent(reason) } else { StoreError::Transient(reason) });
                }
            }
        }
        Err(StoreError::Transient(format!(
            "{name} s3://{bucket}/{key} was replaced {MAX_CHANGES} times while it was read"
        )))
    }

    /// The cell of this version, made the most recently used. Tasks that wait for a cell that is dropped here still get its file.
    fn cell(&self, location: &ObjectLocation, version: &Version) -> Cell<T> {
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = parsed.iter().position(|((at, what), _)| at == location && what == version);
        let entry = match known {
            Some(index) => parsed.remove(index),
            None => ((location.clone(), version.clone()), Cell::default()),
        };
        let cell = entry.1.clone();
        parsed.push(entry);
        if parsed.len() > T::MAX_PARSED {
            parsed.remove(0);
        }
        cell
    }

    async fn load(
        &self,
        location: &ObjectLocation,
        version: &Version,
        found: &mut Found,
    ) -> Result<Arc<T>, LoadError<T::Fault>> {
        let clock = Instant::now();
        let content = self.cache.fetch(location, version).await?;
        let is_kept = !content.is_fresh;
        *found = if is_kept { Found::Volume } else { Found::Storage };
        let mut read = parse::<T>(content).await;
        if read.as_ref().is_err_and(T::is_permanent) {
            self.cache.discard(location, version).await;
            if is_kept {
                tracing::warn!("a kept {} cannot be read: downloaded again", T::NAME);
                self.cache_metrics().refetches.inc();
                *found = Found::Storage;
                read = parse(self.cache.fetch(location, version).await?).await;
            }
        }
        let duration_ms = clock.elapsed().as_millis() as u64;
        tracing::debug!(lora.cached = is_kept, lora.bytes = version.length, duration_ms, "{}", T::NAME);
        read.map(Arc::new).map_err(LoadError::Content)
    }
}

#[derive(Debug, thiserror::Error)]
enum LoadError<E: Error> {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error("{0}")]
    Content(E),
}

/// Parses the file while its lock is held, so that it is not evicted.
async fn parse<T: TaskFile>(content: Content) -> Result<T, T::Fault> {
    let parsed = tokio::task::spawn_blocking(move || match content.body {
        Body::File(mut file, _lock) => T::parse(&mut file, content.sha256),
        Body::Memory(bytes) => T::parse(&mut Cursor::new(bytes), content.sha256),
    });
    parsed.await.unwrap_or_else(|error| Err(T::broke_off(error)))
}

#[cfg(test)]
mod tests;
