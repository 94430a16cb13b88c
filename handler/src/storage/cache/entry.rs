//! One entry on the volume: the file, and beside it a record with its SHA-256. An entry without a record is none.
//!
//! The whole is hashed once per process and file as the file system knows it (inode, size, times): a later use costs a look at
//! these. So a disk that spoils a file is noticed by the next process, and whatever writes to it by the next use.

use super::{
    lock::Lock,
    source::{self, Place, Version},
};
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};
use std::{
    collections::HashMap,
    fs::{self, File, Metadata, OpenOptions},
    io::{self, ErrorKind, Read, Seek},
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    sync::{Mutex, PoisonError},
    time::SystemTime,
};

/// How much is hashed at once, in bytes.
const CHUNK: usize = 1 << 20;

/// The files of an entry.
#[derive(Debug, Clone)]
pub(super) struct Paths {
    pub(super) data: PathBuf,
    pub(super) record: PathBuf,
    pub(super) partial: PathBuf,
    pub(super) lock: PathBuf,
}

impl Paths {
    pub(super) fn new(folder: &Path, name: &str) -> Self {
        let with = |ending: &str| folder.join(format!("{name}.{ending}"));
        Self { data: with("safetensors"), record: with("json"), partial: with("partial"), lock: with("lock") }
    }
}

/// What stands beside the file. Its modification time is that of the entry's last use.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Record {
    source: String,
    sha256: String,
    bytes: u64,
}

impl Record {
    pub(super) fn new(place: &Place, sha256: [u8; 32], bytes: u64) -> Self {
        Self { source: format!("s3://{}/{}", place.bucket, place.key), sha256: hex::encode(sha256), bytes }
    }
}

/// A file as the file system knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Identity {
    device: u64,
    inode: u64,
    size: u64,
    modified: (i64, i64),
    changed: (i64, i64),
}

impl From<Metadata> for Identity {
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

/// The folder, and which of its files this process has hashed.
pub(super) struct Volume {
    folder: PathBuf,
    verified: Mutex<HashMap<PathBuf, (Identity, [u8; 32])>>,
}

impl Volume {
    pub(super) fn new(folder: PathBuf) -> Self {
        Self { folder, verified: Mutex::default() }
    }

    pub(super) fn folder(&self) -> &Path {
        &self.folder
    }

    pub(super) fn paths(&self, place: &Place, version: &Version) -> Paths {
        Paths::new(&self.folder, &source::name(place, version))
    }

    /// Makes the folder.
    pub(super) fn prepare(&self) -> io::Result<()> {
        fs::create_dir_all(&self.folder)
    }

    /// The entry, opened, with its SHA-256; `None` if there is none or it is corrupt, which is to be mended alike.
    pub(super) fn find(&self, paths: &Paths) -> io::Result<Option<(File, [u8; 32])>> {
        let Some(record) = absent_is_none(fs::read(&paths.record))? else { return Ok(None) };
        let Some(mut file) = absent_is_none(File::open(&paths.data))? else { return Ok(None) };
        let identity = Identity::from(file.metadata()?);
        let known = self.verified().get(&paths.data).filter(|(known, _)| *known == identity).map(|(_, sha256)| *sha256);
        let record = serde_json::from_slice::<Record>(&record).ok().filter(|record| record.bytes == identity.size);
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
        // On a read-only volume nobody evicts either.
        let _ =
            OpenOptions::new().write(true).open(&paths.record).and_then(|file| file.set_modified(SystemTime::now()));
        Ok(Some((file, sha256)))
    }

    /// Turns the partial file into the entry: first the bytes, then the record that makes them count.
    pub(super) fn publish(&self, paths: &Paths, partial: File, record: &Record, sha256: [u8; 32]) -> io::Result<File> {
        partial.sync_all()?;
        // A record of older bytes must not vouch for these.
        absent_is_none(fs::remove_file(&paths.record))?;
        fs::rename(&paths.partial, &paths.data)?;
        // Under the name of the partial file, which the holder of the lock may use.
        fs::write(&paths.partial, serde_json::to_vec(record)?)?;
        File::open(&paths.partial)?.sync_all()?;
        fs::rename(&paths.partial, &paths.record)?;
        File::open(&self.folder)?.sync_all()?;
        // The handle that wrote cannot read.
        let file = File::open(&paths.data)?;
        self.verified().insert(paths.data.clone(), (Identity::from(file.metadata()?), sha256));
        Ok(file)
    }

    /// Removes an entry and its lock.
    pub(super) fn remove(&self, paths: &Paths, lock: Lock) -> io::Result<()> {
        self.verified().remove(&paths.data);
        remove(paths, lock)
    }

    fn verified(&self) -> std::sync::MutexGuard<'_, HashMap<PathBuf, (Identity, [u8; 32])>> {
        self.verified.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Removes an entry: the record first, so that what a crash leaves behind does not count.
pub(super) fn remove(paths: &Paths, lock: Lock) -> io::Result<()> {
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

/// SHA-256 of the whole; the next read is at the beginning.
pub(crate) fn hash(source: &mut (impl Read + Seek)) -> io::Result<[u8; 32]> {
    source.rewind()?;
    let (mut sum, mut chunk) = (Sha256::new(), vec![0; CHUNK]);
    loop {
        match source.read(&mut chunk)? {
            0 => break,
            count => sum.update(&chunk[..count]),
        }
    }
    source.rewind()?;
    Ok(sum.finalize().into())
}
