//! Locks between processes that share a volume: `flock` on a file beside the entry.
//!
//! Its holder frees it, and the kernel does when its process ends, however that is, so a crash leaves nothing locked. Two openings of one file exclude
//! each other inside a process as well. A lock file is removed only by its exclusive holder; whoever waited for a removed one
//! notices and begins again.

use super::aside;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// With others who read.
    Shared,
    /// Alone.
    Exclusive,
}

/// A held lock; dropping it frees it.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// The lock, if nobody is in the way.
    pub(crate) fn attempt(path: &Path, kind: Kind) -> io::Result<Option<Self>> {
        loop {
            let lock = Self { file: open(path)?, path: path.to_owned() };
            let taken = match kind {
                Kind::Shared => lock.file.try_lock_shared(),
                Kind::Exclusive => lock.file.try_lock(),
            };
            match taken {
                Ok(()) if lock.is_at_its_path()? => return Ok(Some(lock)),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// The lock, on a thread that may wait for it.
    pub(super) fn block(path: &Path, kind: Kind) -> io::Result<Self> {
        loop {
            let lock = Self { file: open(path)?, path: path.to_owned() };
            match kind {
                Kind::Shared => lock.file.lock_shared()?,
                Kind::Exclusive => lock.file.lock()?,
            }
            if lock.is_at_its_path()? {
                return Ok(lock);
            }
        }
    }

    /// Waits for the lock without holding up a thread of the runtime, and not for ever: its holder may be stopped.
    ///
    /// # Errors
    /// `TimedOut`, or the volume's.
    pub(crate) async fn wait(path: &Path, kind: Kind, patience: Duration) -> io::Result<Self> {
        let path = path.to_owned();
        // A lock that nobody waits for any more is freed by being dropped.
        match tokio::time::timeout(patience, aside("lock", move || Self::block(&path, kind))).await {
            Ok(taken) => taken,
            Err(_) => {
                let reason = format!("another process has held the lock of this file for {patience:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, reason))
            }
        }
    }

    /// Removes the lock file and frees the lock. Only for an exclusive holder.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    /// Whether the file that was locked still is the one that others find.
    fn is_at_its_path(&self) -> io::Result<bool> {
        let held = self.file.metadata()?;
        match fs::metadata(&self.path) {
            Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(error) => Err(error),
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // Closing the file would not do: a process that is being started holds a copy of it until it runs its own program, and the
        // kernel keeps the lock for as long as there is a copy. What cannot be freed here is freed when the last copy is closed.
        let _ = self.file.unlock();
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Writable, because a network file system asks for that before it locks exclusively.
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

#[cfg(test)]
mod tests;
