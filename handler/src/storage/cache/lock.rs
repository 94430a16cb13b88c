//! Locks between processes that share a volume: `flock` on a file beside the entry.
//!
//! The kernel releases a lock when its process ends, so a crash leaves nothing locked. Two openings of one file exclude each other inside
//! a process, too. Only the exclusive holder removes a lock file. Whoever waited for a removed one notices and starts again.

use super::on_own_thread;
use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    time::Duration,
};

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LockMode {
    /// Together with other readers.
    Shared,
    /// Alone.
    Exclusive,
}

/// A held lock. Dropping it releases it.
#[derive(Debug)]
pub struct Lock {
    file: File,
    path: PathBuf,
}

impl Lock {
    /// Takes the lock if it is free; `None` if not.
    pub(crate) fn attempt(path: &Path, mode: LockMode) -> io::Result<Option<Self>> {
        loop {
            let lock = Self { file: open(path)?, path: path.to_owned() };
            let taken = match mode {
                LockMode::Shared => lock.file.try_lock_shared(),
                LockMode::Exclusive => lock.file.try_lock(),
            };
            match taken {
                Ok(()) if lock.is_at_its_path()? => return Ok(Some(lock)),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Takes the lock; blocks the thread until it is free.
    pub(super) fn block(path: &Path, mode: LockMode) -> io::Result<Self> {
        loop {
            let lock = Self { file: open(path)?, path: path.to_owned() };
            match mode {
                LockMode::Shared => lock.file.lock_shared()?,
                LockMode::Exclusive => lock.file.lock()?,
            }
            if lock.is_at_its_path()? {
                return Ok(lock);
            }
        }
    }

    /// Waits for the lock on another thread, with a timeout, because its holder may hang.
    ///
    /// # Errors
    /// `TimedOut`, or an error of the volume.
    pub(crate) async fn wait(path: &Path, mode: LockMode, timeout: Duration) -> io::Result<Self> {
        let path = path.to_owned();
        // If nobody waits any more, the lock is dropped, which releases it.
        match tokio::time::timeout(timeout, on_own_thread("lock", move || Self::block(&path, mode))).await {
            Ok(taken) => taken,
            Err(_) => {
                let reason = format!("another process has held the lock of this file for {timeout:?}");
                Err(io::Error::new(io::ErrorKind::TimedOut, reason))
            }
        }
    }

    /// Removes the lock file and releases the lock. Only for an exclusive holder.
    pub(super) fn remove(self) -> io::Result<()> {
        fs::remove_file(&self.path)
    }

    /// Whether the locked file is still the one at its path.
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
        // Closing the file is not enough: a child process between fork and exec has a copy of it, and the kernel keeps the lock
        // until the last copy is closed. If unlocking fails, that is when the lock is released.
        let _ = self.file.unlock();
    }
}

fn open(path: &Path) -> io::Result<File> {
    // Writable, because network file systems require that for an exclusive lock.
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What a child process has between fork and exec: a copy of every open file.
    fn copy(lock: &Lock) -> File {
        lock.file.try_clone().unwrap()
    }

    #[test]
    fn a_copy_of_the_file_in_a_process_that_is_being_started_keeps_no_lock() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        for mode in [LockMode::Shared, LockMode::Exclusive] {
            let held = Lock::attempt(&path, mode).unwrap().unwrap();
            let copy = copy(&held);
            drop(held);
            assert!(Lock::attempt(&path, LockMode::Exclusive).unwrap().is_some(), "{mode:?}");
            drop(copy);
        }
    }

    #[test]
    fn a_lock_that_nobody_waits_for_any_more_is_freed_when_it_is_taken() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let held = Lock::block(&path, LockMode::Exclusive).unwrap();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let given_up = runtime.block_on(Lock::wait(&path, LockMode::Exclusive, Duration::from_millis(1))).unwrap_err();
        assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
        drop(held);
        // After the thread that still waits, or before it: this call must return in either case.
        drop(Lock::block(&path, LockMode::Exclusive).unwrap());
    }

    #[test]
    fn whoever_had_to_wait_for_a_lock_file_that_was_removed_locks_the_new_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.lock");
        let held = Lock::attempt(&path, LockMode::Exclusive).unwrap().unwrap();
        let stale = Lock { file: open(&path).unwrap(), path: path.clone() };
        held.remove().unwrap();
        stale.file.lock().unwrap();
        assert!(!stale.is_at_its_path().unwrap());
        assert!(Lock::attempt(&path, LockMode::Exclusive).unwrap().is_some(), "the removed one is in the way");
    }
}
