//! A storage in memory for tests, which records reads and injects faults.

use super::{Cache, CacheLimits, DownloadOptions, ObjectLocation, ObjectSource, SourceError, Version};
use futures_util::{FutureExt, future::BoxFuture};
use md5::{Digest, Md5};
use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

/// A fault of one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ReadFault {
    /// An error 5xx, or a connection that breaks.
    Lost,
    /// The body ends early.
    Short,
    /// One bit of the body is flipped.
    Flipped,
    /// The condition fails, though the ETag is right.
    Unmatched,
}

#[derive(Clone, Default)]
pub(crate) struct FakeSource {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    files: HashMap<String, (Vec<u8>, Version)>,
    faults: VecDeque<ReadFault>,
    /// Replaces an object after the next read.
    replacement: Option<(String, Vec<u8>)>,
    reads: Vec<Range<u64>>,
    concurrent: usize,
    max_concurrent: usize,
}

pub(crate) const DOWNLOAD_OPTIONS: DownloadOptions =
    DownloadOptions { part_bytes: 64, parallel: 4, first_delay: Duration::from_millis(1) };
pub(crate) const LIMITS: CacheLimits = CacheLimits { bytes: 1 << 20, reserve: 0 };

pub(crate) fn location(key: &str) -> ObjectLocation {
    ObjectLocation { bucket: "models".into(), key: key.into() }
}

/// Bytes in which no two parts are the same.
pub(crate) fn content(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + index / 64) as u8).collect()
}

impl FakeSource {
    pub(crate) fn with(key: &str, bytes: &[u8]) -> Self {
        let fake = Self::default();
        fake.put(key, bytes);
        fake
    }

    pub(crate) fn put(&self, key: &str, bytes: &[u8]) {
        let md5: [u8; 16] = Md5::digest(bytes).into();
        let etag = format!("\"{:032x}\"", u128::from_be_bytes(md5));
        let version = Version { etag, length: bytes.len() as u64, md5: Some(md5), ..Version::default() };
        self.put_as(key, bytes, version);
    }

    pub(crate) fn put_as(&self, key: &str, bytes: &[u8], version: Version) {
        self.shared.lock().unwrap().files.insert(key.into(), (bytes.to_vec(), version));
    }

    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = ReadFault>) {
        self.shared.lock().unwrap().faults.extend(faults);
    }

    pub(crate) fn replace_after_next_read(&self, key: &str, bytes: &[u8]) {
        self.shared.lock().unwrap().replacement = Some((key.into(), bytes.to_vec()));
    }

    pub(crate) fn now(&self, key: &str) -> Version {
        self.shared.lock().unwrap().files[key].1.clone()
    }

    pub(crate) fn reads(&self) -> Vec<Range<u64>> {
        self.shared.lock().unwrap().reads.clone()
    }

    pub(crate) fn max_concurrent(&self) -> usize {
        self.shared.lock().unwrap().max_concurrent
    }

    pub(crate) fn cache(&self, folder: &Path) -> Cache<Self> {
        Cache::new(self.clone(), folder.to_owned(), DOWNLOAD_OPTIONS, LIMITS)
    }

    fn answer(&self, location: &ObjectLocation, version: &Version, range: Range<u64>) -> Result<Vec<u8>, SourceError> {
        let mut shared = self.shared.lock().unwrap();
        let (bytes, there) = shared.files[&location.key].clone();
        if there.etag != version.etag {
            return Err(SourceError::Changed);
        }
        let mut bytes = bytes[range.start as usize..range.end as usize].to_vec();
        match shared.faults.pop_front() {
            None => {}
            Some(ReadFault::Unmatched) => return Err(SourceError::Changed),
            Some(ReadFault::Lost) => return Err(SourceError::Transient("503".into())),
            Some(ReadFault::Short) => bytes.truncate(bytes.len() / 2),
            Some(ReadFault::Flipped) => bytes[0] ^= 1,
        }
        let replacement = shared.replacement.take();
        drop(shared);
        if let Some((key, bytes)) = replacement {
            self.put(&key, &bytes);
        }
        Ok(bytes)
    }
}

impl ObjectSource for FakeSource {
    fn name_of(&self, location: &ObjectLocation) -> String {
        format!("`lora_model_url` s3://{}/{}", location.bucket, location.key)
    }

    fn version<'a>(&'a self, location: &'a ObjectLocation) -> BoxFuture<'a, Result<Version, SourceError>> {
        async { Ok(self.now(&location.key)) }.boxed()
    }

    fn read<'a>(
        &'a self,
        location: &'a ObjectLocation,
        version: &'a Version,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Vec<u8>, SourceError>> {
        async move {
            {
                let mut shared = self.shared.lock().unwrap();
                shared.reads.push(range.clone());
                shared.concurrent += 1;
                shared.max_concurrent = shared.max_concurrent.max(shared.concurrent);
            }
            // Let other reads start meanwhile.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            self.shared.lock().unwrap().concurrent -= 1;
            self.answer(location, version, range)
        }
        .boxed()
    }
}
