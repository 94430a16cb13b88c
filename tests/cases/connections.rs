//! TLS: which certificates the relay and the AWS clients trust. HTTP proxies: which connections use one.

use crate::context::{PATIENCE, TestContext, case, drained};
use anyhow::{Context, Result};
use axum::http::Method;
use e2e::{
    aws::PAYLOADS,
    aws_proxies::CountingProxy,
    broker::Broker,
    paths::binary,
    process::{Spec, output},
    tls::{Authority, TlsFront},
};

#[test]
fn both_sides_show_certificates_and_a_wrong_one_is_told() {
    case(|ctx| async move {
        let (name, stack) = ("tls", ctx.stack);
        let ours = Authority::new(&stack.run.folder("tls-authority")?)?;
        let other = Authority::new(&stack.run.folder("tls-other-authority")?)?;
        let (broker, port) = Broker::start_tls(&stack.run, "rabbitmq-tls", &ours).await?;
        let queue = ctx.queue(name).await?;
        let publisher = broker.publisher().await?;
        publisher.declare(name).await?;
        publisher.publish(name, b"{\"secret\":1}").await?;
        let url = format!("amqps://guest:guest@127.0.0.1:{port}/%2f");
        let (certificate, key) = ours.sign("relay")?;
        let text = |path: std::path::PathBuf| path.display().to_string();
        let (ca, wrong, certificate, key) = (text(ours.file()), text(other.file()), text(certificate), text(key));
        for (case, args, wanted) in [
            ("wrong-ca", vec!["--amqp-ca", &wrong, "--amqp-client-cert", &certificate, "--amqp-client-key", &key], 69),
            ("no-certificate", vec!["--amqp-ca", &ca], 69),
            ("no-key", vec!["--amqp-ca", &ca, "--amqp-client-cert", &certificate], 64),
            (
                "not-pem",
                vec!["--amqp-ca", &ca, "--amqp-client-cert", &certificate, "--amqp-client-key", "Cargo.toml"],
                64,
            ),
        ] {
            let spec = Spec::new(&format!("tls-{case}"), binary("relay")?).envs(stack.aws.env()).env("AMQP_URL", &url);
            let spec = spec.env("AMQP_QUEUE", name).env("SQS_QUEUE_URL", &queue.url).args(["--check"]).args(args);
            let (status, said) = output(&stack.run, spec, PATIENCE).await?;
            assert_eq!(status.code(), Some(wanted), "{case}: {said}");
            let named = if wanted == 64 { "--amqp-client-" } else { "FAIL amqp.connect 127.0.0.1:" };
            assert!(said.contains(named), "{case}: {said}");
        }
        let env = [
            ("AMQP_URL", url.as_str()),
            ("AMQP_CA", &ca),
            ("AMQP_CLIENT_CERT", &certificate),
            ("AMQP_CLIENT_KEY", &key),
        ];
        let relay = ctx.relay(name, &queue.url, &env).await?;
        stack.aws.has_depth(&queue.url, (1, 0), PATIENCE).await?;
        drained(&relay, &publisher).await?;
        Ok(())
    });
}

fn text(path: std::path::PathBuf) -> String {
    path.display().to_string()
}

/// Runs `relay --check`; its exit code and output.
async fn check(ctx: &TestContext, name: &str, queue: &str, env: &[(&str, &str)]) -> Result<(i32, String)> {
    let spec = Spec::new(&format!("connections-{name}"), binary("relay")?)
        .args(["--check", "--declare", "--payload-bucket", PAYLOADS])
        .envs(ctx.stack.aws.env())
        .env("AMQP_URL", ctx.stack.broker.url())
        .env("AMQP_QUEUE", "image_generation")
        .env("SQS_QUEUE_URL", queue)
        .envs(env.iter().copied());
    ctx.output(spec).await
}

#[test]
fn aws_clients_trust_the_bundle_that_is_named_and_nobody_else() {
    case(|ctx| async move {
        let stack = ctx.stack;
        let queue = ctx.queue("bundle").await?.url;
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
            let (ended, said) = check(&ctx, &format!("trust-{name}"), &queue, &[endpoint, trust]).await?;
            assert!(ended == code && said.contains(wanted), "{name}: {ended}: {said}");
        }
        let spec = Spec::new("connections-doctor", binary("handler")?)
            .args(["doctor"])
            .envs(ctx.env("connections")?)
            .envs([endpoint, ("AWS_CA_BUNDLE", &ours), ("SQS_QUEUE_URL", &queue), ("EASEL_DEVICE", "cpu")]);
        let (status, said) = output(&stack.run, spec, PATIENCE).await?;
        assert!(status.success() && said.contains("ok   s3.pictures") && said.contains("ok   sqs.queue"), "{said}");
        Ok(())
    });
}

#[test]
fn a_proxy_carries_what_goes_to_aws_and_no_webhook() {
    case(|ctx| async move {
        let stack = ctx.stack;
        let queue = ctx.queue("by-proxy").await?.url;
        let proxy = CountingProxy::start(stack.aws.endpoint(), 0).await?;
        let url = proxy.url();
        // Replaces the harness's NO_PROXY, which excludes loopback addresses.
        let by_proxy = [("HTTP_PROXY", url.as_str()), ("NO_PROXY", "")];
        let (code, said) = check(&ctx, "proxy", &queue, &by_proxy).await?;
        assert_eq!(code, 0, "{said}");
        let asked = proxy.count(&Method::HEAD, PAYLOADS) + proxy.count(&Method::HEAD, &format!("{PAYLOADS}/"));
        assert_eq!(asked, 1, "S3 was asked without the proxy");
        let spec = Spec::new("connections-proxy-doctor", binary("handler")?)
            .args(["doctor"])
            .envs(ctx.env("connections-proxy")?)
            .env("EASEL_DOCTOR_WEBHOOK_URL", format!("{}/webhooks", ctx.backend.url()))
            .envs([("SQS_QUEUE_URL", queue.as_str()), ("EASEL_DEVICE", "cpu")])
            .envs(by_proxy);
        let (status, said) = output(&stack.run, spec, PATIENCE).await?;
        assert!(status.success() && said.contains("ok   webhooks.backend"), "{said}");
        assert_eq!(proxy.count(&Method::PUT, ".easel-doctor"), 1, "S3 was asked without the proxy");
        assert_eq!(proxy.count(&Method::HEAD, "/webhooks"), 0, "a webhook went by the proxy");
        assert_eq!(ctx.backend.calls().len(), 1);
        Ok(())
    });
}
