//! Checks the AWS credentials and the buckets: of pictures, LoRAs, pictures to begin from, and large messages.

use super::{DoctorConfig, Finding, answer};
use crate::{
    storage::{
        Access, ResultUrls, Store,
        options::{ResultAcl, StoreConfig},
    },
    task::buckets::BucketPattern,
    webhook::network::Guard,
};
use aws_config::SdkConfig;
use aws_sdk_s3::config::ProvideCredentials;
use url::Url;

const NETWORK: &str = "check the network, the region and the endpoint";

pub(super) async fn credentials(aws: &SdkConfig) -> Finding {
    let what = "aws.credentials";
    let region = aws.region().map_or("no region", |region| region.as_ref());
    let advice = "give the task, the instance or the pod a role, or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY";
    let Some(provider) = aws.credentials_provider() else { return Finding::fail(what, advice) };
    match answer(provider.provide_credentials()).await {
        Ok(Ok(_)) if aws.region().is_none() => Finding::fail(what, "no region; set AWS_REGION"),
        Ok(Ok(_)) => Finding::ok(what, region),
        Ok(Err(error)) => Finding::fail(what, format!("{}; {advice}", aws_errors::credentials(&error))),
        Err(error) => Finding::fail(what, error),
    }
}

pub(super) async fn check(config: &DoctorConfig, aws: &SdkConfig) -> Vec<Finding> {
    let settings = &config.service.store;
    let store = Store::new(settings, aws);
    let mut findings = vec![results(&store, &settings.bucket, settings).await, addresses(settings, &store)];
    for pattern in &config.service.safety.lora_buckets {
        if let BucketPattern::Named(bucket) = pattern {
            findings.push(readable(&store, "s3.lora-bucket", bucket, "--lora-buckets (EASEL_LORA_BUCKETS)").await);
        }
    }
    for pattern in &config.service.safety.image_buckets {
        if let BucketPattern::Named(bucket) = pattern {
            findings.push(readable(&store, "s3.image-bucket", bucket, "--image-buckets (EASEL_IMAGE_BUCKETS)").await);
        }
    }
    if let Some(bucket) = &settings.payload_bucket {
        findings.push(readable(&store, "s3.payload-bucket", bucket, "--payload-bucket (EASEL_PAYLOAD_BUCKET)").await);
    }
    if let Some(url) = &config.lora_url {
        findings.push(lora(&store, url).await);
    }
    findings
}

async fn results(store: &Store, bucket: &str, settings: &StoreConfig) -> Finding {
    let what = format!("s3.pictures {bucket}");
    let result = &settings.result;
    let more = [
        (settings.acl() == ResultAcl::PublicRead, "s3:PutObjectAcl"),
        (result.result_tags.is_some(), "s3:PutObjectTagging"),
        (result.result_kms_key.is_some(), "kms:GenerateDataKey and kms:Decrypt of its key"),
    ];
    let more: String = more.iter().filter(|(asked, _)| *asked).map(|(_, right)| format!(", {right}")).collect();
    let folder = store.results_folder();
    match answer(store.probe_pictures()).await {
        Ok(Access::Granted) => ok_in_region(store, bucket, what, "can be written to"),
        Ok(Access::Unconditional) => Finding::warn(
            what,
            "can be written to, but knows no conditional writes: a task that is delivered twice at once is painted twice; use S3",
        ),
        Ok(Access::Missing) => Finding::fail(what, "does not exist; create it, or correct --s3-bucket (S3_BUCKET)"),
        Ok(Access::Denied) => Finding::fail(
            what,
            format!(
                "may not be written to; this role needs s3:PutObject{more} on {folder}*, and s3:PutObject on claims/* and cancelled/*"
            ),
        ),
        Ok(Access::NoAcls) => Finding::fail(
            what,
            "has ACLs disabled; set --result-acl none (EASEL_RESULT_ACL) and let its policy decide who reads",
        ),
        Ok(Access::Unknown(error)) => Finding::fail(what, format!("{error}; {NETWORK}")),
        Err(error) => Finding::fail(what, error),
    }
}

/// Whether the result URLs can be fetched from outside, as far as the address shows.
fn addresses(settings: &StoreConfig, store: &Store) -> Finding {
    let what = format!("s3.result-url {}", store.base_url());
    if settings.result.result_urls == ResultUrls::S3 {
        return Finding::ok(what, "not used: the backend gets s3://BUCKET/KEY");
    }
    if settings.base_url.is_some() {
        return Finding::ok(what, "as --result-base-url says");
    }
    let public = Guard::new(&[], false);
    let host = |url: &Url| url.host_str().is_some_and(|host| host.contains(['.', ':']));
    let reachable = Url::parse(store.base_url()).is_ok_and(|url| host(&url) && public.check(&url).is_ok());
    match reachable {
        true => Finding::ok(what, ""),
        false => Finding::warn(
            what,
            "made of the endpoint, which only this network knows; set --result-base-url (EASEL_RESULT_BASE_URL) to where others can \
             fetch pictures",
        ),
    }
}

async fn readable(store: &Store, kind: &str, bucket: &str, option: &str) -> Finding {
    let what = format!("{kind} {bucket}");
    match answer(store.probe_bucket(bucket)).await {
        Ok(Access::Granted | Access::Unconditional) => ok_in_region(store, bucket, what, ""),
        Ok(Access::Missing) => Finding::fail(what, format!("does not exist; create it, or correct {option}")),
        Ok(Access::Denied | Access::NoAcls) => Finding::warn(
            what,
            "may not be listed, which is well if its objects may be read; this role needs s3:GetObject",
        ),
        Ok(Access::Unknown(error)) => Finding::fail(what, format!("{error}; {NETWORK}")),
        Err(error) => Finding::fail(what, error),
    }
}

async fn lora(store: &Store, url: &url::Url) -> Finding {
    let what = format!("s3.lora {url}");
    let (bucket, key) = (url.host_str().unwrap_or_default(), url.path().trim_start_matches('/'));
    match answer(store.probe_object(bucket, key)).await {
        Ok(Access::Granted | Access::Unconditional) => ok_in_region(store, bucket, what, "can be read"),
        Ok(Access::Missing) => Finding::fail(what, "does not exist; correct --lora-url, or upload it"),
        Ok(Access::Denied | Access::NoAcls) => {
            Finding::fail(what, "may not be read; this role needs s3:GetObject on it")
        }
        Ok(Access::Unknown(error)) => Finding::fail(what, format!("{error}; {NETWORK}")),
        Err(error) => Finding::fail(what, error),
    }
}

/// Ok, or a warning if the bucket is in another region.
fn ok_in_region(store: &Store, bucket: &str, what: String, note: &str) -> Finding {
    let Some((region, ours)) = store.other_region(bucket) else { return Finding::ok(what, note) };
    let note = if note.is_empty() { String::new() } else { format!("{note}; ") };
    Finding::warn(
        what,
        format!(
            "{note}lies in {region} and not in {ours}, where this process is: it is asked there, and traffic between regions costs \
             time and money; keep both in one region, or correct AWS_REGION"
        ),
    )
}
