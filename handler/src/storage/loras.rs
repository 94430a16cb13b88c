//! LoRAs ready to be applied: the last few stay in memory, the files on the volume.
//!
//! Tasks that want one LoRA at a time read it once. A kept file that does not parse is downloaded once more; a file that does not parse
//! fresh from the storage is the task's fault.

use super::StoreError;
use crate::{
    observe::{CacheMetrics, report::Found},
    storage::cache::{Body, Cache, Content, Place, Source, SourceError, Version},
};
use diffusion::lora::{Lora, LoraError};
use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};
use tokio::sync::OnceCell;

/// LoRAs kept parsed in memory.
const PARSED: usize = 4;
/// How often a file may be replaced while it is read.
const CHANGES: usize = 3;

/// A LoRA in memory, or on its way there.
type Cell = Arc<OnceCell<Arc<Lora>>>;

/// The LoRAs of one storage.
pub(super) struct Loras<S> {
    cache: Cache<S>,
    max_bytes: u64,
    /// The most recently used is the last.
    parsed: Mutex<Vec<((Place, Version), Cell)>>,
}

impl<S: Source> Loras<S> {
    pub(super) fn new(cache: Cache<S>, max_bytes: u64) -> Self {
        Self { cache, max_bytes, parsed: Mutex::default() }
    }

    /// What was counted of the files.
    pub(super) fn tally(&self) -> &CacheMetrics {
        self.cache.tally()
    }

    /// What lies at this place now, and where it was found.
    ///
    /// # Errors
    /// Permanent if it does not exist, is too large, is no LoRA, or may not be read where other objects of its bucket may; else transient.
    pub(super) async fn get(&self, bucket: &str, key: &str) -> Result<(Arc<Lora>, Found), StoreError> {
        let place = Place { bucket: bucket.to_string(), key: key.to_string() };
        let mut changed = None;
        for _ in 0..CHANGES {
            let version = self.cache.source().version(&place).await?;
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
            let cell = self.cell(&place, &version);
            let mut found = Found::Memory;
            match cell.get_or_try_init(|| self.load(&place, &version, &mut found)).await {
                Ok(lora) => return Ok((lora.clone(), found)),
                Err(Fault::Source(SourceError::Changed)) => {
                    tracing::info!("the LoRA was replaced while it was read");
                    changed = Some(version);
                }
                Err(Fault::Source(error)) => return Err(error.into()),
                Err(Fault::Lora(error)) => {
                    let reason = format!("`lora_model_url` s3://{bucket}/{key}: {error}");
                    let permanent = error.is_permanent();
                    return Err(if permanent { StoreError::Permanent(reason) } else { StoreError::Transient(reason) });
                }
            }
        }
        Err(StoreError::Transient(format!("LoRA s3://{bucket}/{key} was replaced {CHANGES} times while it was read")))
    }

    /// The place in memory of this version, made the most recently used. Whoever waits in one that is pushed out still gets its LoRA.
    fn cell(&self, place: &Place, version: &Version) -> Cell {
        let mut parsed = self.parsed.lock().unwrap_or_else(PoisonError::into_inner);
        let known = parsed.iter().position(|((at, what), _)| at == place && what == version);
        let entry = match known {
            Some(index) => parsed.remove(index),
            None => ((place.clone(), version.clone()), Cell::default()),
        };
        let cell = entry.1.clone();
        parsed.push(entry);
        if parsed.len() > PARSED {
            parsed.remove(0);
        }
        cell
    }

    async fn load(&self, place: &Place, version: &Version, found: &mut Found) -> Result<Arc<Lora>, Fault> {
        let clock = Instant::now();
        let content = self.cache.fetch(place, version).await?;
        let is_kept = !content.is_fresh;
        *found = if is_kept { Found::Volume } else { Found::Storage };
        let mut read = parse(content).await;
        if read.as_ref().is_err_and(LoraError::is_permanent) {
            self.cache.discard(place, version).await;
            if is_kept {
                tracing::warn!("a kept LoRA cannot be read: downloaded again");
                self.tally().refetches.inc();
                *found = Found::Storage;
                read = parse(self.cache.fetch(place, version).await?).await;
            }
        }
        let duration_ms = clock.elapsed().as_millis() as u64;
        tracing::debug!(lora.cached = is_kept, lora.bytes = version.length, duration_ms, "LoRA");
        Ok(Arc::new(read?))
    }
}

#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error(transparent)]
    Source(#[from] SourceError),
    #[error(transparent)]
    Lora(#[from] LoraError),
}

/// The file is not evicted before it is parsed.
async fn parse(content: Content) -> Result<Lora, LoraError> {
    let parsed = tokio::task::spawn_blocking(move || match content.body {
        Body::File(mut file, _lock) => Lora::read_hashed(&mut file, content.sha256),
        Body::Memory(bytes) => Lora::read_hashed(&mut std::io::Cursor::new(bytes), content.sha256),
    });
    parsed.await.unwrap_or_else(|error| Err(LoraError::Device(candle_core::Error::msg(error))))
}

#[cfg(test)]
mod tests;
