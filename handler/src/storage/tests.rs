//! Pictures, payloads and doctor's questions, in buckets on loopback: which of S3's answers passes, and that none is repeated.

use super::{
    loopback::{Bucket, Fault, HOME, SECRET},
    *,
};
use crate::{
    storage::{
        cache::fake::{LIMITS, PARTS},
        pointer::Pointer,
    },
    task::Format,
};

const KEY: &str = "generations/1.jpg";
const PRINT: &str = "fingerprint";

fn store(bucket: &Bucket) -> Store {
    let s3 = Regional::new(bucket.client());
    let cache = Cache::new(Objects::new(s3.clone(), LORA), "/nonexistent".into(), PARTS, LIMITS);
    Store {
        s3,
        bucket: "pictures".into(),
        acl: ResultAcl::None,
        base_url: String::new(),
        payload_bucket: Some("payloads".into()),
        loras: Loras::new(cache, 1 << 20),
    }
}

async fn stands(store: &Store) -> Result<bool, String> {
    store.stands(&[KEY.to_string()], PRINT).await.map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_picture_stands_or_does_not_and_what_passes_says_neither() {
    let bucket = Bucket::start().await;
    let store = store(&bucket);
    assert_eq!(stands(&store).await, Ok(false));
    assert_eq!(bucket.requests().len(), 1, "a picture that is not there costs one request");
    store.put_picture(KEY, b"picture".to_vec(), Format::Jpeg, PRINT).await.unwrap();
    assert_eq!(stands(&store).await, Ok(true));
    for (status, code) in [
        (400, "ExpiredToken"),
        (403, "RequestTimeTooSkewed"),
        (403, "InvalidAccessKeyId"),
        (404, "NoSuchBucket"),
        (403, ""),
    ] {
        // The status alone, and then the code.
        bucket.fail("HEAD", KEY, Fault::Refused(if status == 404 { 403 } else { status }, code), 1);
        bucket.fail("GET", KEY, Fault::Refused(status, code), 1);
        let error = stands(&store).await.unwrap_err();
        assert!(error.contains(code) && error.contains(KEY) && !error.contains(SECRET), "{error}");
    }
    // Those who may not list get the same answer for what is not there.
    bucket.fail("HEAD", KEY, Fault::Refused(403, "AccessDenied"), 2);
    bucket.fail("GET", KEY, Fault::Refused(403, "AccessDenied"), 1);
    assert_eq!(stands(&store).await, Ok(false));
    assert_eq!(stands(&store).await, Ok(true), "it had passed when it was asked again");
}

#[tokio::test]
async fn an_upload_that_fails_may_be_tried_again_and_says_the_code_alone() {
    let bucket = Bucket::start().await;
    let store = store(&bucket);
    for (status, code) in [(403, "AccessDenied"), (400, "ExpiredToken"), (404, "NoSuchBucket"), (400, "EntityTooLarge")]
    {
        bucket.fail("PUT", KEY, Fault::Refused(status, code), 1);
        let error = store.put_picture(KEY, vec![1], Format::Jpeg, PRINT).await.unwrap_err();
        let words = error.to_string();
        assert!(
            matches!(error, StoreError::Transient(_)) && words.contains(code) && !words.contains(SECRET),
            "{words}"
        );
    }
}

#[tokio::test]
async fn a_payload_that_cannot_be_read_may_be_tried_again_and_says_the_code_alone() {
    let bucket = Bucket::start().await;
    let store = store(&bucket);
    let pointer = Pointer { bucket: "payloads".into(), key: "body".into() };
    for (status, code) in [(403, "AccessDenied"), (400, "ExpiredToken"), (404, "NoSuchKey")] {
        bucket.fail("GET", "/body", Fault::Refused(status, code), 1);
        let error = store.payload(&pointer).await.unwrap_err();
        let words = error.to_string();
        assert!(
            matches!(error, StoreError::Transient(_)) && words.contains(code) && !words.contains(SECRET),
            "{words}"
        );
    }
    bucket.put("body", "{}");
    assert_eq!(store.payload(&pointer).await.unwrap(), "{}");
}

#[tokio::test]
async fn pictures_and_claims_of_a_bucket_in_another_region_go_there() {
    let bucket = Bucket::start().await;
    bucket.move_to("eu-central-1");
    let store = store(&bucket);
    let (s3, pictures) = store.pictures();
    let claim =
        crate::job::claim::Claims::new(s3, pictures.to_string(), Duration::from_secs(60)).acquire(1).await.unwrap();
    assert!(bucket.body("claims/gen_1").is_some());
    claim.release().await;
    assert_eq!(stands(&store).await, Ok(false));
    store.put_picture(KEY, b"picture".to_vec(), Format::Jpeg, PRINT).await.unwrap();
    assert_eq!(bucket.body(KEY).as_deref(), Some("picture"));
    assert_eq!(store.elsewhere("pictures"), Some(("eu-central-1".into(), HOME.into())));
}

#[tokio::test]
async fn doctor_tells_a_missing_permission_from_what_passes() {
    let bucket = Bucket::start().await;
    let store = store(&bucket);
    bucket.put("lora", "a LoRA");
    for (status, code, access) in [
        (403, "AccessDenied", Some(Access::Denied)),
        (404, "NoSuchBucket", Some(Access::Missing)),
        (400, "ExpiredToken", None),
        (403, "RequestTimeTooSkewed", None),
    ] {
        let is_right = |asked: Access| match &access {
            Some(access) => asked == *access,
            None => matches!(&asked, Access::Unknown(words) if words.contains(code) && !words.contains(SECRET)),
        };
        // HEAD of a bucket, and the list that says why; a write; an object.
        bucket.fail("HEAD", "", Fault::Refused(status, code), 1);
        bucket.fail("GET", "", Fault::Refused(status, code), usize::from(status != 404));
        assert!(is_right(store.probe_bucket("pictures").await), "bucket {code}");
        bucket.fail("PUT", ".easel-doctor", Fault::Refused(status, code), 1);
        assert!(is_right(store.probe_pictures().await), "pictures {code}");
        bucket.fail("GET", "/lora", Fault::Refused(status, code), 1);
        assert!(is_right(store.probe_object("models", "lora").await), "object {code}");
    }
    assert_eq!(store.probe_pictures().await, Access::Granted);
    assert_eq!(store.probe_object("models", "lora").await, Access::Granted);
}
