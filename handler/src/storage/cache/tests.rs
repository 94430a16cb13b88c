//! The cache on real folders, with a storage that fails as it is told.

mod counting;
mod crash;
mod evicting;
mod faults;

use super::{
    Body, Content,
    fake::{Fake, content, place},
    hash,
};
use futures_util::future::join_all;
use std::{
    fs,
    io::{Cursor, Read},
    path::Path,
};

/// The bytes, and whether they were downloaded for this call; the hash that came along must be theirs.
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
    let fake = Fake::with("a", &wanted);
    let got = fake.cache(folder.path()).fetch(&place("a"), &fake.now("a")).await.unwrap();
    assert_eq!(bytes(got), (wanted, true));
    let mut reads = fake.reads();
    reads.sort_by_key(|range| range.start);
    assert_eq!((reads.len(), reads[0].clone(), reads[15].clone()), (16, 0..64, 960..1000));
    assert_eq!(fake.most_under_way(), 4);
}

#[tokio::test]
async fn a_small_file_is_one_read_and_an_empty_one_too() {
    let folder = tempfile::tempdir().unwrap();
    for length in [0, 1, 64] {
        let fake = Fake::with("a", &content(length));
        let got = fake.cache(folder.path()).fetch(&place("a"), &fake.now("a")).await.unwrap();
        assert_eq!(bytes(got), (content(length), true));
        assert_eq!((fake.reads().len(), fake.reads()[0].clone()), (1, 0..length as u64));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn many_tasks_and_caches_download_once() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::with("a", &content(64));
    let (one, two) = (fake.cache(folder.path()), fake.cache(folder.path()));
    let (at, version) = (place("a"), fake.now("a"));
    // Each lets go of its lock as soon as it has read, as a task does.
    let fetch = async |index| bytes(if index % 2 == 0 { &one } else { &two }.fetch(&at, &version).await.unwrap()).1;
    let fresh = join_all((0..24).map(fetch)).await;
    assert_eq!(fresh.iter().filter(|fresh| **fresh).count(), 1);
    assert_eq!(fake.reads().len(), 1);
}

#[tokio::test]
async fn equal_names_in_two_buckets_and_two_versions_of_one_file_are_entries_of_their_own() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::with("a", &content(10));
    let cache = fake.cache(folder.path());
    let (here, mut there, version) = (place("a"), place("a"), fake.now("a"));
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
    let fake = Fake::with("a", &content(100));
    let (cache, at, version) = (fake.cache(folder.path()), place("a"), fake.now("a"));
    let paths = cache.volume.paths(&at, &version);
    bytes(cache.fetch(&at, &version).await.unwrap());
    assert!(!bytes(cache.fetch(&at, &version).await.unwrap()).1);
    // A record with another hash is not looked at while the file is the one that was hashed.
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
    let fake = Fake::with("a", &content(100));
    let (at, version) = (place("a"), fake.now("a"));
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
