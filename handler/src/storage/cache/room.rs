//! Room on the volume: what may be taken, and what must go for it.
//!
//! Kept and arriving files together stay within the limit, whichever process they belong to: arriving ones have their whole length from the
//! start, and one process at a time counts. The least recently used goes first; what is locked, because it is read or downloaded,
//! never goes. Files of processes that died are swept.

use super::{
    entry::{self, Paths, absent_is_none},
    lock::{Kind, Lock},
};
use crate::observe::CacheMetrics;
use std::{
    collections::BTreeSet,
    ffi::OsStr,
    fs::{self, File, OpenOptions},
    io::{self, ErrorKind},
    os::unix::fs::MetadataExt,
    path::Path,
    time::SystemTime,
};

/// The lock of whoever counts. No entry has this name.
const COUNT: &str = "count.lock";
/// What a block of `st_blocks` has, in bytes.
const BLOCK: u64 = 512;

/// How much of a volume may be used.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Bytes of all files together.
    pub bytes: u64,
    /// Bytes of the volume that stay free.
    pub reserve: u64,
}

/// What lies in the folder.
#[derive(Debug, Default)]
struct Stock {
    /// Entries: last use, bytes, name. The least recently used is the first.
    entries: BTreeSet<(SystemTime, u64, String)>,
    /// Bytes of files that are being downloaded.
    arriving: u64,
    /// What of them has no blocks yet.
    unwritten: u64,
}

/// A new partial file of `length` bytes, for the holder of the entry's lock.
///
/// # Errors
/// `StorageFull` if there is no room even when all that may go is gone; else the volume's.
pub(super) fn reserve(
    folder: &Path,
    own: &Paths,
    length: u64,
    limits: Limits,
    tally: &CacheMetrics,
) -> io::Result<File> {
    let _counting = Lock::block(&folder.join(COUNT), Kind::Exclusive)?;
    // Never written to again: a thread of a download that was given up may still have it open.
    for left_over in [&own.partial, &own.record] {
        absent_is_none(fs::remove_file(left_over))?;
    }
    if absent_is_none(fs::remove_file(&own.data))?.is_some() {
        tally.refetches.inc();
    }
    let mut stock = Stock::take(folder)?;
    // Nothing goes for a file that would not fit into an empty cache.
    if length > limits.bytes {
        return Err(full(length, limits));
    }
    while !stock.has_room(folder, length, limits)? {
        let Some((_, bytes, name)) = stock.entries.pop_first() else {
            let reason =
                format!("no room for {length} bytes: the limit is {}, {} stay free", limits.bytes, limits.reserve);
            return Err(io::Error::new(ErrorKind::StorageFull, reason));
        };
        let paths = Paths::new(folder, &name);
        match Lock::attempt(&paths.lock, Kind::Exclusive)? {
            Some(lock) => {
                entry::remove(&paths, lock)?;
                tally.evictions.inc();
                tracing::info!(bytes, entry = name, "evicted");
            }
            // In use: it stays, and it counts.
            None => stock.arriving += bytes,
        }
    }
    let file = OpenOptions::new().write(true).create_new(true).open(&own.partial)?;
    file.set_len(length)?;
    tally.kept_bytes.set(i64::try_from(stock.bytes().saturating_add(length)).unwrap_or(i64::MAX));
    Ok(file)
}

fn full(length: u64, limits: Limits) -> io::Error {
    let Limits { bytes, reserve } = limits;
    let reason = format!("no room for {length} bytes: the limit is {bytes}, and {reserve} stay free");
    io::Error::new(ErrorKind::StorageFull, reason)
}

impl Stock {
    /// Looks around, and sweeps what belongs to nobody.
    fn take(folder: &Path) -> io::Result<Self> {
        let mut stock = Self::default();
        for found in fs::read_dir(folder)? {
            let path = found?.path();
            let (Some(name), Some(ending)) =
                (path.file_stem().and_then(OsStr::to_str), path.extension().and_then(OsStr::to_str))
            else {
                continue;
            };
            // Another process may be faster.
            let Some(metadata) = absent_is_none(fs::metadata(&path))? else { continue };
            let paths = Paths::new(folder, name);
            match ending {
                "safetensors" => {
                    let record = absent_is_none(fs::metadata(&paths.record).and_then(|record| record.modified()))?;
                    let used = record.unwrap_or(SystemTime::UNIX_EPOCH);
                    stock.entries.insert((used, metadata.size(), name.to_string()));
                }
                "partial" if !swept(&paths, &path)? => {
                    stock.arriving += metadata.size();
                    stock.unwritten += metadata.size().saturating_sub(metadata.blocks() * BLOCK);
                }
                "lock" if path.file_name() != Some(OsStr::new(COUNT)) && !paths.data.exists() => {
                    swept(&paths, &paths.partial)?;
                }
                _ => {}
            }
        }
        Ok(stock)
    }

    /// Of entries, and of files that arrive.
    fn bytes(&self) -> u64 {
        let kept: u64 = self.entries.iter().map(|(_, bytes, _)| bytes).sum();
        kept.saturating_add(self.arriving)
    }

    fn has_room(&self, folder: &Path, length: u64, limits: Limits) -> io::Result<bool> {
        if self.bytes().saturating_add(length) > limits.bytes {
            return Ok(false);
        }
        let free = free_bytes(folder)?.saturating_sub(self.unwritten);
        Ok(free >= length.saturating_add(limits.reserve))
    }
}

/// Bytes that we may still write to the volume of this folder.
pub(crate) fn free_bytes(folder: &Path) -> io::Result<u64> {
    let volume = rustix::fs::statvfs(folder)?;
    Ok(volume.f_bavail.saturating_mul(volume.f_frsize))
}

/// Removes a file that its owner, if it lived, would hold the lock of; and the lock.
fn swept(paths: &Paths, left_over: &Path) -> io::Result<bool> {
    let Some(lock) = Lock::attempt(&paths.lock, Kind::Exclusive)? else { return Ok(false) };
    absent_is_none(fs::remove_file(left_over))?;
    // An entry keeps its lock file until it goes.
    if !paths.data.exists() {
        lock.remove()?;
    }
    Ok(true)
}
