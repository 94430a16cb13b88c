//! S3's answers about a LoRA file, from a bucket on loopback.

use super::*;
use crate::storage::loopback::{Bucket, Fault, SECRET};
use std::time::Duration;

fn objects(bucket: &Bucket) -> Objects {
    Objects::new(Regional::new(bucket.client()), LORA)
}

fn place(key: &str) -> Place {
    Place { bucket: "models".into(), key: key.into() }
}

/// A bucket with two files, and what is asked about the first.
async fn two() -> (Bucket, Objects) {
    let bucket = Bucket::start().await;
    bucket.put("a", "one LoRA");
    bucket.put("b", "another LoRA");
    let objects = objects(&bucket);
    (bucket, objects)
}

#[tokio::test]
async fn only_codes_that_speak_of_the_file_are_the_tasks_fault() {
    for (status, code, is_permanent) in [
        (400, "ExpiredToken", false),
        (400, "RequestTimeout", false),
        (400, "KMS.DisabledException", false),
        (400, "", false),
        (403, "RequestTimeTooSkewed", false),
        (403, "InvalidAccessKeyId", false),
        (403, "SignatureDoesNotMatch", false),
        (403, "AccessDenied", false),
        (403, "KMS.AccessDeniedException", false),
        (403, "", false),
        (503, "SlowDown", false),
        (404, "", false),
        (404, "NoSuchKey", true),
        (404, "NoSuchVersion", true),
        (404, "NoSuchBucket", true),
        (403, "InvalidObjectState", true),
    ] {
        let (bucket, objects) = two().await;
        // The answer to HEAD has no body: it is the status alone that it says.
        bucket.fail("HEAD", "/a", Fault::Refused(status, code), usize::MAX);
        bucket.fail("GET", "/a", Fault::Refused(status, code), usize::MAX);
        let head = objects.version(&place("a")).await.unwrap_err();
        let get =
            objects.read(&place("a"), &Version { etag: "\"1\"".into(), length: 8, ..Version::default() }, 0..8).await;
        for error in [head, get.unwrap_err()] {
            let words = error.to_string();
            assert_eq!(matches!(error, SourceError::Permanent(_)), is_permanent, "{status} {code}: {words}");
            assert!(words.contains("s3://models/a") && !words.contains(SECRET), "{words}");
        }
    }
}

#[tokio::test]
async fn what_is_denied_is_the_tasks_fault_where_another_file_of_the_bucket_can_still_be_read() {
    let (bucket, objects) = two().await;
    bucket.fail("HEAD", "/a", Fault::Refused(403, "AccessDenied"), usize::MAX);
    bucket.fail("GET", "/a", Fault::Refused(403, "AccessDenied"), usize::MAX);
    assert!(matches!(objects.version(&place("a")).await, Err(SourceError::Transient(_))), "nothing else was read");
    objects.version(&place("b")).await.unwrap();
    assert!(matches!(objects.version(&place("a")).await, Err(SourceError::Permanent(_))), "the other can be read");
    // A policy that denies everything.
    bucket.fail("GET", "/b", Fault::Refused(403, "AccessDenied"), usize::MAX);
    assert!(matches!(objects.version(&place("a")).await, Err(SourceError::Transient(_))), "nothing can be read now");
    let elsewhere = Place { bucket: "others".into(), key: "a".into() };
    assert!(
        matches!(objects.version(&elsewhere).await, Err(SourceError::Transient(_))),
        "of another bucket nothing is known"
    );
}

#[tokio::test]
async fn a_file_that_could_be_read_once_is_no_witness_of_itself() {
    let (bucket, objects) = two().await;
    objects.version(&place("a")).await.unwrap();
    bucket.fail("HEAD", "/a", Fault::Refused(403, "AccessDenied"), usize::MAX);
    bucket.fail("GET", "/a", Fault::Refused(403, "AccessDenied"), 1);
    assert!(matches!(objects.version(&place("a")).await, Err(SourceError::Transient(_))));
}

#[tokio::test]
async fn a_bucket_in_another_region_is_asked_there() {
    let (bucket, objects) = two().await;
    bucket.move_to("eu-central-1");
    let version = objects.version(&place("a")).await.unwrap();
    assert_eq!(bucket.requests(), ["HEAD /models/a", "HEAD /models/a"]);
    assert_eq!(objects.read(&place("a"), &version, 0..8).await.unwrap(), b"one LoRA");
    assert_eq!(bucket.requests().len(), 1, "it asks in vain again");
    assert_eq!(objects.s3.elsewhere("models").as_deref(), Some("eu-central-1"));
}

#[tokio::test]
async fn a_storage_that_ignores_ranges_or_conditions_is_named_for_it() {
    let (bucket, objects) = two().await;
    let version = objects.version(&place("a")).await.unwrap();
    bucket.ignore_ranges();
    let error = objects.read(&place("a"), &version, 0..4).await.unwrap_err().to_string();
    assert!(error.contains("ignores Range") && error.contains("--lora-part-bytes"), "{error}");
    bucket.put("a", "replaced");
    assert_eq!(objects.read(&place("a"), &version, 0..8).await, Err(SourceError::Changed));
}

#[tokio::test]
async fn an_answer_that_is_late_or_lost_passes() {
    for fault in [Fault::Lost, Fault::Reset, Fault::Late(Duration::from_millis(10))] {
        let (bucket, objects) = two().await;
        bucket.fail("HEAD", "/a", fault, 2);
        assert_eq!(objects.version(&place("a")).await.unwrap().length, 8, "{fault:?}");
    }
}

#[test]
fn two_files_of_a_bucket_are_remembered_and_of_all_buckets_not_too_many() {
    let client = aws_sdk_s3::Client::from_conf(
        aws_sdk_s3::Config::builder().behavior_version(aws_sdk_s3::config::BehaviorVersion::latest()).build(),
    );
    let objects = Objects::new(Regional::new(client), LORA);
    for key in ["a", "b", "c", "b"] {
        objects.testify(&place(key));
    }
    assert_eq!(*objects.witnesses.lock().unwrap(), [place("c"), place("b")]);
    for number in 0..2 * WITNESSES {
        objects.testify(&Place { bucket: number.to_string(), key: "k".into() });
    }
    assert_eq!(objects.witnesses.lock().unwrap().len(), WITNESSES);
}
