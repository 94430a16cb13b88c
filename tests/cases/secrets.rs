//! Secrets are read from Secrets Manager by ARN, and no log shows them.

use crate::{
    context::{PATIENCE, case},
    doctor::doctor,
    happy::assert_headers,
    safety::{function, given_back},
    storage_faults::delivered,
    webhooks::signature_verdicts,
};
use anyhow::{Context, Result};
use e2e::{
    aws::{Aws, MODELS, PAYLOADS},
    aws_proxies::{RequestHead, StubProxy, s3_error, sqs_error},
    backend::{FAILED, PROGRESS},
    hub::{Behavior, Hub, REPO},
    paths::binary,
    process::{Spec, output},
    stack::TOKEN,
    wait,
};
use serde_json::{Value, json};

/// A token or key id that a service repeats in its errors.
const REPEATED: &str = "FwoGZXIvYXdzEAplanted";
const SECRET: &str = "whsec_c2lnbmVkLXdpdGgtdGhpcy1rZXktb25seQ==";

/// Stores a secret; gives its ARN.
pub(crate) async fn keep(aws: &Aws, name: &str, value: &str) -> Result<String> {
    // The stand-in finds the service by the credential scope and checks no signature.
    let scope = "AWS4-HMAC-SHA256 Credential=test/20260101/us-east-1/secretsmanager/aws4_request, SignedHeaders=host, Signature=0";
    let request = e2e::http_client()?.post(aws.endpoint()).header("authorization", scope);
    let request = request.header("x-amz-target", "secretsmanager.CreateSecret");
    let body = json!({ "Name": name, "SecretString": value, "ClientRequestToken": format!("{name:-<32}") });
    let request = request.header("content-type", "application/x-amz-json-1.1").body(body.to_string());
    let answer: Value = serde_json::from_str(&request.send().await?.error_for_status()?.text().await?)?;
    Ok(answer["ARN"].as_str().context("no ARN")?.to_string())
}

#[test]
fn secrets_are_read_by_arn() {
    case(|ctx| async move {
        let aws = &ctx.stack.aws;
        let token = keep(aws, "token", &json!({ "internal": TOKEN }).to_string()).await?;
        let secret = keep(aws, "signing", SECRET).await?;
        let token = format!("{token}#internal");
        let arns =
            [("INTERNAL_API_TOKEN", ""), ("INTERNAL_API_TOKEN_ARN", &token), ("EASEL_WEBHOOK_SECRET_ARN", &secret)];
        let function = function(&ctx, "function-arn", &arns).await?;
        assert!(!given_back(&function, &ctx.task().body()).await?);
        let calls = ctx.backend.calls();
        assert!(calls.iter().any(|call| call.path == PROGRESS), "{calls:?}");
        calls.iter().for_each(assert_headers);
        assert_eq!(signature_verdicts(&ctx, "arn", &calls, SECRET).await?, vec!["right"; calls.len()]);
        Ok(())
    });
}

#[test]
fn a_secret_that_cannot_be_had_stops_the_start_and_is_named() {
    case(|ctx| async move {
        let stack = ctx.stack;
        let plain = keep(&stack.aws, "plain", "not to be shown").await?;
        let (absent, keyed) = (format!("{plain}-absent"), format!("{plain}#key"));
        let cases = [(absent, "does not exist"), (keyed, "no JSON"), (plain, "the secret must be visible ASCII")];
        for (number, (arn, expected)) in cases.into_iter().enumerate() {
            let name = format!("no-secret-{number}");
            let mut env = ctx.env(&name)?;
            env.retain(|(key, _)| *key != "INTERNAL_API_TOKEN");
            let spec = Spec::new(&name, binary("handler")?).args(["worker", "--sqs-queue-url", "http://127.0.0.1:1/q"]);
            let spec = spec.envs(env).env("INTERNAL_API_TOKEN_ARN", arn);
            let (status, said) = output(&stack.run, spec, PATIENCE).await?;
            assert!(!status.success() && said.contains("INTERNAL_API_TOKEN_ARN"), "{said}");
            assert!(said.contains(expected) && !said.contains("not to be shown"), "{said}");
        }
        Ok(())
    });
}

/// Relay and handler log at level trace, with good tasks and bad ones.
#[test]
fn no_log_holds_a_secret_or_what_a_task_says() {
    case(|ctx| async move {
        let (name, stack) = ("quiet", ctx.stack);
        let talkative = [("RUST_LOG", "trace"), ("EASEL_WEBHOOK_SECRET", SECRET)];
        let function = function(&ctx, "function-quiet", &talkative).await?;
        let queue = stack.aws.queue(name, PATIENCE, 3).await?;
        let env = [("RUST_LOG", "trace")];
        let relay = ctx.relay(name, &queue.url, &env).await?;
        let task = || {
            let task = ctx.task().with("prompt_tags", json!(["zebrafinch", "quokkas"]));
            task.with("artist_name", "Wilhelmina Tester").with("negative_prompt", "aardvarks")
        };
        let many_tags = json!(["zebrafinch".repeat(2_000)]);
        let bodies = [
            task().body(),
            task().with("seed", "zebrafinch").body(),
            task().with("prompt_tags", many_tags).body(),
            task().with("lora_model_url", "s3://no-such-bucket/k").body(),
            task().with("webhook_url", "http://zebrafinch@127.0.0.1").body(),
            task().with("scheduler", "zebrafinch").with("output_format", "quokkas").body(),
            task().with("signature", json!({ "position": "zebrafinch" })).body(),
            "{\"prompt_tags\": [\"zebrafinch".to_string(),
        ];
        stack.publisher.publish_all(name, bodies.iter().map(String::as_bytes)).await?;
        stack.aws.has_depth(&queue.url, (bodies.len() as u32, 0), PATIENCE).await?;
        stack.publisher.publish(name, b"quokkas \x00").await?;
        let poison = format!("{name}.dead-letter");
        wait::until("poison", PATIENCE, async || (stack.publisher.ready_count(&poison).await.ok()? == 1).then_some(()))
            .await?;
        for body in stack.aws.empty(&queue.url).await? {
            given_back(&function, &body).await?;
        }
        assert!(relay.process.terminate(PATIENCE).await?.success());
        let logs = [relay.process.log_text(), function.process().log_text()];
        let key = SECRET.trim_start_matches("whsec_");
        for (log, sign_of_life) in logs.iter().zip(["INFO", "generation_id"]) {
            assert!(log.contains(sign_of_life), "{log}");
            let said = [TOKEN, key, "zebrafinch", "quokkas", "aardvarks", "Wilhelmina", "Bearer", "v1,"];
            // The beginnings of tasks and webhooks as they would stand inside a JSON string.
            let bodies = ["prompt_tags\\\"", "progress_percent\\\"", "result_url\\\"", "error_message\\\""];
            for word in said.into_iter().chain(bodies) {
                let line = log.lines().find(|line| line.contains(word));
                assert_eq!(line, None, "{word}");
            }
        }
        Ok(())
    });
}

fn is_claim(asked: &RequestHead<'_>) -> bool {
    asked.path.contains("/claims/")
}

fn is_picture(asked: &RequestHead<'_>) -> bool {
    asked.path.contains("/generations/")
}

fn is_lora(asked: &RequestHead<'_>) -> bool {
    asked.path.contains(MODELS)
}

#[test]
fn what_s3_and_sqs_repeat_in_their_errors_reaches_neither_log_nor_backend() {
    case(|ctx| async move {
        let (aws, run) = (&ctx.stack.aws, &ctx.stack.run);
        let queue = aws.queue("repeated", PATIENCE, 3).await?;
        let services = StubProxy::start(aws.endpoint()).await?;
        let url = services.url();
        let endpoint = [("AWS_ENDPOINT_URL", url.as_str()), ("RUST_LOG", "trace")];
        let function = function(&ctx, "function-repeated", &endpoint).await?;
        type Which = fn(&RequestHead<'_>) -> bool;
        let cases: [(&str, Which); 5] = [
            ("claim", is_claim),
            ("picture that stands", is_picture),
            ("LoRA", is_lora),
            ("LoRA's bytes", |asked| is_lora(asked) && *asked.method == "GET"),
            ("upload", |asked| is_picture(asked) && *asked.method == "PUT"),
        ];
        for (what, which) in cases {
            services.answer(move |asked| match asked.operation() {
                Some(_) => Some(sqs_error(403, "AccessDenied", REPEATED)),
                None => which(asked).then(|| s3_error(400, "ExpiredToken", REPEATED)),
            });
            // On the last receive the backend is notified.
            let task = ctx.task();
            assert!(delivered(&function, &task.body(), &queue.arn(), 3).await?, "{what}");
            let failed = ctx.backend.end_of(task.id(), PATIENCE).await?;
            let message = failed.error_message();
            assert!(failed.path == FAILED && message.contains("ExpiredToken"), "{what}: {}", failed.line());
            assert!(!failed.body.to_string().contains(REPEATED), "{what}: {message}");
        }
        services.answer(|asked| asked.path.contains(PAYLOADS).then(|| s3_error(403, "AccessDenied", REPEATED)));
        let place = json!({ "s3BucketName": PAYLOADS, "s3Key": "body" });
        let pointer = json!(["software.amazon.payloadoffloading.PayloadS3Pointer", place]).to_string();
        assert!(delivered(&function, &pointer, &queue.arn(), 1).await?);
        // A worker that cannot receive, and doctor, which uses all services.
        services.answer(|asked| {
            let is_sqs = asked.operation().is_some();
            Some(if is_sqs {
                sqs_error(403, "InvalidSecurity", REPEATED)
            } else {
                s3_error(403, "InvalidAccessKeyId", REPEATED)
            })
        });
        let spec = Spec::new("worker-repeated", binary("handler")?).args(["worker"]).env("SQS_QUEUE_URL", &queue.url);
        let env = ctx.env("worker-repeated")?;
        let worker = spec.envs(env).envs(endpoint).start(run)?;
        worker.logs("receive failed", PATIENCE).await?;
        assert!(worker.terminate(PATIENCE).await?.success());
        let (code, text) = doctor(&ctx, "repeated", &queue.url, &endpoint[..1]).await?;
        assert!(code == 1 && text.contains("InvalidAccessKeyId") && !text.contains(REPEATED), "{text}");
        for log in [function.process().log_text(), worker.log_text()] {
            assert_eq!(log.lines().find(|line| line.contains(REPEATED)), None);
        }
        assert!(function.process().log_text().contains("ExpiredToken (400)"));
        Ok(())
    });
}

#[test]
fn what_an_endpoint_of_credentials_says_reaches_no_log() {
    case(|ctx| async move {
        let (aws, run) = (&ctx.stack.aws, &ctx.stack.run);
        let endpoint = StubProxy::start(aws.endpoint()).await?;
        endpoint.answer(|_| Some(sqs_error(403, "AccessDeniedException", REPEATED)));
        let url = format!("{}/v1/credentials", endpoint.url());
        let mut env = ctx.env("worker-no-keys")?;
        env.retain(|(name, _)| !name.starts_with("AWS_ACCESS") && !name.starts_with("AWS_SECRET"));
        env.push(("AWS_CONTAINER_CREDENTIALS_FULL_URI", url));
        let spec = Spec::new("worker-no-keys", binary("handler")?).args(["worker"]).envs(env);
        let worker = spec.env("SQS_QUEUE_URL", "http://127.0.0.1:1/q").start(run)?;
        worker.logs("receive failed", PATIENCE).await?;
        assert!(worker.terminate(PATIENCE).await?.success());
        let log = worker.log_text();
        assert!(log.contains("no credentials"), "{log}");
        assert_eq!(log.lines().find(|line| line.contains(REPEATED)), None);
        Ok(())
    });
}

#[test]
fn what_a_hub_says_reaches_no_terminal() {
    case(|ctx| async move {
        let run = &ctx.stack.run;
        let hub = Hub::start([("model_index.json".to_string(), b"{}".to_vec())].into()).await?;
        for (number, (status, body)) in [
            (500, format!("{{\"error\": \"{REPEATED}\"}}")),
            (403, REPEATED.to_string()),
            (404, REPEATED.to_string()),
            (200, format!("{{\"sha\": [\"{REPEATED}\"]}}")),
            (200, format!("{{\"sha\": \"{REPEATED}\"}}")),
            (200, format!("\"{REPEATED}\"")),
        ]
        .into_iter()
        .enumerate()
        {
            hub.set_behavior(Behavior { answer: Some((status, body)), ..Behavior::default() });
            let name = format!("pull-repeated-{number}");
            let (endpoint, to) = (hub.url(), run.folder(&name)?.display().to_string());
            let pull = ["weights", "pull", "--repo", REPO, "--to", &to, "--endpoint", &endpoint];
            let (status, text) = output(run, Spec::new(&name, binary("handler")?).args(pull), PATIENCE).await?;
            assert!(!status.success() && text.contains("hub") && !text.contains(REPEATED), "{text}");
        }
        Ok(())
    });
}
