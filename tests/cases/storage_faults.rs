//! Errors of S3 that are temporary or concern a role or a region fail no task; an error of one file does.

use crate::{
    context::{PATIENCE, case, lora_file},
    doctor::doctor,
    safety::{function, given_back},
};
use anyhow::Result;
use e2e::{
    aws::{IMAGES, MODELS},
    aws_proxies::{StubProxy, s3_error},
    backend::FAILED,
    lambda::Function,
};
use serde_json::json;
use std::{fs, time::Duration};

/// Invokes a function with one message with this receive count; whether it is given back.
pub(crate) async fn delivered(function: &Function, body: &str, queue_arn: &str, receives: u32) -> Result<bool> {
    let event = json!({ "Records": [{
        "messageId": "m",
        "receiptHandle": "r",
        "eventSourceARN": queue_arn,
        "body": body,
        "attributes": { "ApproximateReceiveCount": receives.to_string() },
    }] });
    let answer = function.invoke(&event).await?;
    Ok(answer["batchItemFailures"].as_array().is_some_and(|failures| !failures.is_empty()))
}

#[test]
fn what_passes_or_concerns_all_fails_no_task_and_the_same_process_paints_it_then() {
    case(|ctx| async move {
        let s3 = StubProxy::start(ctx.stack.aws.endpoint()).await?;
        let function = function(&ctx, "function-refused", &[("AWS_ENDPOINT_URL_S3", s3.url().as_str())]).await?;
        let task = ctx.task();
        for (status, code) in [
            (400, "ExpiredToken"),
            (400, "KMS.DisabledException"),
            (403, "RequestTimeTooSkewed"),
            (403, "InvalidAccessKeyId"),
            (403, "AccessDenied"),
        ] {
            // All requests, then only those for the LoRA.
            for path in ["/", "/stylelicense-models/"] {
                s3.answer(move |asked| asked.path.starts_with(path).then(|| s3_error(status, code, "it")));
                assert!(given_back(&function, &task.body()).await?, "{code} {path}: the message is lost");
                assert_eq!(ctx.backend.calls(), [], "{code} {path}");
            }
        }
        s3.pass();
        assert!(!given_back(&function, &task.body()).await?);
        ctx.painting(&task).await?;
        // The bucket can be read, but not this file.
        ctx.stack.put_lora("models/denied.safetensors", fs::read(lora_file())?).await?;
        s3.answer(|asked| asked.path.ends_with("/denied.safetensors").then(|| s3_error(403, "AccessDenied", "it")));
        let denied = ctx.task().with("lora_model_url", format!("s3://{MODELS}/models/denied.safetensors"));
        assert!(!given_back(&function, &denied.body()).await?);
        let failed = ctx.backend.end_of(denied.id(), PATIENCE).await?;
        let message = failed.error_message();
        assert!(failed.path == FAILED && message.contains("`lora_model_url`"), "{}", failed.line());
        Ok(())
    });
}

#[test]
fn buckets_in_another_region_are_asked_there_and_doctor_says_so() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let s3 = StubProxy::start(aws.endpoint()).await?;
        s3.answer(|asked| {
            (!asked.is_signed_for("eu-central-1")).then(|| {
                // S3 answers HEAD without a body.
                let status = if *asked.method == "HEAD" { 400 } else { 301 };
                let mut answer = s3_error(status, "PermanentRedirect", "it");
                answer.headers_mut().insert("x-amz-bucket-region", "eu-central-1".parse().expect("a header"));
                answer
            })
        });
        // Pictures are read without a signature, directly from the stand-in.
        let pictures = format!("{}/{IMAGES}", aws.endpoint());
        let endpoint = [("AWS_ENDPOINT_URL_S3", s3.url()), ("EASEL_RESULT_BASE_URL", pictures)];
        let endpoint = endpoint.each_ref().map(|(name, url)| (*name, url.as_str()));
        let function = function(&ctx, "function-elsewhere", &endpoint).await?;
        let task = ctx.task();
        assert!(!given_back(&function, &task.body()).await?);
        ctx.painting(&task).await?;
        let queue = aws.queue("doctor-elsewhere", Duration::from_secs(900), 3).await?.url;
        aws.put(MODELS, "doctor.safetensors", fs::read(lora_file())?).await?;
        let (code, text) = doctor(&ctx, "elsewhere", &queue, &endpoint).await?;
        assert_eq!(code, 0, "{text}");
        for line in ["warn s3.pictures ", "warn s3.lora-bucket ", "warn s3.lora "] {
            let said = text.lines().find(|said| said.starts_with(line));
            assert!(
                said.is_some_and(|said| said.contains("lies in eu-central-1 and not in us-east-1")),
                "{line}:\n{text}"
            );
        }
        Ok(())
    });
}
