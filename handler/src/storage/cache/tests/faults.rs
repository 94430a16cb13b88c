//! Faults of the storage, of the way from there, and of the volume.

use super::{bytes, files};
use crate::storage::cache::{
    Limits, Source, SourceError, Version,
    fake::{Fake, Fault, LIMITS, PARTS, content, place},
};
use std::fs;

#[tokio::test]
async fn a_part_that_is_lost_or_short_is_read_again() {
    for fault in [Fault::Lost, Fault::Short] {
        let folder = tempfile::tempdir().unwrap();
        let fake = Fake::with("a", &content(300));
        fake.fail([fault; 3]);
        let got = fake.cache(folder.path()).fetch(&place("a"), &fake.now("a")).await.unwrap();
        assert_eq!(bytes(got).0, content(300));
        assert_eq!(fake.reads().len(), 5 + 3, "{fault:?}");
    }
}

#[tokio::test]
async fn a_storage_that_stays_down_is_a_transient_fault_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::with("a", &content(64));
    fake.fail([Fault::Lost; 5]);
    let (cache, at, version) = (fake.cache(folder.path()), place("a"), fake.now("a"));
    let failed = cache.fetch(&at, &version).await.unwrap_err();
    assert!(matches!(failed, SourceError::Transient(_)), "{failed}");
    assert_eq!((files(folder.path(), "partial"), files(folder.path(), "safetensors")), (0, 0));
    assert!(bytes(cache.fetch(&at, &version).await.unwrap()).1);
}

#[tokio::test]
async fn a_file_replaced_while_it_is_read_is_not_mixed() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::with("a", &content(1000));
    fake.replace_after_next_read("a", &content(900));
    let (cache, at) = (fake.cache(folder.path()), place("a"));
    assert_eq!(cache.fetch(&at, &fake.now("a")).await.unwrap_err(), SourceError::Changed);
    let version = cache.source().version(&at).await.unwrap();
    assert_eq!(bytes(cache.fetch(&at, &version).await.unwrap()).0, content(900));
}

#[tokio::test]
async fn bytes_that_flip_on_the_way_are_read_again() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::with("a", &content(64));
    fake.fail([Fault::Flipped]);
    let got = fake.cache(folder.path()).fetch(&place("a"), &fake.now("a")).await.unwrap();
    assert_eq!(bytes(got), (content(64), true));
    assert_eq!(fake.reads().len(), 2);
}

#[tokio::test]
async fn a_file_without_the_sha256_that_the_storage_keeps_for_it_is_a_permanent_fault() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    fake.put_as("a", &content(64), Version { sha256: Some([1; 32]), length: 64, ..Version::default() });
    let failed = fake.cache(folder.path()).fetch(&place("a"), &fake.now("a")).await.unwrap_err();
    let SourceError::Permanent(reason) = &failed else { panic!("{failed:?}") };
    assert!(reason.contains("`lora_model_url` s3://models/a is corrupt"), "{reason}");
    assert!(reason.ends_with(&format!("and must have {}", "01".repeat(32))), "{reason}");
    assert_eq!(files(folder.path(), "safetensors"), 0);
}

#[tokio::test]
async fn an_etag_that_only_looks_like_an_md5_is_believed_to_be_none() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::default();
    fake.put_as("a", &content(64), Version { md5: Some([1; 16]), length: 64, ..Version::default() });
    let got = fake.cache(folder.path()).fetch(&place("a"), &fake.now("a")).await.unwrap();
    assert_eq!((bytes(got).0, fake.reads().len()), (content(64), 2));
}

#[tokio::test]
async fn a_volume_that_cannot_keep_the_file_does_not_stop_the_task() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::with("a", &content(200));
    let (at, version) = (place("a"), fake.now("a"));
    // No folder can be made where a file is; no file of 200 bytes fits a limit of 199, or beside a reserve that no disk has.
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let small =
        |limits: Limits| crate::storage::cache::Cache::new(fake.clone(), folder.path().join("small"), PARTS, limits);
    let caches = [
        fake.cache(&file.join("loras")),
        small(Limits { bytes: 199, ..LIMITS }),
        small(Limits { reserve: u64::MAX / 2, ..LIMITS }),
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
    let fake = Fake::with("a", &content(200));
    let (at, version) = (place("a"), fake.now("a"));
    let cache = fake.cache(folder.path());
    bytes(cache.fetch(&at, &version).await.unwrap());
    // What a read-only file system answers to a lock file: it cannot be opened for writing.
    let lock = cache.volume.paths(&at, &version).lock;
    fs::remove_file(&lock).unwrap();
    fs::create_dir(&lock).unwrap();
    assert_eq!(bytes(cache.fetch(&at, &version).await.unwrap()), (content(200), false));
}
