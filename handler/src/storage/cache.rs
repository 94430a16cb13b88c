//! A cache of files from object storage, on a volume that processes share.
//!
//! An entry's name is made of bucket, key, ETag and version, so files with the same name in two buckets do not collide, and a replaced
//! file is downloaded again. Whoever needs a missing file takes its lock and downloads it. All others, in this process or another, wait
//! for the lock and find the entry. If the volume cannot keep a file, the file is read into memory. Bytes are returned only with the
//! SHA-256 of the download.

mod download;
mod lock;
mod volume;

pub use download::DownloadOptions;
pub(crate) use download::{DownloadError, download_verified, with_retries};
pub(crate) use lock::{Lock, LockMode};
pub use volume::CacheLimits;
pub(crate) use volume::{free_bytes, hash};

use crate::observe::CacheMetrics;
use futures_util::{FutureExt, future::BoxFuture};
use std::{
    fs::File,
    io,
    ops::Range,
    path::PathBuf,
    sync::{Arc, Once},
    thread,
    time::Duration,
};
use tokio::sync::oneshot;
use volume::{EntryPaths, EntryRecord, Volume};

/// How long to wait for another process's download before reading the file into memory.
const LOCK_TIMEOUT: Duration = Duration::from_secs(180);
/// How often an entry may be evicted between two locks before the file is read into memory.
const MAX_ATTEMPTS: usize = 4;

/// Bucket and key of an object.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectLocation {
    /// Bucket.
    pub bucket: String,
    /// Key.
    pub key: String,
}

/// A version of an object, with what the storage knows of its content.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Version {
    /// The ETag, as the storage returned it.
    pub etag: String,
    /// The version id, if the bucket keeps versions.
    pub id: Option<String>,
    /// Length in bytes.
    pub length: u64,
    /// SHA-256 of the content, if the storage has it.
    pub sha256: Option<[u8; 32]>,
    /// MD5 of the content, if the ETag looks like one.
    pub md5: Option<[u8; 16]>,
}

/// Why an object could not be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SourceError {
    /// Trying again does not help.
    #[error("{0}")]
    Permanent(String),
    /// Trying again may help.
    #[error("{0}")]
    Transient(String),
    /// Another version is there now.
    #[error("it was replaced while it was read")]
    Changed,
}

/// The storage that the cache reads from: S3, or a fake with faults in tests.
pub trait ObjectSource: Send + Sync {
    /// The object's name in error messages, with the field or option that it comes from.
    fn name_of(&self, location: &ObjectLocation) -> String;

    /// The current version of an object.
    fn version<'a>(&'a self, location: &'a ObjectLocation) -> BoxFuture<'a, Result<Version, SourceError>>;

    /// A range of bytes of this version. A request for the whole object has no Range header.
    fn read<'a>(
        &'a self,
        location: &'a ObjectLocation,
        version: &'a Version,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Vec<u8>, SourceError>>;
}

/// The cache of one folder.
pub struct Cache<S> {
    source: S,
    volume: Arc<Volume>,
    options: DownloadOptions,
    limits: CacheLimits,
    lock_timeout: Duration,
    metrics: CacheMetrics,
    warned: Once,
}

/// The bytes of a file, with their SHA-256.
#[derive(Debug)]
pub struct Content {
    /// SHA-256 of the bytes.
    pub sha256: [u8; 32],
    /// Whether this call downloaded it.
    pub is_fresh: bool,
    /// The bytes.
    pub body: Body,
}

/// Where the bytes are.
#[derive(Debug)]
pub enum Body {
    /// On the volume. Not evicted while the lock is held. A read-only volume has no locks.
    File(File, Option<Lock>),
    /// In memory, because the volume could not keep them.
    Memory(Vec<u8>),
}

impl<S: ObjectSource> Cache<S> {
    /// A cache in `folder`, which is created by the first download.
    pub fn new(source: S, folder: PathBuf, options: DownloadOptions, limits: CacheLimits) -> Self {
        let (volume, metrics) = (Arc::new(Volume::new(folder)), CacheMetrics::default());
        Self { source, volume, options, limits, lock_timeout: LOCK_TIMEOUT, metrics, warned: Once::new() }
    }

    /// The same cache with the counters of another one, for files of another kind in the same folder.
    pub fn counting_in(self, metrics: &CacheMetrics) -> Self {
        Self { metrics: metrics.clone(), ..self }
    }

    /// Its counters.
    pub fn metrics(&self) -> &CacheMetrics {
        &self.metrics
    }

    /// The storage that its files come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// This version of a file, from the volume or from the source.
    ///
    /// # Errors
    /// The source fails, or the content does not have the source's checksum. Errors of the volume are not returned.
    pub async fn fetch(&self, location: &ObjectLocation, version: &Version) -> Result<Content, SourceError> {
        match self.on_volume(location, version).await {
            Ok(content) => Ok(content),
            Err(DownloadError::Source(error)) => Err(error),
            Err(DownloadError::Volume(error)) => {
                self.warned.call_once(|| {
                    let folder = self.volume.folder().display();
                    tracing::warn!(%error, %folder, "the volume keeps no more files: they are read into memory");
                });
                tracing::debug!(%error, "read into memory");
                self.read_to_memory(location, version).await
            }
        }
    }

    async fn read_to_memory(&self, location: &ObjectLocation, version: &Version) -> Result<Content, SourceError> {
        let target = || futures_util::future::ready(Ok(Vec::new())).boxed();
        match download_verified(&self.source, location, version, self.options, &self.metrics, target).await {
            Ok((sha256, bytes)) => Ok(Content { sha256, is_fresh: true, body: Body::Memory(bytes) }),
            Err(DownloadError::Source(error)) => Err(error),
            // Memory has no I/O errors: no thread could be started.
            Err(DownloadError::Volume(error)) => Err(SourceError::Transient(error.to_string())),
        }
    }

    /// Removes an entry with useless content.
    pub async fn discard(&self, location: &ObjectLocation, version: &Version) {
        let paths = self.volume.paths(location, version);
        let Ok(lock) = Lock::wait(&paths.lock, LockMode::Exclusive, self.lock_timeout).await else { return };
        let volume = self.volume.clone();
        // If this fails, the entry is found useless again next time.
        let _ = blocking(move || volume.remove(&paths, lock)).await;
    }

    async fn on_volume(&self, location: &ObjectLocation, version: &Version) -> Result<Content, DownloadError> {
        let paths = self.volume.paths(location, version);
        if let Err(error) = self.volume.prepare() {
            return Ok(self.unlocked(&paths).await?.ok_or(error)?);
        }
        for _ in 0..MAX_ATTEMPTS {
            let lock = match Lock::wait(&paths.lock, LockMode::Shared, self.lock_timeout).await {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error.into()),
                Err(error) => return Ok(self.unlocked(&paths).await?.ok_or(error)?),
            };
            if let Some((file, sha256)) = self.find(&paths).await? {
                return Ok(Content { sha256, is_fresh: false, body: Body::File(file, Some(lock)) });
            }
            drop(lock);
            let lock = Lock::wait(&paths.lock, LockMode::Exclusive, self.lock_timeout).await?;
            if self.find(&paths).await?.is_none() {
                return self.download(location, version, paths, lock).await;
            }
        }
        Err(io::Error::other("other processes evict the entry as fast as it comes").into())
    }

    /// An entry of a read-only volume, where nothing can be locked.
    async fn unlocked(&self, paths: &EntryPaths) -> io::Result<Option<Content>> {
        let found = self.find(paths).await?;
        Ok(found.map(|(file, sha256)| Content { sha256, is_fresh: false, body: Body::File(file, None) }))
    }

    async fn find(&self, paths: &EntryPaths) -> io::Result<Option<(File, [u8; 32])>> {
        let (volume, paths) = (self.volume.clone(), paths.clone());
        blocking(move || volume.find(&paths)).await
    }

    /// Downloads into a partial file under the entry's lock, then renames it, so that nobody reads half a file.
    async fn download(
        &self,
        location: &ObjectLocation,
        version: &Version,
        paths: EntryPaths,
        lock: Lock,
    ) -> Result<Content, DownloadError> {
        let target = || {
            let (volume, limits, paths, length) = (self.volume.clone(), self.limits, paths.clone(), version.length);
            let metrics = self.metrics.clone();
            blocking(move || volume::reserve(volume.folder(), &paths, length, limits, &metrics)).boxed()
        };
        let received = download_verified(&self.source, location, version, self.options, &self.metrics, target).await;
        if received.is_err() {
            // The download has failed already, and the next one removes leftovers.
            let _ = std::fs::remove_file(&paths.partial);
        }
        let (sha256, written) = received?;
        let record = EntryRecord::new(location, sha256, version.length);
        let volume = self.volume.clone();
        let file = blocking(move || volume.publish(&paths, written, &record, sha256)).await?;
        Ok(Content { sha256, is_fresh: true, body: Body::File(file, Some(lock)) })
    }
}

/// Runs file I/O on a blocking thread: the volume may be a network file system.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// Runs slow file I/O on its own thread: at its end, the runtime would wait for blocking threads.
pub(crate) async fn on_own_thread<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    // If nobody waits any more, the result is dropped.
    thread::Builder::new().name(name.into()).spawn(move || drop(sender.send(work())))?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the thread ended without an answer")))
}

#[cfg(test)]
pub(crate) mod fake_source;
#[cfg(test)]
mod tests;
