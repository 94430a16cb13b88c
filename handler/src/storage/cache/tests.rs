//! The cache on real folders, with a storage that injects faults: of the storage, the network and the volume.

mod crash;
mod evicting;

use super::{
    Body, Cache, CacheLimits, Content, ObjectSource, SourceError, Version,
    fake_source::{DOWNLOAD_OPTIONS, FakeSource, LIMITS, ReadFault, content, location},
    hash,
};
use futures_util::future::join_all;
use std::{
    fs,
    io::{Cursor, Read},
    path::Path,
};

/// The bytes, and whether this call downloaded them. Checks their SHA-256.
fn bytes(content: Content) -> (Vec<u8>, bool) {
    let bytes = match content.body {
        Body::Memory(bytes) => bytes,
        Body::File(mut file, _) => {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes).unwrap();
            bytes
        }
    };
    assert_eq!(content.sha256, hash(&mut Cursor::new(&bytes)).unwrap());
    (bytes, content.is_fresh)
}

fn files(folder: &Path, ending: &str) -> usize {
    let names = fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    names.filter(|path| path.extension().is_some_and(|found| found == ending)).count()
}

#[tokio::test]
async fn a_file_comes_in_parts_several_at_a_time() {
    let folder = tempfile::tempdir().unwrap();
    let wanted = content(1000);
    let fake = FakeSource::with("a", &wanted);
    let got = fake.cache(folder.path()).fetch(&location("a"), &fake.now("a")).await.unwrap();
    assert_eq!(bytes(got), (wanted, true));
    let mut reads = fake.reads();
    reads.sort_by_key(|range| range.start);
    assert_eq!((reads.len(), reads[0].clone(), reads[15].clone()), (16, 0..64, 960..1000));
    assert_eq!(fake.max_concurrent(), 4);
}

#[tokio::test]
async fn a_small_file_is_one_read_and_an_empty_one_too() {
    let folder = tempfile::tempdir().unwrap();
    for length in [0, 1, 64] {
        let fake = FakeSource::with("a", &content(length));
        let got = fake.cache(folder.path()).fetch(&location("a"), &fake.now("a")).await.unwrap();
        assert_eq!(bytes(got), (content(length), true));
        assert_eq!((fake.reads().len(), fake.reads()[0].clone()), (1, 0..length as u64));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_and_caches_download_once() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(64));
    let (one, two) = (fake.cache(folder.path()), fake.cache(folder.path()));
    let (at, version) = (location("a"), fake.now("a"));
    // Each releases its lock after reading, as a task does.
    let fetch = async |index| bytes(if index % 2 == 0 { &one } else { &two }.fetch(&at, &version).await.unwrap()).1;
    let fresh = join_all((0..24).map(fetch)).await;
    assert_eq!(fresh.iter().filter(|fresh| **fresh).count(), 1);
    assert_eq!(fake.reads().len(), 1);
}

#[tokio::test]
async fn equal_names_in_two_buckets_and_two_versions_of_one_file_are_entries_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(10));
    let cache = fake.cache(folder.path());
    let (here, mut there, version) = (location("a"), location("a"), fake.now("a"));
    there.bucket = "other".into();
    let mut later = version.clone();
    later.id = Some("2".into());
    for (at, version) in [(&here, &version), (&there, &version), (&here, &later)] {
        assert!(bytes(cache.fetch(at, version).await.unwrap()).1);
    }
    fake.put("a", &content(11));
    assert_eq!(bytes(cache.fetch(&here, &fake.now("a")).await.unwrap()), (content(11), true));
    assert_eq!(files(folder.path(), "safetensors"), 4);
}

#[tokio::test]
async fn a_kept_file_is_hashed_once_and_again_when_it_was_touched() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(100));
    let (cache, at, version) = (fake.cache(folder.path()), location("a"), fake.now("a"));
    let paths = cache.volume.paths(&at, &version);
    bytes(cache.fetch(&at, &version).await.unwrap());
    assert!(!bytes(cache.fetch(&at, &version).await.unwrap()).1);
    // The record's hash is not checked while the file is the one that was hashed.
    let record = fs::read_to_string(&paths.record).unwrap();
    fs::write(&paths.record, record.replace("\"sha256\":\"", "\"sha256\":\"00")).unwrap();
    assert!(!bytes(cache.fetch(&at, &version).await.unwrap()).1);
    fs::write(&paths.record, record).unwrap();
    let mut spoilt = content(100);
    spoilt[50] ^= 1;
    fs::write(&paths.data, spoilt).unwrap();
    assert_eq!(bytes(cache.fetch(&at, &version).await.unwrap()), (content(100), true));
    assert!(!bytes(cache.fetch(&at, &version).await.unwrap()).1);
}

#[tokio::test]
async fn a_spoilt_cut_or_unrecorded_entry_of_another_process_is_downloaded_again() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(100));
    let (at, version) = (location("a"), fake.now("a"));
    let paths = fake.cache(folder.path()).volume.paths(&at, &version);
    let spoil: [&dyn Fn(); 5] = [
        &|| fs::write(&paths.data, [0; 100]).unwrap(),
        &|| fs::write(&paths.data, content(99)).unwrap(),
        &|| fs::remove_file(&paths.record).unwrap(),
        &|| fs::write(&paths.record, "{").unwrap(),
        &|| fs::remove_file(&paths.data).unwrap(),
    ];
    for spoil in spoil {
        bytes(fake.cache(folder.path()).fetch(&at, &version).await.unwrap());
        spoil();
        assert_eq!(bytes(fake.cache(folder.path()).fetch(&at, &version).await.unwrap()), (content(100), true));
        assert!(!bytes(fake.cache(folder.path()).fetch(&at, &version).await.unwrap()).1);
    }
}

#[tokio::test]
async fn a_part_that_is_lost_or_short_is_read_again() {
    for fault in [ReadFault::Lost, ReadFault::Short] {
        let folder = tempfile::tempdir().unwrap();
        let fake = FakeSource::with("a", &content(300));
        fake.fail([fault; 3]);
        let got = fake.cache(folder.path()).fetch(&location("a"), &fake.now("a")).await.unwrap();
        assert_eq!(bytes(got).0, content(300));
        assert_eq!(fake.reads().len(), 5 + 3, "{fault:?}");
    }
}

#[tokio::test]
async fn a_storage_that_stays_down_is_a_transient_fault_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(64));
    fake.fail([ReadFault::Lost; 5]);
    let (cache, at, version) = (fake.cache(folder.path()), location("a"), fake.now("a"));
    let failed = cache.fetch(&at, &version).await.unwrap_err();
    assert!(matches!(failed, SourceError::Transient(_)), "{failed}");
    assert_eq!((files(folder.path(), "partial"), files(folder.path(), "safetensors")), (0, 0));
    assert!(bytes(cache.fetch(&at, &version).await.unwrap()).1);
}

#[tokio::test]
async fn a_file_replaced_while_it_is_read_is_not_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(1000));
    fake.replace_after_next_read("a", &content(900));
    let (cache, at) = (fake.cache(folder.path()), location("a"));
    assert_eq!(cache.fetch(&at, &fake.now("a")).await.unwrap_err(), SourceError::Changed);
    let version = cache.source().version(&at).await.unwrap();
    assert_eq!(bytes(cache.fetch(&at, &version).await.unwrap()).0, content(900));
}

#[tokio::test]
async fn bytes_that_flip_on_the_way_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(64));
    fake.fail([ReadFault::Flipped]);
    let got = fake.cache(folder.path()).fetch(&location("a"), &fake.now("a")).await.unwrap();
    assert_eq!(bytes(got), (content(64), true));
    assert_eq!(fake.reads().len(), 2);
}

#[tokio::test]
async fn a_file_without_the_sha256_that_the_storage_keeps_for_it_is_a_permanent_fault() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::default();
    fake.put_as("a", &content(64), Version { sha256: Some([1; 32]), length: 64, ..Version::default() });
    let failed = fake.cache(folder.path()).fetch(&location("a"), &fake.now("a")).await.unwrap_err();
    let SourceError::Permanent(reason) = &failed else { panic!("{failed:?}") };
    assert!(reason.contains("`lora_model_url` s3://models/a is corrupt"), "{reason}");
    assert!(reason.ends_with(&format!("and must have {}", "01".repeat(32))), "{reason}");
    assert_eq!(files(folder.path(), "safetensors"), 0);
}

#[tokio::test]
async fn an_etag_that_only_looks_like_an_md5_is_believed_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::default();
    fake.put_as("a", &content(64), Version { md5: Some([1; 16]), length: 64, ..Version::default() });
    let got = fake.cache(folder.path()).fetch(&location("a"), &fake.now("a")).await.unwrap();
    assert_eq!((bytes(got).0, fake.reads().len()), (content(64), 2));
}

#[tokio::test]
async fn a_volume_that_cannot_keep_the_file_does_not_stop_the_task() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(200));
    let (at, version) = (location("a"), fake.now("a"));
    // A folder below a file, a limit that is too small, and a reserve that no disk has.
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let small = |limits: CacheLimits| Cache::new(fake.clone(), folder.path().join("small"), DOWNLOAD_OPTIONS, limits);
    let caches = [
        fake.cache(&file.join("loras")),
        small(CacheLimits { bytes: 199, ..LIMITS }),
        small(CacheLimits { reserve: u64::MAX / 2, ..LIMITS }),
    ];
    for cache in caches {
        for _ in 0..2 {
            assert_eq!(bytes(cache.fetch(&at, &version).await.unwrap()), (content(200), true));
        }
    }
    assert_eq!(files(&folder.path().join("small"), "safetensors"), 0);
}

#[tokio::test]
async fn a_file_kept_where_nothing_can_be_locked_is_used() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(200));
    let (at, version) = (location("a"), fake.now("a"));
    let cache = fake.cache(folder.path());
    bytes(cache.fetch(&at, &version).await.unwrap());
    // Like on a read-only file system, the lock file cannot be opened for writing.
    let lock = cache.volume.paths(&at, &version).lock;
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    assert_eq!(bytes(cache.fetch(&at, &version).await.unwrap()), (content(200), false));
}

#[tokio::test]
async fn downloads_refetches_and_evictions_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &content(60));
    fake.put("b", &content(50));
    let cache =
        Cache::new(fake.clone(), folder.path().to_owned(), DOWNLOAD_OPTIONS, CacheLimits { bytes: 100, ..LIMITS });
    let (a, b) = (fake.now("a"), fake.now("b"));
    let fetch = async |key, version| drop(bytes(cache.fetch(&location(key), version).await.unwrap()));
    let counted = || {
        let metrics = cache.metrics();
        (metrics.refetches.get(), metrics.evictions.get(), metrics.downloaded_bytes.get(), metrics.kept_bytes.get())
    };
    fetch("a", &a).await;
    assert_eq!(counted(), (0, 0, 60, 60));
    fetch("a", &a).await;
    assert_eq!(counted(), (0, 0, 60, 60), "a kept one is none of these");
    fs::write(cache.volume.paths(&location("a"), &a).data, [0; 60]).unwrap();
    fetch("a", &a).await;
    assert_eq!(counted(), (1, 0, 120, 60), "spoilt on the volume");
    fake.fail([ReadFault::Flipped]);
    fetch("b", &b).await;
    assert_eq!(counted(), (2, 1, 220, 50), "spoilt on the way, and there was room for one of them only");
}
