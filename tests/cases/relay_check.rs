//! `relay --check`, and a start that the broker refuses: each says what is wrong and consumes nothing.

use crate::context::{PATIENCE, TestContext, case};
use anyhow::Result;
use e2e::{
    aws::PAYLOADS,
    paths::binary,
    ports,
    process::{Spec, output},
};
use std::net::TcpListener;

const USAGE: i32 = 64;
const UNAVAILABLE: i32 = 69;

/// Runs the relay to its end; its exit code and output.
pub(crate) async fn relay(
    ctx: &TestContext,
    name: &str,
    queue: &str,
    amqp: &str,
    sqs: &str,
    args: &[&str],
) -> Result<(i32, String)> {
    let health = format!("127.0.0.1:{}", ports::free()?);
    let spec = Spec::new(&format!("check-{name}"), binary("relay")?)
        .envs(ctx.stack.aws.env())
        .env("AMQP_URL", amqp)
        .env("AMQP_QUEUE", queue)
        .env("AMQP_CONNECT_TIMEOUT", "2")
        .env("RELAY_HEALTH_ADDR", health)
        .env("SQS_QUEUE_URL", sqs)
        .args(args);
    ctx.output(spec).await
}

#[test]
fn a_check_names_what_is_wrong_and_takes_nothing() {
    case(|ctx| async move {
        let (queue, stack) = ("check", ctx.stack);
        let good = ctx.queue(queue).await?.url;
        let broker = stack.broker.url();
        stack.publisher.declare(queue).await?;
        stack.publisher.publish(queue, b"{\"stays\":1}").await?;
        let (nobody, no_sqs) = (ports::free()?, format!("http://127.0.0.1:{}/q", ports::free()?));
        let down = format!("amqp://guest:hidden@127.0.0.1:{nobody}");
        let wrong_password = broker.replace(":guest@", ":hidden@");
        // lapin: waits for ever for a broker that accepts the connection and never answers.
        let listener = TcpListener::bind("127.0.0.1:0")?;
        let silent = format!("amqp://guest:hidden@{}", listener.local_addr()?);
        let gone = format!("{good}-gone");
        let cases: [(&str, &str, &str, &str, &str); 6] = [
            ("no-queue", "check-gone", &broker, &good, "FAIL amqp.queue check-gone: does not exist"),
            ("password", queue, &wrong_password, &good, "ACCESS_REFUSED"),
            ("broker-down", queue, &down, &good, "FAIL amqp.connect 127.0.0.1:"),
            ("broker-silent", queue, &silent, &good, "did not answer within 2s"),
            ("no-sqs-queue", queue, &broker, &gone, "FAIL sqs.queue "),
            ("sqs-down", queue, &broker, &no_sqs, "FAIL sqs.queue "),
        ];
        for (name, queue, amqp, sqs, wanted) in cases {
            let (code, text) = relay(&ctx, name, queue, amqp, sqs, &["--check"]).await?;
            assert!(code == UNAVAILABLE && text.contains(wanted), "{name}: {code}: {text}");
            assert!(!text.contains("hidden"), "{name}: {text}");
        }
        let (code, text) = relay(&ctx, "good", queue, &broker, &good, &["--check", "--declare"]).await?;
        assert!(code == 0 && text.contains("ok   amqp.queue check") && text.contains("ok   sqs.queue "), "{text}");
        for (name, bucket, wanted_code, wanted) in [
            ("bucket", PAYLOADS, 0, "ok   s3.payload-bucket stylelicense-payloads"),
            ("no-bucket", "not-a-bucket", UNAVAILABLE, "FAIL s3.payload-bucket not-a-bucket: does not exist"),
        ] {
            let args = ["--check", "--declare", "--payload-bucket", bucket];
            let (code, text) = relay(&ctx, name, queue, &broker, &good, &args).await?;
            assert!(code == wanted_code && text.contains(wanted), "{name}: {code}: {text}");
        }
        assert_eq!((stack.publisher.ready_count(queue).await?, stack.aws.depth(&good).await?), (1, (0, 0)));
        Ok(())
    });
}

#[test]
fn a_start_that_the_broker_refuses_ends_with_69_and_says_what_to_do() {
    case(|ctx| async move {
        let sqs = ctx.queue("refused-start").await?.url;
        let broker = ctx.stack.broker.url();
        for (name, amqp, wanted) in [
            ("start-no-queue", broker.clone(), "--declare"),
            ("start-password", broker.replace(":guest@", ":hidden@"), "--amqp-url"),
            ("start-vhost", broker.replace("%2f", "nowhere"), "--amqp-url"),
        ] {
            let (code, text) = relay(&ctx, name, "refused-gone", &amqp, &sqs, &[]).await?;
            assert!(code == UNAVAILABLE && text.contains(wanted), "{name}: {code}: {text}");
            assert!(!text.contains("hidden"), "{name}: {text}");
        }
        Ok(())
    });
}

#[test]
fn a_stream_is_refused_by_the_check_and_at_the_start() {
    case(|ctx| async move {
        let stack = ctx.stack;
        let (broker, sqs) = (stack.broker.url(), ctx.queue("stream").await?.url);
        let kinds = [("stream-none", "stream"), ("stream-not", "quorum"), ("stream-neither", "classic")];
        for (queue, kind) in kinds {
            stack.publisher.declare_with(queue, &[("x-queue-type", kind)]).await?;
            stack.publisher.publish(queue, b"{\"early\":1}").await?;
            let (code, text) = relay(&ctx, queue, queue, &broker, &sqs, &["--check", "--declare"]).await?;
            let wanted = match kind {
                "stream" => (UNAVAILABLE, "FAIL amqp.queue stream-none: queue \"stream-none\" is a stream: "),
                _ => (0, "ok   amqp.queue "),
            };
            assert!(code == wanted.0 && text.contains(wanted.1), "{kind}: {code}: {text}");
        }
        let (code, text) = relay(&ctx, "start-stream", "stream-none", &broker, &sqs, &["--declare"]).await?;
        assert!(
            code == UNAVAILABLE && text.contains("is a stream") && text.contains("x-stream-offset"),
            "{code}: {text}"
        );
        for (queue, _) in &kinds[1..] {
            assert_eq!(stack.publisher.ready_count(queue).await?, 1, "a check takes nothing: {queue}");
        }
        Ok(())
    });
}

#[test]
fn a_refusal_after_the_first_consume_is_tried_again() {
    case(|ctx| async move {
        let (name, stack) = ("refused-later", ctx.stack);
        let queue = ctx.queue(name).await?;
        stack.publisher.declare(name).await?;
        let env = [("RELAY_DECLARE", "false")];
        let relay = ctx.relay(name, &queue.url, &env).await?;
        stack.broker.control(&stack.run, &["delete_queue", name]).await?;
        let refused = async || {
            let log = relay.process.log_text();
            log.lines().any(|line| line.contains("does not exist") && line.contains("trying again"))
        };
        // `ready` also fails as soon as the process ends.
        relay.process.ready(PATIENCE, refused).await?;
        assert_eq!((relay.status("/healthz").await, relay.status("/readyz").await), (Some(200), Some(503)));
        stack.publisher.declare(name).await?;
        relay.ready().await?;
        stack.publisher.publish(name, b"{}").await?;
        stack.aws.has_depth(&queue.url, (1, 0), PATIENCE).await?;
        assert!(relay.process.terminate(PATIENCE).await?.success());
        Ok(())
    });
}

#[test]
fn an_endpoint_for_traces_that_is_no_url_ends_with_64_and_is_named() {
    case(|ctx| async move {
        let cases = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://user:hidden@host:port"),
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "hidden:4318"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "grpc://hidden:4317"),
        ];
        for (number, (variable, value)) in cases.into_iter().enumerate() {
            let spec = Spec::new(&format!("otlp-{number}"), binary("relay")?)
                .envs(ctx.stack.aws.env())
                .env("AMQP_URL", ctx.stack.broker.url())
                .env("SQS_QUEUE_URL", "http://127.0.0.1/q")
                .env(variable, value);
            let (status, text) = output(&ctx.stack.run, spec, PATIENCE).await?;
            assert_eq!(status.code(), Some(USAGE), "{text}");
            assert!(text.contains(variable) && !text.contains("hidden"), "{text}");
        }
        Ok(())
    });
}
