//! A lock is free as soon as its holder lets go, whoever has a copy of its file.

use super::*;

/// What a process holds between its start and its own program: a copy of every open file.
fn copy(lock: &Lock) -> File {
    lock.file.try_clone().unwrap()
}

#[test]
fn a_copy_of_the_file_in_a_process_that_is_being_started_keeps_no_lock() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.lock");
    for kind in [Kind::Shared, Kind::Exclusive] {
        let held = Lock::attempt(&path, kind).unwrap().unwrap();
        let copy = copy(&held);
        drop(held);
        assert!(Lock::attempt(&path, Kind::Exclusive).unwrap().is_some(), "{kind:?}");
        drop(copy);
    }
}

#[test]
fn a_lock_that_nobody_waits_for_any_more_is_freed_when_it_is_taken() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.lock");
    let held = Lock::block(&path, Kind::Exclusive).unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let given_up = runtime.block_on(Lock::wait(&path, Kind::Exclusive, Duration::from_millis(1))).unwrap_err();
    assert_eq!(given_up.kind(), io::ErrorKind::TimedOut);
    drop(held);
    // Behind the thread that still waits, or before it: either way this one is not kept waiting.
    drop(Lock::block(&path, Kind::Exclusive).unwrap());
}

#[test]
fn whoever_had_to_wait_for_a_lock_file_that_was_removed_locks_the_new_one() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.lock");
    let held = Lock::attempt(&path, Kind::Exclusive).unwrap().unwrap();
    let stale = Lock { file: open(&path).unwrap(), path: path.clone() };
    held.remove().unwrap();
    stale.file.lock().unwrap();
    assert!(!stale.is_at_its_path().unwrap());
    assert!(Lock::attempt(&path, Kind::Exclusive).unwrap().is_some(), "the removed one is in the way");
}
