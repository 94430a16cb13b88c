//! A storage in memory that counts what is asked of it and fails as it is told.

use super::{Cache, Limits, Parts, Place, Source, SourceError, Version};
use futures_util::{FutureExt, future::BoxFuture};
use md5::{Digest, Md5};
use std::{
    collections::{HashMap, VecDeque},
    ops::Range,
    path::Path,
    sync::{Arc, Mutex},
    time::Duration,
};

/// What goes wrong with one read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// An answer of the 5xx kind, or a connection cut in the middle.
    Lost,
    /// The body ends early.
    Short,
    /// A bit flips on the way.
    Flipped,
    /// The condition is said not to hold, though it does.
    Unmatched,
}

#[derive(Clone, Default)]
pub(crate) struct Fake {
    shared: Arc<Mutex<Shared>>,
}

#[derive(Default)]
struct Shared {
    files: HashMap<String, (Vec<u8>, Version)>,
    faults: VecDeque<Fault>,
    /// Stands there after the next read.
    replacement: Option<(String, Vec<u8>)>,
    reads: Vec<Range<u64>>,
    under_way: usize,
    most_under_way: usize,
}

pub(crate) const PARTS: Parts = Parts { bytes: 64, parallel: 4, first_delay: Duration::from_millis(1) };
pub(crate) const LIMITS: Limits = Limits { bytes: 1 << 20, reserve: 0 };

pub(crate) fn place(key: &str) -> Place {
    Place { bucket: "models".into(), key: key.into() }
}

/// Bytes in which no two parts are alike.
pub(crate) fn content(length: usize) -> Vec<u8> {
    (0..length).map(|index| (index * 31 + index / 64) as u8).collect()
}

impl Fake {
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

    pub(crate) fn fail(&self, faults: impl IntoIterator<Item = Fault>) {
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

    pub(crate) fn most_under_way(&self) -> usize {
        self.shared.lock().unwrap().most_under_way
    }

    pub(crate) fn cache(&self, folder: &Path) -> Cache<Self> {
        Cache::new(self.clone(), folder.to_owned(), PARTS, LIMITS)
    }

    fn answer(&self, place: &Place, version: &Version, range: Range<u64>) -> Result<Vec<u8>, SourceError> {
        let mut shared = self.shared.lock().unwrap();
        let (bytes, there) = shared.files[&place.key].clone();
        if there.etag != version.etag {
            return Err(SourceError::Changed);
        }
        let mut bytes = bytes[range.start as usize..range.end as usize].to_vec();
        match shared.faults.pop_front() {
            None => {}
            Some(Fault::Unmatched) => return Err(SourceError::Changed),
            Some(Fault::Lost) => return Err(SourceError::Transient("503".into())),
            Some(Fault::Short) => bytes.truncate(bytes.len() / 2),
            Some(Fault::Flipped) => bytes[0] ^= 1,
        }
        let replacement = shared.replacement.take();
        drop(shared);
        if let Some((key, bytes)) = replacement {
            self.put(&key, &bytes);
        }
        Ok(bytes)
    }
}

impl Source for Fake {
    fn name_of(&self, place: &Place) -> String {
        format!("`lora_model_url` s3://{}/{}", place.bucket, place.key)
    }

    fn version<'a>(&'a self, place: &'a Place) -> BoxFuture<'a, Result<Version, SourceError>> {
        async { Ok(self.now(&place.key)) }.boxed()
    }

    fn read<'a>(
        &'a self,
        place: &'a Place,
        version: &'a Version,
        range: Range<u64>,
    ) -> BoxFuture<'a, Result<Vec<u8>, SourceError>> {
        async move {
            {
                let mut shared = self.shared.lock().unwrap();
                shared.reads.push(range.clone());
                shared.under_way += 1;
                shared.most_under_way = shared.most_under_way.max(shared.under_way);
            }
            // Others get their turn while this one is under way.
            for _ in 0..8 {
                tokio::task::yield_now().await;
            }
            self.shared.lock().unwrap().under_way -= 1;
            self.answer(place, version, range)
        }
        .boxed()
    }
}
