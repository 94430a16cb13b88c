//! Loading LoRAs from a fake storage.

use super::{ParsedCache, StoreError};
use crate::{
    observe::report::Found,
    storage::cache::{
        Cache, CacheLimits, DownloadOptions, Version,
        fake_source::{DOWNLOAD_OPTIONS, FakeSource, LIMITS, ReadFault, location},
    },
};
use diffusion::{lora::Lora, prompt::inversion::TextualInversion};
use futures_util::future::join_all;
use std::{fs, path::Path, sync::Arc};

const STYLE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/model/styles/halftone.safetensors");
const INVERSION: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/goldens/inversions/several.safetensors");
const OTHER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/model/styles/stained-glass.safetensors");

type LoraCache = ParsedCache<FakeSource, Lora>;

fn loras(fake: &FakeSource, folder: &Path) -> LoraCache {
    let (options, limits) =
        (DownloadOptions { part_bytes: 1 << 20, ..DOWNLOAD_OPTIONS }, CacheLimits { bytes: 1 << 30, ..LIMITS });
    LoraCache::new(Cache::new(fake.clone(), folder.to_owned(), options, limits), 1 << 30)
}

#[tokio::test(flavor = "multi_thread")]
async fn tasks_that_want_one_lora_share_it_and_know_its_hash() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &fs::read(STYLE).unwrap());
    let loras = loras(&fake, folder.path());
    let got = join_all((0..8).map(|_| loras.get("models", "a"))).await;
    let (got, found): (Vec<Arc<Lora>>, Vec<Found>) = got.into_iter().map(Result::unwrap).unzip();
    assert_eq!(found.iter().filter(|found| **found == Found::Memory).count(), 7, "{found:?}");
    assert!(got.iter().all(|lora| Arc::ptr_eq(lora, &got[0])));
    assert_eq!(got[0].sha256(), Lora::read(Path::new(STYLE)).unwrap().sha256());
}

#[tokio::test]
async fn a_lora_replaced_while_it_is_read_comes_in_its_new_form() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &fs::read(STYLE).unwrap());
    fake.replace_after_next_read("a", &fs::read(OTHER).unwrap());
    // In parts, so that a later part reads the new file.
    let cache = Cache::new(
        fake.clone(),
        folder.path().to_owned(),
        DownloadOptions { part_bytes: 1 << 15, parallel: 1, ..DOWNLOAD_OPTIONS },
        CacheLimits { bytes: 1 << 30, ..LIMITS },
    );
    let got = LoraCache::new(cache, 1 << 30).get("models", "a").await.unwrap().0;
    assert_eq!(got.sha256(), Lora::read(Path::new(OTHER)).unwrap().sha256());
}

#[tokio::test]
async fn what_is_no_lora_is_a_permanent_fault_that_names_the_field_and_is_not_kept() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", b"no tensors, no tensors");
    let error = loras(&fake, folder.path()).get("models", "a").await.unwrap_err();
    let StoreError::Permanent(reason) = &error else { panic!("{error:?}") };
    assert!(reason.starts_with("`lora_model_url` s3://models/a: "), "{reason}");
    assert_eq!(fake.reads().len(), 1);
    let kept = fs::read_dir(folder.path())
        .unwrap()
        .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|ending| ending == "safetensors"));
    assert_eq!(kept.count(), 0);
}

#[tokio::test]
async fn a_kept_file_that_does_not_parse_is_downloaded_once_more() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &fs::read(STYLE).unwrap());
    let right = fake.now("a");
    // A storage without checksums.
    let version = Version { md5: None, ..right };
    let mut broken = fs::read(STYLE).unwrap();
    broken[9] = b'!';
    fake.put_as("a", &broken, version.clone());
    drop(fake.cache(folder.path()));
    let first = loras(&fake, folder.path());
    drop(first.cache.fetch(&location("a"), &version).await.unwrap());
    fake.put_as("a", &fs::read(STYLE).unwrap(), version);
    let reads = fake.reads().len();
    assert!(loras(&fake, folder.path()).get("models", "a").await.is_ok());
    assert_eq!(fake.reads().len() - reads, 1);
}

#[tokio::test]
async fn a_lora_over_the_limit_is_not_read() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &[0; 100]);
    let loras = LoraCache::new(fake.cache(folder.path()), 99);
    let error = loras.get("models", "a").await.unwrap_err();
    assert!(error.to_string().contains("has 100 bytes, the limit is 99"), "{error}");
    assert!(fake.reads().is_empty());
}

#[tokio::test]
async fn a_storage_that_calls_the_same_version_another_is_named_for_it() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &fs::read(STYLE).unwrap());
    fake.fail([ReadFault::Unmatched; 2]);
    let error = loras(&fake, folder.path()).get("models", "a").await.unwrap_err();
    let StoreError::Transient(reason) = &error else { panic!("{error:?}") };
    assert!(reason.contains("s3://models/a: ") && reason.contains("look for a proxy"), "{reason}");
    assert_eq!(fake.reads().len(), 1, "it is read in vain again");
}

#[tokio::test]
async fn textual_inversions_are_kept_in_the_same_way_and_name_their_own_field() {
    let folder = tempfile::tempdir().unwrap();
    let fake = FakeSource::with("a", &fs::read(INVERSION).unwrap());
    let inversions = || ParsedCache::<_, TextualInversion>::new(fake.cache(folder.path()), 1 << 20);
    let (first, found) = inversions().get("models", "a").await.unwrap();
    assert_eq!((first.sha256(), found), (TextualInversion::read(INVERSION.as_ref()).unwrap().sha256(), Found::Storage));
    let again = inversions();
    assert_eq!(again.get("models", "a").await.unwrap().1, Found::Volume);
    assert_eq!(again.get("models", "a").await.unwrap().1, Found::Memory);
    fake.put("a", b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0archive/data.pklFB");
    let error = again.get("models", "a").await.unwrap_err();
    let StoreError::Permanent(reason) = &error else { panic!("{error:?}") };
    assert!(reason.starts_with("`textual_inversions` s3://models/a: ") && reason.contains("pickled"), "{reason}");
}
