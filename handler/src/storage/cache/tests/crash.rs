//! Real processes that hold locks and are killed.

use super::{bytes, files};
use crate::{
    observe::CacheMetrics,
    storage::cache::{
        CacheLimits,
        fake_source::{FakeSource, LIMITS, content, location},
        lock::{Lock, LockMode},
        volume,
    },
};
use std::{
    fs,
    io::{BufRead, BufReader},
    os::unix::fs::MetadataExt,
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

/// A process that holds this lock until it is killed.
fn holder(lock: &Path) -> Holder {
    let script = "echo held; exec sleep 600";
    let mut child = Command::new("flock")
        .args(["--no-fork", "--exclusive"])
        .arg(lock)
        .args(["sh", "-c", script])
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    assert_eq!(line, "held\n");
    Holder(child)
}

/// Kills the process when dropped, also in a test that fails.
struct Holder(Child);

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().unwrap();
        self.0.wait().unwrap();
    }
}

/// Returns when a process waits for this lock: `/proc/locks` lists it with an arrow.
async fn waited_for(lock: &Path) {
    let inode = format!(":{} ", fs::metadata(lock).unwrap().ino());
    let is_waited_for = |line: &str| line.contains("-> FLOCK") && line.contains(&inode);
    let seen = async {
        while !fs::read_to_string("/proc/locks").unwrap().lines().any(is_waited_for) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), seen).await.expect("nobody waits for the lock");
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_waits_for_a_process_that_is_killed_goes_on_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(200));
    let (at, version) = (location("a"), fake.now("a"));
    let cache = fake.cache(folder.path());
    let paths = cache.volume.paths(&at, &version);
    let dying = holder(&paths.lock);
    fs::write(&paths.partial, "half of it").unwrap();
    let fetched = tokio::spawn(async move { bytes(cache.fetch(&at, &version).await.unwrap()) });
    waited_for(&paths.lock).await;
    assert!(!fetched.is_finished() && fake.reads().is_empty(), "it did not wait");
    drop(dying);
    assert_eq!(fetched.await.unwrap(), (content(200), true));
    assert_eq!(files(folder.path(), "partial"), 0);
}

#[tokio::test]
async fn a_process_that_holds_a_lock_for_ever_is_not_waited_for_for_ever() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(200));
    let (at, version) = (location("a"), fake.now("a"));
    let mut cache = fake.cache(folder.path());
    cache.lock_timeout = Duration::from_millis(20);
    let stopped = holder(&cache.volume.paths(&at, &version).lock);
    assert_eq!(bytes(cache.fetch(&at, &version).await.unwrap()), (content(200), true));
    assert_eq!(files(folder.path(), "safetensors"), 0, "it wrote without the lock");
    drop(stopped);
}

#[tokio::test]
async fn what_dead_processes_left_is_swept_and_what_living_ones_download_is_not() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(200));
    let cache = fake.cache(folder.path());
    let paths = |key: &str| cache.volume.paths(&location(key), &fake.now("a"));
    let (alive, dead) = (paths("alive"), paths("dead"));
    let living = holder(&alive.lock);
    drop(holder(&dead.lock));
    for partial in [&alive.partial, &dead.partial] {
        fs::write(partial, [0; 100]).unwrap();
    }
    // 100 bytes of the live process and 200 new ones.
    let limits = CacheLimits { bytes: 300, ..LIMITS };
    let own = paths("a");
    let _own = Lock::attempt(&own.lock, LockMode::Exclusive).unwrap();
    volume::reserve(folder.path(), &own, 200, limits, &CacheMetrics::default()).unwrap();
    assert!(alive.partial.exists() && alive.lock.exists());
    assert!(!dead.partial.exists() && !dead.lock.exists());
    let more = volume::reserve(folder.path(), &paths("b"), 1, limits, &CacheMetrics::default());
    assert!(more.is_err(), "what is being downloaded was not counted");
    drop(living);
}
