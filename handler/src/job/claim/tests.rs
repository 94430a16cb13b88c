//! Claims in a bucket on loopback, with the client's own retries on: if the answer to a write is lost, the retry finds what the first
//! attempt wrote.

use super::*;
use crate::storage::fake_s3::{FakeBucket, RequestFault, SECRET};
use futures_util::future::join_all;
use tokio::time::timeout;

const KEY: &str = "claims/gen_1";
/// Longer than any test waits.
const LEASE: Duration = Duration::from_secs(60);
/// Short enough to see some renewals.
const SHORT: Duration = Duration::from_secs(1);
const SOON: Duration = Duration::from_secs(5);

fn claims(bucket: &FakeBucket, lease: Duration) -> Claims {
    Claims::new(&S3Client::new(bucket.client()), "pictures".into(), lease)
}

async fn acquired(claims: &Claims) -> Claim {
    timeout(SOON, claims.acquire(1)).await.expect("it waits").expect("it is not given")
}

/// Lost, reset, and later than an attempt's timeout.
fn lost_answers(lease: Duration) -> [RequestFault; 3] {
    [RequestFault::Lost, RequestFault::Reset, RequestFault::Late(attempt(lease) + Duration::from_millis(50))]
}

#[tokio::test]
async fn a_claim_is_put_and_deleted_if_it_is_still_that_one() {
    let bucket = FakeBucket::start().await;
    acquired(&claims(&bucket, LEASE)).await.release().await;
    let path = "/pictures/claims/gen_1";
    assert_eq!(bucket.requests(), [format!("PUT {path} if-none-match: *"), format!("DELETE {path} if-match: \"1\"")]);
}

#[tokio::test]
async fn a_claim_is_ours_though_the_answer_to_its_write_was_lost() {
    let lease = Duration::from_secs(2);
    for fault in lost_answers(lease) {
        for times in [1, 3] {
            let bucket = FakeBucket::start().await;
            bucket.fail("PUT", KEY, fault, times);
            let claim = acquired(&claims(&bucket, lease)).await;
            assert!(bucket.body(KEY).is_some(), "{fault:?} {times}");
            claim.release().await;
            assert_eq!(bucket.body(KEY), None, "{fault:?} {times}: it stays behind");
        }
    }
}

#[tokio::test]
async fn a_renewal_whose_answer_was_lost_keeps_the_claim_and_nobody_else_gets_it() {
    let lease = Duration::from_secs(2);
    let held =
        lost_answers(lease).into_iter().flat_map(|fault| [(fault, 1), (fault, 4)]).map(|(fault, times)| async move {
            let bucket = FakeBucket::start().await;
            let claim = acquired(&claims(&bucket, lease)).await;
            let first = bucket.body(KEY);
            bucket.fail("PUT", KEY, fault, times);
            // The faults hit our renewals and the other's attempts.
            let other = claims(&bucket, lease);
            assert!(timeout(lease * 2, other.acquire(1)).await.is_err(), "{fault:?} {times}: painted twice");
            assert!(bucket.body(KEY) != first, "{fault:?} {times}: never renewed");
            claim.release().await;
            assert_eq!(bucket.body(KEY), None, "{fault:?} {times}: it stays behind");
        });
    join_all(held).await;
}

#[tokio::test]
async fn a_release_whose_answer_was_lost_is_done() {
    for fault in lost_answers(Duration::from_secs(2)) {
        let bucket = FakeBucket::start().await;
        let claim = acquired(&claims(&bucket, Duration::from_secs(2))).await;
        bucket.fail("DELETE", KEY, fault, 1);
        timeout(SOON, claim.release()).await.unwrap();
        assert_eq!(bucket.body(KEY), None, "{fault:?}");
    }
}

#[tokio::test]
async fn a_successors_claim_is_not_deleted() {
    let bucket = FakeBucket::start().await;
    let claim = acquired(&claims(&bucket, LEASE)).await;
    let other = format!("{} 0\n", Uuid::new_v4());
    bucket.put(KEY, &other);
    claim.release().await;
    assert_eq!(bucket.body(KEY), Some(other));
}

#[tokio::test]
async fn after_the_lease_a_claim_is_inspected_before_it_is_deleted() {
    let bucket = FakeBucket::start().await;
    let claim = acquired(&claims(&bucket, SHORT)).await;
    // No renewal succeeds any more.
    bucket.fail("PUT", KEY, RequestFault::Refused(503, "SlowDown"), usize::MAX);
    sleep(SHORT + SHORT / 2).await;
    let other = format!("{} 0\n", Uuid::new_v4());
    bucket.put(KEY, &other);
    bucket.requests();
    claim.release().await;
    assert_eq!(bucket.body(KEY), Some(other));
    assert!(bucket.requests().iter().all(|request| !request.starts_with("DELETE")));
}

#[tokio::test]
async fn a_conflict_of_two_writes_is_retried() {
    let bucket = FakeBucket::start().await;
    bucket.fail("PUT", KEY, RequestFault::Refused(409, "ConditionalRequestConflict"), 2);
    acquired(&claims(&bucket, LEASE)).await.release().await;
    assert_eq!(bucket.body(KEY), None);
}

#[tokio::test]
async fn a_claim_that_was_not_renewed_is_taken_over_by_its_etag() {
    let bucket = FakeBucket::start().await;
    bucket.put(KEY, &format!("{} 7\n", Uuid::new_v4()));
    bucket.age(KEY, LEASE + Duration::from_secs(30));
    acquired(&claims(&bucket, LEASE)).await.release().await;
    let path = "/pictures/claims/gen_1";
    let expected = [
        format!("PUT {path} if-none-match: *"),
        format!("GET {path}"),
        format!("PUT {path} if-match: \"1\""),
        format!("DELETE {path} if-match: \"2\""),
    ];
    assert_eq!(bucket.requests(), expected);
}

#[tokio::test]
async fn a_claim_that_is_released_meanwhile_is_free_also_to_a_role_that_may_not_list() {
    for absent in [(404, "NoSuchKey"), (403, "AccessDenied")] {
        let bucket = FakeBucket::start().await;
        bucket.fail("PUT", KEY, RequestFault::Refused(412, "PreconditionFailed"), 1);
        bucket.fail("GET", KEY, RequestFault::Refused(absent.0, absent.1), 1);
        acquired(&claims(&bucket, LEASE)).await.release().await;
        assert_eq!(bucket.body(KEY), None);
    }
}

#[tokio::test]
async fn a_bucket_without_conditional_writes_costs_one_request_and_no_task() {
    let lease = Duration::from_secs(2);
    let refusals = [(501, "NotImplemented"), (501, ""), (405, "MethodNotAllowed"), (400, "NotImplemented")].map(
        |(status, code)| async move {
            let bucket = FakeBucket::start().await;
            let claims = claims(&bucket, lease);
            bucket.fail("PUT", KEY, RequestFault::Refused(status, code), usize::MAX);
            acquired(&claims).await.release().await;
            sleep(lease).await;
            acquired(&claims).await.release().await;
            assert_eq!(bucket.requests().len(), 1, "{status} {code}");
        },
    );
    join_all(refusals).await;
}

#[tokio::test]
async fn a_missing_permission_leaves_claims_out_for_a_while_and_no_longer() {
    let lease = Duration::from_secs(2);
    let refusals =
        [(403, "AccessDenied"), (403, ""), (400, ""), (400, "InvalidArgument")].map(|(status, code)| async move {
            let bucket = FakeBucket::start().await;
            let claims = claims(&bucket, lease);
            bucket.fail("PUT", KEY, RequestFault::Refused(status, code), 1);
            acquired(&claims).await.release().await;
            acquired(&claims).await.release().await;
            assert_eq!(bucket.requests().len(), 1, "{status} {code}");
            sleep(lease).await;
            let claim = acquired(&claims).await;
            assert!(bucket.body(KEY).is_some(), "{status} {code}: off for good");
            claim.release().await;
        });
    join_all(refusals).await;
}

#[tokio::test]
async fn a_temporary_error_is_returned_and_claims_stay_on() {
    for (status, code) in [
        (400, "ExpiredToken"),
        (400, "RequestTimeout"),
        (403, "RequestTimeTooSkewed"),
        (403, "InvalidAccessKeyId"),
        (404, "NoSuchBucket"),
        (503, "SlowDown"),
    ] {
        let bucket = FakeBucket::start().await;
        let claims = claims(&bucket, LEASE);
        // As many as the client attempts.
        bucket.fail(
            "PUT",
            KEY,
            RequestFault::Refused(status, code),
            if code == "SlowDown" || code == "RequestTimeout" { 3 } else { 1 },
        );
        let error = claims.acquire(1).await.unwrap_err();
        assert!(error.contains(code) && !error.contains(SECRET), "{error}");
        let claim = acquired(&claims).await;
        assert!(bucket.body(KEY).is_some(), "{code}: claims are off");
        claim.release().await;
    }
}

#[tokio::test]
async fn a_claim_that_somebody_removed_is_put_again() {
    let bucket = FakeBucket::start().await;
    let claim = acquired(&claims(&bucket, SHORT)).await;
    bucket.remove(KEY);
    sleep(SHORT).await;
    assert!(bucket.body(KEY).is_some());
    claim.release().await;
    assert_eq!(bucket.body(KEY), None);
}

#[test]
fn no_request_takes_as_long_as_the_lease() {
    for seconds in [1, 2, 5, 60, 3_600] {
        let lease = Duration::from_secs(seconds);
        // A renewal begins when a third is over.
        assert!(attempt(lease) <= lease / 3 && lease / 3 + operation(lease) < lease, "{lease:?}");
    }
}
