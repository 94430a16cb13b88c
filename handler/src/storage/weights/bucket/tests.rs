//! Downloads of a model from a bucket on loopback into real folders.

use super::*;
use crate::storage::{
    fake_s3::{FakeBucket, RequestFault, SECRET},
    weights::options::Variant,
};
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

const UNET: &str = "unet/diffusion_pytorch_model.safetensors";
const FILES: [(&str, usize); 4] = [("model_index.json", 40), ("tokenizer/empty", 0), (UNET, 1000), ("vae/b", 130)];
const MANIFEST: &str = "sd15/easel-weights.json";

/// Text in which no two parts are the same.
fn content(length: usize) -> String {
    (0..length).map(|index| char::from(b'a' + (index * 7 + index / 64) as u8 % 26)).collect()
}

fn manifest(files: &[(&str, &str)], variant: Variant) -> Manifest {
    let entry = |(path, content): &(&str, &str)| ManifestEntry {
        path: (*path).into(),
        bytes: content.len() as u64,
        sha256: hex::encode(Sha256::digest(content)),
    };
    let files = files.iter().map(entry).collect();
    Manifest { repo: "a/b".into(), revision: "main".into(), commit: "c".into(), variant, files }
}

fn put_manifest(bucket: &FakeBucket, manifest: &Manifest) {
    bucket.put(MANIFEST, &serde_json::to_string(manifest).unwrap());
}

/// A bucket with a model.
async fn bucket() -> FakeBucket {
    let bucket = FakeBucket::start().await;
    let contents = FILES.map(|(path, length)| (path, content(length)));
    for (path, content) in &contents {
        bucket.put(&format!("sd15/{path}"), content);
    }
    put_manifest(
        &bucket,
        &manifest(&contents.each_ref().map(|(path, content)| (*path, content.as_str())), Variant::Full),
    );
    bucket
}

fn remote(bucket: &FakeBucket, folder: &Path) -> RemoteModel<S3Source> {
    let url = "s3://models/sd15".parse().unwrap();
    let mut remote = RemoteModel::for_command(S3Client::new(bucket.client()), &url, folder);
    remote.options = DownloadOptions { part_bytes: 64, parallel: 4, first_delay: Duration::from_millis(1) };
    remote
}

async fn fetch(bucket: &FakeBucket, folder: &Path) -> Result<(usize, u64), FetchError> {
    remote(bucket, folder).fetch(&|_| ()).await.map(|FetchSummary { files, bytes }| (files, bytes))
}

/// The paths of all files in a folder.
fn tree(folder: &Path) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap().to_string();
        if path.is_dir() {
            found.extend(tree(&path).into_iter().map(|below| format!("{name}/{below}")));
        } else {
            found.insert(name);
        }
    }
    found
}

fn whole() -> BTreeSet<String> {
    FILES.iter().map(|(path, _)| (*path).to_string()).chain([manifest::NAME.into(), LOCK.into()]).collect()
}

/// The files that were read.
fn read(bucket: &FakeBucket) -> BTreeSet<String> {
    let gets = bucket.requests().into_iter();
    let paths = gets.filter_map(|line| Some(line.strip_prefix("GET /models/sd15/")?.split(' ').next()?.to_string()));
    paths.filter(|path| path != manifest::NAME).collect()
}

#[tokio::test]
async fn a_model_comes_whole_once_and_a_second_time_only_its_manifest_is_read() {
    let (bucket, folder) = (bucket().await, tempfile::tempdir().unwrap());
    let folder = folder.path().join("below/model");
    let inspection = remote(&bucket, &folder).inspect().await.unwrap();
    assert_eq!(
        (inspection.files, inspection.bytes, inspection.missing_bytes, inspection.is_complete),
        (4, 1170, 1170, false)
    );
    bucket.requests();
    assert_eq!(fetch(&bucket, &folder).await.unwrap(), (4, 1170));
    let requests = bucket.requests();
    assert_eq!(requests.iter().filter(|line| line.starts_with("HEAD ")).count(), 5);
    assert_eq!(requests.iter().filter(|line| line.contains(UNET) && line.contains("if-match")).count(), 16);
    assert_eq!(tree(&folder), whole());
    for (path, length) in FILES {
        assert_eq!(fs::read_to_string(folder.join(path)).unwrap(), content(length), "{path}");
    }
    assert_eq!(fetch(&bucket, &folder).await.unwrap(), (0, 0));
    let once = |method: &str| format!("{method} /models/{MANIFEST}");
    let requests = bucket.requests();
    assert!(
        requests.len() == 2 && requests[0] == once("HEAD") && requests[1].starts_with(&once("GET")),
        "{requests:?}"
    );
    let inspection = remote(&bucket, &folder).inspect().await.unwrap();
    assert_eq!((inspection.source.as_str(), inspection.missing_bytes, inspection.is_complete), ("a/b at c", 0, true));
}

#[tokio::test]
async fn what_is_there_stays_if_it_is_right_and_comes_anew_if_not() {
    let bucket = bucket().await;
    type Change = fn(&Path);
    let cases: [(&str, Change, &[&str]); 7] = [
        ("whole", |_| (), &[]),
        ("a file missing", |folder| fs::remove_file(folder.join("vae/b")).unwrap(), &["vae/b"]),
        ("a file cut", |folder| fs::write(folder.join("vae/b"), "b").unwrap(), &["vae/b"]),
        ("killed: no manifest", |folder| fs::remove_file(folder.join(manifest::NAME)).unwrap(), &[]),
        (
            "killed: another content",
            |folder| {
                fs::remove_file(folder.join(manifest::NAME)).unwrap();
                fs::write(folder.join("vae/b"), "b".repeat(130)).unwrap();
            },
            &["vae/b"],
        ),
        (
            "killed: half a file",
            |folder| {
                fs::remove_file(folder.join(manifest::NAME)).unwrap();
                fs::remove_file(folder.join(UNET)).unwrap();
                fs::write(folder.join("unet/.diffusion_pytorch_model.safetensors.partial"), "b".repeat(2000)).unwrap();
            },
            &[UNET],
        ),
        (
            "another model",
            |folder| {
                let shadow = "unet/other.safetensors";
                fs::write(folder.join(shadow), "b").unwrap();
                fs::write(folder.join("vae/b"), "b").unwrap();
                manifest(&[(shadow, "b"), ("vae/b", "b")], Variant::Full).write(folder).unwrap();
            },
            &["vae/b"],
        ),
    ];
    for (name, change, fetched) in cases {
        let folder = tempfile::tempdir().unwrap();
        fetch(&bucket, folder.path()).await.unwrap();
        change(folder.path());
        bucket.requests();
        assert_eq!(fetch(&bucket, folder.path()).await.unwrap().0, fetched.len(), "{name}");
        assert_eq!(read(&bucket), fetched.iter().map(ToString::to_string).collect(), "{name}");
        assert_eq!(tree(folder.path()), whole(), "{name}");
        let kept = Manifest::read(folder.path()).unwrap();
        assert!(kept.files.iter().all(|entry| entry.difference(folder.path()).is_none()), "{name}");
    }
}

#[tokio::test]
async fn what_is_wrong_in_the_bucket_is_named_with_what_to_do_and_leaves_no_manifest() {
    type Spoil = fn(&FakeBucket);
    let sum = |text: &str| hex::encode(Sha256::digest(text));
    let both = format!("has SHA-256 {}, and must have {}", sum(&"b".repeat(1000)), sum(&content(1000)));
    let cases: [(Spoil, &str, &str); 11] = [
        (|bucket| bucket.remove(MANIFEST), "easel-weights.json does not exist", "aws s3 sync DIR s3://models/sd15"),
        (
            |bucket| {
                bucket.fail("HEAD", MANIFEST, RequestFault::Refused(403, "AccessDenied"), usize::MAX);
                bucket.fail("GET", MANIFEST, RequestFault::Refused(403, "AccessDenied"), usize::MAX);
            },
            "AccessDenied (403): no permission",
            "s3:GetObject",
        ),
        (
            |bucket| {
                bucket.fail("HEAD", MANIFEST, RequestFault::Refused(404, "NoSuchBucket"), usize::MAX);
                bucket.fail("GET", MANIFEST, RequestFault::Refused(404, "NoSuchBucket"), usize::MAX);
            },
            "there is no such bucket",
            "aws s3 sync",
        ),
        (|bucket| bucket.put(MANIFEST, SECRET), "is no manifest of handler weights pull (line 1", "aws s3 sync"),
        (
            |bucket| put_manifest(bucket, &manifest(&[("../x", "x")], Variant::Full)),
            "names a file outside the folder, \"../x\"",
            "aws s3 sync",
        ),
        (|bucket| bucket.put(MANIFEST, &" ".repeat(1_048_577)), "has 1048577 bytes", "1048576 at most"),
        (
            |bucket| bucket.remove(&format!("sd15/{UNET}")),
            ".safetensors does not exist",
            "aws s3 cp DIR/unet/diffusion",
        ),
        (
            |bucket| bucket.put(&format!("sd15/{UNET}"), "b"),
            "has 1 bytes, its manifest says 1000",
            "aws s3 cp DIR/unet/diffusion",
        ),
        (|bucket| bucket.put(&format!("sd15/{UNET}"), &"b".repeat(1000)), &both, "aws s3 cp DIR/unet/diffusion"),
        (
            |bucket| bucket.fail("GET", UNET, RequestFault::Refused(503, "SlowDown"), usize::MAX),
            "SlowDown (503)",
            "it passes",
        ),
        (
            |bucket| bucket.fail("GET", UNET, RequestFault::Refused(412, "PreconditionFailed"), usize::MAX),
            "was replaced while it was fetched",
            "start again",
        ),
    ];
    for (spoil, reason, advice) in cases {
        let (bucket, folder) = (bucket().await, tempfile::tempdir().unwrap());
        spoil(&bucket);
        let error = fetch(&bucket, folder.path()).await.unwrap_err().to_string();
        assert!(
            error.contains("model s3://models/sd15/") && error.contains(reason) && error.contains(advice),
            "{error}"
        );
        assert!(!error.contains(SECRET), "{error}");
        let left = tree(folder.path());
        assert!(!left.iter().any(|path| path == manifest::NAME || path.ends_with(".partial")), "{reason}: {left:?}");
    }
}

#[tokio::test]
async fn a_file_without_its_sha256_is_read_a_second_time_before_it_is_refused() {
    let (bucket, folder) = (bucket().await, tempfile::tempdir().unwrap());
    bucket.put("sd15/vae/b", &"b".repeat(130));
    let error = fetch(&bucket, folder.path()).await.unwrap_err();
    assert!(matches!(error, FetchError::Bucket(_)), "{error}");
    let gets = bucket.requests().iter().filter(|line| line.starts_with("GET ") && line.contains("vae/b")).count();
    assert_eq!(gets, 6, "three parts, twice");
}

#[tokio::test]
async fn what_passes_is_tried_again() {
    for fault in [
        RequestFault::Lost,
        RequestFault::Reset,
        RequestFault::Late(Duration::from_millis(10)),
        RequestFault::Refused(503, "SlowDown"),
    ] {
        let (bucket, folder) = (bucket().await, tempfile::tempdir().unwrap());
        for (method, path) in [("HEAD", MANIFEST), ("GET", MANIFEST), ("HEAD", UNET), ("GET", UNET)] {
            bucket.fail(method, path, fault, 3);
        }
        assert_eq!(fetch(&bucket, folder.path()).await.unwrap().0, 4, "{fault:?}");
    }
    let (bucket, folder) = (bucket().await, tempfile::tempdir().unwrap());
    bucket.fail("GET", UNET, RequestFault::Refused(412, "PreconditionFailed"), 1);
    assert!(fetch(&bucket, folder.path()).await.is_ok(), "replaced once");
    assert_eq!(tree(folder.path()), whole());
}

#[tokio::test]
async fn a_folder_that_cannot_be_filled_is_named_before_a_file_is_read() {
    let bucket = bucket().await;
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("file");
    fs::write(&file, "").unwrap();
    let below = file.join("model");
    let error = fetch(&bucket, &below).await.unwrap_err().to_string();
    assert!(error.starts_with(&format!("--to {} cannot be filled", below.display())), "{error}");
    let mut huge = manifest(&[("a", "a")], Variant::Full);
    huge.files[0].bytes = 1 << 60;
    put_manifest(&bucket, &huge);
    let error = fetch(&bucket, folder.path()).await.unwrap_err().to_string();
    assert!(
        error.contains("1152921504606846976 bytes are to be fetched") && error.contains("EphemeralStorage"),
        "{error}"
    );
    // Full weights that the manifest does not list would be loaded instead of those in half precision.
    put_manifest(&bucket, &manifest(&[("model_index.json", &content(40))], Variant::Fp16));
    fs::create_dir(folder.path().join("unet")).unwrap();
    fs::write(folder.path().join(UNET), "").unwrap();
    let error = fetch(&bucket, folder.path()).await.unwrap_err().to_string();
    assert!(error.contains(&format!("{UNET} would be loaded instead")) && error.contains("remove it"), "{error}");
    assert_eq!(read(&bucket), BTreeSet::new());
    fs::remove_file(folder.path().join(UNET)).unwrap();
    assert_eq!(fetch(&bucket, folder.path()).await.unwrap().0, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_fetch_one_folder_once() {
    let (bucket, folder) = (bucket().await, tempfile::tempdir().unwrap());
    let (one, two) = tokio::join!(fetch(&bucket, folder.path()), fetch(&bucket, folder.path()));
    let mut brought = [one.unwrap(), two.unwrap()];
    brought.sort_unstable();
    assert_eq!(brought, [(0, 0), (4, 1170)]);
    let gets = bucket.requests().iter().filter(|line| line.starts_with("GET ") && line.contains(UNET)).count();
    assert_eq!(gets, 16);
}

#[tokio::test]
async fn a_fetch_that_is_given_up_leaves_no_half_file_and_no_manifest() {
    let (bucket, folder) = (bucket().await, tempfile::tempdir().unwrap());
    bucket.fail("GET", UNET, RequestFault::Late(Duration::from_secs(600)), 1);
    let partial = folder.path().join("unet/.diffusion_pytorch_model.safetensors.partial");
    let is_read = |line: &String| line.starts_with("GET ") && line.contains(UNET);
    let begun = async {
        while !bucket.requests().iter().any(is_read) {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::select! {
        ended = fetch(&bucket, folder.path()) => panic!("{ended:?}"),
        () = begun => {}
    }
    assert!(folder.path().join("unet").exists() && !partial.exists());
    assert!(!folder.path().join(manifest::NAME).exists());
    fetch(&bucket, folder.path()).await.unwrap();
    assert_eq!(tree(folder.path()), whole());
}
