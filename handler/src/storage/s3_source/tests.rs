//! Errors of S3 for a LoRA file, from a bucket on loopback.

use super::*;
use crate::storage::fake_s3::{FakeBucket, RequestFault, SECRET};
use std::time::Duration;

fn source(bucket: &FakeBucket) -> S3Source {
    S3Source::new(S3Client::new(bucket.client()), LORA)
}

fn location(key: &str) -> ObjectLocation {
    ObjectLocation { bucket: "models".into(), key: key.into() }
}

/// A bucket with two files, and a source that reads it.
async fn two() -> (FakeBucket, S3Source) {
    let bucket = FakeBucket::start().await;
    bucket.put("a", "one LoRA");
    bucket.put("b", "another LoRA");
    let source = source(&bucket);
    (bucket, source)
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
        let (bucket, source) = two().await;
        // The answer to HEAD has no body, so only a status.
        bucket.fail("HEAD", "/a", RequestFault::Refused(status, code), usize::MAX);
        bucket.fail("GET", "/a", RequestFault::Refused(status, code), usize::MAX);
        let head = source.version(&location("a")).await.unwrap_err();
        let get =
            source.read(&location("a"), &Version { etag: "\"1\"".into(), length: 8, ..Version::default() }, 0..8).await;
        for error in [head, get.unwrap_err()] {
            let words = error.to_string();
            assert_eq!(matches!(error, SourceError::Permanent(_)), is_permanent, "{status} {code}: {words}");
            assert!(words.contains("s3://models/a") && !words.contains(SECRET), "{words}");
        }
    }
}

#[tokio::test]
async fn what_is_denied_is_the_tasks_fault_where_another_file_of_the_bucket_can_still_be_read() {
    let (bucket, source) = two().await;
    bucket.fail("HEAD", "/a", RequestFault::Refused(403, "AccessDenied"), usize::MAX);
    bucket.fail("GET", "/a", RequestFault::Refused(403, "AccessDenied"), usize::MAX);
    assert!(matches!(source.version(&location("a")).await, Err(SourceError::Transient(_))), "nothing else was read");
    source.version(&location("b")).await.unwrap();
    assert!(matches!(source.version(&location("a")).await, Err(SourceError::Permanent(_))), "the other can be read");
    // A policy that denies everything.
    bucket.fail("GET", "/b", RequestFault::Refused(403, "AccessDenied"), usize::MAX);
    assert!(matches!(source.version(&location("a")).await, Err(SourceError::Transient(_))), "nothing can be read now");
    let elsewhere = ObjectLocation { bucket: "others".into(), key: "a".into() };
    assert!(
        matches!(source.version(&elsewhere).await, Err(SourceError::Transient(_))),
        "of another bucket nothing is known"
    );
}

#[tokio::test]
async fn a_file_that_could_be_read_once_is_no_witness_of_itself() {
    let (bucket, source) = two().await;
    source.version(&location("a")).await.unwrap();
    bucket.fail("HEAD", "/a", RequestFault::Refused(403, "AccessDenied"), usize::MAX);
    bucket.fail("GET", "/a", RequestFault::Refused(403, "AccessDenied"), 1);
    assert!(matches!(source.version(&location("a")).await, Err(SourceError::Transient(_))));
}

#[tokio::test]
async fn a_bucket_in_another_region_is_asked_there() {
    let (bucket, source) = two().await;
    bucket.move_to("eu-central-1");
    let version = source.version(&location("a")).await.unwrap();
    assert_eq!(bucket.requests(), ["HEAD /models/a", "HEAD /models/a"]);
    assert_eq!(source.read(&location("a"), &version, 0..8).await.unwrap(), b"one LoRA");
    assert_eq!(bucket.requests().len(), 1, "it asks in vain again");
    assert_eq!(source.s3.other_region("models").as_deref(), Some("eu-central-1"));
}

#[tokio::test]
async fn a_storage_that_ignores_ranges_or_conditions_is_named_for_it() {
    let (bucket, source) = two().await;
    let version = source.version(&location("a")).await.unwrap();
    bucket.ignore_ranges();
    let error = source.read(&location("a"), &version, 0..4).await.unwrap_err().to_string();
    assert!(error.contains("ignores Range") && error.contains("--lora-part-bytes"), "{error}");
    bucket.put("a", "replaced");
    assert_eq!(source.read(&location("a"), &version, 0..8).await, Err(SourceError::Changed));
}

#[tokio::test]
async fn an_answer_that_is_late_or_lost_passes() {
    for fault in [RequestFault::Lost, RequestFault::Reset, RequestFault::Late(Duration::from_millis(10))] {
        let (bucket, source) = two().await;
        bucket.fail("HEAD", "/a", fault, 2);
        assert_eq!(source.version(&location("a")).await.unwrap().length, 8, "{fault:?}");
    }
}

#[test]
fn two_files_of_a_bucket_are_remembered_and_of_all_buckets_not_too_many() {
    let client = aws_sdk_s3::Client::from_conf(
        aws_sdk_s3::Config::builder().behavior_version(aws_sdk_s3::config::BehaviorVersion::latest()).build(),
    );
    let source = S3Source::new(S3Client::new(client), LORA);
    for key in ["a", "b", "c", "b"] {
        source.remember_readable(&location(key));
    }
    assert_eq!(*source.readable.lock().unwrap(), [location("c"), location("b")]);
    for number in 0..2 * MAX_READABLE {
        source.remember_readable(&ObjectLocation { bucket: number.to_string(), key: "k".into() });
    }
    assert_eq!(source.readable.lock().unwrap().len(), MAX_READABLE);
}
