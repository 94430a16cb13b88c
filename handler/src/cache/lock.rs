//! Locks between processes that share a volume: `flock` on a file beside the entry.
//!
//! The kernel frees it when its process ends, however that is, so a crash leaves nothing locked. Two openings of one file exclude
//! each other inside a process as well. A lock file is removed only by its exclusive holder; whoever waited for a removed one
//! notices and begins again.

use std::{
    fs::{self, File, OpenOptions, TryLockError},
    io,
    os::unix::fs::MetadataExt,
    path::{Path, PathBuf},
    thread,
    time::Duration,
};
use tokio::sync::oneshot;

/// How a lock is held.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// With others who read.
    Shared,
    /// Alone.
    Exclusive,
}

/// A held lock; dropping it frees it.
#[derive(Debug)]
pub struct Lock {
    /// The kernel frees the lock when this is closed.
    _file: File,
    path: PathBuf,
}

impl Lock {
    /// The lock, if nobody is in the way.
    pub(super) fn attempt(path: &Path, kind: Kind) -> io::Result<Option<Self>> {
        loop {
            let file = open(path)?;
            let taken = match kind {
                Kind::Shared => file.try_lock_shared(),
                Kind::Exclusive => file.try_lock(),
            };
            match taken {
                Ok(()) if is_at(&file, path)? => return Ok(Some(Self { _file: file, path: path.to_owned() })),
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// The lock, on a thread that may wait for it.
    pub(super) fn block(path: &Path, kind: Kind) -> io::Result<Self> {
        loop {
            let file = open(path)?;
            match kind {
                Kind::Shared => file.lock_shared()?,
                Kind::Exclusive => file.lock()?,
            }
            if is_at(&file, path)? {
                return Ok(Self { _file: file, path: path.to_owned() });
            }
        }
    }

    /// Waits for the lock without holding up a thread of the runtime, and not for ever: its holder may be stopped.
    ///
    /// # Errors
    /// `TimedOut`, or the volume's.
    pub(super) async fn wait(path: &Path, kind: Kind, patience: Duration) -> io::Result<Self> {
        let (sender, receiver) = oneshot::channel();
        let path = path.to_owned();
        // A thread of its own: the runtime would wait for one of its blocking threads when it ends.
        thread::Builder::new().name("lock".into()).spawn(move || {
            // A lock that nobody waits for any more is freed by being dropped.
            let _ = sender.send(Self::block(&path, kind));
        })?;
        match tokio::time::timeout(patience, receiver).await {
            Ok(taken) => taken.unwrap_or_else(|_| Err(io::Error::other("the waiting thread ended"))),
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
}

fn open(path: &Path) -> io::Result<File> {
    // Writable, because a network file system asks for that before it locks exclusively.
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path)
}

/// Whether the file that was locked still is the one that others find.
fn is_at(file: &File, path: &Path) -> io::Result<bool> {
    let held = file.metadata()?;
    match fs::metadata(path) {
        Ok(there) => Ok((there.dev(), there.ino()) == (held.dev(), held.ino())),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        Err(error) => Err(error),
    }
}
