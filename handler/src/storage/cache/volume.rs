//! The cache's folder on the volume: entries, and the space that they take.
//!
//! An entry is a file and a record with its SHA-256. Each process hashes a file once and then goes by the file system (inode, size,
//! times). So the next process notices a corrupted file, and the next use notices a file that was written to.
//!
//! Kept files and downloads stay within the limit over all processes: a partial file has its full length from the start, and one
//! process at a time counts. The least recently used entry is evicted first. Locked entries, which are being read or downloaded, stay.
//! Files of processes that died are removed.

use super::{
    ObjectLocation, Version,
    lock::{Lock, LockMode},
};
use crate::observe::CacheMetrics;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::{BTreeSet, HashMap},
    ffi::OsStr,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, ErrorKind, Read, Seek},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

/// Buffer size for hashing, in bytes.
const HASH_BUFFER: usize = 1 << 20;
/// Lock for counting the space in use. No entry has this name.
const COUNT_LOCK: &str = "count.lock";
/// Bytes per block of `st_blocks`.
const BLOCK: u64 = 512;

/// The files of an entry.
#[derive(Debug, Clone)]
pub(super) struct EntryPaths {
    pub(super) data: PathBuf,
    pub(super) record: PathBuf,
    pub(super) partial: PathBuf,
    pub(super) lock: PathBuf,
}

impl EntryPaths {
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        let with = |ending: &str| folder.join(format!("{name}.{ending}"));
        Self { data: with("safetensors"), record: with("json"), partial: with("partial"), lock: with("lock") }
    }
}

/// The name of an entry, different for every content.
fn entry_name(location: &ObjectLocation, version: &Version) -> String {
    let id = version.id.as_deref().unwrap_or_default();
    hex::encode(Sha256::digest([location.bucket.as_str(), &location.key, &version.etag, id].join("\0")))
}

/// The record beside an entry's file. Its modification time is the time of the entry's last use.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct EntryRecord {
    source: String,
    sha256: String,
    bytes: u64,
}

impl EntryRecord {
    pub(super) fn new(location: &ObjectLocation, sha256: [u8; 32], bytes: u64) -> Self {
        Self { source: format!("s3://{}/{}", location.bucket, location.key), sha256: hex::encode(sha256), bytes }
    }
}

/// Identifies a file and its content by the file system's metadata.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct FileIdentity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<Metadata> for FileIdentity {
    fn from(found: Metadata) -> Self {
        Self {
            device: found.dev(),
            inode: found.ino(),
            size: found.size(),
            modified: (found.mtime(), found.mtime_nsec()),
            changed: (found.ctime(), found.ctime_nsec()),
        }
    }
}

/// The cache's folder, and the files in it that this process has hashed.
pub(super) struct Volume {
    folder: PathBuf,
    verified: Mutex<HashMap<PathBuf, (FileIdentity, [u8; 32])>>,
}

impl Volume {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, verified: Mutex::default() }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn paths(&self, location: &ObjectLocation, version: &Version) -> EntryPaths {
        EntryPaths::new(&self.folder, &entry_name(location, version))
    }

    /// Creates the folder.
    pub(super) fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)
    }

    /// Opens an entry, with its SHA-256. `None` if it is missing or corrupt: both are fixed by a download.
    pub(super) fn find(&self, paths: &EntryPaths) -> io::Result<Option<(File, [u8; 32])>> {
        let Some(record) = absent_is_none(fs::read(&paths.record))? else { return Ok(None) };
        let Some(mut file) = absent_is_none(File::open(&paths.data))? else { return Ok(None) };
        let identity = FileIdentity::from(file.metadata()?);
        let known = self.verified().get(&paths.data).filter(|(known, _)| *known == identity).map(|(_, sha256)| *sha256);
        let record = serde_json::from_slice::<EntryRecord>(&record).ok().filter(|record| record.bytes == identity.size);
        let sha256 = match (record, known) {
            (None, _) => None,
            (Some(_), Some(sha256)) => Some(sha256),
            (Some(record), None) => Some(hash(&mut file)?).filter(|sha256| hex::encode(sha256) == record.sha256),
        };
        let Some(sha256) = sha256 else {
            tracing::warn!(entry = %paths.data.display(), "a kept file is corrupt: downloaded again");
            return Ok(None);
        };
        self.verified().insert(paths.data.clone(), (identity, sha256));
        // Fails on a read-only volume, where nothing is evicted.
        let _ =
            OpenOptions::new().write(true).open(&paths.record).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some((file, sha256)))
    }

    /// Turns the partial file into an entry: first the file, then the record, without which it does not count.
    pub(super) fn publish(
        &self,
        paths: &EntryPaths,
        partial: File,
        record: &EntryRecord,
        sha256: [u8; 32],
    ) -> io::Result<File> {
        partial.sync_all()?;
        // The record of the old file must not stay beside the new file.
        absent_is_none(fs::remove_file(&paths.record))?;
        fs::rename(&paths.partial, &paths.data)?;
        // Written under the partial file's name, which belongs to the holder of the lock.
        fs::write(&paths.partial, serde_json::to_vec(record)?)?;
        File::open(&paths.partial)?.sync_all()?;
        fs::rename(&paths.partial, &paths.record)?;
        File::open(&self.folder)?.sync_all()?;
        // The partial file was opened for writing only.
        let file = File::open(&paths.data)?;
        self.verified().insert(paths.data.clone(), (FileIdentity::from(file.metadata()?), sha256));
        Ok(file)
    }

    /// Removes an entry and its lock.
    pub(super) fn remove(&self, paths: &EntryPaths, lock: Lock) -> io::Result<()> {
        self.verified().remove(&paths.data);
        remove(paths, lock)
    }

    fn verified(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (FileIdentity, [u8; 32])>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes an entry. The record goes first, so that the rest does not count after a crash.
pub(super) fn remove(paths: &EntryPaths, lock: Lock) -> io::Result<()> {
    absent_is_none(fs::remove_file(&paths.record))?;
    absent_is_none(fs::remove_file(&paths.data))?;
    lock.remove()
}

pub(super) fn absent_is_none<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// SHA-256 of the whole file. The next read starts at the beginning.
pub(crate) fn hash(source: &mut (impl Read + Seek)) -> io::Result<[u8; 32]> {
    source.rewind()?;
    let (mut sum, mut chunk) = (Sha256::new(), vec![0; HASH_BUFFER]);
    loop {
        match source.read(&mut chunk)? {
            0 => break,
            count => sum.update(&chunk[..count]),
        }
    }
    source.rewind()?;
    Ok(sum.finalize().into())
}

/// How much of a volume the cache may use.
#[derive(Debug, Clone, Copy)]
pub struct CacheLimits {
    /// Most bytes of all files together.
    pub bytes: u64,
    /// Bytes of the volume that stay free.
    pub reserve: u64,
}

/// The space that the folder's files take.
#[derive(Debug, Default)]
struct Usage {
    /// Entries as (last use, bytes, name), the least recently used first.
    entries: BTreeSet<(SystemTime, u64, String)>,
    /// Bytes of downloads in progress and of locked entries.
    in_use: u64,
    /// Bytes of downloads that have no blocks on the disk yet.
    unwritten: u64,
}

/// Creates a partial file of `length` bytes, evicting entries if necessary. Only for the holder of the entry's lock.
///
/// # Errors
/// `StorageFull` if there is not enough space even without all entries that may be evicted; else an error of the volume.
pub(super) fn reserve(
    folder: &Path,
    own: &EntryPaths,
    length: u64,
    limits: CacheLimits,
    metrics: &CacheMetrics,
) -> io::Result<File> {
    let _counting = Lock::block(&folder.join(COUNT_LOCK), LockMode::Exclusive)?;
    // A thread of an abandoned download may still have the partial file open, so it is not reused.
    for leftover in [&own.partial, &own.record] {
        absent_is_none(fs::remove_file(leftover))?;
    }
    if absent_is_none(fs::remove_file(&own.data))?.is_some() {
        metrics.refetches.inc();
    }
    let mut usage = Usage::scan(folder)?;
    // Do not evict anything for a file that would not fit into an empty cache.
    if length > limits.bytes {
        return Err(full(length, limits));
    }
    while !usage.has_space(folder, length, limits)? {
        let Some((_, bytes, name)) = usage.entries.pop_first() else {
            return Err(full(length, limits));
        };
        let paths = EntryPaths::new(folder, &name);
        match Lock::attempt(&paths.lock, LockMode::Exclusive)? {
            Some(lock) => {
                remove(&paths, lock)?;
                metrics.evictions.inc();
                tracing::info!(bytes, entry = name, "evicted");
            }
            // In use, so it stays and counts.
            None => usage.in_use += bytes,
        }
    }
    let file = OpenOptions::new().write(true).create_new(true).open(&own.partial)?;
    file.set_len(length)?;
    metrics.kept_bytes.set(i64::try_from(usage.bytes().saturating_add(length)).unwrap_or(i64::MAX));
    Ok(file)
}

fn full(length: u64, limits: CacheLimits) -> io::Error {
    let CacheLimits { bytes, reserve } = limits;
    let reason = format!("no room for {length} bytes: the limit is {bytes}, and {reserve} stay free");
    io::Error::new(ErrorKind::StorageFull, reason)
}

impl Usage {
    /// Lists the folder, and removes files of processes that died.
    fn scan(folder: &Path) -> io::Result<Self> {
        let mut usage = Self::default();
        for found in fs::read_dir(folder)? {
            let path = found?.path();
            let (Some(name), Some(ending)) =
                (path.file_stem().and_then(OsStr::to_str), path.extension().and_then(OsStr::to_str))
            else {
                continue;
            };
            // Another process may have removed it.
            let Some(metadata) = absent_is_none(fs::metadata(&path))? else { continue };
            let paths = EntryPaths::new(folder, name);
            match ending {
                "safetensors" => {
                    let record = absent_is_none(fs::metadata(&paths.record).and_then(|record| record.modified()))?;
                    let used = record.unwrap_or(SystemTime::UNIX_EPOCH);
                    usage.entries.insert((used, metadata.size(), name.to_string()));
                }
                "partial" if !remove_leftover(&paths, &path)? => {
                    usage.in_use += metadata.size();
                    usage.unwritten += metadata.size().saturating_sub(metadata.blocks() * BLOCK);
                }
                "lock" if path.file_name() != Some(OsStr::new(COUNT_LOCK)) && !paths.data.exists() => {
                    remove_leftover(&paths, &paths.partial)?;
                }
                _ => {}
            }
        }
        Ok(usage)
    }

    /// Bytes of all files.
    fn bytes(&self) -> u64 {
        let kept: u64 = self.entries.iter().map(|(_, bytes, _)| bytes).sum();
        kept.saturating_add(self.in_use)
    }

    fn has_space(&self, folder: &Path, length: u64, limits: CacheLimits) -> io::Result<bool> {
        if self.bytes().saturating_add(length) > limits.bytes {
            return Ok(false);
        }
        let free = free_bytes(folder)?.saturating_sub(self.unwritten);
        Ok(free >= length.saturating_add(limits.reserve))
    }
}

/// Free bytes on the volume of this folder, for unprivileged users.
pub(crate) fn free_bytes(folder: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(folder)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}

/// Removes a leftover file and its lock, unless a live process holds the lock. Returns whether it did.
fn remove_leftover(paths: &EntryPaths, leftover: &Path) -> io::Result<bool> {
    let Some(lock) = Lock::attempt(&paths.lock, LockMode::Exclusive)? else { return Ok(false) };
    absent_is_none(fs::remove_file(leftover))?;
    // The lock file of an entry stays as long as the entry.
    if !paths.data.exists() {
        lock.remove()?;
    }
    Ok(true)
}
