//! The relay and a broker that speaks TLS, with an authority of its own and certificates on both sides.

use crate::scene::{PATIENCE, case};
use e2e::{
    broker::Broker,
    certificates::Authority,
    line::Relay,
    paths::binary,
    process::{Spec, output},
};
use std::time::Duration;

#[test]
fn both_sides_show_certificates_and_a_wrong_one_is_told() {
    case(|scene| async move {
        let (name, stack) = ("tls", scene.stack);
        let ours = Authority::new(&stack.run.folder("tls-authority")?)?;
        let other = Authority::new(&stack.run.folder("tls-other-authority")?)?;
        let (broker, port) = Broker::start_tls(&stack.run, "rabbitmq-tls", &ours).await?;
        let queue = stack.aws.queue(name, Duration::from_secs(600), 3).await?;
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
        let env = [("AMQP_CA", ca.as_str()), ("AMQP_CLIENT_CERT", &certificate), ("AMQP_CLIENT_KEY", &key)];
        let relay = Relay::start_with(&stack.run, name, &url, &stack.aws, &queue.url, &env).await?;
        relay.ready().await?;
        stack.aws.has_depth(&queue.url, (1, 0), PATIENCE).await?;
        assert!(relay.process.terminate(PATIENCE).await?.success());
        assert_eq!(publisher.ready_count(name).await?, 0, "not acknowledged");
        Ok(())
    });
}
