//! Files from object storage, kept on the volume that processes share.
//!
//! An entry is named by what it holds: bucket, key, ETag and version. Two styles with one file name never meet, and a replaced
//! file is fetched again. Whoever needs a file that is missing takes its lock and downloads it; everybody else, in this process
//! or another, waits for that lock and finds the entry. A volume that cannot keep a file is no fault of the task: the file is then
//! read into memory. The cache refuses to hand out bytes whose SHA-256 is not the one that the download had.

mod download;
mod entry;
mod lock;
mod room;
mod source;

pub use download::Parts;
pub(crate) use download::{DownloadError, patiently, sound};
pub(crate) use entry::hash;
pub(crate) use lock::{Kind, Lock};
pub use room::Limits;
pub(crate) use room::free_bytes;
pub use source::{Place, Source, SourceError, Version};

use crate::observe::CacheMetrics;
use entry::{Paths, Record, Volume};
use futures_util::FutureExt;
use std::{
    fs::File,
    io,
    path::PathBuf,
    sync::{Arc, Once},
    thread,
    time::Duration,
};
use tokio::sync::oneshot;

/// How long another process may take over its download before this one goes its own way.
const PATIENCE: Duration = Duration::from_secs(180);
/// How often an entry may vanish between two locks before the volume is given up for this file.
const ROUNDS: usize = 4;

/// The cache of one folder.
pub struct Cache<S> {
    source: S,
    volume: Arc<Volume>,
    parts: Parts,
    limits: Limits,
    patience: Duration,
    tally: CacheMetrics,
    warned: Once,
}

/// A file's bytes and what is known of them.
#[derive(Debug)]
pub struct Content {
    /// SHA-256 of the whole.
    pub sha256: [u8; 32],
    /// Whether it was downloaded just now.
    pub is_fresh: bool,
    /// The bytes.
    pub body: Body,
}

/// Where the bytes are.
#[derive(Debug)]
pub enum Body {
    /// On the volume. It is not evicted while the lock is held; a read-only volume has none.
    File(File, Option<Lock>),
    /// In memory, because the volume could not keep them.
    Memory(Vec<u8>),
}

impl<S: Source> Cache<S> {
    /// A cache in `folder`, which need not exist. Touches nothing.
    pub fn new(source: S, folder: PathBuf, parts: Parts, limits: Limits) -> Self {
        let (volume, tally) = (Arc::new(Volume::new(folder)), CacheMetrics::default());
        Self { source, volume, parts, limits, patience: PATIENCE, tally, warned: Once::new() }
    }

    /// What it has done so far.
    pub fn tally(&self) -> &CacheMetrics {
        &self.tally
    }

    /// Where its files come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// This version of the file.
    ///
    /// # Errors
    /// The source's, and a content that does not have the checksum that the source tells. Never the volume's.
    pub async fn fetch(&self, place: &Place, version: &Version) -> Result<Content, SourceError> {
        match self.on_volume(place, version).await {
            Ok(content) => Ok(content),
            Err(DownloadError::Source(error)) => Err(error),
            Err(DownloadError::Volume(error)) => {
                self.warned.call_once(|| {
                    let folder = self.volume.folder().display();
                    tracing::warn!(%error, %folder, "the volume keeps no more files: they are read into memory");
                });
                tracing::debug!(%error, "read into memory");
                self.read_to_memory(place, version).await
            }
        }
    }

    async fn read_to_memory(&self, place: &Place, version: &Version) -> Result<Content, SourceError> {
        let room = || futures_util::future::ready(Ok(Vec::new())).boxed();
        match sound(&self.source, place, version, self.parts, &self.tally, room).await {
            Ok((sha256, bytes)) => Ok(Content { sha256, is_fresh: true, body: Body::Memory(bytes) }),
            Err(DownloadError::Source(error)) => Err(error),
            // Memory does not fail so: only a thread that could not be had.
            Err(DownloadError::Volume(error)) => Err(SourceError::Transient(error.to_string())),
        }
    }

    /// Forgets an entry whose content turned out to be useless.
    pub async fn discard(&self, place: &Place, version: &Version) {
        let paths = self.volume.paths(place, version);
        let Ok(lock) = Lock::wait(&paths.lock, Kind::Exclusive, self.patience).await else { return };
        let volume = self.volume.clone();
        // What cannot be removed is found corrupt again.
        let _ = blocking(move || volume.remove(&paths, lock)).await;
    }

    async fn on_volume(&self, place: &Place, version: &Version) -> Result<Content, DownloadError> {
        let paths = self.volume.paths(place, version);
        if let Err(error) = self.volume.prepare() {
            return Ok(self.unlocked(&paths).await?.ok_or(error)?);
        }
        for _ in 0..ROUNDS {
            let lock = match Lock::wait(&paths.lock, Kind::Shared, self.patience).await {
                Ok(lock) => lock,
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return Err(error.into()),
                Err(error) => return Ok(self.unlocked(&paths).await?.ok_or(error)?),
            };
            if let Some((file, sha256)) = self.find(&paths).await? {
                return Ok(Content { sha256, is_fresh: false, body: Body::File(file, Some(lock)) });
            }
            drop(lock);
            let lock = Lock::wait(&paths.lock, Kind::Exclusive, self.patience).await?;
            if self.find(&paths).await?.is_none() {
                return self.download(place, version, paths, lock).await;
            }
        }
        Err(io::Error::other("other processes evict the entry as fast as it comes").into())
    }

    /// An entry of a volume on which nothing can be locked because nothing can be written.
    async fn unlocked(&self, paths: &Paths) -> io::Result<Option<Content>> {
        let found = self.find(paths).await?;
        Ok(found.map(|(file, sha256)| Content { sha256, is_fresh: false, body: Body::File(file, None) }))
    }

    async fn find(&self, paths: &Paths) -> io::Result<Option<(File, [u8; 32])>> {
        let (volume, paths) = (self.volume.clone(), paths.clone());
        blocking(move || volume.find(&paths)).await
    }

    /// Downloads under the entry's lock into a partial file, then renames, so that nobody sees half a file.
    async fn download(
        &self,
        place: &Place,
        version: &Version,
        paths: Paths,
        lock: Lock,
    ) -> Result<Content, DownloadError> {
        let target = || {
            let (volume, limits, paths, length) = (self.volume.clone(), self.limits, paths.clone(), version.length);
            let tally = self.tally.clone();
            blocking(move || room::reserve(volume.folder(), &paths, length, limits, &tally)).boxed()
        };
        let received = sound(&self.source, place, version, self.parts, &self.tally, target).await;
        if received.is_err() {
            // The download failed already; what is left over is swept by the next one.
            let _ = std::fs::remove_file(&paths.partial);
        }
        let (sha256, written) = received?;
        let record = Record::new(place, sha256, version.length);
        let volume = self.volume.clone();
        let file = blocking(move || volume.publish(&paths, written, &record, sha256)).await?;
        Ok(Content { sha256, is_fresh: true, body: Body::File(file, Some(lock)) })
    }
}

/// The disk may be a network's: nothing of it is touched on a thread that others wait for.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    tokio::task::spawn_blocking(work).await.unwrap_or_else(|error| Err(io::Error::other(error)))
}

/// The same on a thread of its own, for what may take long: the runtime waits for its blocking threads when it ends.
pub(crate) async fn aside<T: Send + 'static>(
    name: &str,
    work: impl FnOnce() -> io::Result<T> + Send + 'static,
) -> io::Result<T> {
    let (sender, receiver) = oneshot::channel();
    // An answer that nobody waits for any more is dropped.
    thread::Builder::new().name(name.into()).spawn(move || drop(sender.send(work())))?;
    receiver.await.unwrap_or_else(|_| Err(io::Error::other("the thread ended without an answer")))
}

#[cfg(test)]
pub(crate) mod fake;
#[cfg(test)]
mod tests;
