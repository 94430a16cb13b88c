//! What the cache says that it did.

use super::bytes;
use crate::storage::cache::{
    Cache, Limits,
    fake::{Fake, Fault, LIMITS, PARTS, content, place},
};
use std::fs;

#[tokio::test]
async fn downloads_refetches_and_evictions_are_counted() {
    let folder = tempfile::tempdir().unwrap();
    let fake = Fake::with("a", &content(60));
    fake.put("b", &content(50));
    let cache = Cache::new(fake.clone(), folder.path().to_owned(), PARTS, Limits { bytes: 100, ..LIMITS });
    let (a, b) = (fake.now("a"), fake.now("b"));
    let fetch = async |key, version| drop(bytes(cache.fetch(&place(key), version).await.unwrap()));
    let counted = || {
        let tally = cache.tally();
        (tally.refetches.get(), tally.evictions.get(), tally.downloaded_bytes.get(), tally.kept_bytes.get())
    };
    fetch("a", &a).await;
    assert_eq!(counted(), (0, 0, 60, 60));
    fetch("a", &a).await;
    assert_eq!(counted(), (0, 0, 60, 60), "a kept one is none of these");
    fs::write(cache.volume.paths(&place("a"), &a).data, [0; 60]).unwrap();
    fetch("a", &a).await;
    assert_eq!(counted(), (1, 0, 120, 60), "spoilt on the volume");
    fake.fail([Fault::Flipped]);
    fetch("b", &b).await;
    assert_eq!(counted(), (2, 1, 220, 50), "spoilt on the way, and there was room for one of them only");
}
