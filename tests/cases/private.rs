//! Private pictures: keys by a template, signed addresses, and what S3 is told when a picture is stored.

use crate::{
    context::{PATIENCE, case},
    redelivery::second_complete,
    worker::{SHORT_VISIBILITY, worker},
};
use anyhow::{Context, Result};
use aws_sdk_s3::types::{ServerSideEncryption, StorageClass};
use e2e::{
    aws::IMAGES,
    backend::{COMPLETE, Call},
    paths::binary,
    process::Spec,
    wait,
};
use reqwest::Url;
use std::time::{SystemTime, UNIX_EPOCH};

const KMS_KEY: &str = "arn:aws:kms:us-east-1:123456789012:key/1234abcd-12ab-34cd-56ef-1234567890ab";

fn result_url(call: &Call) -> Result<Url> {
    Ok(Url::parse(call.body["result_url"].as_str().context("no result_url")?)?)
}

fn query(url: &Url, name: &str) -> String {
    url.query_pairs().find(|(key, _)| key == name).map(|(_, value)| value.into_owned()).unwrap_or_default()
}

fn second() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs())
}

#[test]
fn private_pictures_are_stored_as_asked_and_get_a_fresh_signed_address_each_time() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("private", SHORT_VISIBILITY, 3).await?;
        let options = [
            ("EASEL_RESULT_URLS", "presigned:60"),
            ("EASEL_RESULT_KEY", "styles/{style_id}/{generation_id}-{number}.{extension}"),
            ("EASEL_RESULT_KMS_KEY", KMS_KEY),
            ("EASEL_RESULT_STORAGE_CLASS", "STANDARD_IA"),
            ("EASEL_RESULT_TAGS", "team=easel&kind=a%20picture"),
            ("EASEL_RESULT_CACHE_CONTROL", "private, max-age=3600"),
        ];
        let worker = worker(&ctx, "private", &queue, &options)?;
        let task = ctx.task().with("num_inference_steps", 2).with("num_images", 2);
        aws.send(&queue.url, &task.body()).await?;
        let complete = ctx.backend.end_of(task.id(), PATIENCE).await?;
        let urls = complete.body["result_urls"].as_array().context("no result_urls")?.clone();
        assert_eq!(urls.len(), 2);
        for (number, url) in (1..).zip(&urls) {
            let url = Url::parse(url.as_str().context("no text")?)?;
            let key = format!("styles/10/{}-{number}.jpg", task.id());
            assert_eq!(url.path(), format!("/{IMAGES}/{key}"));
            assert_eq!(
                (query(&url, "X-Amz-Expires").as_str(), query(&url, "X-Amz-SignedHeaders").as_str()),
                ("60", "host")
            );
            assert_eq!(query(&url, "X-Amz-Signature").len(), 64);
            let answer = e2e::http_client()?.get(url).send().await?.error_for_status()?;
            assert_eq!(image::load_from_memory(&answer.bytes().await?)?.width(), 512);
            let head = aws.s3.head_object().bucket(IMAGES).key(&key).send().await?;
            assert_eq!(head.server_side_encryption(), Some(&ServerSideEncryption::AwsKms));
            assert_eq!(head.ssekms_key_id(), Some(KMS_KEY));
            assert_eq!(head.storage_class(), Some(&StorageClass::StandardIa));
            assert_eq!(head.cache_control(), Some("private, max-age=3600"));
            let tags = aws.s3.get_object_tagging().bucket(IMAGES).key(&key).send().await?;
            let mut tags: Vec<_> = tags.tag_set().iter().map(|tag| (tag.key(), tag.value())).collect();
            tags.sort_unstable();
            assert_eq!(tags, [("kind", "a picture"), ("team", "easel")]);
            let acl = aws.s3.get_object_acl().bucket(IMAGES).key(&key).send().await?;
            let public = acl.grants().iter().any(|grant| grant.grantee().is_some_and(|who| who.uri().is_some()));
            assert!(!public, "everybody may read it: {acl:?}");
        }
        // A signature's time has whole seconds.
        let then = second();
        wait::until("another second", PATIENCE, async || (second() > then).then_some(())).await?;
        aws.send(&queue.url, &task.body()).await?;
        let calls = second_complete(&ctx).await?;
        let again = calls.iter().rfind(|call| call.path == COMPLETE).context("no complete")?;
        let (first, fresh) = (result_url(&complete)?, result_url(again)?);
        assert_eq!(first.path(), fresh.path());
        assert!(query(&fresh, "X-Amz-Date") > query(&first, "X-Amz-Date"), "{first} {fresh}");
        assert_eq!(complete.headers["webhook-id"], again.headers["webhook-id"]);
        assert_eq!(calls.iter().filter(|call| call.path == COMPLETE).count(), 2, "painted again");
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn the_backend_may_get_bucket_and_key_alone() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let queue = aws.queue("private-s3", SHORT_VISIBILITY, 3).await?;
        let worker = worker(&ctx, "private-s3", &queue, &[("EASEL_RESULT_URLS", "s3")])?;
        let task = ctx.task().with("num_inference_steps", 2);
        aws.send(&queue.url, &task.body()).await?;
        let complete = ctx.backend.end_of(task.id(), PATIENCE).await?;
        assert_eq!(complete.body["result_url"], format!("s3://{IMAGES}/{}", task.key()));
        assert!(ctx.etag(&task).await.is_some(), "no picture");
        assert!(worker.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn a_bad_value_is_refused_at_the_start_and_named() {
    case(|ctx| async move {
        for (variable, value, said) in [
            ("EASEL_RESULT_URLS", "presigned:0", "1 to 604800"),
            ("EASEL_RESULT_KEY", "pictures/{style_id}", "{generation_id}"),
            ("EASEL_RESULT_KEY", "{generation_id}/{date}", "{date}"),
            ("EASEL_RESULT_KMS_KEY", "my-key", "ARN"),
            ("EASEL_RESULT_STORAGE_CLASS", "GLACIER", "STANDARD_IA"),
            ("EASEL_RESULT_TAGS", "a", "k=v"),
            ("EASEL_RESULT_CACHE_CONTROL", "a\tb", "ASCII"),
        ] {
            let spec = Spec::new("private-bad", binary("handler")?).args(["function"]).envs(ctx.env("private-bad")?);
            let (code, text) = ctx.output(spec.env(variable, value)).await?;
            assert_eq!(code, 64, "{variable}: {text}");
            assert!(text.contains(variable) && text.contains(said), "{text}");
        }
        Ok(())
    });
}
