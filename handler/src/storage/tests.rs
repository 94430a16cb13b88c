//! Pictures, payloads and the probes of doctor, with a bucket on loopback: which errors are temporary, and that no error repeats S3's text.

use super::{
    fake_s3::{FakeBucket, HOME_REGION, RequestFault, SECRET},
    *,
};
use crate::{
    storage::{
        cache::fake_source::{DOWNLOAD_OPTIONS, LIMITS},
        options::ResultAcl,
        payload::PayloadPointer,
    },
    task::{Format, SafetyMode},
};

const KEY: &str = "generations/1.jpg";
const PRINT: &str = "fingerprint";

fn store(bucket: &FakeBucket) -> Store {
    let s3 = S3Client::new(bucket.client());
    let cache = || Cache::new(S3Source::new(s3.clone(), LORA), "/nonexistent".into(), DOWNLOAD_OPTIONS, LIMITS);
    let images = Images::new(
        S3Source::new(s3.clone(), IMAGE),
        DOWNLOAD_OPTIONS,
        ImageLimits { max_image_bytes: 1000, max_image_pixels: 100 },
    );
    let (loras, inversions) = (ParsedCache::new(cache(), 1 << 20), ParsedCache::new(cache(), 1 << 20));
    Store {
        s3,
        bucket: "pictures".into(),
        put: PutOptions { acl: ResultAcl::None, kms_key: None, class: None, tags: None, cache_control: None },
        urls: ResultUrls::Public,
        keys: KeyTemplate::default(),
        base_url: String::new(),
        payload_bucket: Some("payloads".into()),
        loras,
        inversions,
        images,
    }
}

async fn has_picture(store: &Store) -> Result<bool, String> {
    let stored = store.stored_pictures(&[KEY.to_string()], PRINT).await;
    stored.map(|checked| checked.is_some()).map_err(|error| error.to_string())
}

#[tokio::test]
async fn a_picture_stands_or_does_not_and_what_passes_says_neither() {
    let bucket = FakeBucket::start().await;
    let store = store(&bucket);
    assert_eq!(has_picture(&store).await, Ok(false));
    assert_eq!(bucket.requests().len(), 1, "a picture that is not there costs one request");
    store.put_picture(KEY, b"picture".to_vec(), Format::Jpeg, PRINT, None).await.unwrap();
    assert_eq!(has_picture(&store).await, Ok(true));
    for (status, code) in [
        (400, "ExpiredToken"),
        (403, "RequestTimeTooSkewed"),
        (403, "InvalidAccessKeyId"),
        (404, "NoSuchBucket"),
        (403, ""),
    ] {
        // First only a status, then an error code.
        bucket.fail("HEAD", KEY, RequestFault::Refused(if status == 404 { 403 } else { status }, code), 1);
        bucket.fail("GET", KEY, RequestFault::Refused(status, code), 1);
        let error = has_picture(&store).await.unwrap_err();
        assert!(error.contains(code) && error.contains(KEY) && !error.contains(SECRET), "{error}");
    }
    // Without s3:ListBucket the same answer comes for a missing object.
    bucket.fail("HEAD", KEY, RequestFault::Refused(403, "AccessDenied"), 2);
    bucket.fail("GET", KEY, RequestFault::Refused(403, "AccessDenied"), 1);
    assert_eq!(has_picture(&store).await, Ok(false));
    assert_eq!(has_picture(&store).await, Ok(true), "it had passed when it was asked again");
}

#[tokio::test]
async fn the_verdict_is_kept_with_each_picture_and_read_again() {
    let bucket = FakeBucket::start().await;
    let store = store(&bucket);
    let keys = ["generations/1.jpg".to_string(), "generations/1_2.jpg".to_string()];
    let stored = async || store.stored_pictures(&keys, PRINT).await.unwrap();
    let put = async |key: &str, checked| {
        store.put_picture(key, vec![b'x'], Format::Jpeg, PRINT, checked).await.unwrap();
    };
    let check = |nsfw| Checked { mode: SafetyMode::Black, nsfw };
    put(&keys[0], Some(check(true))).await;
    assert_eq!(stored().await, None, "half of the pictures are none");
    put(&keys[1], Some(check(false))).await;
    assert_eq!(stored().await, Some(vec![check(true), check(false)]));
    assert_eq!(store.stored_pictures(&keys, "another task").await.unwrap(), None);
    put(&keys[1], None).await;
    assert_eq!(stored().await, Some(vec![]), "a verdict on half of the pictures is none");
}

/// Whoever has a signed address needs no other header than the host.
#[tokio::test]
async fn an_address_is_plain_or_signed_or_bucket_and_key() {
    let bucket = FakeBucket::start().await;
    let mut store = store(&bucket);
    store.base_url = "https://pictures.example.org".into();
    assert_eq!(store.picture_url(KEY).await.unwrap(), format!("https://pictures.example.org/{KEY}"));
    store.urls = ResultUrls::S3;
    assert_eq!(store.picture_url(KEY).await.unwrap(), format!("s3://pictures/{KEY}"));
    store.urls = ResultUrls::Presigned(Duration::from_secs(60));
    let url = store.picture_url(KEY).await.unwrap();
    assert!(url.contains(&format!("/pictures/{KEY}?")) && url.contains("X-Amz-Signature="), "{url}");
    assert!(url.contains("X-Amz-Expires=60&") && url.contains("X-Amz-SignedHeaders=host&"), "{url}");
    assert_eq!(bucket.requests().len(), 0, "signing needs no request");
}

#[tokio::test]
async fn an_upload_that_fails_may_be_tried_again_and_says_the_code_alone() {
    let bucket = FakeBucket::start().await;
    let store = store(&bucket);
    for (status, code) in [(403, "AccessDenied"), (400, "ExpiredToken"), (404, "NoSuchBucket"), (400, "EntityTooLarge")]
    {
        bucket.fail("PUT", KEY, RequestFault::Refused(status, code), 1);
        let error = store.put_picture(KEY, vec![1], Format::Jpeg, PRINT, None).await.unwrap_err();
        let words = error.to_string();
        assert!(
            matches!(error, StoreError::Transient(_)) && words.contains(code) && !words.contains(SECRET),
            "{words}"
        );
    }
}

#[tokio::test]
async fn a_payload_that_cannot_be_read_may_be_tried_again_and_says_the_code_alone() {
    let bucket = FakeBucket::start().await;
    let store = store(&bucket);
    let pointer = PayloadPointer { bucket: "payloads".into(), key: "body".into() };
    for (status, code) in [(403, "AccessDenied"), (400, "ExpiredToken"), (404, "NoSuchKey")] {
        bucket.fail("GET", "/body", RequestFault::Refused(status, code), 1);
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
    let bucket = FakeBucket::start().await;
    bucket.move_to("eu-central-1");
    let store = store(&bucket);
    let (s3, pictures) = store.pictures();
    let claim =
        crate::job::claim::Claims::new(s3, pictures.to_string(), Duration::from_secs(60)).acquire(1).await.unwrap();
    assert!(bucket.body("claims/gen_1").is_some());
    claim.release().await;
    assert_eq!(has_picture(&store).await, Ok(false));
    store.put_picture(KEY, b"picture".to_vec(), Format::Jpeg, PRINT, None).await.unwrap();
    assert_eq!(bucket.body(KEY).as_deref(), Some("picture"));
    assert_eq!(store.other_region("pictures"), Some(("eu-central-1".into(), HOME_REGION.into())));
}

#[tokio::test]
async fn doctor_tells_a_missing_permission_from_what_passes() {
    let bucket = FakeBucket::start().await;
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
        // HeadBucket, and the listing that says why; a write; an object.
        bucket.fail("HEAD", "", RequestFault::Refused(status, code), 1);
        bucket.fail("GET", "", RequestFault::Refused(status, code), usize::from(status != 404));
        assert!(is_right(store.probe_bucket("pictures").await), "bucket {code}");
        bucket.fail("PUT", ".easel-doctor", RequestFault::Refused(status, code), 1);
        assert!(is_right(store.probe_pictures().await), "pictures {code}");
        bucket.fail("GET", "/lora", RequestFault::Refused(status, code), 1);
        assert!(is_right(store.probe_object("models", "lora").await), "object {code}");
    }
    assert_eq!(store.probe_pictures().await, Access::Granted);
    assert_eq!(store.probe_object("models", "lora").await, Access::Granted);
}

#[tokio::test]
async fn a_picture_to_begin_from_is_held_to_its_limit_before_it_is_fetched() {
    let bucket = FakeBucket::start().await;
    let store = store(&bucket);
    let image = async |key: &str| {
        let wanted = ImageRef { bucket: "uploads".into(), key: key.into(), strength: 1.0 };
        store.image(&wanted, (8, 8)).await.unwrap_err()
    };
    bucket.put("large.png", &"x".repeat(1001));
    let error = image("large.png").await;
    let said = "`image_url` s3://uploads/large.png has 1001 bytes, the limit is 1000 by --max-image-bytes";
    assert!(matches!(&error, StoreError::Permanent(reason) if reason.starts_with(said)), "{error}");
    let requests = bucket.requests();
    assert!(requests.iter().all(|request| request.starts_with("HEAD")), "{requests:?}");
    // A temporary error is retried.
    bucket.put("notes.txt", "a house and a lake");
    bucket.fail("GET", "notes.txt", RequestFault::Refused(503, "SlowDown"), 1);
    let error = image("notes.txt").await;
    assert!(matches!(&error, StoreError::Permanent(reason) if reason.contains("is no PNG, JPEG or WebP")), "{error}");
    bucket.fail("HEAD", "notes.txt", RequestFault::Refused(400, "ExpiredToken"), 9);
    let error = image("notes.txt").await;
    assert!(matches!(&error, StoreError::Transient(_)), "{error}");
    assert!(!error.to_string().contains(SECRET), "{error}");
}
