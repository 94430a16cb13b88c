//! Whom the clients of AWS trust, and which connections take a proxy.

use crate::scene::{PATIENCE, Scene, case, model};
use anyhow::{Context, Result};
use axum::http::Method;
use e2e::{
    aws::PAYLOADS,
    certificates::Authority,
    counting::Counting,
    paths::binary,
    process::{Spec, output},
    stack::function_env,
    tls::TlsFront,
};
use std::time::Duration;

const VISIBILITY: Duration = Duration::from_secs(600);

fn text(path: std::path::PathBuf) -> String {
    path.display().to_string()
}

/// Runs `relay --check`; its exit code and what it says.
async fn check(scene: &Scene, name: &str, queue: &str, env: &[(&str, &str)]) -> Result<(i32, String)> {
    let spec = Spec::new(&format!("connections-{name}"), binary("relay")?)
        .args(["--check", "--declare", "--payload-bucket", PAYLOADS])
        .envs(scene.stack.aws.env())
        .env("AMQP_URL", scene.stack.broker.url())
        .env("AMQP_QUEUE", "image_generation")
        .env("SQS_QUEUE_URL", queue)
        .envs(env.iter().copied());
    let (status, said) = output(&scene.stack.run, spec, PATIENCE).await?;
    Ok((status.code().unwrap_or(-1), said))
}

#[test]
fn aws_clients_trust_the_bundle_that_is_named_and_nobody_else() {
    case(|scene| async move {
        let stack = scene.stack;
        let queue = stack.aws.queue("bundle", VISIBILITY, 3).await?.url;
        let ours = Authority::new(&stack.run.folder("bundle-authority")?)?;
        let other = Authority::new(&stack.run.folder("bundle-other-authority")?)?;
        let (certificate, key) = ours.sign("aws")?;
        let target = stack.aws.endpoint().strip_prefix("http://").context("no http")?.parse()?;
        let front = TlsFront::start(target, &certificate, &key).await?;
        let url = front.url();
        let endpoint = ("AWS_ENDPOINT_URL", url.as_str());
        let (ours, other) = (text(ours.file()), text(other.file()));
        for (name, trust, code, wanted) in [
            ("unknown", ("AWS_CA_BUNDLE", ""), 69, "FAIL sqs.queue"),
            ("bundle", ("AWS_CA_BUNDLE", ours.as_str()), 0, "ok   s3.payload-bucket"),
            ("other", ("AWS_CA_BUNDLE", &other), 69, "FAIL sqs.queue"),
            ("system", ("SSL_CERT_FILE", &ours), 0, "ok   s3.payload-bucket"),
            ("nowhere", ("AWS_CA_BUNDLE", "/nowhere/ca.pem"), 64, "AWS_CA_BUNDLE: /nowhere/ca.pem: cannot be read"),
            (
                "no-certificate",
                ("AWS_CA_BUNDLE", "/dev/null"),
                64,
                "AWS_CA_BUNDLE: /dev/null: holds no PEM certificate",
            ),
        ] {
            let (ended, said) = check(&scene, &format!("trust-{name}"), &queue, &[endpoint, trust]).await?;
            assert!(ended == code && said.contains(wanted), "{name}: {ended}: {said}");
        }
        let spec = Spec::new("connections-doctor", binary("handler")?)
            .args(["doctor"])
            .envs(function_env(&stack.aws, &stack.run, "connections", &model())?)
            .envs([endpoint, ("AWS_CA_BUNDLE", &ours), ("SQS_QUEUE_URL", &queue), ("EASEL_DEVICE", "cpu")]);
        let (status, said) = output(&stack.run, spec, PATIENCE).await?;
        assert!(status.success() && said.contains("ok   s3.pictures") && said.contains("ok   sqs.queue"), "{said}");
        Ok(())
    });
}

#[test]
fn a_proxy_carries_what_goes_to_aws_and_no_webhook() {
    case(|scene| async move {
        let stack = scene.stack;
        let queue = stack.aws.queue("by-proxy", VISIBILITY, 3).await?.url;
        let proxy = Counting::start(stack.aws.endpoint(), 0).await?;
        let url = proxy.url();
        // In place of the harness' own, which leaves loopback addresses out.
        let by_proxy = [("HTTP_PROXY", url.as_str()), ("NO_PROXY", "")];
        let (code, said) = check(&scene, "proxy", &queue, &by_proxy).await?;
        assert_eq!(code, 0, "{said}");
        let asked = proxy.count(&Method::HEAD, PAYLOADS) + proxy.count(&Method::HEAD, &format!("{PAYLOADS}/"));
        assert_eq!(asked, 1, "S3 was asked without the proxy");
        let spec = Spec::new("connections-proxy-doctor", binary("handler")?)
            .args(["doctor"])
            .envs(function_env(&stack.aws, &stack.run, "connections-proxy", &model())?)
            .env("EASEL_DOCTOR_WEBHOOK_URL", format!("{}/webhooks", scene.backend.url()))
            .envs([("SQS_QUEUE_URL", queue.as_str()), ("EASEL_DEVICE", "cpu")])
            .envs(by_proxy);
        let (status, said) = output(&stack.run, spec, PATIENCE).await?;
        assert!(status.success() && said.contains("ok   webhooks.backend"), "{said}");
        assert_eq!(proxy.count(&Method::PUT, ".easel-doctor"), 1, "S3 was asked without the proxy");
        assert_eq!(proxy.count(&Method::HEAD, "/webhooks"), 0, "a webhook went by the proxy");
        assert_eq!(scene.backend.calls().len(), 1);
        Ok(())
    });
}
