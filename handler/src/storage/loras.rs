//! LoRAs that are ready to apply: the last few stay parsed in memory, their files on the volume.
//!
//! Concurrent tasks with the same LoRA parse it once. A cached file that does not parse is downloaded again. A downloaded file that does
//! not parse is the task's fault.

use super::StoreError;
use crate::{
    observe::{CacheMetrics, report::Found},
    storage::cache::{Body, Cache, Content, ObjectLocation, ObjectSource, SourceError, Version},
};
use diffusion::lora::{Lora, LoraError};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tokio::sync::OnceCell;

/// Parsed LoRAs in memory.
const MAX_PARSED: usize = 4;
/// How often a file may be replaced while it is read.
const MAX_CHANGES: usize = 3;

/// A LoRA that is parsed or being loaded.
type Cell = Arc<OnceCell<Arc<Lora>>>;

/// The LoRAs of one storage.
pub(super) struct LoraCache<S> {
    cache: Cache<S>,
    max_bytes: u64,
    /// The most recently used is last.
    parsed: Mutex<Vec<((ObjectLocation, Version), Cell)>>,
}

impl<S: ObjectSource> LoraCache<S> {
    pub(super) fn new(cache: Cache<S>, max_bytes: u64) -> Self {
        Self { cache, max_bytes, parsed: Mutex::default() }
    }

    /// Counters of the file cache.
    pub(super) fn cache_metrics(&self) -> &CacheMetrics {
        self.cache.metrics()
    }

    /// The LoRA in its current version, and where it was found. Errors as of [`super::Store::lora`].
    pub(super) async fn get(&self, bucket: &str, key: &str) -> Result<(Arc<Lora>, Found), StoreError> {
        let location = ObjectLocation { bucket: bucket.to_string(), key: key.to_string() };
        let mut changed = None;
        for _ in 0..MAX_CHANGES {
            let version = self.cache.source().version(&location).await?;
            if changed.as_ref() == Some(&version) {
                let reason = "the storage says that another version lies there than the one that it names itself: its ETag \
                              does not come through, look for a proxy";
                return Err(StoreError::Transient(format!("LoRA s3://{bucket}/{key}: {reason}")));
            }
            if version.length > self.max_bytes {
                let (length, limit) = (version.length, self.max_bytes);
                let reason = format!("`lora_model_url` s3://{bucket}/{key} has {length} bytes, the limit is {limit}");
                return Err(StoreError::Permanent(reason));
            }
            let cell = self.cell(&location, &version);
            let mut found = Found::Memory;
            match cell.get_or_try_init(|| self.load(&location, &version, &mut found)).await {
                Ok(lora) => return Ok((lora.clone(), found)),
                Err(LoraLoadError::Source(SourceError::Changed)) => {
                    tracing::info!("the LoRA was replaced while it was read");
                    changed = Some(version);
                }
                Err(LoraLoadError::Source(error)) => return Err(error.into()),
                Err(LoraLoadError::Lora(error)) => {
                    let reason = format!("`lora_model_url` s3://{bucket}/{key}: {error}");
                    let permanent = error.is_permanent();
                    return Err(if permanent { StoreError::Permanent(reason) } else { StoreError::Transient(reason) });
                }
            }
        }
        Err(StoreError::Transient(format!(
            "LoRA s3://{bucket}/{key} was replaced {MAX_CHANGES} times while it was read"
        )))
    }

    /// The cell of this version, made the most recently used. Tasks that wait for a cell that is dropped here still get its LoRA.
    fn cell(&self, location: &ObjectLocation, version: &Version) -> Cell {
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = parsed.iter().position(|((at, what), _)| at == location && what == version);
        let entry = match known {
            Some(index) => parsed.remove(index),
            None => ((location.clone(), version.clone()), Cell::default()),
        };
        let cell = entry.1.clone();
        parsed.push(entry);
        if parsed.len() > MAX_PARSED {
            parsed.remove(0);
        }
        cell
    }

    async fn load(
        &self,
        location: &ObjectLocation,
        version: &Version,
        found: &mut Found,
    ) -> Result<Arc<Lora>, LoraLoadError> {
        let clock = Instant::now();
        let content = self.cache.fetch(location, version).await?;
        let is_kept = !content.is_fresh;
        *found = if is_kept { Found::Volume } else { Found::Storage };
        let mut read = parse(content).await;
        if read.as_ref().is_err_and(LoraError::is_permanent) {
            self.cache.discard(location, version).await;
            if is_kept {
                tracing::warn!("a kept LoRA cannot be read: downloaded again");
                self.cache_metrics().refetches.inc();
                *found = Found::Storage;
                read = parse(self.cache.fetch(location, version).await?).await;
            }
        }
        let duration_ms = clock.elapsed().as_millis() as u64;
        tracing::debug!(lora.cached = is_kept, lora.bytes = version.length, duration_ms, "LoRA");
        Ok(Arc::new(read?))
    }
}

#[derive(Debug, thiserror::Error)]
enum LoraLoadError {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Lora(#[from] LoraError),
}

/// Parses the file while its lock is held, so that it is not evicted.
async fn parse(content: Content) -> Result<Lora, LoraError> {
    let parsed = tokio::task::spawn_blocking(move || match content.body {
        Body::File(mut file, _lock) => Lora::read_hashed(&mut file, content.sha256),
        Body::Memory(bytes) => Lora::read_hashed(&mut std::io::Cursor::new(bytes), content.sha256),
    });
    parsed.await.unwrap_or_else(|error| Err(LoraError::Device(candle_core::Error::msg(error))))
}

#[cfg(test)]
mod tests;
